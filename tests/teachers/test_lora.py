from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from loras import attention_layers, kohya_names, matrices, peft_names, write_lora
from single_file import unet_name

from condistill.config.sections import LoraSettings, TeacherSettings
from condistill.errors import CondistillError
from condistill.teachers.load import load_teacher
from condistill.teachers.lora import fuse, read_lora, unmentioned_loras
from condistill.teachers.single_file import SHIPPED
from condistill.teachers.skeleton import Skeleton, teacher_skeleton

QUERY = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture
def pipeline(tiny_pipeline_dir: Path) -> Any:
    """The tiny pipeline, which a test may change."""
    return StableDiffusionPipeline.from_pretrained(tiny_pipeline_dir, use_safetensors=True)


def added(pipeline: Any, file: Path, scale: float = 1.0) -> dict[str, torch.Tensor]:
    """Return what a LoRA file adds to the U-Net's weights, by the name of the weight."""
    before = {name: weight.clone() for name, weight in pipeline.unet.state_dict().items()}
    layers = read_lora(type(pipeline), LoraSettings(path=str(file), scale=scale), pipeline.components)
    fuse(layers, pipeline.components)
    after = pipeline.unet.state_dict()
    return {name: after[name] - old for name, old in before.items() if not torch.equal(after[name], old)}


@pytest.mark.parametrize("layer", [QUERY, "conv_in", "down_blocks.0.resnets.0.time_emb_proj"])
def test_a_lora_adds_the_product_of_its_matrices(layer: str, pipeline: Any, tmp_path: Path) -> None:
    of_layer = matrices(pipeline.unet, [layer])
    file = write_lora(tmp_path / "a.safetensors", peft_names("unet", of_layer))
    down, up = of_layer[layer]
    found = added(pipeline, file, scale=0.5)
    assert set(found) == {f"{layer}.weight"}
    expected = 0.5 * (up.flatten(1) @ down.flatten(1)).reshape(found[f"{layer}.weight"].shape)
    torch.testing.assert_close(found[f"{layer}.weight"], expected, atol=1e-6, rtol=1e-4)


def test_every_attention_layer_of_kohyas_names_is_found(pipeline: Any, tmp_path: Path) -> None:
    layers = matrices(pipeline.unet, attention_layers(pipeline.unet))
    file = write_lora(tmp_path / "a.safetensors", kohya_names("lora_unet", layers, alpha=1.0))
    found = added(pipeline, file)
    assert set(found) == {f"{layer}.weight" for layer in layers}
    for layer, (down, up) in layers.items():
        torch.testing.assert_close(found[f"{layer}.weight"], up @ down / 2, atol=1e-6, rtol=1e-4)


def test_the_alpha_of_peft_is_in_the_metadata(pipeline: Any, tmp_path: Path) -> None:
    of_layer = matrices(pipeline.unet, [QUERY])
    metadata = {"lora_adapter_metadata": json.dumps({"unet.r": 2, "unet.lora_alpha": 6, "unet.alpha_pattern": {}})}
    file = write_lora(tmp_path / "a.safetensors", peft_names("unet", of_layer), metadata)
    down, up = of_layer[QUERY]
    torch.testing.assert_close(added(pipeline, file)[f"{QUERY}.weight"], 3 * up @ down, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_a_lora_of_the_text_encoder_is_added(prefix: str, pipeline: Any, tmp_path: Path) -> None:
    layers = matrices(pipeline.text_encoder, attention_layers(pipeline.text_encoder))
    named = {prefix + layer.removeprefix("text_model."): pair for layer, pair in layers.items()}
    file = write_lora(tmp_path / "a.safetensors", peft_names("text_encoder", named))
    assert added(pipeline, file) == {}
    original = StableDiffusionPipeline.from_pretrained(pipeline.config._name_or_path).text_encoder.state_dict()
    changed = {name for name, weight in pipeline.text_encoder.state_dict().items() if not weight.equal(original[name])}
    assert changed == {f"{layer}.weight" for layer in layers}


def settings(pipeline: Path, *files: Path) -> TeacherSettings:
    return TeacherSettings(pipeline=str(pipeline), loras=tuple(LoraSettings(path=str(file)) for file in files))


def test_loras_are_added_one_after_the_other(tiny_pipeline_dir: Path, pipeline: Any, tmp_path: Path) -> None:
    files = [
        write_lora(tmp_path / f"{seed}.safetensors", peft_names("unet", matrices(pipeline.unet, [QUERY], seed)))
        for seed in (1, 2)
    ]
    for file in files:
        added(pipeline, file)
    loaded = load_teacher(settings(tiny_pipeline_dir, *files)).denoiser.state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in pipeline.unet.state_dict().items())


