"""PickScore (Kirstain et al., NeurIPS 2023, arXiv 2305.01569)."""

from __future__ import annotations

from condistill.evaluate.metrics.mean import FeatureMean
from condistill.evaluate.metrics.metric import PICKSCORE, Notation, register_metric


@register_metric
class PickScore(FeatureMean):
    """The mean score; a difference of d means that the better image is preferred with probability 1 / (1 + exp(-d))."""

    name = "pickscore"
    label = "PickScore"
    description = "preference of people for an image of the prompt, as a network predicts it"
    direction = "higher"
    needs = (PICKSCORE,)
    aspect = "text"
    notation = Notation(decimals=2)
