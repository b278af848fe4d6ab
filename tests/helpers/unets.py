"""Teachers small enough to build in every test."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:  # every test session loads this file, also where diffusers is not installed
    import torch
    from diffusers import UNet2DConditionModel

UNETS: dict[str, dict[str, Any]] = json.loads((Path(__file__).parents[1] / "data" / "unets.json").read_text("utf-8"))
"""Denoisers of full size, from their published hyper-parameters."""
TINY: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (16, 32, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 2,
    "cross_attention_dim": 16,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
}
SD2_LIKE: dict[str, Any] = {"use_linear_projection": True, "attention_head_dim": [2, 4, 4]}
FOUR_STAGES: dict[str, Any] = {
    "block_out_channels": (16, 24, 32, 40),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
SDXL_LIKE: dict[str, Any] = {
    **SD2_LIKE,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 3),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 10 + 6 * 4,
}
KINDS = {"sd1": {}, "sd2": SD2_LIKE, "four-stages": FOUR_STAGES, "sdxl": SDXL_LIKE}


@pytest.fixture
def tiny() -> Callable[..., UNet2DConditionModel]:
    """Build a tiny denoiser; keyword arguments override its config."""
    import torch
    from diffusers import UNet2DConditionModel

    def build(**overrides: Any) -> UNet2DConditionModel:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return UNet2DConditionModel(**(TINY | overrides)).eval()

    return build


@pytest.fixture(params=KINDS)
def teacher(request: pytest.FixtureRequest, tiny: Callable[..., UNet2DConditionModel]) -> UNet2DConditionModel:
    """One of each kind of teacher."""
    return tiny(**KINDS[request.param])


@pytest.fixture(scope="session")
def full_size() -> Callable[[str], UNet2DConditionModel]:
    """A denoiser of full size by name, shapes only."""
    import torch
    from diffusers import UNet2DConditionModel

    def build(name: str) -> UNet2DConditionModel:
        with torch.device("meta"):
            return UNet2DConditionModel(**UNETS[name])

    return build


@pytest.fixture
def sd14(full_size: Callable[[str], UNet2DConditionModel]) -> UNet2DConditionModel:
    """Stable Diffusion 1.4's denoiser, shapes only."""
    return full_size("SD-1.4")


@pytest.fixture
def run() -> Callable[..., torch.Tensor]:
    """The prediction `[2, 4, 8, 8]` for fixed inputs."""
    import torch

    def predict(denoiser: UNet2DConditionModel, timestep: int = 500) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        dtype = denoiser.dtype
        latents = torch.randn(2, 4, 8, 8, generator=generator).to(dtype)
        text = torch.randn(2, 5, 16, generator=generator).to(dtype)
        beside = {}
        if denoiser.config.addition_embed_type:
            sizes = torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2).to(dtype)
            beside = {"text_embeds": torch.randn(2, 10, generator=generator).to(dtype), "time_ids": sizes}
        with torch.no_grad():
            sample: torch.Tensor = denoiser.eval()(latents, timestep, text, added_cond_kwargs=beside).sample
        return sample

    return predict
