"""CLIP or SigLIP through transformers: CLIP score (Hessel et al., arXiv 2104.08718) and CMMD (arXiv 2401.09603).

The paper uses ViT-g/14, `laion/CLIP-ViT-g-14-laion2B-s12B-b42K`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from condistill.evaluate.metrics.metric import CLIP_IMAGE, CLIP_SCORE
from condistill.evaluate.networks.network import Features, register_network
from condistill.evaluate.networks.text_image import TextImageNetwork


@register_network
class ClipNetwork(TextImageNetwork):
    """A CLIPModel or a SiglipModel."""

    name = "clip"
    features = (CLIP_IMAGE, CLIP_SCORE)
    usual = "openai/clip-vit-large-patch14"
    serves = "CLIP score, CMMD"
    published = "model.safetensors of openai/clip-vit-large-patch14 on the hub"
    weights_bytes = 1_710_540_580
    kinds = ("clip", "siglip")

    def extract(self, images: NDArray[np.uint8], prompts: Sequence[str] | None) -> Features:
        """Return embeddings of norm 1, and their cosines with those of the prompts; see `Network.extract`."""
        embeddings = self.towers.embed_images(images)
        found: Features = {CLIP_IMAGE: embeddings.numpy()}
        if prompts is not None:
            found[CLIP_SCORE] = self.towers.cosines(embeddings, prompts)
        return self.finite(found)
