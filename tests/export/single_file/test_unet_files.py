"""Files of tiny pipelines, read back by diffusers' public API."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Keep, Pipeline, saved, tiny_checkpoint
from diffusers import LCMScheduler, StableDiffusionInpaintPipeline, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import build_sd_inpaint
from torch import nn

from condistill.errors import CondistillError
from condistill.export import EXPORTERS, ExportOptions, Source, find_source

FAST = ("sd1", "b-base")
KEEP = {"down_blocks.0": [0], "up_blocks.2": [0, 2]}
CASES: list[tuple[str, Keep]] = [
    *((kind, keep) for kind in ("sd1", "sd2", "sdxl") for keep in (None, "b-base", "b-small", "b-tiny")),
    ("four-stages", "b-small"),
    ("four-stages", "b-tiny"),
    ("sdxl", "koala-700m"),
    ("sdxl", "koala-1b"),
]


def _exported(source: Source, folder: Path, to: str = "comfyui", **options: Any) -> Path:
    """Write a format without its check, which refuses tiny widths, and return the file."""
    folder.mkdir(parents=True, exist_ok=True)
    exporter = EXPORTERS[to]
    exporter.write(source, folder, ExportOptions(**options))
    comparisons = exporter.verify(source, folder, ExportOptions(**options))
    assert comparisons
    assert all(each.holds for each in comparisons), comparisons
    return folder / f"{source.name}.safetensors"


def _assert_same_weights(loaded: Any, pipeline: Any) -> None:
    for name, model in pipeline.components.items():
        if isinstance(model, nn.Module):
            found, expected = getattr(loaded, name).state_dict(), model.state_dict()
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[key], expected[key]) for key in expected), name


def _from_single_file(kind: type[Any], file: Path) -> Any:
    return kind.from_single_file(
        str(file), config=str(file.parent / "configs"), local_files_only=True, torch_dtype=torch.float32
    )


@pytest.mark.parametrize(
    ("kind", "keep"), [case if case == FAST else pytest.param(*case, marks=pytest.mark.slow) for case in CASES]
)
def test_diffusers_reads_the_same_weights_from_the_file(kind: str, keep: Keep, tmp_path: Path) -> None:
    pipeline = tiny_checkpoint(kind, keep)
    source = saved(pipeline, tmp_path / "pipeline")
    file = _exported(source, tmp_path / "comfyui")
    if keep is not None and (kind, keep) != FAST:  # the other parts are those of the teacher
        unet = UNet2DConditionModel.from_single_file(
            str(file), config=str(file.parent / "configs"), subfolder="unet", local_files_only=True
        )
        found, expected = unet.state_dict(), pipeline.unet.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)
        _exported(source, tmp_path / "sdcpp", "sdcpp")
        return
    loaded = _from_single_file(type(pipeline), file)
    _assert_same_weights(loaded, pipeline)
    assert type(loaded.scheduler) is type(pipeline.scheduler)
    for name in ("tokenizer", "tokenizer_2"):
        if found := getattr(pipeline, name, None):
            assert getattr(loaded, name)("a red star").input_ids == found("a red star").input_ids
    _exported(source, tmp_path / "sdcpp", "sdcpp")  # compared by its own numbering


@pytest.mark.slow
def test_blocks_of_different_lengths_are_restored_and_diffusers_is_named(tmp_path: Path) -> None:
    pipeline = tiny_checkpoint("sd1", KEEP)
    assert pipeline.unet.config.layers_per_block == (1, 2, 2)
    source = saved(pipeline, tmp_path / "pipeline")
    _exported(source, tmp_path / "comfyui")
    assert "cannot read this file" in EXPORTERS["comfyui"].how_to_load(source.shape)


@pytest.mark.slow
def test_an_inpainting_pipeline_is_read_back(tmp_path: Path) -> None:
    pipeline = build_sd_inpaint()
    file = _exported(saved(pipeline, tmp_path / "pipeline"), tmp_path / "comfyui")
    _assert_same_weights(_from_single_file(StableDiffusionInpaintPipeline, file), pipeline)


def _header(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as opened:
        return dict(opened.metadata())


@pytest.mark.slow
def test_one_dtype_is_written_and_the_rounding_is_stated(tmp_path: Path) -> None:
    source = saved(tiny_checkpoint("sd1", "b-tiny"), tmp_path / "pipeline")
    for dtype in ("float16", "bfloat16"):
        file = _exported(source, tmp_path / dtype, dtype=dtype)
        assert {tensor.dtype for tensor in load_file(file).values()} == {getattr(torch, dtype)}
        comparisons = EXPORTERS["comfyui"].verify(source, file.parent, ExportOptions(dtype=dtype))
        assert all(0 < each.largest_difference <= each.tolerance < 0.1 for each in comparisons)


@pytest.mark.slow
def test_without_a_dtype_the_file_has_that_of_the_denoiser(tmp_path: Path) -> None:
    pipeline = tiny_checkpoint("sd1", "b-tiny")
    pipeline.unet.to(torch.float16)
    file = _exported(saved(pipeline, tmp_path / "pipeline"), tmp_path / "comfyui")
    assert {tensor.dtype for tensor in load_file(file).values()} == {torch.float16}


@pytest.mark.slow
@pytest.mark.parametrize(("value", "words"), [(1e5, "--dtype bfloat16 or float32"), (float("nan"), "not finite")])
def test_a_weight_that_does_not_fit_the_dtype_is_named(value: float, words: str, tmp_path: Path) -> None:
    pipeline = tiny_checkpoint("sd1", "b-tiny")
    with torch.no_grad():
        pipeline.unet.conv_out.weight[0, 0, 0, 0] = value
    source = saved(pipeline, tmp_path / "pipeline")
    with pytest.raises(CondistillError, match=f"model.diffusion_model.out.2.weight .*{words}"):
        _exported(source, tmp_path / "comfyui", dtype="float16")


@pytest.mark.slow
def test_the_header_has_configs_and_no_path(tmp_path: Path) -> None:
    pipeline = tiny_checkpoint("sdxl", "b-small")
    source = saved(pipeline, tmp_path / "pipeline", {"num_inference_steps": 4, "guidance_scale": 1.0})
    config = json.loads((source.directory / "unet" / "config.json").read_text(encoding="utf-8"))
    (source.directory / "unet" / "config.json").write_text(json.dumps({**config, "_name_or_path": str(tmp_path)}))
    (source.directory / "README.md").write_text("---\nlicense: openrail++\n---\n", encoding="utf-8")
    source = find_source(str(source.directory))
    file = _exported(source, tmp_path / "comfyui")
    header = _header(file)
    assert header["format"] == "pt"
    assert header["modelspec.title"] == "pipeline"
    assert header["modelspec.architecture"] == "stable-diffusion-xl-v1-base"
    assert header["modelspec.license"] == "openrail++"
    assert json.loads(header["diffusers.configs"])["unet"]["mid_block_type"] is None
    assert json.loads(header["diffusers.model_index"])["_class_name"] == "StableDiffusionXLPipeline"
    assert json.loads(header["diffusers.sampling"])["num_inference_steps"] == 4
    text = json.dumps(header) + "".join(each.read_text("utf-8") for each in (file.parent / "configs").rglob("*.json"))
    assert str(tmp_path) not in text


@pytest.mark.slow
def test_names_of_older_versions_are_read(tmp_path: Path) -> None:
    pipeline = tiny_checkpoint("sd1", "b-base")
    source = saved(pipeline, tmp_path / "pipeline")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for component, name in (("vae", "diffusion_pytorch_model"), ("text_encoder", "model")):
        file = source.directory / component / f"{name}.safetensors"
        tensors = load_file(file)
        if component == "vae":
            for new, before in old.items():
                tensors = {
                    key.replace(f"attentions.0.{new}.", f"attentions.0.{before}."): t for key, t in tensors.items()
                }
        else:
            tensors = {f"text_model.{key.removeprefix('text_model.')}": tensor for key, tensor in tensors.items()}
            tensors["text_model.embeddings.position_ids"] = torch.arange(20)[None]
        file.unlink()
        save_file(tensors, file, {"format": "pt"})
    file = _exported(find_source(str(source.directory)), tmp_path / "comfyui")
    _assert_same_weights(_from_single_file(type(pipeline), file), pipeline)


@pytest.mark.slow
def test_a_learnt_guidance_scale_is_exported_and_an_input_is_refused(tmp_path: Path) -> None:
    pipeline = tiny_checkpoint("sd1", "b-base", time_cond_proj_dim=8)
    projection = pipeline.unet.time_embedding.cond_proj
    with torch.no_grad():
        projection.weight.zero_()
    pipeline.scheduler = LCMScheduler.from_config(pipeline.scheduler.config)
    source = saved(pipeline, tmp_path / "pipeline", {"num_inference_steps": 4, "guidance_scale": 7.5})
    loaded = _from_single_file(type(pipeline), _exported(source, tmp_path / "comfyui"))
    assert loaded.unet.config.time_cond_proj_dim is None
    assert torch.equal(loaded.unet.conv_in.weight, pipeline.unet.conv_in.weight)
    how = EXPORTERS["comfyui"].how_to_load(source.shape)
    assert "`sampling: lcm`" in how
    assert "`steps: 4`, `cfg: 1`, `sampler_name: lcm`" in how
    with torch.no_grad():
        projection.weight.fill_(1)
    shutil.rmtree(source.directory)
    with pytest.raises(CondistillError, match="range of guidance scales"):
        _exported(saved(pipeline, tmp_path / "pipeline"), tmp_path / "again")


@pytest.mark.slow
def test_what_the_file_lacks_or_changes_is_found(tmp_path: Path) -> None:
    pipeline: Pipeline = tiny_checkpoint("sd1", "b-tiny")
    source = saved(pipeline, tmp_path / "pipeline")
    file = _exported(source, tmp_path / "comfyui")
    tensors = load_file(file)
    for changes in (
        {"first_stage_model.quant_conv.bias": tensors["first_stage_model.quant_conv.bias"] + 1},
        {"first_stage_model.quant_conv.bias": None},
    ):
        damaged = {key: tensor for key, tensor in (tensors | changes).items() if tensor is not None}
        save_file(damaged, file)
        found = EXPORTERS["comfyui"].verify(source, file.parent, ExportOptions())
        assert [each.subject.split()[0] for each in found if not each.holds] == ["vae"]


@pytest.mark.slow
def test_weights_that_are_not_those_of_the_config_are_named_before_anything_is_written(tmp_path: Path) -> None:
    source = saved(tiny_checkpoint("sd1", "b-tiny"), tmp_path / "pipeline")
    file = source.directory / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    name = "conv_out.weight"
    for changed, words in (
        ({key: value for key, value in weights.items() if key != name}, "the unet has no weight conv_out.weight"),
        (weights | {name: weights[name][:1].clone()}, r"conv_out.weight of the unet has the shape \[1, "),
        (weights | {"other.weight": torch.ones(2)}, "the weight other.weight, which no layer of it has"),
    ):
        save_file(changed, file, {"format": "pt"})
        with pytest.raises(CondistillError, match=words):
            _exported(source, tmp_path / "out")
        assert not list((tmp_path / "out").iterdir())
