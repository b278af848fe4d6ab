from __future__ import annotations

from pathlib import Path

import torch
from resident import MIB, resident_growth
from safetensors.torch import load_file
from torch import nn

from condistill.profiling.memory import resident_bytes
from condistill.utils.tensor_file import write_tensors
from condistill.utils.weights import hold_weights


def test_the_pages_of_a_mapped_file_are_released(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a", {f"{i}.weight": torch.ones(512, 256, 4, 4) for i in range(6)})
    layers = nn.ModuleList(nn.Conv2d(256, 512, 4, bias=False, device="meta") for _ in range(6))
    before = resident_bytes()

    def load() -> None:
        layers.load_state_dict(load_file(tmp_path / "a"), assign=True)
        hold_weights(layers, channels_last=True)

    resident_growth(load)
    assert resident_bytes() - before < (48 + 12) * MIB
    assert all(layer.weight.is_contiguous(memory_format=torch.channels_last) for layer in layers)
    assert all(bool((layer.weight == 1).all()) for layer in layers)
    assert all(layer.weight.requires_grad for layer in layers)


def test_weights_that_two_layers_share_stay_shared() -> None:
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    hold_weights(nn.Sequential(first, second))
    assert second.weight is first.weight
