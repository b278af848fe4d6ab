from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from tiny import DEV_SCHEDULE

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "onnx_runner.py"
LATENTS = {"height": 16, "width": 24, "multiple": 2}


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    pytest.importorskip("tokenizers")
    return runpy.run_path(str(EXAMPLE))


def test_the_example_is_short_and_needs_no_torch() -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 170
    assert "import torch" not in text
    assert "condistill." not in text


@pytest.mark.parametrize("steps", [1, 7, 20, 25, 30])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_its_steps_of_diffusion_are_those_of_ddim(example: dict[str, Any], steps: int, zero_snr: bool) -> None:
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "set_alpha_to_one": False}
    solver = DDIMScheduler(**betas, timestep_spacing="trailing", rescale_betas_zero_snr=zero_snr, clip_sample=False)
    solver.set_timesteps(steps)
    timesteps, a, s = example["schedule"](json.loads(solver.to_json_string()), {"latents": LATENTS}, steps)
    assert timesteps.tolist() == solver.timesteps.tolist()[:steps]
    alphas = [solver.alphas_cumprod[t] for t in timesteps]
    # float32 betas in diffusers, float64 ones here
    assert np.allclose(a[:-1] ** 2, np.array(alphas), rtol=1e-3, atol=1e-7)
    assert np.allclose(a**2 + s**2, 1)
    assert a[-1] ** 2 == pytest.approx(float(solver.final_alpha_cumprod), rel=1e-5)


@pytest.mark.parametrize("settings", [{"shift": 3.0}, {"shift": 1.0}, DEV_SCHEDULE])
@pytest.mark.parametrize("uniform", [False, True])
@pytest.mark.parametrize("steps", [4, 28])
def test_its_steps_of_flow_matching_are_those_of_diffusers(
    example: dict[str, Any], settings: dict[str, Any], uniform: bool, steps: int
) -> None:
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    solver = FlowMatchEulerDiscreteScheduler(**settings)
    config = solver.config
    mu = None
    if config.use_dynamic_shifting:
        lengths = config.base_image_seq_len, config.max_image_seq_len
        mu = calculate_shift(16 * 24 / 4, *lengths, config.base_shift, config.max_shift)
    if uniform:
        solver.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    else:
        solver.set_timesteps(steps, mu=mu)
    timesteps, a, s = example["schedule"](
        json.loads(solver.to_json_string()), {"latents": LATENTS, "uniform_sigmas": uniform}, steps
    )
    assert np.allclose(timesteps, solver.timesteps.numpy(), rtol=1e-5)
    assert np.allclose(s, solver.sigmas.numpy(), rtol=1e-5)
    assert np.allclose(a, 1 - s)
    assert timesteps.dtype == torch.zeros(1).numpy().dtype