def other(layers: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    return {name.replace(old, new): tensor for name, tensor in layers.items()}


def test_a_lora_that_fits_no_layer_is_refused_before_weights_are_loaded(
    tiny_pipeline_dir: Path, tiny_skeleton: Skeleton, tmp_path: Path
) -> None:
    components = tiny_skeleton.family.pipeline.components
    generator = torch.Generator().manual_seed(0)
    shapes = {f"unet.{QUERY}.lora_A.weight": (2, 32), f"unet.{QUERY}.lora_B.weight": (32, 2)}
    layers = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    down, up = (layers[f"unet.{QUERY}.lora_{part}.weight"] for part in "AB")
    wrong = {
        "which the teacher has not": other(layers, "attn1", "attn9"),
        r"\[48, 32\], where the teacher has \[32, 32\]": {
            **layers,
            f"unet.{QUERY}.lora_B.weight": up.repeat(2, 1)[:48],
        },
        "without its other matrix": {f"unet.{QUERY}.lora_A.weight": down},
        "text_encoder_2.* which the teacher has not": other(layers, "unet.", "text_encoder_2."),
        "lora_B.bias": {**layers, f"unet.{QUERY}.lora_B.bias": up[:, 0]},
    }
    for number, (message, tensors) in enumerate(wrong.items()):
        file = write_lora(tmp_path / f"{number}.safetensors", tensors)
        with pytest.raises(CondistillError, match=rf"the LoRA {file} does not fit the teacher: .*{message}"):
            read_lora(StableDiffusionPipeline, LoraSettings(path=str(file)), components)
    kohya = {"lora_unet_input_blocks_99_1_foo.lora_down.weight": down}
    with pytest.raises(CondistillError, match="does not fit the teacher, a StableDiffusionPipeline: its names cannot"):
        teacher_skeleton(settings(tiny_pipeline_dir, write_lora(tmp_path / "k.safetensors", kohya)))


def test_a_file_that_is_no_plain_lora_is_named(tiny_skeleton: Skeleton, tmp_path: Path) -> None:
    def refused(file: Path, message: str) -> None:
        with pytest.raises(CondistillError, match=message):
            read_lora(StableDiffusionPipeline, LoraSettings(path=str(file)), tiny_skeleton.family.pipeline.components)

    refused(tmp_path / "gone.safetensors", r"teacher\.loras: .*gone\.safetensors does not exist")
    for name, message in {
        "conv_in.weight": "is no LoRA: none of its tensors",
        "lora_unet_conv_in.hada_w1_a": r"\(but a DoRA, LoHa, LoKr or the like\)",
        "unet.conv_in.lora_magnitude_vector": r"has unet\.conv_in\.lora_magnitude_vector, so it is no plain LoRA",
        "lora_unet_conv_in.dora_scale": "merge it into the pipeline with the program that trained it",
    }.items():
        refused(write_lora(tmp_path / "a.safetensors", {name: torch.ones(2)}), message)
    (tmp_path / "b.safetensors").write_bytes(b"no weights")
    refused(tmp_path / "b.safetensors", r"b\.safetensors is no safetensors file, or is damaged")


def test_a_lora_with_values_that_are_not_finite_is_named(pipeline: Any, tmp_path: Path) -> None:
    for value in (float("nan"), float("inf")):
        layers = {name: (down, up * value) for name, (down, up) in matrices(pipeline.unet, ["conv_in"]).items()}
        file = write_lora(tmp_path / "diverged.safetensors", peft_names("unet", layers))
        with pytest.raises(
            CondistillError, match=r"values that are not finite in unet\.conv_in: its training diverged"
        ):
            added(pipeline, file)


def test_a_teacher_of_a_kind_without_loras_is_named(tmp_path: Path) -> None:
    from diffusers import DiTPipeline

    file = write_lora(tmp_path / "a.safetensors", {"transformer.x.lora_A.weight": torch.ones(2, 2)})
    with pytest.raises(CondistillError, match="diffusers knows no LoRAs of a DiTPipeline"):
        read_lora(DiTPipeline, LoraSettings(path=str(file)), {})


@pytest.mark.slow
def test_a_scale_at_which_a_weight_is_not_finite_is_refused(
    tiny_pipeline_dir: Path, pipeline: Any, tmp_path: Path
) -> None:
    pipeline.unet.half().save_pretrained(tmp_path / "half" / "unet")
    large = {layer: (down * 1e3, up * 1e3) for layer, (down, up) in matrices(pipeline.unet, [QUERY]).items()}
    file = write_lora(tmp_path / "a.safetensors", peft_names("unet", large))
    copied = Path(shutil.copytree(tiny_pipeline_dir, tmp_path / "pipeline"))
    shutil.rmtree(copied / "unet")
    shutil.copytree(tmp_path / "half" / "unet", copied / "unet")
    with pytest.raises(CondistillError, match=rf"{QUERY}\.weight of the teacher's unet is too large for float16"):
        load_teacher(settings(copied, file))


def test_loras_beside_a_teacher_that_the_recipe_does_not_mention_are_found(tmp_path: Path) -> None:
    lora = write_lora(tmp_path / "style.safetensors", {"lora_unet_x.lora_down.weight": torch.ones(1, 1)})
    write_lora(tmp_path / "model.safetensors", {"conv_in.weight": torch.ones(1)})
    (tmp_path / "damaged.safetensors").write_bytes(b"x")
    assert unmentioned_loras(tmp_path, ()) == [lora]
    assert unmentioned_loras(tmp_path, (LoraSettings(path=str(lora)),)) == []


@pytest.mark.slow
def test_a_lora_of_kohyas_scripts_for_stable_diffusion_xl_is_found_whole(tmp_path: Path) -> None:
    unet = teacher_skeleton(TeacherSettings(pipeline=str(SHIPPED / "sdxl"))).denoiser
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    paths = [name for name, module in unet.named_modules() if isinstance(module, kinds)]
    tensors = {}
    for path in paths:
        shape = unet.get_submodule(path).weight.shape
        name = "lora_unet_" + unet_name(f"{path}.weight", 2, {0, 1}).removesuffix(".weight").replace(".", "_")
        tensors[f"{name}.lora_down.weight"] = torch.zeros(2, *shape[1:], dtype=torch.float16)
        tensors[f"{name}.lora_up.weight"] = torch.zeros(shape[0], 2, *[1] * (len(shape) - 2), dtype=torch.float16)
        tensors[f"{name}.alpha"] = torch.tensor(1.0)
    file = write_lora(tmp_path / "a.safetensors", tensors)
    layers = read_lora(StableDiffusionXLPipeline, LoraSettings(path=str(file)), {"unet": unet})
    assert {layer.module for layer in layers} == {*paths}
    assert len(layers) == 794
    assert {layer.factor for layer in layers} == {0.5}
