from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from condistill.config.sections import StudentSettings
from condistill.export.lora.reindex import cut, reindex, removed_parts, squared_norm
from condistill.students.derive import derive_student
from condistill.students.layer_map import take
from condistill.teachers.lora import LoraLayer, fused

RANK = 3


def whole_numbers(*shape: int) -> Tensor:
    """Return small whole numbers: their products and sums are exact in float32, in any order."""
    return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(sum(shape))).float()


def lora_of(denoiser: nn.Module) -> list[LoraLayer]:
    """Return a LoRA of every layer that can have one, with an alpha of twice its rank."""
    layers = []
    for name, module in denoiser.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            weight = module.weight
            down = whole_numbers(RANK, *weight.shape[1:])
            up = whole_numbers(weight.shape[0], RANK, *[1] * (weight.dim() - 2))
            layers.append(LoraLayer("unet", name, down, up, 2.0))
    return layers


@pytest.mark.slow
@pytest.mark.parametrize(
    ("teacher", "settings"),
    [
        ("sd1", {"width": 0.5}),
        ("sd2", {"preset": "b-base", "width": 0.5}),
        ("four-stages", {"preset": "b-tiny", "width": (8, 12, 16)}),
        (
            "sdxl",
            {
                "width": 0.75,
                "keep": {"mid_block.transformer_blocks": [0, 2], "down_blocks.2.transformer_blocks": [0, 2]},
            },
        ),
    ],
    indirect=["teacher"],
)
def test_what_is_added_to_a_student_is_the_same_cut_of_what_is_added_to_its_teacher(
    teacher: Any, settings: Any
) -> None:
    # of convolutions, heads, gates, joined skips and time projections alike
    layers = lora_of(teacher)
    student = derive_student(teacher, StudentSettings(**settings))
    assert student.layers is not None
    found = reindex(layers, student.layers, "unet")
    of_teacher = {layer.module: layer for layer in layers}
    assert len(found.layers) + sum(found.dropped.values()) == len(layers)
    sources = {name.removesuffix(".weight"): source for name, source in student.layers.items()}
    weights, given = student.denoiser.state_dict(), teacher.state_dict()
    for layer in found.layers:
        source = sources[layer.module]
        added = of_teacher[source.name.removesuffix(".weight")].delta(given[source.name].shape)
        assert layer.fits(weights[f"{layer.module}.weight"].shape)
        assert torch.equal(layer.delta(weights[f"{layer.module}.weight"].shape), take(added, source.selection))
    # no layer of the student that could have it is forgotten; a new shortcut is the only one that has none
    changed = {layer.module for layer in found.layers}
    forgotten = [
        name
        for name, module in student.denoiser.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and name not in changed
    ]
    assert all(name.endswith("conv_shortcut") for name in forgotten)


@pytest.mark.parametrize("rank_comes_from", ["linear", "convolution"])
def test_rows_of_b_and_columns_of_a_are_kept(rank_comes_from: str) -> None:
    kernel = (3, 3) if rank_comes_from == "convolution" else ()
    layer = LoraLayer("unet", "a", whole_numbers(2, 6, *kernel), whole_numbers(4, 2, *[1] * len(kernel)), 0.5)
    rows, columns = torch.tensor([3, 0]), torch.tensor([5, 1, 2])
    shape = torch.Size([4, 6, *kernel])
    expected = take(layer.delta(shape), (rows, columns))
    assert torch.equal(cut(layer, (rows, columns)).delta(expected.shape), expected)
    assert torch.equal(cut(layer, (None, columns)).delta(torch.Size([4, 3, *kernel])), layer.delta(shape)[:, columns])
    assert cut(layer, ()).delta(shape).equal(layer.delta(shape))
    assert (cut(layer, (rows, None)).factor, len(cut(layer, (rows, None)).down)) == (0.5, 2)


def test_the_norm_of_a_layer_is_that_of_what_it_adds() -> None:
    layer = LoraLayer("unet", "a", torch.randn(2, 5, 3, 3), torch.randn(4, 2, 1, 1), -0.7)
    assert squared_norm(layer) == pytest.approx(float(layer.delta(torch.Size([4, 5, 3, 3])).square().sum()), rel=1e-5)


def test_dropped_layers_are_counted_by_the_outermost_part_that_was_removed() -> None:
    kept = ["down_blocks.0.resnets.0.conv1.weight", "down_blocks.0.attentions.0.proj_in.weight"]
    modules = [
        "mid_block.attentions.0.proj_in",
        "mid_block.resnets.1.conv1",
        "down_blocks.0.resnets.1.conv1",
        "down_blocks.1.resnets.0.conv1",
        "down_blocks.0.resnets.0.conv_shortcut",
    ]
    assert removed_parts(modules, kept) == {
        "mid_block": 2,
        "down_blocks.0.resnets.1": 1,
        "down_blocks.1": 1,
        "down_blocks.0.resnets.0.conv_shortcut": 1,
    }


def test_layers_of_the_text_encoder_stay_as_they_are() -> None:
    layer = LoraLayer("text_encoder", "q_proj", whole_numbers(2, 4), whole_numbers(4, 2), 1.0)
    found = reindex([layer], {}, "unet")
    assert found.layers == (layer,)
    assert (found.dropped, found.norm_kept) == ({}, None)


def test_a_lora_that_was_added_for_a_while_leaves_no_trace() -> None:
    model = nn.ModuleDict({"a": nn.Linear(3, 2)}).half()
    before = model["a"].weight.clone()
    layer = LoraLayer("unet", "a", torch.randn(1, 3), torch.randn(2, 1), 1.0)
    with fused([layer, replace(layer, factor=0.3)], {"unet": model}):
        assert not torch.equal(model["a"].weight, before)
    assert torch.equal(model["a"].weight, before)
