from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline

from condistill.errors import CondistillError
from condistill.teachers.files import PipelineFiles, pipeline_files

INDEX: dict[str, Any] = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.37.0",
    "feature_extractor": [None, None],
    "requires_safety_checker": True,
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
}
SHARDS = ("-00001-of-00002", "-00002-of-00002")


def write(directory: Path, names: Iterable[str]) -> None:
    for name in names:
        file = directory / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)


def write_sharded(directory: Path, index: str, shards: Iterable[str]) -> None:
    write(directory, shards)
    weight_map = {f"layer{number}": shard for number, shard in enumerate(shards)}
    (directory / index).write_text(json.dumps({"weight_map": weight_map}))


def names(directory: Path, index: dict[str, Any], component: str, variant: str | None = None) -> list[str]:
    files = pipeline_files(directory, index, variant=variant)[component]
    assert files == sorted(files)
    return [file.relative_to(directory / component).as_posix() for file in files]


def test_every_file_that_save_pretrained_writes_is_read_by_loading(tiny_pipeline_dir: Path) -> None:
    index = json.loads((tiny_pipeline_dir / "model_index.json").read_text())
    files = pipeline_files(tiny_pipeline_dir, index, variant=None)
    assert {name for name, value in index.items() if isinstance(value, list) and value[0]} | {""} == set(files)
    assert {file for group in files.values() for file in group} == {
        file for file in tiny_pipeline_dir.rglob("*") if file.is_file()
    }


def test_files_that_loading_does_not_read_are_left_out(tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(tiny_pipeline_dir, tmp_path / "pipeline"))
    index = json.loads((copied / "model_index.json").read_text())
    before = pipeline_files(copied, index, variant=None)
    unread = ["README.md", "notes.txt", "model.ckpt", "v1.safetensors", ".gitattributes", "samples/a.png", "data.json"]
    unread += [f"unet/{name}" for name in ("diffusion_pytorch_model.bin", "diffusion_pytorch_model.fp16.safetensors")]
    unread += ["unet/model.onnx", "unet/diffusion_flax_model.msgpack", "unet/openvino_model.xml", "unet/notes.txt"]
    unread += ["unet/.config.json.swp", "unet/diffusion_pytorch_model.non_ema.safetensors", "unet/lora.safetensors"]
    unread += ["unet/example/config.json", "text_encoder/pytorch_model.bin", "text_encoder/tf_model.h5"]
    unread += ["tokenizer/notes.txt", "tokenizer/README.md", "tokenizer/results.json", "safety_checker/config.json"]
    write(copied, unread)
    assert pipeline_files(copied, index, variant=None) == before


@pytest.mark.parametrize(
    "name",
    [
        "spiece.model",
        "tokenizer.model",
        "vocab.json",
        "merges.txt",
        "vocab.txt",
        "tokenizer.json",
        "tokenizer.4.0.0.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "chat_template.jinja",
        "additional_chat_templates/rag.jinja",
    ],
)
def test_every_kind_of_tokenizer_file_is_found(name: str, tmp_path: Path) -> None:
    write(tmp_path, [f"tokenizer/{name}", "tokenizer/notes.txt"])
    assert names(tmp_path, INDEX, "tokenizer") == [name]


def test_processors_and_schedulers_have_their_configs(tmp_path: Path) -> None:
    index = {**INDEX, "feature_extractor": ["transformers", "CLIPImageProcessor"]}
    write(tmp_path, ["feature_extractor/preprocessor_config.json", "scheduler/scheduler_config.json"])
    assert names(tmp_path, index, "feature_extractor") == ["preprocessor_config.json"]
    assert names(tmp_path, index, "scheduler") == ["scheduler_config.json"]


def test_the_variant_is_chosen_for_each_component_that_has_it(tmp_path: Path) -> None:
    write(tmp_path, ["unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors"])
    write(tmp_path, ["text_encoder/model.safetensors", "text_encoder/config.json"])
    assert names(tmp_path, INDEX, "unet", "fp16") == ["diffusion_pytorch_model.fp16.safetensors"]
    assert names(tmp_path, INDEX, "unet") == ["diffusion_pytorch_model.safetensors"]
    assert names(tmp_path, INDEX, "text_encoder", "fp16") == ["config.json", "model.safetensors"]


