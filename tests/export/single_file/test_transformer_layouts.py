from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import QwenImageTransformer2DModel, SD3Transformer2DModel
from full_size import DATA
from layouts import (
    PIPELINES,
    SD35_LARGE,
    TINY_QWEN,
    config_of,
    narrow_weights,
    on_meta,
    original,
    published,
    shape_of,
    write_sd3,
)
from tiny_transformers import build
from torch import Tensor

from condistill import export_pipeline
from condistill.config.sections import StudentSettings
from condistill.errors import CondistillError
from condistill.export import EXPORTERS
from condistill.export.record import EXPORT_NAME, ExportRecord
from condistill.export.single_file import LAYOUTS
from condistill.export.source import Shape
from condistill.students.derive import student_shapes

OTHERS = ("sd35_medium", "sd35_large", "pixart_sigma")


def check_comes_back(denoiser: Any, weights: dict[str, Tensor]) -> None:
    """Check that the conversion of an export's comparison gives the same weights, bit for bit."""
    shape = shape_of(denoiser)
    found = LAYOUTS[shape.denoiser_class].restored("transformer", shape, original(denoiser, weights))
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weight) for name, weight in weights.items())


@pytest.mark.parametrize("name", ["flux_dev", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_names_and_shapes_are_those_of_the_published_weights(name: str) -> None:
    kind, config = config_of(name) if name != "sd35_large" else ("SD3Transformer2DModel", SD35_LARGE)
    found = {key: list(each.shape) for key, each in original(on_meta(kind, config)).items()}
    assert found == published(DATA / f"weights_{name}.json")


@pytest.mark.parametrize("guidance", [True, False])
def test_flux_comes_back_bit_equal_from_the_conversion_of_diffusers(guidance: bool) -> None:
    config = {"num_layers": 2, "num_single_layers": 3, "guidance_embeds": guidance}
    denoiser = on_meta("FluxTransformer2DModel", config)
    check_comes_back(denoiser, narrow_weights(denoiser))


@pytest.mark.parametrize("dual", [(), (0, 2)])
def test_stable_diffusion_3_comes_back_bit_equal_from_the_conversion_of_diffusers(dual: tuple[int, ...]) -> None:
    denoiser = build("sd3", num_layers=4, dual_attention_layers=dual, qk_norm="rms_norm" if dual else None)
    check_comes_back(denoiser, denoiser.state_dict())


@pytest.mark.parametrize("kind", ["flux", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("sd3", "pixart"))])
def test_depth_students_have_the_names_of_their_teacher_without_gaps(kind: str) -> None:
    teacher = build(kind)
    student = student_shapes(teacher, StudentSettings.model_validate({"depth": 0.6}))
    names = set(original(student))
    assert names < set(original(teacher))
    for blocks in ("double_blocks", "single_blocks", "joint_blocks", "blocks"):
        numbers = sorted({int(name.split(".")[1]) for name in names if name.startswith(f"{blocks}.")})
        assert numbers == list(range(len(numbers)))


@pytest.mark.parametrize("conditions", [True, False])
def test_pixart_comes_back_bit_equal(conditions: bool) -> None:
    denoiser = build("pixart", use_additional_conditions=conditions)
    check_comes_back(denoiser, denoiser.state_dict())


def test_qwen_image_keeps_the_names_of_diffusers() -> None:
    denoiser = QwenImageTransformer2DModel(**TINY_QWEN)
    assert original(denoiser).keys() == denoiser.state_dict().keys()
    check_comes_back(denoiser, denoiser.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("pipeline_class", ["StableDiffusion3Pipeline", "StableDiffusion3PAGPipeline"])
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_an_exported_pipeline_of_a_family_or_of_none_loads_in_diffusers(
    tmp_path: Path, pipeline_class: str, dtype: str | None
) -> None:
    pipeline = write_sd3(tmp_path / "pipeline", pipeline_class)
    out = export_pipeline(pipeline, "comfyui", out=tmp_path / "out", dtype=dtype)
    record = ExportRecord.read(out / EXPORT_NAME, remedy="")
    (compared,) = record.comparisons
    assert compared.subject == "transformer"
    assert (compared.largest_difference == 0) == (dtype is None)
    kind = torch.float32 if dtype is None else torch.bfloat16
    expected = SD3Transformer2DModel.from_pretrained(pipeline / "transformer", torch_dtype=kind).state_dict()
    loaded = SD3Transformer2DModel.from_single_file(
        str(out / "pipeline.safetensors"), config=str(out / "configs"), subfolder="transformer", torch_dtype=kind
    ).state_dict()
    assert all(torch.equal(loaded[name], each) for name, each in expected.items())


def test_weights_that_the_original_code_does_not_have_are_refused_with_their_name() -> None:
    denoiser = build("flux")
    weights = denoiser.state_dict()
    for name in ("transformer_blocks.0.attn.to_q.lora_A.default.weight", "new.weight"):
        with pytest.raises(CondistillError, match=f"the denoiser has {name}, which has no place in the original"):
            original(denoiser, {**weights, name: torch.zeros(2)})


def test_a_weight_that_is_joined_with_one_that_is_missing_is_refused() -> None:
    denoiser = build("flux")
    weights = denoiser.state_dict()
    for missing in ("transformer_blocks.1.attn.to_k.bias", "single_transformer_blocks.0.attn.to_q.weight"):
        rest = {name: each for name, each in weights.items() if name != missing}
        with pytest.raises(CondistillError, match=f"and not {missing}; save the pipeline again"):
            original(denoiser, rest)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("FluxTransformer2DModel", {"num_attention_heads": 18}, "num_attention_heads is 18, and ComfyUI builds it with 24"),
    ("FluxTransformer2DModel", {"joint_attention_dim": 2048}, "joint_attention_dim is 2048"),
    ("FluxTransformer2DModel", {"in_channels": 128, "num_layers": 1}, "returns 128 channels per token"),
    ("FluxTransformer2DModel", {"num_single_layers": 0}, "it has none of one kind"),
    ("SD3Transformer2DModel", {"num_layers": 12}, "it has 12 layers, and ComfyUI needs 18: the width, 1,152, by 64"),
    ("SD3Transformer2DModel", {"num_attention_heads": 16}, "caption_projection_dim is 1152, and the width is 1,024"),
    ("SD3Transformer2DModel", {"in_channels": 32}, "in_channels is 32, and ComfyUI builds it with 16 only"),
    ("PixArtTransformer2DModel", {"num_attention_heads": 12}, "num_attention_heads is 12"),
    ("PixArtTransformer2DModel", {"sample_size": 32}, "positions are those of 32 latents by 0"),
    ("PixArtTransformer2DModel", {"sample_size": 96}, "ComfyUI has 64 by 1, 128 by 2 and so on"),
    ("QwenImageTransformer2DModel", {"zero_cond_t": True}, "zero_cond_t is True"),
    ("SanaTransformer2DModel", {}, "ComfyUI has no Sana"),
    ("DiTTransformer2DModel", {}, "ComfyUI has no DiT"),
]


@pytest.mark.parametrize(("kind", "config", "reason"), REFUSED)
def test_what_comfyui_does_not_load_is_refused_with_the_reason(kind: str, config: dict[str, Any], reason: str) -> None:
    reasons = LAYOUTS[kind].check(Shape(PIPELINES[kind], kind, {"caption_channels": 4096, **config}))
    assert any(reason in each for each in reasons), reasons
    assert len({*reasons}) == len(reasons)


def test_a_pixart_alpha_that_comfyui_takes_for_sigma_is_refused() -> None:
    layout, config = LAYOUTS["PixArtTransformer2DModel"], {"sample_size": 64, "caption_channels": 4096}
    sigma, alpha = (Shape(f"PixArt{kind}Pipeline", layout.denoiser_class, config) for kind in ("Sigma", "Alpha"))
    assert layout.check(sigma) == ()
    reasons = layout.check(alpha)
    assert len(reasons) == 1
    assert "takes a PixArt without the size of the image" in reasons[0]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("FluxTransformer2DModel", ("DualCLIPLoader", "ae.safetensors", "Set cfg to 1")),
        ("SD3Transformer2DModel", ("TripleCLIPLoader",)),
        ("PixArtTransformer2DModel", ("CLIPLoader", "SDXL")),
        ("QwenImageTransformer2DModel", ("qwen_2.5_vl_7b.safetensors", "ModelSamplingAuraFlow")),
    ],
)
def test_the_user_learns_the_folder_of_each_file_and_the_settings(kind: str, expected: tuple[str, ...]) -> None:
    classes = {"transformer": ("diffusers", kind)}
    shape = Shape(
        PIPELINES[kind], kind, {}, classes=classes, sampling={"num_inference_steps": 4, "guidance_scale": 3.5}
    )
    text = LAYOUTS[kind].how_to_load(shape)
    folders = ("`models/diffusion_models`", "`models/text_encoders`", "`models/vae`")
    assert all(part in text for part in (*folders, *expected, "sampled with 4 steps and guidance scale 3.5"))
    assert (f"`{kind}.from_single_file(" in text) == hasattr(getattr(diffusers, kind), "from_single_file")


