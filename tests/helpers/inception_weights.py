"""Random weights for torch-fidelity's Inception-v3, whose class has one size only (24 million parameters)."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torchvision_stand_in import torchvision_stand_in


def inception_state() -> dict[str, Tensor]:
    """Return weights under which features differ between images: variance is kept from layer to layer.

    The test is skipped where torch-fidelity is not installed.
    """
    if importlib.util.find_spec("torch_fidelity") is None:
        pytest.skip("torch-fidelity is not installed")
    with torchvision_stand_in():
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Empty(FeatureExtractorInceptionV3):
        def load_state_dict(self, *_: object, **__: object) -> None:  # type: ignore[override]
            """Keep no weights: the constructor insists on a file."""

    with torch.device("meta"), patch.object(torch, "load", lambda *_, **__: {}):
        shapes = {
            name: value.shape
            for name, value in Empty("x", ["2048"], feature_extractor_weights_path="").state_dict().items()
        }
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.zeros((), dtype=torch.long)
        elif len(shape) >= 2:
            fan_in = shape[1:].numel()
            state[name] = torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5
        else:
            state[name] = torch.ones(shape) if name.endswith(("running_var", "bn.weight")) else torch.zeros(shape)
    return state


def write_inception(file: Path) -> Path:
    """Write random weights to a safetensors or a torch file."""
    state = inception_state()
    if file.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(state, file)
    else:
        torch.save(state, file)
    return file
