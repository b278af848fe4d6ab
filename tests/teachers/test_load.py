from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from condistill.config.sections import TeacherSettings
from condistill.errors import CondistillError
from condistill.miniature import weights_path
from condistill.teachers.family import Family
from condistill.teachers.load import check_safetensors, choose_dtype, load_teacher, locate, teacher_inputs
from condistill.teachers.registry import FAMILIES


@pytest.fixture
def copied(tiny_pipeline_dir: Path, tmp_path: Path) -> Path:
    """A copy of a pipeline directory, for tests that change its files."""
    return Path(shutil.copytree(tiny_pipeline_dir, tmp_path / "pipeline"))


def load(path: Path | str, **settings: str) -> Family:
    return load_teacher(TeacherSettings(pipeline=str(path), **settings))


def test_a_pipeline_directory_is_loaded_as_its_family(tiny_family: Family) -> None:
    assert isinstance(tiny_family, FAMILIES["stable_diffusion"])
    assert tiny_family.name == "stable_diffusion"
    assert tiny_family.denoiser.dtype == torch.float32


@pytest.mark.parametrize(
    "name", ["no/such/teacher", "./teacher", "~/no-such-teacher", "teacher", "a/teacher.safetensors", "a/teacher.ckpt"]
)
def test_a_directory_that_does_not_exist_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        CondistillError,
        match=r"teacher\.pipeline .*teacher(\.\w+)? does not exist; give a diffusers pipeline directory, one",
    ):
        load(name)


def test_a_directory_without_an_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CondistillError, match=r"has no model_index\.json, so it is not a diffusers pipeline"):
        load(tmp_path)


def test_an_index_that_is_not_json_is_named(copied: Path) -> None:
    (copied / "model_index.json").write_text('{"_class_name": ')
    with pytest.raises(CondistillError, match=r"model_index\.json"):
        load(copied)


