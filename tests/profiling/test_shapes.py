from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from condistill.profiling.shapes import ShapesOnly, example_inputs


def on_meta(*shape: int) -> torch.Tensor:
    return torch.empty(*shape, device="meta")


PRODUCTS = {
    "linear": lambda: F.linear(on_meta(2, 5, 8), on_meta(3, 8), on_meta(3)),
    "convolution": lambda: F.conv2d(on_meta(2, 4, 9, 9), on_meta(6, 4, 3, 3), stride=2),
    "grouped convolution": lambda: F.conv2d(on_meta(2, 4, 9, 9), on_meta(8, 1, 3, 3), groups=4),
    "attention": lambda: F.scaled_dot_product_attention(on_meta(2, 3, 5, 8), on_meta(2, 3, 7, 8), on_meta(2, 3, 7, 8)),
    "matrices": lambda: on_meta(2, 5, 8) @ on_meta(2, 8, 3),
    "batches of matrices": lambda: torch.bmm(on_meta(2, 5, 8), on_meta(2, 8, 3)),
    "einsum": lambda: torch.einsum("bij,bjk->bik", on_meta(2, 5, 8), on_meta(2, 8, 3)),
    "sum of products": lambda: torch.baddbmm(on_meta(2, 5, 3), on_meta(2, 5, 8), on_meta(2, 8, 3)),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_has_the_shape_and_the_macs_that_torch_counts(name: str) -> None:
    with FlopCounterMode(display=False) as oracle:
        expected = PRODUCTS[name]()
    with ShapesOnly() as counted:
        shape = PRODUCTS[name]().shape
    assert shape == expected.shape
    assert counted.macs == oracle.get_total_flops() // 2 > 0
    assert counted.convolutions == (counted.macs if "convolution" in name else 0)


def test_broadcast_shapes_are_computed() -> None:
    with ShapesOnly():
        assert (on_meta(1, 4) + on_meta(3, 1)).shape == (3, 4)
        assert (on_meta(3, 4) * 2).shape == (3, 4)


@pytest.mark.slow
def test_a_whole_denoiser_has_the_macs_that_torch_counts(teacher) -> None:
    teacher = teacher.to("meta")
    inputs = example_inputs(teacher, text_length=5)
    with torch.no_grad(), FlopCounterMode(display=False) as oracle:
        teacher(**inputs)
    with torch.no_grad(), ShapesOnly() as counted:
        prediction = teacher(**inputs).sample
    assert counted.macs == oracle.get_total_flops() // 2
    assert prediction.shape == (1, 4, 8, 8)
