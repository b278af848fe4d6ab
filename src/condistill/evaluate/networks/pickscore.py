"""PickScore (Kirstain et al., arXiv 2305.01569): a CLIP-H that was trained on people's choices between two images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from condistill.evaluate.metrics.metric import PICKSCORE
from condistill.evaluate.networks.network import Features, register_network
from condistill.evaluate.networks.text_image import TextImageNetwork


@register_network
class PickScoreNetwork(TextImageNetwork):
    """A CLIPModel; the score is its logit, the cosine times the learnt scale."""

    name = "pickscore"
    features = (PICKSCORE,)
    usual = "yuvalkirstain/PickScore_v1"
    serves = "PickScore"
    published = "model.safetensors of yuvalkirstain/PickScore_v1 on the hub"
    weights_bytes = 3_944_517_836

    def extract(self, images: NDArray[np.uint8], prompts: Sequence[str] | None) -> Features:
        """Return the score of every image for its prompt; nothing without prompts. See `Network.extract`."""
        if prompts is None:
            return {}
        cosines = self.towers.cosines(self.towers.embed_images(images), prompts)
        return self.finite({PICKSCORE: np.float32(self.towers.logit_scale) * cosines})
