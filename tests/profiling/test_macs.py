from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from condistill.errors import CondistillError
from condistill.profiling.macs import macs
from condistill.utils.meta import parameters


@pytest.mark.slow
def test_stable_diffusion_has_the_published_size_and_cost(sd14):
    assert parameters(sd14) == 859_520_964
    # BK-SDM's 338.7 G leave out the products inside attention; per transformer they are 2 L (L + 77) C.
    sizes = [(64**2, 320, 5), (32**2, 640, 5), (16**2, 1280, 5), (8**2, 1280, 1)]
    attention = sum(count * 2 * length * (length + 77) * width for length, width, count in sizes)
    assert macs(sd14) == pytest.approx(338.7e9 + attention, rel=2e-3)


@pytest.mark.slow
def test_a_count_on_meta_equals_that_of_a_real_forward(tiny):
    denoiser = tiny()
    # torch does not count a CPU's own fused attention
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        denoiser(torch.zeros(1, 4, 8, 8), torch.tensor([1]), torch.zeros(1, 5, 16))
    assert macs(denoiser, text_length=5) == counter.get_total_flops() // 2
    assert macs(denoiser, size=(16, 8), text_length=5) > macs(denoiser, text_length=5)


@pytest.mark.slow
def test_a_denoiser_without_a_sample_size_needs_one(tiny):
    with pytest.raises(CondistillError, match="no sample_size"):
        macs(tiny(sample_size=None))


def test_conditions_other_than_text_are_refused(tiny):
    with pytest.raises(CondistillError, match="num_class_embeds=3"):
        macs(tiny(num_class_embeds=3))
