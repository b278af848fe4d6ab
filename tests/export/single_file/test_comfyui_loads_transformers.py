"""Layouts of transformers against ComfyUI's own code; see `helpers/comfyui.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui import ComfyUI, ComfyUIError, comfyui
from diffusers import AutoencoderKL, FluxPipeline, PixArtTransformer2DModel, QwenImageTransformer2DModel
from layouts import TINY_QWEN, on_meta, original, shape_of, write_sd3
from safetensors.torch import save_file
from tiny_transformers import build
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from condistill import export_pipeline
from condistill.export.single_file import LAYOUTS

pytestmark = pytest.mark.slow
TIMES = torch.tensor([0.3, 0.7])
FLUX = ("FluxTransformer2DModel", "Flux")
SD3 = ("SD3Transformer2DModel", "SD3")
PIXART = ("PixArtTransformer2DModel", "PixArtSigma")
QWEN = ("QwenImageTransformer2DModel", "QwenImage")
DEV = {"guidance_embeds": True}
CUT = {"num_layers": 2, "num_single_layers": 3}
ONE = {"num_layers": 1, "num_single_layers": 1}
SMALL_SD3 = {"num_attention_heads": 3, "caption_projection_dim": 192, "num_layers": 3}
SIGMA = {"num_layers": 2, "caption_channels": 4096, "use_additional_conditions": False}
UNUSED = {"y_embedder.y_embedding"}
"""What PixArt uses in training alone, and diffusers does not have."""
SHAPES: list[tuple[tuple[str, str], dict[str, Any]]] = [
    (FLUX, DEV),  # whole
    (FLUX, {**CUT, **DEV}),
    (("FluxTransformer2DModel", "FluxSchnell"), CUT),
    (
        ("FluxTransformer2DModel", "FluxInpaint"),
        {**CUT, **DEV, "in_channels": 384, "out_channels": 64},
    ),
    (FLUX, {**CUT, **DEV, "in_channels": 128, "out_channels": 64}),
    (FLUX, {**CUT, **DEV, "pooled_projection_dim": 512}),
    (FLUX, {**ONE, "num_attention_heads": 20}),
    (FLUX, {**ONE, "num_attention_heads": 48, "attention_head_dim": 64, "axes_dims_rope": (8, 28, 28)}),
    (FLUX, {**ONE, "joint_attention_dim": 2048}),
    (FLUX, {**ONE, "in_channels": 128}),
    (FLUX, {**ONE, "num_layers": 0}),
    (SD3, SMALL_SD3),
    (SD3, {**SMALL_SD3, "dual_attention_layers": (0, 2), "qk_norm": "rms_norm", "out_channels": 8}),
    (SD3, {**SMALL_SD3, "num_layers": 2}),
    (SD3, {**SMALL_SD3, "num_layers": 2, "dual_attention_layers": (0,), "qk_norm": "rms_norm"}),
    (SD3, {**SMALL_SD3, "in_channels": 4}),
    (SD3, {**SMALL_SD3, "attention_head_dim": 32, "num_attention_heads": 6, "qk_norm": "rms_norm"}),
    (PIXART, SIGMA),
    (("PixArtTransformer2DModel", "PixArtAlpha"), {**SIGMA, "use_additional_conditions": True}),
    (PIXART, {**SIGMA, "num_attention_heads": 12, "cross_attention_dim": 864}),
    (PIXART, {**SIGMA, "caption_channels": 2048}),
    (PIXART, {**SIGMA, "out_channels": 4}),
    (PIXART, {**SIGMA, "in_channels": 16, "out_channels": 32}),
    (QWEN, {"num_layers": 2}),
    (QWEN, {"num_layers": 1, "num_attention_heads": 12}),
    (QWEN, {"num_layers": 1, "joint_attention_dim": 2048}),
]


@pytest.fixture(scope="module")
def program() -> ComfyUI:
    return comfyui()


def problem_of(program: ComfyUI, weights: dict[str, Tensor], expected: str) -> Any:
    """Return what keeps ComfyUI from loading weights as one of its classes; empty if it does."""
    try:
        found = program.detect(weights)
    except ComfyUIError as error:
        return error
    if found is None or found["model_class"] != expected:
        return found or "nothing is detected"
    return [*{*found["missing"]} - UNUSED, *found["unexpected"], *found["wrong_shapes"]]


@pytest.mark.parametrize(("kinds", "config"), SHAPES, ids=lambda each: each[0][:4] if isinstance(each, tuple) else "")
def test_the_check_refuses_exactly_what_comfyui_does_not_load(
    program: ComfyUI, kinds: tuple[str, str], config: dict[str, Any]
) -> None:
    denoiser = on_meta(kinds[0], config)
    reasons = LAYOUTS[kinds[0]].check(shape_of(denoiser))
    problem = problem_of(program, original(denoiser), kinds[1])
    assert bool(problem) == bool(reasons), (reasons, problem)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("flux", {}),
        ("flux", {"guidance_embeds": False}),
        ("sd3", {"attention_head_dim": 64, "num_layers": 2, "dual_attention_layers": (0,)}),
        ("pixart", {"num_attention_heads": 16, "attention_head_dim": 72, "cross_attention_dim": 1152, "num_layers": 1}),
    ],
)
def test_names_and_values_are_those_of_comfyuis_own_conversion(
    program: ComfyUI, kind: str, config: dict[str, Any]
) -> None:
    denoiser = build(kind, **config)
    expected, found = program.convert(denoiser.state_dict()), original(denoiser)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], each) for name, each in expected.items())


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def written(folder: Path, weights: dict[str, Tensor]) -> Path:
    save_file({name: each.contiguous().clone() for name, each in weights.items()}, folder / "file.safetensors")
    return folder / "file.safetensors"


def check_close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)


@torch.no_grad()
def test_flux_computes_in_comfyui_what_it_does_in_diffusers(program: ComfyUI, tmp_path: Path) -> None:
    denoiser = build("flux")
    latents, text, pooled, guidance = random(2, 4, 4, 6), random(2, 5, 12), random(2, 10), torch.tensor([3.5, 2.0])
    config = {
        "in_channels": 4,
        "out_channels": 4,
        "vec_in_dim": 10,
        "context_in_dim": 12,
        "hidden_size": 16,
        "mlp_ratio": 4.0,
        "num_heads": 2,
        "depth": 5,
        "depth_single_blocks": 4,
        "axes_dim": [2, 2, 4],
        "theta": 10_000,
        "patch_size": 2,
        "qkv_bias": True,
        "guidance_embed": True,
    }
    inputs = {"x": latents, "timestep": TIMES, "context": text, "y": pooled, "guidance": guidance}
    file = written(tmp_path, original(denoiser))
    found = program.forward(file, inputs, kind="comfy.ldm.flux.model.Flux", config=config)
    expected = denoiser(
        hidden_states=FluxPipeline._pack_latents(latents, *latents.shape),
        encoder_hidden_states=text,
        pooled_projections=pooled,
        timestep=TIMES,
        img_ids=FluxPipeline._prepare_latent_image_ids(2, 2, 3, "cpu", torch.float32),
        txt_ids=torch.zeros(5, 3),
        guidance=guidance,
    ).sample
    check_close(found, FluxPipeline._unpack_latents(expected, 32, 48, 8))


@torch.no_grad()
def test_stable_diffusion_3_computes_in_comfyui_what_it_does_in_diffusers(program: ComfyUI, tmp_path: Path) -> None:
    config = {"attention_head_dim": 64, "num_layers": 2, "in_channels": 16, "out_channels": 16}
    denoiser = build("sd3", **config, caption_projection_dim=128, dual_attention_layers=(0,))
    latents, text, pooled = random(2, 16, 8, 12), random(2, 5, 12), random(2, 10)
    inputs = {"x": latents, "timesteps": 1000 * TIMES, "context": text, "y": pooled}
    found = program.forward(written(tmp_path, original(denoiser)), inputs)
    expected = denoiser(
        hidden_states=latents, encoder_hidden_states=text, pooled_projections=pooled, timestep=1000 * TIMES
    ).sample
    check_close(found, expected)


def test_an_exported_pipeline_loads_in_comfyui(program: ComfyUI, tmp_path: Path) -> None:
    out = export_pipeline(write_sd3(tmp_path / "mine"), "comfyui", out=tmp_path / "out", dtype="float16")
    found = program.load_diffusion_model(out / "mine.safetensors")
    assert found["model_class"] == "SD3"
    assert [(each["missing"], each["unexpected"]) for each in found["loads"]] == [([], [])]


def test_stable_diffusion_3_with_fewer_layers_does_not_load_in_comfyui(program: ComfyUI, tmp_path: Path) -> None:
    config = {"attention_head_dim": 64, "in_channels": 16, "out_channels": 16, "dual_attention_layers": ()}
    denoiser = build("sd3", **config, caption_projection_dim=128, num_layers=1)
    with pytest.raises(ComfyUIError, match=r"size mismatch for joint_blocks\.0\.context_block"):
        program.load_diffusion_model(written(tmp_path, original(denoiser)))


@torch.no_grad()
@pytest.mark.parametrize("conditions", [True, False])
def test_pixart_computes_in_comfyui_what_it_does_in_diffusers(
    program: ComfyUI, tmp_path: Path, conditions: bool
) -> None:
    torch.manual_seed(0)
    config = {"num_layers": 1, "sample_size": 64, "caption_channels": 4096, "use_additional_conditions": conditions}
    denoiser = PixArtTransformer2DModel(**config).eval()
    latents, text = random(1, 4, 64, 64), 0.1 * random(1, 5, 4096)
    size, ratio = torch.tensor([[512.0, 512.0]]), torch.tensor([[1.0]])
    inputs = {"x": latents, "timesteps": 1000 * TIMES[:1], "context": text}
    found = program.forward(
        written(tmp_path, original(denoiser)), {**inputs, **({"c_size": size, "c_ar": ratio} if conditions else {})}
    )
    expected = denoiser(
        hidden_states=latents,
        encoder_hidden_states=text,
        timestep=1000 * TIMES[:1],
        added_cond_kwargs={"resolution": size, "aspect_ratio": ratio},
    ).sample
    check_close(found, expected.chunk(2, dim=1)[0])


@torch.no_grad()
def test_qwen_image_computes_in_comfyui_what_it_does_in_diffusers(program: ComfyUI, tmp_path: Path) -> None:
    torch.manual_seed(0)
    denoiser = QwenImageTransformer2DModel(**TINY_QWEN).eval()
    latents, text = random(1, 4, 1, 4, 8), random(1, 5, 12)
    found = program.forward(
        written(tmp_path, original(denoiser)),
        {"x": latents, "timestep": TIMES[:1], "context": text},
        kind="comfy.ldm.qwen_image.model.QwenImageTransformer2DModel",
        config={**TINY_QWEN, "axes_dims_rope": list(TINY_QWEN["axes_dims_rope"])},
    )
    expected = denoiser(
        hidden_states=FluxPipeline._pack_latents(latents[:, :, 0], 1, 4, 4, 8),
        encoder_hidden_states=text,
        encoder_hidden_states_mask=torch.ones(1, 5, dtype=torch.bool),
        timestep=TIMES[:1],
        img_shapes=[[(1, 2, 4)]],
    ).sample
    check_close(found[:, :, 0], FluxPipeline._unpack_latents(expected, 32, 64, 8))


@pytest.mark.parametrize(("channels", "quantised"), [(16, False), (4, True)])
def test_comfyui_reads_the_autoencoder_of_the_pipeline_as_it_is(
    program: ComfyUI, channels: int, quantised: bool
) -> None:
    with torch.device("meta"):
        autoencoder = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=channels,
            use_quant_conv=quantised,
            use_post_quant_conv=quantised,
        )
    found = program.load_vae(autoencoder.state_dict())
    assert [(each["missing"], each["unexpected"]) for each in found["loads"]] == [([], [])]


def test_comfyui_reads_t5_as_it_is_and_clip_under_the_names_of_transformers_4_alone(program: ComfyUI) -> None:
    with torch.device("meta"):
        t5 = T5EncoderModel(
            T5Config(d_model=4096, d_kv=64, num_heads=64, d_ff=10240, num_layers=24, feed_forward_proj="gated-gelu")
        ).state_dict()
        clip = CLIPTextModel(
            CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
        ).state_dict()
    plain = {name.removeprefix("text_model."): each for name, each in clip.items()}
    old = {f"text_model.{name}": each for name, each in plain.items()}
    for names, is_read in ((old, True), (plain, False)):
        found = program.load_text_encoders([names, t5], "FLUX")
        first, second = found["loads"]
        assert (first["module"], first["loaded"]) == (("CLIPTextModel", 196) if is_read else ("T5", 0))
        assert (second["module"], second["missing"]) == ("T5", [])
    assert program.load_text_encoders([t5], "PIXART")["loads"][0]["missing"] == []