def test_guidance_and_shift_are_set_where_the_denoiser_and_the_scheduler_have_them() -> None:
    layout = LAYOUTS["FluxTransformer2DModel"]
    for guidance in (True, False):
        shape = Shape("FluxPipeline", "FluxTransformer2DModel", {"guidance_embeds": guidance})
        assert ("FluxGuidance" in layout.how_to_load(shape)) == guidance
    layout = LAYOUTS["SD3Transformer2DModel"]
    for shift, sets in ((3.0, False), (6.5, True)):
        components = {"scheduler": {"shift": shift}}
        shape = Shape("StableDiffusion3Pipeline", "SD3Transformer2DModel", {}, components=components)
        assert ("ModelSamplingSD3 sets the shift of the timesteps to 6.5" in layout.how_to_load(shape)) == sets


SDCPP: list[tuple[str, dict[str, Any], str]] = [
    ("FluxTransformer2DModel", {"num_layers": 2, "num_single_layers": 3}, ""),
    ("FluxTransformer2DModel", {"in_channels": 384, "out_channels": 64, "guidance_embeds": True}, ""),
    ("FluxTransformer2DModel", {"num_attention_heads": 12, "joint_attention_dim": 2048}, ""),
    (
        "FluxTransformer2DModel",
        {"pooled_projection_dim": 512},
        "pooled_projection_dim is 512, and stable-diff",
    ),
    ("FluxTransformer2DModel", {"in_channels": 196, "out_channels": 64}, "in_channels is 196"),
    ("SD3Transformer2DModel", SD35_LARGE, ""),
    ("SD3Transformer2DModel", {**SD35_LARGE, "num_layers": 30}, "needs 38: the width, 2,432, by 64"),
    ("SD3Transformer2DModel", {"num_layers": 18}, "it has 18 layers, and stable-diffusion.cpp builds 24 or more"),
    ("SD3Transformer2DModel", {**SD35_LARGE, "dual_attention_layers": (0, 2)}, "the layers [0, 2] have two attentions"),
    ("QwenImageTransformer2DModel", {"num_layers": 2}, ""),
    ("QwenImageTransformer2DModel", {"num_attention_heads": 12}, "num_attention_heads is 12"),
    ("PixArtTransformer2DModel", {}, "the layout in which it reads a PixArtTransformer2DModel is not known"),
]
"""What its own loader accepted or refused for files of these shapes; see the sources of the exporter."""


@pytest.mark.parametrize(("kind", "config", "reason"), SDCPP)
def test_stable_diffusion_cpp_takes_what_its_loader_accepts(kind: str, config: dict[str, Any], reason: str) -> None:
    shape = Shape(PIPELINES[kind], kind, config, sampling={"num_inference_steps": 4, "guidance_scale": 3.5})
    exporter = EXPORTERS["sdcpp"]
    reasons = exporter.check(shape)
    assert len(reasons) == bool(reason)
    assert reason in " ".join(reasons)
    if not reason:
        is_flux, embedded = kind.startswith("Flux"), " --guidance 3.5" if config.get("guidance_embeds") else ""
        guidance = f"--cfg-scale 1{embedded}" if is_flux else "--cfg-scale 3.5"
        text = exporter.how_to_load(shape)
        assert text.startswith("**stable-diffusion.cpp**: `sd-cli --diffusion-model FILE --vae ")
        assert text.endswith(f" --sampling-method euler --steps 4 {guidance}`")
