"""HPSv2 (Wu et al., arXiv 2306.09341): a CLIP-H that was trained on people's rankings of generated images.

It is published as a checkpoint of open_clip, `HPS_v2.1_compressed.pt`; a directory of transformers with the same
weights is read as well. Its own package needs an old transformers and cannot be installed with condistill.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from condistill.errors import CondistillError
from condistill.evaluate.metrics.metric import HPSV2
from condistill.evaluate.networks.files import Place, Published, find_place
from condistill.evaluate.networks.network import Features, LocatedNetwork, precision, register_network
from condistill.evaluate.networks.open_clip import config_of, to_transformers
from condistill.evaluate.networks.preprocess import Preprocessing
from condistill.evaluate.networks.pretrained import CONFIG_NAME, build_model
from condistill.evaluate.networks.text_image import TextImageNetwork, Towers, load_tokenizer
from condistill.evaluate.networks.weights import read_shapes, read_weights

_FILES = ("HPS_v2.1_compressed.safetensors", "HPS_v2.1_compressed.pt", "HPS_v2_compressed.pt")
"""Of the repository, the newest version first."""
_PIXELS = 224


_PREPROCESSING = Preprocessing(_PIXELS, "pad", _PIXELS)
"""That of HPSv2: the whole image, padded to a square."""


@register_network
class Hpsv2Network(TextImageNetwork):
    """A CLIPModel; the score is the cosine of the image's and the prompt's embedding."""

    name = "hpsv2"
    features = (HPSV2,)
    usual = "xswu/HPSv2"
    serves = "HPSv2"
    published = "HPS_v2.1_compressed.pt of xswu/HPSv2 on the hub"
    weights_bytes = 1_972_298_538

    @classmethod
    def locate(cls, source: str, *, download: bool = True) -> LocatedNetwork:
        """Find the checkpoint, or a directory of transformers; see `Network.locate`."""
        published = cls.describe()
        place, file = find_place(source, published, may_be_file=True)
        if file is None and CONFIG_NAME in place.names and not set(_FILES) & place.names:
            return super().locate(source, download=download)
        path, size = place.get(file or _checkpoint(place, published), download=download)
        weights = () if path is None else (path,)
        if path is not None:
            check_checkpoint(path, published.setting)
        return LocatedNetwork(cls.name, source, str(_PREPROCESSING), weights, download_bytes=size)

    @classmethod
    def load(cls, located: LocatedNetwork, device: torch.device) -> TextImageNetwork:
        """Load a CLIPModel of transformers with the tensors of the checkpoint; see `Network.load`."""
        if located.configs:
            return super().load(located, device)
        setting, file = cls.describe().setting, located.weights[0]
        config, state = to_transformers(read_weights(file, setting), f"{setting}: {file}")
        model = build_model("CLIPModel", config, state, f"{setting}: {file}", precision(device))
        return cls(located, Towers(model, load_tokenizer(None, setting), _PREPROCESSING, device))

    def extract(self, images: NDArray[np.uint8], prompts: Sequence[str] | None) -> Features:
        """Return the score of every image for its prompt; nothing without prompts. See `Network.extract`."""
        if prompts is None:
            return {}
        return self.finite({HPSV2: self.towers.cosines(self.towers.embed_images(images), prompts)})


def _checkpoint(place: Place, published: Published) -> str:
    """Return the newest version that a directory or repository has."""
    for name in _FILES:
        if name in place.names:
            return name
    raise published.error(f"{place.title} has neither {_FILES[1]} nor a {CONFIG_NAME} of transformers")


def check_checkpoint(file: Path, setting: str) -> None:
    """Check that a file is a whole checkpoint of a CLIP for the images of HPSv2.

    Raises:
        CondistillError: it is not.
    """
    config = config_of(read_shapes(file, setting), f"{setting}: {file}")
    if (pixels := config.vision_config.image_size) != _PIXELS:
        raise CondistillError(f"{setting}: {file} reads images of {pixels} px, and HPSv2 of {_PIXELS} px")
