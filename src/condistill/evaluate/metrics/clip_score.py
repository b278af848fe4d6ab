"""CLIP score (Hessel et al., EMNLP 2021, arXiv 2104.08718), as the plain cosine."""

from __future__ import annotations

from condistill.evaluate.metrics.mean import FeatureMean
from condistill.evaluate.metrics.metric import CLIP_SCORE, Notation, register_metric


@register_metric
class ClipScore(FeatureMean):
    """The mean cosine of image and prompt, as the paper of the method has it: not times 2.5 or 100, nor cut at 0."""

    name = "clip_score"
    label = "CLIP score"
    description = "agreement of images and prompts, as the cosine of their CLIP embeddings"
    direction = "higher"
    needs = (CLIP_SCORE,)
    aspect = "text"
    notation = Notation(decimals=4)
