from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from loras import attention_layers, kohya_names, matrices, peft_names, write_lora
from student_runs import write_student_run
from typer.testing import CliRunner

from condistill.cli.app import app
from condistill.config.recipe import Recipe
from condistill.errors import CondistillError
from condistill.export import find_source
from condistill.export.lora.layers import teacher_settings
from condistill.export.lora.record import LORA_RECORD_NAME, LoraExportRecord, ReindexedLora
from condistill.export.lora.write import cautions, described, dropped_lines, export_loras
from condistill.students.layer_map import LAYERS_NAME
from condistill.teachers.family import Family

SHALLOW = {"width": None, "preset": "b-small"}
VARIANTS: dict[str, dict[str, Any]] = {
    "narrow": {},
    "shallow": {"student": SHALLOW},
    "both": {"teacher": "shallow"},
    "other": {"student": {"weights": "random"}},
}


@pytest.fixture(scope="module")
def run(tiny_family: Family, tiny_pipeline_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a student of every kind, and without a cache. Read only, but for its exports."""
    return write_student_run(tmp_path_factory.mktemp("run"), tiny_family, tiny_pipeline_dir, VARIANTS)


@pytest.fixture(scope="module")
def lora(tiny_family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of all attention layers of the teacher."""
    layers = matrices(tiny_family.denoiser, attention_layers(tiny_family.denoiser))
    return write_lora(
        tmp_path_factory.mktemp("lora") / "style.safetensors", kohya_names("lora_unet", layers, alpha=1.0)
    )


def exported(run: Path, student: str, lora: Path, out: Path) -> tuple[LoraExportRecord, str]:
    """Re-index a LoRA, and return the record and what was printed."""
    lines: list[str] = []
    directory = export_loras(find_source(str(run), student=student), [lora], out=out, say=lines.append)
    return LoraExportRecord.read(directory / LORA_RECORD_NAME, remedy=""), "\n".join(lines)


@pytest.mark.slow
def test_layers_that_were_recorded_and_those_found_again_give_the_same_file(
    run: Path, lora: Path, tmp_path: Path
) -> None:
    student = "both"  # is taught by a student
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    record, printed = exported(copy, student, lora, tmp_path / "recorded")
    for file in copy.glob(f"distill/*/{LAYERS_NAME}"):
        file.unlink()
    again, _ = exported(copy, student, lora, tmp_path / "again")
    assert again == record
    effect = record.files["style.safetensors"].effect
    assert effect is not None
    assert (effect.inputs, effect.origin) == (16, "noise")
    assert "effect on 16 random latents, compared with that on the teacher: cosine " in printed
    assert exported(copy, student, lora, tmp_path / "again")[1] == f"{tmp_path / 'again'} holds these LoRAs already"


@pytest.mark.slow
def test_without_the_teacher_recorded_layers_are_enough_and_others_are_not(
    run: Path, lora: Path, tiny_family: Family, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    recipe = copy / "recipe.yaml"
    text = recipe.read_text(encoding="utf-8").splitlines()
    gone = [f"  pipeline: {tmp_path / 'gone'}" if line.startswith("  pipeline:") else line for line in text]
    recipe.write_text("\n".join(gone), encoding="utf-8")
    record, printed = exported(copy, "shallow", lora, tmp_path / "out")
    assert record.files["style.safetensors"].effect is None
    assert f"the effect was not measured: teacher.pipeline {tmp_path / 'gone'} does not exist" in printed
    changed = attention_layers(tiny_family.denoiser)
    dropped = sum(record.files["style.safetensors"].dropped.values())
    assert f"style.safetensors: {len(changed) - dropped} of {len(changed)} layers fit shallow" in printed
    of_middle = sum(path.startswith("mid_block.") for path in changed)
    assert f"style.safetensors: dropped {of_middle} layers of mid_block, which the student has not" in printed
    (copy / "distill" / "shallow" / LAYERS_NAME).unlink()
    with pytest.raises(CondistillError, match="and which layers and channels the student has"):
        exported(copy, "shallow", lora, tmp_path / "more")
    assert not (tmp_path / "more").exists()


def refused(run: Path, student: str, *files: Path, **options: Any) -> str:
    """Return the message with which LoRAs are refused."""
    with pytest.raises(CondistillError) as caught:
        export_loras(find_source(str(run), student=student), files, **options)
    return str(caught.value)


def test_the_record_of_a_lora_that_adds_nothing_to_the_denoiser_can_be_read_again(tmp_path: Path) -> None:
    lora = ReindexedLora(source="a", source_sha256="", bytes=1, sha256="", layers=2, dropped={}, norm_kept=None)
    record = LoraExportRecord(version="0", student="small", layout="diffusers", key="", files={"a": lora})
    record.write(tmp_path / "lora.json")
    assert LoraExportRecord.read(tmp_path / "lora.json", remedy="") == record


def test_no_share_of_a_norm_is_printed_for_a_lora_that_adds_nothing_to_the_denoiser() -> None:
    lora = ReindexedLora(source="a", source_sha256="", bytes=1, sha256="", layers=2, dropped={}, norm_kept=None)
    record = LoraExportRecord(version="1", student="small", layout="diffusers", key="", files={"a": lora})
    assert described(record) == ["a: 2 of 2 layers fit small"]


@pytest.mark.slow
def test_what_cannot_be_re_indexed_is_refused_and_nothing_is_written(
    run: Path, lora: Path, tiny_family: Family, tiny_pipeline_dir: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert "began with random weights (student.weights), so none of its layers" in refused(run, "other", lora, out=out)
    strange = {"mid_block.attentions.7.proj_in": (torch.ones(1, 8), torch.ones(8, 1))}
    wrong = write_lora(tmp_path / "wrong.safetensors", peft_names("unet", strange))
    assert (
        "does not fit the teacher: 1 of its layers do not: unet.mid_block.attentions.7.proj_in, which the"
        in refused(run, "narrow", wrong, out=out)
    )
    dora = write_lora(tmp_path / "dora.safetensors", {"lora_unet_conv_in.dora_scale": torch.ones(1)})
    message = refused(run, "narrow", dora, out=out)
    assert message.startswith(f"--lora: {dora} has lora_unet_conv_in.dora_scale, so it is no plain LoRA")
    assert message.endswith(
        "merge it into the pipeline with the program that trained it, and distill a student of the result"
    )
    assert (
        refused(run, "narrow", tmp_path / "no", out=out)
        == f"--lora: {tmp_path / 'no'} does not exist; give a safetensors file"
    )
    assert "two files are called style.safetensors; rename one" in refused(run, "narrow", lora, lora, out=out)
    middle = matrices(tiny_family.denoiser, ["mid_block.attentions.0.proj_in"])
    only = write_lora(tmp_path / "only.safetensors", peft_names("unet", middle))
    assert refused(run, "shallow", only, out=out) == (
        "--lora: none of the 1 layers that only.safetensors changes in the denoiser is left in shallow: 1 layer of "
        "mid_block, which the student has not; distill a student that keeps them"
    )
    with pytest.raises(
        CondistillError, match="--lora needs the run directory of a student, which says where its layers"
    ):
        export_loras(find_source(str(tiny_pipeline_dir)), [lora], out=out)
    assert not out.exists()
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    assert refused(run, "narrow", lora, out=out) == f"{out} exists and holds no LoRAs of --lora; choose another --out"


def test_dropped_layers_are_listed_by_part_and_neighbours_in_one_line() -> None:
    assert dropped_lines({"mid_block": 24, "blocks.3": 2, "blocks.11": 1, "down.0.attentions.1": 1}) == [
        "24 layers of mid_block, which the student has not",
        "3 layers of blocks 3, 11, which the student has not",
        "1 layer of down.0.attentions 1, which the student has not",
    ]


def test_a_few_step_student_and_a_lora_that_was_learnt_already_are_named(
    recipe_of: Callable[..., Recipe], lora: Path, tmp_path: Path
) -> None:
    plain = recipe_of("miniature", {"width": 0.5})
    assert cautions(plain, next(iter(plain.variants)), [lora]) == []
    distill = {"few_steps": {"num_inference_steps": 2}}
    teacher = {"pipeline": "miniature", "loras": [{"path": str(lora)}]}
    recipe = recipe_of("miniature", {"width": 0.5}, distill=distill, teacher=teacher)
    few, twice = cautions(recipe, next(iter(recipe.variants)), [lora])
    assert "was distilled to few steps, and a LoRA that was trained without that can undo it" in few
    assert f"{lora} is among teacher.loras of the run, so the student has learnt it already" in twice


def test_a_teacher_that_the_run_has_made_of_a_file_and_loras_is_the_one_that_is_measured(
    recipe_of: Callable[..., Recipe], lora: Path, tmp_path: Path
) -> None:
    teacher = {"pipeline": "miniature", "loras": [{"path": str(lora)}]}
    recipe = recipe_of("miniature", {"width": 0.5}, teacher=teacher)
    assert teacher_settings(tmp_path, recipe) == recipe.teacher  # it was deleted, so it is made again
    (tmp_path / "teacher").mkdir()
    made = teacher_settings(tmp_path, recipe)
    assert (made.pipeline, made.loras) == (str(tmp_path / "teacher"), ())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lora", "a.safetensors", "--to", "comfyui"], "--lora writes LoRAs alone; leave out --to, --dtype and"),
        (["--lora-layout", "kohya"], "--lora-layout is for --lora; leave it out, or give a LoRA"),
    ],
)
def test_options_that_would_be_ignored_are_refused(options: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["export", "miniature", *options])
    assert result.exit_code != 0
    assert message in " ".join(str(result.exception).split()) + " ".join(result.output.split())
