from __future__ import annotations

import torch
from diffusers.training_utils import EMAModel

from condistill.distill.update import add_to_average


def test_the_average_of_the_weights_is_that_of_diffusers() -> None:
    denoiser = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Linear(5, 2))
    own, expected = (EMAModel(denoiser.parameters(), decay=0.9, foreach=True) for _ in range(2))
    for step in range(20):
        with torch.no_grad():
            for parameter in denoiser.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step)))
        add_to_average(own, denoiser)
        expected.step(denoiser.parameters())
        assert own.optimization_step == expected.optimization_step
        assert own.cur_decay_value == expected.cur_decay_value
        for one, other in zip(own.shadow_params, expected.shadow_params, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
