"""Human preference score v2 (Wu et al., 2023, arXiv 2306.09341)."""

from __future__ import annotations

from condistill.evaluate.metrics.mean import FeatureMean
from condistill.evaluate.metrics.metric import HPSV2, Notation, register_metric


@register_metric
class HumanPreferenceScore(FeatureMean):
    """The mean score."""

    name = "hpsv2"
    label = "HPSv2"
    description = "preference of people for an image of the prompt, as a network predicts it"
    direction = "higher"
    needs = (HPSV2,)
    aspect = "text"
    notation = Notation(decimals=4)
