"""Feature networks in half precision on a GPU give nearly the features of float32 on a CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_networks import write_clip, write_dinov2, write_siglip

from condistill.evaluate.networks import NETWORKS

WRITERS = {"dinov2": write_dinov2, "clip": write_clip, "pickscore": write_clip, "hpsv2": write_clip}


@pytest.mark.parametrize("name", [*WRITERS, "siglip"])
def test_features_on_a_gpu_equal_those_on_a_cpu(name: str, tmp_path: Path, device: torch.device) -> None:
    path = write_siglip(tmp_path / "model") if name == "siglip" else WRITERS[name](tmp_path / "model")
    located = NETWORKS["clip" if name == "siglip" else name].locate(str(path))
    images = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), np.uint8)
    prompts = ["a red dog", "a cat", "dog on grass"]
    on_cpu, on_gpu = (located.load(each).extract(images, prompts) for each in (torch.device("cpu"), device))
    for feature, expected in on_cpu.items():
        assert on_gpu[feature].dtype == np.float32
        scale = np.abs(expected).max()
        np.testing.assert_allclose(on_gpu[feature], expected, atol=0.02 * scale)
