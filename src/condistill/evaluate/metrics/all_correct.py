"""The share of images that show everything their prompts name."""

from __future__ import annotations

from condistill.evaluate.metrics.mean import ShareMetric
from condistill.evaluate.metrics.metric import ALL_CORRECT, register_metric


@register_metric
class AllCorrect(ShareMetric):
    """The share of images in which the classifier finds every attribute of the prompt."""

    name = ALL_CORRECT
    label = "Correct"
    description = "images with every attribute of the prompt correct"
    needs = (ALL_CORRECT,)
    aspect = "text"

    @classmethod
    def predicate(cls, value: float, prompts: str) -> str:
        return f"generates {cls.notation.text(value)} of {prompts} correctly"
