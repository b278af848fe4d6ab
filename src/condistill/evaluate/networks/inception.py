"""Inception-v3 as torch-fidelity ports it from the first FID code: FID, KID, Inception score, precision, recall.

The network, its resizing to 299 px and its features are those of torch-fidelity, so figures equal published ones. It
computes in float32 on every device: covariances of 2,048 features are sensitive to rounding.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from condistill.errors import CondistillError
from condistill.evaluate.metrics.metric import INCEPTION, INCEPTION_LOGITS
from condistill.evaluate.networks.files import Place, Published, find_place
from condistill.evaluate.networks.network import Features, LocatedNetwork, Network, register_network
from condistill.evaluate.networks.weights import read_shapes, read_weights
from condistill.utils.hashing import hash_file
from condistill.utils.text import first_line

RELEASE = "torch-fidelity"
"""The source that stands for the file of torch-fidelity's release, in the cache where torch-fidelity puts it."""
FILE_NAME = "weights-inception-2015-12-05-6726825d.pth"
_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE_NAME}"
_HASH = "6726825d"
"""The first digits of the SHA-256 of the published file, which are a part of its name."""
_SHAPES = {"Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3), "fc.weight": (1008, 2048), "fc.bias": (1008,)}
"""Some tensors; Inception-v3 of torchvision has 1,000 classes."""
_LAYERS = {INCEPTION: "2048", INCEPTION_LOGITS: "logits_unbiased"}


@register_network
class InceptionNetwork(Network):
    """torch-fidelity's `FeatureExtractorInceptionV3`."""

    name = "inception"
    features = (INCEPTION, INCEPTION_LOGITS)
    usual = RELEASE
    serves = "FID, KID, Inception score, precision, recall, density, coverage"
    published = f"{FILE_NAME} of torch-fidelity's release v0.2.0 ({_URL})"
    weights_bytes = 95_628_359

    def __init__(self, located: LocatedNetwork, model: Any, device: torch.device) -> None:
        super().__init__(located)
        self._model, self._device = model, device

    @classmethod
    def locate(cls, source: str, *, download: bool = True) -> LocatedNetwork:
        """Find the file of the weights; `torch-fidelity` is the file of its release. See `Network.locate`."""
        extractor_class()
        published = Published(f"evaluate.networks.{cls.name}", cls.published, cls.weights_bytes)
        file, size = (
            _released(published, download=download)
            if source == RELEASE and not Path(source).exists()
            else _given(source, published, download=download)
        )
        if file is not None and f"-{_HASH}." in file.name and not hash_file(file).startswith(_HASH):
            raise published.error(
                f"{file} is damaged: its SHA-256 does not start with {_HASH}, as its name says; download it again"
            )
        if file is not None:
            _check_shapes(file, published)
        weights = () if file is None else (file,)
        return LocatedNetwork(cls.name, source, "bilinear to 299 px as in TensorFlow 1", weights, download_bytes=size)

    @classmethod
    def load(cls, located: LocatedNetwork, device: torch.device) -> InceptionNetwork:
        """Load torch-fidelity's class in float32; see `Network.load`."""
        setting, file = f"evaluate.networks.{cls.name}", located.weights[0]
        state = read_weights(file, setting)
        with tempfile.TemporaryDirectory(prefix="condistill-") as folder:
            # the class reads a file and would run code in it, so it gets one that holds the tensors only
            copy = Path(folder) / "weights.pth"
            torch.save(state, copy)
            try:
                model = extractor_class()(
                    "inception-v3-compat", list(_LAYERS.values()), feature_extractor_weights_path=str(copy)
                )
            except RuntimeError as error:
                raise CondistillError(
                    f"{setting}: {file} does not fit Inception-v3 of torch-fidelity ({first_line(error)}); the usual "
                    f"weights are {cls.published}"
                ) from error
        return cls(located, model.to(device), device)

    @torch.inference_mode()
    def extract(self, images: NDArray[np.uint8], prompts: Sequence[str] | None) -> Features:  # noqa: ARG002
        """Return the pooled features and the logits without their bias; see `Network.extract`."""
        pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(self._device)
        found = self._model(pixels)
        return self.finite({name: rows.cpu().numpy() for name, rows in zip(_LAYERS, found, strict=True)})


def extractor_class() -> Any:
    """Return torch-fidelity's class.

    Raises:
        CondistillError: torch-fidelity, or torchvision which it needs, cannot be imported.
    """
    try:
        module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    except Exception as error:  # torchvision of another build than torch raises RuntimeError and others
        raise CondistillError(
            f"evaluate.networks.inception needs torch-fidelity, which cannot be imported: {first_line(error)}; "
            "pip install 'condistill[eval]', with a torchvision made for your torch"
        ) from error
    return module.FeatureExtractorInceptionV3


def _check_shapes(file: Path, published: Published) -> None:
    """Check that a file has weights of this network."""
    shapes = read_shapes(file, published.setting)
    if wrong := next((name for name, shape in _SHAPES.items() if shapes.get(name) != shape), None):
        raise published.error(
            f"{file} has no {wrong} {list(_SHAPES[wrong])}, so it is no Inception-v3 of torch-fidelity"
        )


def _given(source: str, published: Published, *, download: bool) -> tuple[Path | None, int]:
    """Return the file that a source names, and the bytes to download; see `Place.get`."""
    place, name = find_place(source, published, may_be_file=True)
    return place.get(name or _only_file(place, published), download=download)


def _only_file(place: Place, published: Published) -> str:
    """Return the file of a directory that has the published name, with any ending that can be read."""
    stem = FILE_NAME.removesuffix(".pth")
    for name in (f"{stem}.safetensors", FILE_NAME, f"pt_{FILE_NAME.removeprefix('weights-')}"):
        if name in place.names:
            return name
    raise published.error(f"{place.title} has no {FILE_NAME}; give the file itself")


def _released(published: Published, *, download: bool) -> tuple[Path | None, int]:
    """Return the file of torch-fidelity's release in the cache of torch, and the bytes to download."""
    from huggingface_hub import constants
    from torch.hub import download_url_to_file, get_dir

    file = Path(get_dir()) / "checkpoints" / FILE_NAME
    if file.is_file():
        return file, 0
    if not download and not constants.HF_HUB_OFFLINE:
        return None, published.size
    try:
        if constants.HF_HUB_OFFLINE:
            raise OSError("HF_HUB_OFFLINE is set")
        file.parent.mkdir(parents=True, exist_ok=True)
        download_url_to_file(_URL, str(file), hash_prefix=_HASH, progress=False)
    except Exception as error:  # of the disk, the network, or a wrong checksum
        raise published.error(
            f"{file} does not exist and cannot be downloaded ({first_line(error)}); download it elsewhere and give "
            "its path"
        ) from error
    return file, 0
