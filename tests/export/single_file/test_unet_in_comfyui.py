"""What the check says about U-Nets is what ComfyUI's own code does; skipped where ComfyUI is not installed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui import ComfyUI
from comfyui import comfyui as find_comfyui
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from unets import UNETS

from condistill.config.sections import StudentSettings
from condistill.export import Shape
from condistill.export.single_file.unet import unet_tensors
from condistill.export.single_file.unet_comfyui import check_comfyui
from condistill.export.single_file.unet_names import PREFIX
from condistill.students.derive import student_shapes
from condistill.utils.meta import build_on_meta, plain_config

pytestmark = pytest.mark.slow
LOADED: dict[str, list[Mapping[str, Any] | None]] = {
    "SD-1.4": [
        None,
        {"preset": "b-base"},
        {"preset": "b-small"},
        {"preset": "b-tiny"},
        {"keep": {"down_blocks.0": [0], "up_blocks.3": [0, 2]}},
    ],
    "SD-2.1": [None, {"preset": "b-base"}, {"preset": "b-small"}, {"preset": "b-tiny"}],
    "SDXL": [
        None,
        {"preset": "koala-700m"},
        {"preset": "koala-1b"},
        {"keep": {"mid_block": []}},
        {"keep": {"up_blocks.0.transformer_blocks": [0, 1, 2]}},
    ],
}
REFUSED: dict[str, list[Mapping[str, Any]]] = {
    "SD-1.4": [{"preset": "c-base"}, {"width": 0.9}, {"width": [320, 640, 960, 1248]}],
    "SD-2.1": [{"width": 0.9}],
    "SDXL": [
        {"preset": "b-base"},
        {"preset": "b-small"},
        {"preset": "b-tiny"},
        {"preset": "c-base"},
        {"keep": {"down_blocks.2.transformer_blocks": [0, 1, 2], "mid_block.transformer_blocks": [0, 1, 2]}},
    ],
}
CONFIGS: list[tuple[dict[str, Any], bool]] = [
    ({"in_channels": 9}, True),
    ({"in_channels": 9, "layers_per_block": 1}, True),
    ({"block_out_channels": [320, 640], "layers_per_block": 1, "down_block_types": ["CrossAttnDownBlock2D"] * 2,
      "up_block_types": ["CrossAttnUpBlock2D"] * 2}, True),
    ({"mid_block_type": "UNetMidBlock2D"}, True),
    ({"transformer_layers_per_block": [1, 2, 3, 1]}, True),
    ({"cross_attention_dim": 1024}, False),
    ({"use_linear_projection": True}, False),
    ({"time_embedding_dim": 640}, False),
    ({"block_out_channels": [320, 480, 640, 640]}, False),
    ({"down_block_types": ["DownBlock2D"] * 4}, False),
]  # fmt: skip
"""Changes of Stable Diffusion 1.4, and whether ComfyUI loads what they make."""


@pytest.fixture(name="comfyui", scope="module")
def _comfyui() -> ComfyUI:
    return find_comfyui()


@cache
def _teacher(name: str) -> UNet2DConditionModel:
    unet = build_on_meta(UNet2DConditionModel, UNETS[name])
    assert isinstance(unet, UNet2DConditionModel)
    return unet


def _is_loaded(comfyui: ComfyUI, unet: UNet2DConditionModel) -> bool:
    """Return whether ComfyUI detects a U-Net, and has exactly its weights."""
    file = dict(unet_tensors(plain_config(unet), unet.state_dict(), "contiguous"))
    found = comfyui.detect(file)
    return found is not None and not (found["missing"] or found["unexpected"] or found["wrong_shapes"])


def _reasons(unet: UNet2DConditionModel, teacher: str) -> tuple[str, ...]:
    pipeline = "StableDiffusionXLPipeline" if teacher == "SDXL" else "StableDiffusionPipeline"
    return check_comfyui(Shape(pipeline, "UNet2DConditionModel", plain_config(unet)))


@pytest.mark.parametrize("teacher", UNETS)
def test_what_passes_the_check_is_loaded_and_what_is_refused_is_not(teacher: str, comfyui: ComfyUI) -> None:
    cases = [(each, True) for each in LOADED[teacher]] + [(each, False) for each in REFUSED[teacher]]
    for settings, expected in cases:
        unet: Any = _teacher(teacher)
        unet = unet if settings is None else student_shapes(unet, StudentSettings.model_validate(settings))
        assert (not _reasons(unet, teacher)) is expected, (settings, _reasons(unet, teacher))
        assert _is_loaded(comfyui, unet) is expected, settings


@pytest.mark.parametrize(("changes", "expected"), CONFIGS, ids=lambda value: str(value)[:60])
def test_settings_that_are_refused_are_not_loaded(changes: dict[str, Any], expected: bool, comfyui: ComfyUI) -> None:
    unet = build_on_meta(UNet2DConditionModel, {**UNETS["SD-1.4"], **changes})
    assert isinstance(unet, UNet2DConditionModel)
    assert (not _reasons(unet, "SD-1.4")) is expected, _reasons(unet, "SD-1.4")
    assert _is_loaded(comfyui, unet) is expected


def _random(config: Mapping[str, Any]) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(**config).eval()


def _file(unet: UNet2DConditionModel, folder: Path, *, prefix: str = PREFIX) -> Path:
    tensors = unet_tensors(plain_config(unet), unet.state_dict(), "contiguous")
    file = folder / "unet.safetensors"
    save_file({prefix + name.removeprefix(PREFIX): tensor.contiguous() for name, tensor in tensors}, file)
    return file


@pytest.mark.parametrize("is_second", [False, True])
@pytest.mark.parametrize("mid", ["UNetMidBlock2DCrossAttn", None])
def test_a_denoiser_of_real_width_predicts_the_same(
    is_second: bool, mid: str | None, comfyui: ComfyUI, tmp_path: Path
) -> None:
    second = {"cross_attention_dim": 1024, "use_linear_projection": True, "attention_head_dim": [5, 5]}
    unet = _random(
        {
            "block_out_channels": [320, 320],
            "layers_per_block": 1,
            "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
            "mid_block_type": mid,
            "cross_attention_dim": 768,
            "attention_head_dim": 8,
            **(second if is_second else {}),
        }
    )
    width = 1024 if is_second else 768
    x, text, t = torch.randn(2, 4, 8, 8), torch.randn(2, 7, width), torch.tensor([17.0, 900.0])
    found = comfyui.forward(_file(unet, tmp_path), {"x": x, "timesteps": t, "context": text})
    with torch.no_grad():
        expected = unet(x, t, text).sample
    assert torch.allclose(found, expected, atol=1e-4), (found - expected).abs().max()


@pytest.mark.parametrize(("layers", "depths"), [(2, [1, 2, 3]), (1, [1, 2, 2])])
def test_a_denoiser_like_sdxl_predicts_the_same(
    layers: int, depths: list[int], comfyui: ComfyUI, tmp_path: Path
) -> None:
    unet = _random(
        {
            "block_out_channels": [64, 128, 256],
            "layers_per_block": layers,
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "mid_block_type": "UNetMidBlock2DCrossAttn" if layers == 2 else None,
            "transformer_layers_per_block": depths,
            "attention_head_dim": [1, 2, 4],
            "cross_attention_dim": 32,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 10 + 6 * 8,
        }
    )
    sizes, pooled = torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2), torch.randn(2, 10)
    condition = torch.cat([pooled, unet.add_time_proj(sizes.flatten()).reshape(2, -1)], dim=1)
    x, text, t = torch.randn(2, 4, 8, 8), torch.randn(2, 7, 32), torch.tensor([17.0, 900.0])
    depths_down = [depth * (stage > 0) for stage, depth in enumerate(depths) for _ in range(layers)]
    depths_up = [depth * (stage > 0) for stage, depth in enumerate(depths) for _ in range(layers + 1)]
    config = {
        "image_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": 64,
        "num_res_blocks": [layers] * 3,
        "channel_mult": [1, 2, 4],
        "use_spatial_transformer": True,
        "legacy": False,
        "num_head_channels": 64,
        "use_linear_in_transformer": True,
        "num_classes": "sequential",
        "adm_in_channels": condition.shape[1],
        "context_dim": 32,
        "transformer_depth": depths_down,
        "transformer_depth_output": depths_up,
        "transformer_depth_middle": depths[-1] if layers == 2 else -2,
    }
    found = comfyui.forward(
        _file(unet, tmp_path, prefix=""),
        {"x": x, "timesteps": t, "context": text, "y": condition},
        kind="comfy.ldm.modules.diffusionmodules.openaimodel.UNetModel",
        config=config,
    )
    with torch.no_grad():
        expected = unet(x, t, text, added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes}).sample
    assert torch.allclose(found, expected, atol=1e-4), (found - expected).abs().max()
