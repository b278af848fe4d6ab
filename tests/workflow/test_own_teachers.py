"""Teachers as people have them: whole runs of one file, of LoRAs with other parts, and of a variant alone."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, EulerDiscreteScheduler, StableDiffusionPipeline
from loras import attention_layers, matrices, peft_names, write_lora
from rich.console import Console
from runs import flip_a_byte, tiny_recipe
from single_file import tensors_of, write_configs, write_file

from condistill.config.sections import TeacherSettings
from condistill.errors import CondistillError
from condistill.teachers.load import load_teacher
from condistill.workflow.compress import compress

ONE = ("variants={plain: {}}", "distill.steps=2")


@pytest.fixture(scope="module")
def pipeline(tiny_pipeline_dir: Path) -> Any:
    """The tiny pipeline. Leave it as it is."""
    return StableDiffusionPipeline.from_pretrained(tiny_pipeline_dir, use_safetensors=True)


def run(folder: Path, teacher: Path, *overrides: str, **options: Any) -> tuple[Path, str]:
    """Run a recipe for a teacher; return the run directory, and what was printed."""
    console = Console(record=True, width=200, file=io.StringIO())
    out = compress(tiny_recipe(folder, teacher, *ONE, *overrides), folder / "run", console=console, **options)
    return out, console.export_text()


def image(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return pipeline("a small box", latents=noise, num_inference_steps=2, output_type="np").images[0]


def load(folder: Path) -> Any:
    return DiffusionPipeline.from_pretrained(folder, use_safetensors=True)


def write_style(pipeline: Any, folder: Path) -> None:
    """Write a LoRA for the attentions of a pipeline, `style.safetensors`."""
    layers = matrices(pipeline.unet, attention_layers(pipeline.unet))
    write_lora(folder / "style.safetensors", peft_names("unet", layers))


@pytest.mark.slow
def test_a_run_of_one_file_converts_it_once_and_its_student_loads_in_diffusers(pipeline: Any, tmp_path: Path) -> None:
    file = write_file(tensors_of(pipeline), tmp_path / "mine.safetensors")
    configs = write_configs(pipeline, tmp_path / "configs")
    config = f"teacher.config={configs}"
    out, printed = run(tmp_path, file, config, until="cache")
    assert printed.count("teacher: converting") == 1
    made = {path: path.stat().st_mtime_ns for path in (out / "teacher").rglob("*")}
    assert (image(load(out / "teacher")) == image(pipeline)).all()
    out, printed = run(tmp_path, file, config)
    assert "converting" not in printed
    assert {path: path.stat().st_mtime_ns for path in (out / "teacher").rglob("*")} == made
    assert image(load(out / "pipelines" / "plain")).shape == (64, 64, 3)
    card = (out / "pipelines" / "plain" / "README.md").read_text(encoding="utf-8")
    assert "distilled from mine.safetensors" in card.replace("\\", "")
    shutil.rmtree(out / "teacher")
    _, printed = run(tmp_path, file, config)
    assert "converting" not in printed  # every stage is done, so nothing needs it


@pytest.mark.slow
def test_a_run_with_a_lora_and_other_parts_names_them_and_uses_them(
    pipeline: Any, tiny_pipeline_dir: Path, tmp_path: Path
) -> None:
    write_style(pipeline, tmp_path)
    EulerDiscreteScheduler.from_config(pipeline.scheduler.config).save_pretrained(tmp_path / "euler")
    vae = str(Path(tiny_pipeline_dir) / "vae")
    overrides = (
        "teacher.loras=[{path: style.safetensors, scale: 0.5}]",
        "teacher.scheduler=euler",
        f"teacher.vae={vae}",
    )
    teacher_dir = Path(shutil.copytree(tiny_pipeline_dir, tmp_path / "mine"))
    (teacher_dir / "LICENSE").write_text("MIT License\n", encoding="utf-8")
    out, printed = run(tmp_path, teacher_dir, *overrides)
    assert f"teacher: adding the LoRA {tmp_path / 'style.safetensors'} with scale 0.5" in printed
    student = load(out / "pipelines" / "plain")
    assert type(student.scheduler).__name__ == "EulerDiscreteScheduler"
    assert image(student).shape == (64, 64, 3)
    card = (out / "pipelines" / "plain" / "README.md").read_text(encoding="utf-8").replace("\\", "")
    assert "with the LoRA style.safetensors (scale 0.5), another autoencoder and another scheduler" in card
    assert "license: mit\n" in card
    assert "[MIT License](https://opensource.org/license/mit) (named by the teacher's LICENSE)" in card
    assert "The teacher has 1 LoRA and another autoencoder of other origin" in card
    assert (out / "pipelines" / "plain" / "LICENSE").read_text(encoding="utf-8") == "MIT License\n"
    assert str(tmp_path) not in card
    assert "style.safetensors" in (out / "recipe.yaml").read_text(encoding="utf-8")
    inputs = json.loads((out / "cache" / "stage.json").read_text(encoding="utf-8"))["inputs"]
    assert {"teacher.loras[0] file style.safetensors", "teacher.scheduler file scheduler_config.json"} <= inputs.keys()
    expected = load_teacher(tiny_recipe(tmp_path, tiny_pipeline_dir, *overrides).teacher).denoiser.state_dict()
    teacher = load(out / "teacher").unet.state_dict()
    assert all(torch.equal(teacher[name], weight) for name, weight in expected.items())


@pytest.mark.slow
def test_a_run_of_a_folder_with_one_variant_only_needs_no_setting(pipeline: Any, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "fp16", variant="fp16", max_shard_size="200KB")
    out, _ = run(tmp_path, tmp_path / "fp16")
    assert image(load(out / "pipelines" / "plain")).shape == (64, 64, 3)
    assert not list((out / "pipelines").rglob("*fp16*"))


@pytest.mark.slow
def test_another_scale_or_a_damaged_file_makes_the_teacher_again(
    pipeline: Any, tiny_pipeline_dir: Path, tmp_path: Path
) -> None:
    write_style(pipeline, tmp_path)

    def again(scale: float, **options: Any) -> tuple[Path, str]:
        return run(
            tmp_path,
            tiny_pipeline_dir,
            f"teacher.loras=[{{path: style.safetensors, scale: {scale}}}]",
            until="cache",
            **options,
        )

    out, _ = again(0.5)
    weights = out / "teacher" / "unet" / "diffusion_pytorch_model.safetensors"
    first = weights.read_bytes()
    with pytest.raises(CondistillError, match=r"teacher\.loras\[0\]\.scale was 0\.5 and is now 0\.25\n.*teacher \("):
        again(0.25)
    _, printed = again(0.25, update=True)
    assert f"moved {out / 'teacher'} to" in printed
    assert (out / "teacher" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() != first
    flip_a_byte(weights)
    min((out / "cache").glob("shard-*.arrow")).unlink()
    again(0.25)
    loras = [{"path": str(tmp_path / "style.safetensors"), "scale": 0.25}]
    expected = load_teacher(TeacherSettings(pipeline=str(tiny_pipeline_dir), loras=loras)).denoiser.state_dict()
    teacher = load(out / "teacher").unet.state_dict()
    assert all(torch.equal(teacher[name], weight) for name, weight in expected.items())


@pytest.mark.slow
def test_a_run_never_changes_the_files_of_the_teacher_that_its_directory_links_to(
    tiny_pipeline_dir: Path, tmp_path: Path
) -> None:
    teacher = shutil.copytree(tiny_pipeline_dir, tmp_path / "mine")
    EulerDiscreteScheduler().save_pretrained(tmp_path / "scheduler")

    def contents() -> dict[Path, Any]:
        files = {file: file.stat() for file in teacher.rglob("*") if file.is_file()}
        return {file: (file.read_bytes(), stat.st_mtime_ns, stat.st_mode) for file, stat in files.items()}

    before = contents()
    out, _ = run(tmp_path, teacher, f"teacher.scheduler={tmp_path / 'scheduler'}", until="distill")
    assert (out / "teacher" / "vae" / "config.json").samefile(teacher / "vae" / "config.json")
    (out / "teacher" / "vae" / "config.json").unlink()
    shutil.rmtree(out / "pipelines")
    run(tmp_path, teacher, f"teacher.scheduler={tmp_path / 'scheduler'}", until="distill")
    run(tmp_path, teacher, until="cache", update=True)
    shutil.rmtree(out)
    assert contents() == before