@pytest.mark.parametrize("name", ["model.ckpt", "model.bin", "model.pt", "model.PTH"])
def test_a_pickle_is_refused_with_a_way_to_convert_it(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    with pytest.raises(
        CondistillError, match=r"is a pickle, which can run code, .* from_single_file .* save_pretrained"
    ):
        load(tmp_path / name)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").touch()
    with pytest.raises(CondistillError, match=r"neither a diffusers pipeline directory nor a safetensors file"):
        load(tmp_path / "model.onnx")


def test_settings_that_do_not_fit_the_kind_of_teacher_are_refused(tmp_path: Path, tiny_pipeline_dir: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    for name in ("revision", "variant"):
        with pytest.raises(CondistillError, match=rf"teacher\.{name} is set, .* is one file; leave out {name}"):
            load(tmp_path / "model.safetensors", **{name: "fp16"})
    with pytest.raises(CondistillError, match=r"teacher\.config is sd-1, and teacher\.pipeline .* is no file"):
        load(tiny_pipeline_dir, config="sd-1")


def test_a_pipeline_object_and_a_path_are_loaded_too(tiny_pipeline_dir: Path, tiny_family: Family) -> None:
    for path in (tiny_pipeline_dir, str(tiny_pipeline_dir)):
        assert load_teacher(path).latent_shape == tiny_family.latent_shape
    family = load_teacher(tiny_family.pipeline)
    assert isinstance(family, type(tiny_family))
    assert family.pipeline is tiny_family.pipeline
    with pytest.raises(CondistillError, match="a Namespace, which no teacher family supports"):
        load_teacher(argparse.Namespace())  # type: ignore[arg-type]


def test_components_with_only_pickles_are_named_and_never_loaded(copied: Path) -> None:
    for component, name in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        for weights in (copied / component).glob("*.safetensors"):
            weights.unlink()
        (copied / component / f"{name}.bin").write_bytes(b"not read")
    with pytest.raises(CondistillError, match=r"only pickle weights for .*; a pickle can run code") as raised:
        load(copied)
    assert "unet" in str(raised.value)
    assert "text_encoder" in str(raised.value)
    assert "vae" not in str(raised.value)


def test_a_pickle_is_ignored_if_there_are_safetensors(copied: Path) -> None:
    (copied / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"not read")
    assert load(copied).latent_shape == (4, 8, 8)


def test_missing_weights_are_reported_in_one_line(copied: Path) -> None:
    for weights in (copied / "unet").glob("*.safetensors"):
        weights.unlink()
    with pytest.raises(CondistillError, match="cannot be loaded") as raised:
        load(copied)
    assert "\n" not in str(raised.value)


def test_truncated_weights_are_reported_in_one_line(copied: Path) -> None:
    weights = next((copied / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CondistillError, match="cannot be loaded") as raised:
        load(copied)
    assert "\n" not in str(raised.value)


def test_a_pipeline_of_an_unknown_class_lists_the_supported_families(copied: Path) -> None:
    index = json.loads((copied / "model_index.json").read_text())
    (copied / "model_index.json").write_text(json.dumps({**index, "_class_name": "AudioLDMPipeline"}))
    with pytest.raises(CondistillError, match=r"a AudioLDMPipeline, .* supported: stable_diffusion \(StableDiff"):
        load(copied)


def test_a_missing_variant_is_reported_with_the_files_found(copied: Path) -> None:
    with pytest.raises(
        CondistillError, match=r"teacher\.variant 'fp16': .* only files without a variant, such as .*\.safetensors"
    ):
        load(copied, variant="fp16")


@pytest.mark.parametrize("name", ["model.fp16.safetensors", "model.fp16-00001-of-00002.safetensors"])
def test_a_component_without_the_variant_is_loaded_without_it(name: str, copied: Path) -> None:
    (copied / "text_encoder" / name).touch()
    index = json.loads((copied / "model_index.json").read_text())
    check_safetensors(copied, index, "fp16")  # the other components have no file of it
    with pytest.raises(
        CondistillError, match=r"'bf16': no component of .* has files of it; there are files of 'fp16' "
    ):
        check_safetensors(copied, index, "bf16")


def mark_variant(pipeline: Path, variant: str, *components: str) -> None:
    """Rename the weights of components to those of a variant."""
    for component in components:
        for weights in (pipeline / component).glob("*.safetensors"):
            weights.rename(weights.with_name(f"{weights.stem}.{variant}.safetensors"))


ALL = ("unet", "vae", "text_encoder")


@pytest.mark.parametrize("given", [{"variant": "fp16"}, {}])
@pytest.mark.parametrize("marked", [ALL, ("unet",)])
def test_a_variant_is_loaded_also_if_it_is_the_only_one(
    given: dict[str, str], marked: tuple[str, ...], copied: Path, tiny_family: Family
) -> None:
    mark_variant(copied, "fp16", *marked)
    family = load(copied, **given)
    loaded, expected = family.denoiser.state_dict(), tiny_family.denoiser.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())


def test_weights_without_a_variant_come_first(copied: Path) -> None:
    for component in ALL:
        (weights,) = (copied / component).glob("*.safetensors")
        weights.with_name(f"{weights.stem}.fp16.safetensors").write_bytes(b"not read")
    assert load(copied).latent_shape == (4, 8, 8)


def test_weights_of_several_variants_only_need_a_choice(copied: Path) -> None:
    mark_variant(copied, "fp16", *ALL)
    for component in ALL:
        (weights,) = (copied / component).glob("*.safetensors")
        shutil.copyfile(weights, weights.with_name(weights.name.replace("fp16", "bf16")))
    with pytest.raises(
        CondistillError, match=r"several variants only: .*unet has 'bf16', 'fp16'; .*set teacher\.variant"
    ):
        load(copied)
    assert load(copied, variant="bf16").latent_shape == (4, 8, 8)


def test_weights_without_a_common_variant_are_refused(copied: Path) -> None:
    mark_variant(copied, "fp16", "unet", "text_encoder")
    mark_variant(copied, "bf16", "vae")
    with pytest.raises(CondistillError, match=r"unet has 'fp16'; vae has 'bf16'; save the pipeline again"):
        load(copied)
    with pytest.raises(CondistillError, match=r"teacher\.variant 'fp16': vae of .* has only files of 'bf16'"):
        load(copied, variant="fp16")


@pytest.mark.parametrize("variant", ["fp", "fp1", "16", "safetensors", "fp16-00001-of-00002"])
def test_a_part_of_the_name_of_a_variant_is_none(variant: str, copied: Path) -> None:
    mark_variant(copied, "fp16", *ALL)
    with pytest.raises(CondistillError, match=r"there are files of 'fp16'; set it to fp16, or leave it out"):
        load(copied, variant=variant)


def test_sharded_weights_of_the_only_variant_are_loaded(copied: Path, tiny_family: Family) -> None:
    tiny_family.denoiser.save_pretrained(copied / "sharded", variant="fp16", max_shard_size="200KB")
    shutil.rmtree(copied / "unet")
    (copied / "sharded").rename(copied / "unet")
    assert len([*(copied / "unet").glob("diffusion_pytorch_model.fp16-*-of-*.safetensors")]) > 1
    loaded = load(copied).denoiser.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tiny_family.denoiser.state_dict().items())
    assert inputs(copied) == inputs(copied, variant="fp16")


def test_a_shard_of_the_variant_that_is_missing_is_named(copied: Path, tiny_family: Family) -> None:
    tiny_family.denoiser.save_pretrained(copied / "unet", variant="fp16", max_shard_size="200KB")
    min((copied / "unet").glob("diffusion_pytorch_model.fp16-00001-of-*.safetensors")).unlink()
    with pytest.raises(CondistillError, match=r"names files that are missing: diffusion_pytorch_model\.fp16-00001"):
        load(copied, variant="fp16")


def test_the_miniature_needs_no_path() -> None:
    assert locate(TeacherSettings(pipeline="miniature")) == weights_path() / "teacher"


def test_the_dtype_on_a_cpu_is_float32_unless_it_is_set() -> None:
    cpu = torch.device("cpu")
    assert choose_dtype("auto", cpu) == torch.float32
    assert choose_dtype("bfloat16", cpu) == torch.bfloat16
    assert choose_dtype("float16", cpu) == torch.float16


@pytest.mark.parametrize(("has_bf16", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_the_dtype_on_a_gpu_is_bfloat16_if_it_supports_it(
    has_bf16: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: has_bf16)
    assert choose_dtype("auto", torch.device("cuda")) == dtype


def inputs(pipeline: Path, **settings: Any) -> dict[str, Any]:
    return teacher_inputs(TeacherSettings(pipeline=str(pipeline), **settings), "cpu")


def test_the_inputs_of_a_directory_are_its_content_and_not_its_place(tiny_pipeline_dir: Path, copied: Path) -> None:
    original = inputs(tiny_pipeline_dir)
    assert inputs(copied) == original
    weights = next((copied / "unet").glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    changed = inputs(copied)
    assert {name for name in original if original[name] != changed[name]} == {
        f"teacher file unet/{weights.name}",
    }


@pytest.mark.parametrize("name", ["notes.txt", "unet/notes.txt", "unet/old.safetensors", "README.md", ".DS_Store"])
def test_a_file_that_is_not_loaded_is_no_input(copied: Path, name: str) -> None:
    before = inputs(copied)
    (copied / name).write_text("mine")
    assert inputs(copied) == before


@pytest.mark.parametrize("name", ["tokenizer/spiece.model", "tokenizer/vocab.json", "scheduler/scheduler_config.json"])
def test_every_file_that_is_loaded_is_an_input(copied: Path, name: str) -> None:
    (copied / name).write_text("{}")
    before = inputs(copied)
    (copied / name).write_text("{ }")
    assert inputs(copied) != before


def test_a_dtype_that_is_chosen_or_given_is_the_same_input(copied: Path) -> None:
    assert inputs(copied, dtype="auto") == inputs(copied, dtype="float32") != inputs(copied, dtype="float16")


@pytest.mark.parametrize(
    "entry", [[], ["diffusers"], ["diffusers", None], [1, 2], ["diffusers", "UNet2DConditionModel", "x"]]
)
def test_an_entry_of_the_index_without_library_and_class_is_refused(copied: Path, entry: list[Any]) -> None:
    index = json.loads((copied / "model_index.json").read_text())
    (copied / "model_index.json").write_text(json.dumps({**index, "unet": entry}))
    with pytest.raises(
        CondistillError, match=r"model_index\.json gives 'unet' as .*a component is a library and a class"
    ):
        load_teacher(TeacherSettings(pipeline=str(copied)))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"_class_name": 3}', "{" * 99999, '"x"'])
def test_a_file_that_is_no_index_is_refused_by_name(copied: Path, content: str) -> None:
    (copied / "model_index.json").write_text(content)
    with pytest.raises(
        CondistillError, match=r"model_index\.json is (not valid JSON|no index of a diffusers pipeline)"
    ):
        load_teacher(TeacherSettings(pipeline=str(copied)))
