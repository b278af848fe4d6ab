from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline
from resident import MIB, resident_growth
from safetensors.torch import load_file

from condistill.config.sections import TeacherSettings
from condistill.errors import CondistillError
from condistill.pipelines import save
from condistill.pipelines.save import save_denoiser, save_pipeline
from condistill.teachers.family import Family
from condistill.teachers.files import PipelineFiles
from condistill.teachers.load import load_teacher

Saved = tuple[Path, dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def saved(tiny_family: Family, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """A saved pipeline with another denoiser than the teacher's, and the weights of that denoiser."""
    student = copy.deepcopy(tiny_family.denoiser).to(memory_format=torch.channels_last)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(0.5)
    weights = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    directory = tmp_path_factory.mktemp("saved") / "pipeline"
    save_pipeline(tiny_family, student, directory, card="# A card\n")
    return directory, weights


@pytest.fixture(scope="module")
def half_pipeline_dir(tiny_pipeline_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline in float16 files of the variant `fp16`, except a text encoder without variant. Read only."""
    directory = tmp_path_factory.mktemp("half") / "pipeline"
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_pipeline_dir, torch_dtype=torch.float16)
    pipeline.save_pretrained(directory, variant="fp16")
    pipeline.text_encoder.float().save_pretrained(directory / "text_encoder")
    (directory / "text_encoder" / "model.fp16.safetensors").unlink()
    return directory


def files_of(directory: Path) -> dict[str, bytes]:
    return {str(file.relative_to(directory)): file.read_bytes() for file in directory.rglob("*") if file.is_file()}


def test_a_saved_pipeline_loads_with_plain_diffusers_bit_for_bit(saved: Saved, tiny_family: Family) -> None:
    directory, weights = saved
    pipeline = DiffusionPipeline.from_pretrained(directory, use_safetensors=True)
    assert type(pipeline) is StableDiffusionPipeline
    loaded = pipeline.unet.state_dict()
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights.items())
    for name in ("vae", "text_encoder"):
        teacher = getattr(tiny_family.pipeline, name).state_dict()
        assert all(torch.equal(getattr(pipeline, name).state_dict()[k], tensor) for k, tensor in teacher.items())
    assert (directory / "README.md").read_text() == "# A card\n"


def test_components_that_do_not_change_are_the_teachers_files_byte_for_byte(
    tiny_pipeline_dir: Path, tmp_path: Path
) -> None:
    teacher = PipelineFiles.read(tiny_pipeline_dir)
    family = load_teacher(TeacherSettings(pipeline=str(tiny_pipeline_dir), dtype="bfloat16"))
    save_pipeline(family, family.denoiser, tmp_path / "saved", card="", teacher=teacher, dtype=torch.float32)
    before, after = files_of(tiny_pipeline_dir), files_of(tmp_path / "saved")
    assert before.keys() | {"README.md"} == after.keys()
    changed = {name for name, content in before.items() if after[name] != content}
    assert {name for name in changed if not name.startswith("unet/")} <= {"model_index.json"}
    assert json.loads(before["model_index.json"]) == json.loads(after["model_index.json"])
    assert (
        load_file(tmp_path / "saved" / "unet" / "diffusion_pytorch_model.safetensors")["conv_in.weight"].dtype
        == torch.float32
    )
    assert family.denoiser.dtype == torch.bfloat16  # the cast is for the file only


@pytest.mark.slow
def test_a_teacher_of_a_file_variant_becomes_a_pipeline_without_variant(
    half_pipeline_dir: Path, tmp_path: Path
) -> None:
    teacher = PipelineFiles(half_pipeline_dir, PipelineFiles.read(half_pipeline_dir).index, "fp16")
    assert (teacher.dtype("unet"), teacher.dtype("text_encoder")) == ("float16", "float32")
    pipeline = StableDiffusionPipeline.from_pretrained(half_pipeline_dir, variant="fp16", torch_dtype=torch.float32)
    family = load_teacher(TeacherSettings(pipeline="miniature"))
    family = type(family)(pipeline)
    save_pipeline(family, family.denoiser, tmp_path / "saved", card="", teacher=teacher, dtype=torch.float16)
    saved = PipelineFiles.read(tmp_path / "saved")
    for name in ("vae", "text_encoder"):
        (weights,), (expected,) = saved.weights(name), teacher.weights(name)
        assert ".fp16" not in weights.name
        assert weights.read_bytes() == expected.read_bytes()
    assert saved.dtype("unet") == "float16"
    assert saved.weight_bytes("unet") <= teacher.weight_bytes("unet") + 1024  # of the header
    DiffusionPipeline.from_pretrained(tmp_path / "saved", torch_dtype=torch.float16)


@pytest.mark.slow
def test_shards_of_a_variant_are_renamed_with_their_index(tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(tiny_pipeline_dir, tmp_path / "teacher"))
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_pipeline_dir)
    shutil.rmtree(directory / "vae")
    pipeline.vae.save_pretrained(directory / "vae", max_shard_size="100KB", variant="fp16")
    teacher = PipelineFiles(directory, PipelineFiles.read(directory).index, "fp16")
    assert len(teacher.weights("vae")) > 1
    family = load_teacher(TeacherSettings(pipeline="miniature"))
    save_pipeline(type(family)(pipeline), pipeline.unet, tmp_path / "saved", card="", teacher=teacher)
    saved = PipelineFiles.read(tmp_path / "saved")
    assert [file.read_bytes() for file in saved.weights("vae")] == [f.read_bytes() for f in teacher.weights("vae")]
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "saved").vae.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in pipeline.vae.state_dict().items())


def test_only_the_schedulers_files_change_with_the_scheduler(
    tiny_family: Family, tiny_pipeline_dir: Path, tmp_path: Path
) -> None:
    teacher, scheduler = PipelineFiles.read(tiny_pipeline_dir), DDIMScheduler(num_train_timesteps=1000)
    index = {**teacher.index, "scheduler": ["diffusers", "PNDMScheduler"]}
    teacher = PipelineFiles(tiny_pipeline_dir, index)
    denoiser = tiny_family.denoiser
    save_pipeline(tiny_family, denoiser, tmp_path / "saved", card="", teacher=teacher, scheduler=scheduler)
    before, after = files_of(tiny_pipeline_dir), files_of(tmp_path / "saved")
    changed = {name.split("/")[0] for name, content in before.items() if after[name] != content}
    assert changed <= {"scheduler", "unet", "model_index.json"}
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "saved")
    assert isinstance(loaded.scheduler, DDIMScheduler)


def test_layers_that_diffusers_keeps_in_float32_are_saved_in_float32(
    tiny_family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(tiny_family.denoiser), "_keep_in_fp32_modules", ["conv_in"])
    save_pipeline(tiny_family, tiny_family.denoiser, tmp_path / "saved", card="", dtype=torch.bfloat16)
    (weights,) = PipelineFiles.read(tmp_path / "saved").weights("unet")
    dtypes = {name: tensor.dtype for name, tensor in load_file(weights).items()}
    assert dtypes.pop("conv_in.weight") == dtypes.pop("conv_in.bias") == torch.float32
    assert set(dtypes.values()) == {torch.bfloat16}


def test_large_weights_are_divided_into_files_as_by_diffusers(
    tiny_family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    denoiser: Any = tiny_family.denoiser
    limit = sum(parameter.nbytes for parameter in denoiser.parameters()) // 3
    monkeypatch.setattr(save, "MAX_SHARD_BYTES", limit)
    save_denoiser(denoiser, tmp_path / "ours", torch.float32)
    files = sorted((tmp_path / "ours").glob("*.safetensors"))
    assert 3 <= len(files) <= 5
    assert all(file.stat().st_size < 1.1 * limit for file in files)
    loaded = type(denoiser).from_pretrained(tmp_path / "ours", use_safetensors=True).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in denoiser.state_dict().items())
    denoiser.save_pretrained(tmp_path / "theirs", max_shard_size=limit)
    ours, theirs = ({file.name for file in (tmp_path / name).iterdir()} for name in ("ours", "theirs"))
    assert {name.split("-of-")[0] for name in ours} == {name.split("-of-")[0] for name in theirs}
    index = next((tmp_path / "ours").glob("*.index.json"))
    assert json.loads(index.read_text()).keys() == json.loads((tmp_path / "theirs" / index.name).read_text()).keys()


def test_a_denoiser_is_saved_without_a_second_copy_of_its_weights(tmp_path: Path) -> None:
    class Denoiser(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList(torch.nn.Conv2d(256, 512, 4, bias=False) for _ in range(8))

        def save_config(self, directory: Path) -> None:
            directory.mkdir()

    denoiser = Denoiser().to(memory_format=torch.channels_last)
    assert sum(parameter.nbytes for parameter in denoiser.parameters()) == 64 * MIB
    for dtype in (torch.float32, torch.bfloat16):
        growth = resident_growth(lambda: save_denoiser(denoiser, tmp_path / str(dtype), dtype))  # noqa: B023
        assert growth < 28 * MIB
        (file,) = (tmp_path / str(dtype)).iterdir()
        assert torch.equal(load_file(file)["layers.3.weight"], denoiser.layers[3].weight.to(dtype))
    assert denoiser.layers[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_a_weight_that_is_too_large_for_the_dtype_is_named(tiny_family: Family, tmp_path: Path) -> None:
    student = copy.deepcopy(tiny_family.denoiser)
    with torch.no_grad():
        student.conv_in.bias[0] = 1e6
    with pytest.raises(CondistillError, match=r"conv_in\.bias .* too large for float16; set distill\.save_dtype"):
        save_pipeline(tiny_family, student, tmp_path / "saved", card="", dtype=torch.float16)
    assert not (tmp_path / "saved").exists()
    assert student.conv_in.bias[0] == 1e6


def test_a_saved_pipeline_does_not_name_directories_of_this_machine(saved: Saved, tiny_pipeline_dir: Path) -> None:
    files = list(saved[0].rglob("*.json"))
    assert len(files) > 4
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert "_name_or_path" not in json.loads(text), file
        assert str(tiny_pipeline_dir) not in text, file
        assert str(saved[0]) not in text, file


def test_copied_configs_lose_the_directories_that_they_name_and_nothing_else(
    tiny_family: Family, tiny_pipeline_dir: Path, tmp_path: Path
) -> None:
    directory = Path(shutil.copytree(tiny_pipeline_dir, tmp_path / "teacher"))
    places = {"vae/config.json": "_name_or_path", "tokenizer/tokenizer_config.json": "special_tokens_map_file"}
    for name, entry in places.items():
        config = json.loads((directory / name).read_text())
        nested = {"text_config": {"_name_or_path": "/home/me/private", "width": 3}}
        (directory / name).write_text(json.dumps({**config, **nested, entry: "/home/me/private"}))
    teacher = PipelineFiles.read(directory)
    save_pipeline(tiny_family, tiny_family.denoiser, tmp_path / "saved", card="", teacher=teacher)
    assert not any(b"/home/me" in content for content in files_of(tmp_path / "saved").values())
    for name, entry in places.items():
        expected = json.loads((directory / name).read_text())
        del expected[entry], expected["text_config"]["_name_or_path"]
        assert json.loads((tmp_path / "saved" / name).read_text()) == expected


def test_a_saved_pipeline_holds_no_pickle(saved: Saved) -> None:
    suffixes = {file.suffix for file in saved[0].rglob("*") if file.is_file()}
    assert ".safetensors" in suffixes
    assert suffixes <= {".safetensors", ".json", ".txt", ".md"}


def test_all_files_of_a_saved_pipeline_have_the_same_permissions(saved: Saved) -> None:
    assert len({file.stat().st_mode for file in saved[0].rglob("*") if file.is_file()}) == 1


def test_a_save_that_fails_leaves_the_old_pipeline(
    saved: Saved, tiny_family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "pipeline"
    shutil.copytree(saved[0], directory)

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(tiny_family.pipeline.text_encoder, "save_pretrained", fail)
    with pytest.raises(OSError, match="No space left"):
        save_pipeline(tiny_family, tiny_family.denoiser, directory, card="new")
    assert (directory / "README.md").read_text() == "# A card\n"
    assert [path.name for path in tmp_path.iterdir()] == ["pipeline"]
