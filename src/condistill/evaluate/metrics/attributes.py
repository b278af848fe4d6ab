"""The share of images that show one attribute as their prompts name it; one metric per attribute of the miniature."""

from __future__ import annotations

from condistill.evaluate.metrics.mean import ShareMetric
from condistill.evaluate.metrics.metric import register_metric
from condistill.miniature.world import ATTRIBUTES


def attribute_metric(attribute: str) -> type[ShareMetric]:
    """Return the metric of one attribute of the classifier."""

    class AttributeCorrect(ShareMetric):
        name = attribute
        label = attribute.capitalize()
        description = f"images with the {attribute} of the prompt correct"
        needs = (attribute,)
        is_detail = True
        aspect = "text"

    return AttributeCorrect


for _attribute in ATTRIBUTES:
    register_metric(attribute_metric(_attribute))