@pytest.mark.parametrize(
    ("component", "index", "stem", "variant"),
    [
        ("unet", "diffusion_pytorch_model.safetensors.index.json", "diffusion_pytorch_model{}.safetensors", None),
        ("unet", "diffusion_pytorch_model.safetensors.index.fp16.json", "diffusion_pytorch_model.fp16{}", "fp16"),
        ("unet", "diffusion_pytorch_model.safetensors.fp16.index.json", "diffusion_pytorch_model{}.fp16", "fp16"),
        ("text_encoder", "model.safetensors.index.json", "model{}.safetensors", None),
        ("text_encoder", "model.safetensors.index.fp16.json", "model.fp16{}.safetensors", "fp16"),
    ],
)
def test_sharded_weights_are_those_that_their_index_names(
    component: str, index: str, stem: str, variant: str | None, tmp_path: Path
) -> None:
    stem = stem if stem.endswith(".safetensors") else f"{stem}.safetensors"
    shards = [stem.format(number) for number in SHARDS]
    write_sharded(tmp_path / component, index, shards)
    write(tmp_path / component, [stem.format("-00003-of-00003"), "config.json"])
    assert names(tmp_path, INDEX, component, variant) == sorted(["config.json", index, *shards])


def test_a_shard_that_is_missing_is_named(tmp_path: Path) -> None:
    write_sharded(tmp_path / "unet", "diffusion_pytorch_model.safetensors.index.json", ["a.safetensors"])
    (tmp_path / "unet" / "a.safetensors").unlink()
    with pytest.raises(CondistillError, match=r"index\.json names files that are missing: a\.safetensors"):
        pipeline_files(tmp_path, INDEX, variant=None)


@pytest.mark.parametrize("content", ["", "[]", '{"weight_map": 3}', "{}"])
def test_an_index_of_shards_that_cannot_be_read_is_named(content: str, tmp_path: Path) -> None:
    write(tmp_path, ["unet/config.json"])
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(content)
    with pytest.raises(CondistillError, match=r"index\.json is not an index of sharded weights"):
        pipeline_files(tmp_path, INDEX, variant=None)


def test_an_index_of_shards_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    write_sharded(tmp_path / "unet", "diffusion_pytorch_model.safetensors.index.json", ["../other.safetensors"])
    with pytest.raises(CondistillError, match=r"names '\.\./other\.safetensors'; only files of its own directory"):
        pipeline_files(tmp_path, INDEX, variant=None)


@pytest.mark.slow
@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("shard_size", ["1GB", "200KB"])
def test_the_files_are_enough_to_load_the_pipeline_and_all_weights_are_among_them(
    variant: str | None, shard_size: str, tiny_pipeline_dir: Path, tmp_path: Path
) -> None:
    expected = StableDiffusionPipeline.from_pretrained(tiny_pipeline_dir)
    expected.save_pretrained(tmp_path / "whole", variant=variant, max_shard_size=shard_size)
    other = "bf16" if variant is None else None
    expected.save_pretrained(tmp_path / "other", variant=other)
    for file in (tmp_path / "other").rglob("*.safetensors"):  # of another variant: must not be read
        (tmp_path / "whole" / file.relative_to(tmp_path / "other")).write_bytes(b"no weights")
    index = json.loads((tmp_path / "whole" / "model_index.json").read_text())
    for files in pipeline_files(tmp_path / "whole", index, variant=variant).values():
        for file in files:
            target = tmp_path / "copy" / file.relative_to(tmp_path / "whole")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    loaded = StableDiffusionPipeline.from_pretrained(tmp_path / "copy", variant=variant, use_safetensors=True)
    for name in ("unet", "vae", "text_encoder"):
        weights = getattr(loaded, name).state_dict()
        for key, tensor in getattr(expected, name).state_dict().items():
            assert torch.equal(weights[key], tensor)
    assert loaded.tokenizer("a red star").input_ids == expected.tokenizer("a red star").input_ids


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"_class_name": 3}'])
def test_a_pipeline_without_a_readable_index_is_named(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "model_index.json").write_text(content)
    with pytest.raises(CondistillError, match=r"model_index\.json .*; save the pipeline again"):
        PipelineFiles.read(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no weights", None])
def test_damaged_weights_are_named(content: bytes | None, tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    pipeline = PipelineFiles.read(Path(shutil.copytree(tiny_pipeline_dir, tmp_path / "pipeline")))
    (weights,) = pipeline.weights("unet")
    weights.write_bytes(weights.read_bytes()[:-1000] if content is None else content)
    with pytest.raises(CondistillError, match=r"unet.*safetensors is damaged .*; delete the pipeline's directory"):
        pipeline.dtype("unet")
