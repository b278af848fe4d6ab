"""Text encoders, autoencoders and schedulers of checkpoints: their names, what is refused, and what is said."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from full_size import DATA
from tiny_open_clip import TinyOpenClip
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from condistill.export import EXPORTERS, Shape
from condistill.export.single_file.clip import TEXT_ENCODERS, text_encoder_tensors
from condistill.export.single_file.unet import UNetLayout

CLASSES = {"sd14": "StableDiffusionPipeline", "sd21": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline"}


def _shape(name: str, changes: Mapping[str, Mapping[str, Any] | None] | None = None, **sampling: Any) -> Shape:
    """Return a teacher of full size; changes are by component, and None removes one."""
    components: dict[str, Any] = {}
    for folder in (each for each in (DATA / name).iterdir() if each.is_dir()):
        config = next(folder.glob("*config.json"))
        components[folder.name] = json.loads(config.read_text(encoding="utf-8"))
    for component, change in (changes or {}).items():
        components[component] = None if change is None else {**components[component], **change}
    components = {component: config for component, config in components.items() if config is not None}
    return Shape(CLASSES[name], "UNet2DConditionModel", components["unet"], components=components, sampling=sampling)


def test_open_clip_computes_the_same_with_the_converted_weights() -> None:
    config = CLIPTextConfig(
        hidden_size=64, intermediate_size=256, num_attention_heads=1, num_hidden_layers=2, hidden_act="gelu",
        projection_dim=16, vocab_size=49_408, eos_token_id=2, bos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    encoder = CLIPTextModelWithProjection(config).eval()
    weights = {  # as they are read from a file
        name if name.startswith(("text_model.", "text_projection.")) else f"text_model.{name}": weight
        for name, weight in encoder.state_dict().items()
    }
    found = TEXT_ENCODERS["sdxl"][1]
    tensors = {name.removeprefix(found.prefix): each for name, each in text_encoder_tensors(found, weights)}
    oracle = TinyOpenClip()
    outside = {name for name in oracle.state_dict() if name.startswith("visual.") or name == "logit_scale"}
    keys = oracle.load_state_dict(tensors, strict=False)
    assert set(keys.missing_keys) == outside
    assert not keys.unexpected_keys
    tokens = torch.tensor([[5, 7, 9, 49_407], [3, 49_407, 1, 1]])
    with torch.no_grad():
        expected = torch.nn.functional.normalize(encoder(tokens).text_embeds, dim=1)
    assert torch.allclose(oracle.embed_tokens(tokens), expected, atol=1e-5)


@pytest.mark.parametrize("name", CLASSES)
def test_the_released_models_pass_all_checks(name: str) -> None:
    for to in ("comfyui", "sdcpp"):
        assert EXPORTERS[to].check(_shape(name)) == ()


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "sd14",
            {"text_encoder": {"num_hidden_layers": 11}},
            "its text_encoder has num_hidden_layers 11 instead of 12",
        ),
        ("sd14", {"text_encoder": {"vocab_size": 49410}}, "its text_encoder has vocab_size 49410 instead of 49408"),
        ("sd14", {"text_encoder": None}, "it has no text_encoder, which a checkpoint holds"),
        ("sdxl", {"text_encoder_2": None}, "it has no text_encoder_2, which a checkpoint holds"),
        ("sd21", {"text_encoder": {"num_hidden_layers": 24}}, "num_hidden_layers 24 instead of 23"),
        ("sd14", {"vae": None}, "it has no vae, which a checkpoint holds"),
        ("sd14", {"vae": {"_class_name": "AutoencoderTiny"}}, "its vae is an AutoencoderTiny instead"),
        ("sd14", {"vae": {"latent_channels": 16}}, "its vae has latent_channels 16 instead of 4"),
        ("sdxl", {"vae": {"scaling_factor": 0.5}}, "its vae has scaling_factor 0.5 instead of 0.13025"),
        ("sd14", {"scheduler": {"beta_end": 0.02}}, "its scheduler has beta_end 0.02 instead of 0.012"),
        ("sd14", {"scheduler": {"prediction_type": "sample"}}, "prediction_type sample instead of epsilon"),
        ("sd14", {"unet": {"attention_head_dim": 4}}, "have 4, 4, 4 and 4 attention heads instead of 8, 8"),
        ("sd21", {"unet": {"attention_head_dim": 8}}, "its stages have 8, 8, 8 and 8 attention heads instead of 5, 10"),
        ("sd14", {"unet": {"in_channels": 5}}, "5 input channels"),
        (
            "sd14",
            {"unet": {"norm_num_groups": 16, "act_fn": "gelu"}},
            "act_fn gelu instead of silu, norm_num_groups 16",
        ),
    ],
)
def test_a_part_that_both_programs_would_read_wrongly_is_named(
    name: str, changes: Mapping[str, Any], message: str
) -> None:
    for to in ("comfyui", "sdcpp"):
        assert any(message in reason for reason in EXPORTERS[to].check(_shape(name, changes))), to


def test_a_plan_without_the_other_configs_checks_the_denoiser_alone() -> None:
    shape = _shape("sd14")
    assert EXPORTERS["comfyui"].check(replace(shape, components={}, classes={})) == ()


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("sd14", {}, ["`sampler_name: euler`, `scheduler: normal`"]),
        ("sd14", {"scheduler": {"prediction_type": "v_prediction"}}, ["`sampling: v_prediction` behind it"]),
        (
            "sd14",
            {"scheduler": {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}},
            ["`sampling: v_prediction`, `zsnr: true`"],
        ),
        (
            "sd14",
            {"scheduler": {"_class_name": "LCMScheduler", "original_inference_steps": 100}},
            ["`sampling: lcm`", "a solver of 100 steps, and the node assumes 50", "`sampler_name: lcm`"],
        ),
        (
            "sd14",
            {"scheduler": {"_class_name": "DDIMScheduler", "timestep_spacing": "trailing"}},
            ["`scheduler: simple`"],
        ),
    ],
)
def test_what_comfyui_does_not_find_in_the_file_is_said(name: str, changes: Any, words: list[str]) -> None:
    text = EXPORTERS["comfyui"].how_to_load(_shape(name, changes))
    assert all(each in text for each in words), text


def test_the_command_of_stable_diffusion_cpp_has_the_settings() -> None:
    changes = {"scheduler": {"timestep_spacing": "trailing", "prediction_type": "v_prediction"}}
    shape = _shape("sd21", changes, num_inference_steps=4, guidance_scale=0.0, resolution=512)
    assert EXPORTERS["sdcpp"].how_to_load(shape) == (
        '**stable-diffusion.cpp**: `sd-cli -m FILE -p "PROMPT" --steps 4 --cfg-scale 1 -H 512 -W 512 '
        "--sampling-method euler --scheduler simple --prediction v`"
    )
    ends_without_signal = _shape("sdxl", {"scheduler": {"rescale_betas_zero_snr": True}})
    assert "rescale_betas_zero_snr" in EXPORTERS["sdcpp"].how_to_load(ends_without_signal)


@pytest.mark.parametrize(("zero", "names"), [(False, ["v_pred"]), (True, ["v_pred", "ztsnr"])])
def test_an_sdxl_that_predicts_the_velocity_says_so_by_names(zero: bool, names: list[str]) -> None:
    scheduler = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": zero}
    shape = _shape("sdxl", {"scheduler": scheduler})
    weights: Any = {"unet": {}, "vae": {}, "text_encoder": {}, "text_encoder_2": {}}
    assert [name for name, _ in UNetLayout().tensors(shape, weights)] == names
    assert "ModelSamplingDiscrete" not in UNetLayout().how_to_load(shape)
