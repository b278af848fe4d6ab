"""DINOv2 through transformers: FD-DINOv2 (Stein et al., arXiv 2306.04675), agreement with the teacher, diversity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from condistill.evaluate.metrics.metric import DINOV2
from condistill.evaluate.networks.files import Published, find_place
from condistill.evaluate.networks.network import Features, LocatedNetwork, Network, precision, register_network
from condistill.evaluate.networks.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from condistill.evaluate.networks.pretrained import fetch_configs, fetch_weights, load_model, model_type

_CLASSES = {"dinov2": "Dinov2Model", "dinov2_with_registers": "Dinov2WithRegistersModel"}
_PREPROCESSING = Preprocessing(224, "stretch", 224, mean=IMAGENET_MEAN, std=IMAGENET_STD)
"""That of FD-DINOv2: the whole image, and not its centre as for classification."""


@register_network
class Dinov2Network(Network):
    """A DINOv2 of transformers; the feature is its class token after the last norm."""

    name = "dinov2"
    features = (DINOV2,)
    usual = "facebook/dinov2-large"
    serves = "FD-DINOv2, agreement with the teacher, diversity"
    published = "model.safetensors of facebook/dinov2-large on the hub"
    weights_bytes = 1_217_000_000

    def __init__(self, located: LocatedNetwork, model: Any, device: torch.device) -> None:
        super().__init__(located)
        self._model, self._device = model, device

    @classmethod
    def locate(cls, source: str, *, download: bool = True) -> LocatedNetwork:
        """Find the directory of the model; see `Network.locate`."""
        published = cls._published()
        place, _ = find_place(source, published, may_be_file=False)
        directory, configs = fetch_configs(place, published)
        model_type(directory, _CLASSES, published)
        weights, size = fetch_weights(place, published, download=download)
        return LocatedNetwork(cls.name, source, str(_PREPROCESSING), weights, configs, size)

    @classmethod
    def load(cls, located: LocatedNetwork, device: torch.device) -> Dinov2Network:
        """Load the class of transformers; see `Network.load`."""
        published = cls._published()
        kind = model_type(located.configs[0].parent, _CLASSES, published)
        model = load_model(located, _CLASSES[kind], published.setting, dtype=precision(device))
        return cls(located, model.to(device), device)

    @classmethod
    def _published(cls) -> Published:
        return Published(f"evaluate.networks.{cls.name}", cls.published, cls.weights_bytes)

    @torch.inference_mode()
    def extract(self, images: NDArray[np.uint8], prompts: Sequence[str] | None) -> Features:  # noqa: ARG002
        """Return the class tokens; see `Network.extract`."""
        pixels = _PREPROCESSING(images).to(self._device, self._model.dtype)
        tokens = self._model(pixel_values=pixels).last_hidden_state
        return self.finite({DINOV2: tokens[:, 0].float().cpu().numpy()})
