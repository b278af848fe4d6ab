from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from end_to_end import run_recipe
from safetensors.torch import load_file
from torch import nn

from condistill.config.distill import DistillSettings
from condistill.config.sections import TeacherSettings
from condistill.distill import stage
from condistill.distill.stage import DistilledVariant
from condistill.errors import CondistillError
from condistill.evaluate.record import Evaluation
from condistill.pipelines.generate import generate_image
from condistill.teachers.files import PipelineFiles
from condistill.teachers.load import load_teacher
from condistill.utils.format import byte_size

README = Path(__file__).parents[2] / "README.md"
pytestmark = pytest.mark.slow  # whole runs


@dataclass(frozen=True)
class HalfRun:
    """A finished run: the teacher's files, the student's, and the dtype that the student's weights must have."""

    teacher: PipelineFiles
    student: PipelineFiles
    dtype: str
    out: Path


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], str]] = {
    # name: how the teacher is saved, the recipe's `teacher`, the recipe's `distill`, the dtype of the student's file
    "bfloat16 files": ({"dtype": torch.bfloat16}, {"dtype": "bfloat16"}, {}, "bfloat16"),
    "float16 files": ({"dtype": torch.float16}, {"dtype": "float16"}, {}, "float16"),
    "float16 variant": ({"dtype": torch.float16, "variant": "fp16"}, {"variant": "fp16"}, {}, "float16"),
    "float32 files in bfloat16": ({}, {"dtype": "bfloat16"}, {}, "float32"),
    "float32 files saved in float16": ({}, {}, {"save_dtype": "float16"}, "float16"),
}


@pytest.fixture(scope="module", params=CASES)
def run(request: Any, tiny_pipeline_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> HalfRun:
    saved, teacher, distill, dtype = CASES[request.param]
    folder = tmp_path_factory.mktemp("half")
    pipeline = DiffusionPipeline.from_pretrained(tiny_pipeline_dir, torch_dtype=saved.get("dtype", torch.float32))
    pipeline.save_pretrained(folder / "teacher", variant=saved.get("variant"))
    student = run_recipe(folder / "teacher", folder, {"width": 0.5}, teacher=teacher, distill=distill)
    index = PipelineFiles.read(folder / "teacher").index
    files = PipelineFiles(folder / "teacher", index, saved.get("variant"))
    return HalfRun(files, PipelineFiles.read(student), dtype, folder / "run")


def snippet(document: Path) -> str:
    """Return the Python block of a document that loads a pipeline."""
    blocks = re.findall(r"^```python\n(.*?)^```$", document.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    (block,) = [block for block in blocks if "torch_dtype" in block]
    return str(block)


def image_of(code: str) -> Any:
    """Run a snippet, in two steps instead of its own number: half precision is slow on a CPU."""
    code, count = re.subn(r"num_inference_steps=\d+", "num_inference_steps=2", code)
    assert count == 1
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(code, "snippet", "exec", dont_inherit=True), names)
    assert names["pipeline"].unet.dtype == names["pipeline"].text_encoder.dtype == names["pipeline"].vae.dtype
    return names["image"]


def test_the_cards_snippet_runs_in_plain_diffusers(run: HalfRun) -> None:
    code = snippet(run.student.directory / "README.md")
    assert f"torch_dtype=torch.{run.dtype}" in code
    image = image_of(re.sub(r'"\./\w+"', repr(str(run.student.directory)), code))
    assert image.size == (64, 64)


def test_the_readmes_snippet_runs_in_plain_diffusers(
    run: HalfRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(run.student.directory, tmp_path / "runs" / "mine" / "pipelines" / "random_conditioning")
    monkeypatch.chdir(tmp_path)
    assert image_of(snippet(README)).size == (64, 64)


def test_the_sample_command_generates_an_image(run: HalfRun, tmp_path: Path) -> None:
    student = TeacherSettings(pipeline=str(run.student.directory))
    assert generate_image(student, "a box", tmp_path / "image.png", seed=0, steps=1).is_file()


def test_components_that_do_not_change_are_equal_byte_for_byte(run: HalfRun) -> None:
    for name in ("vae", "text_encoder", "tokenizer", "scheduler"):
        before, after = run.teacher.by_component[name], run.student.by_component[name]
        for teacher, student in zip(before, after, strict=True):
            if b'"_name_or_path"' in teacher.read_bytes():  # it names a directory of this machine
                config = json.loads(teacher.read_text())
                del config["_name_or_path"]
                assert json.loads(student.read_text()) == config
            else:
                assert student.read_bytes() == teacher.read_bytes(), teacher


def test_the_student_is_saved_in_the_dtype_of_the_teachers_files(run: HalfRun) -> None:
    assert run.student.dtype("unet") == run.dtype
    assert {run.student.dtype(name) for name in ("vae", "text_encoder")} == {run.teacher.dtype("vae")}


def test_the_evaluation_is_of_the_weights_as_they_are_on_disk(run: HalfRun) -> None:
    family = load_teacher(TeacherSettings(pipeline=str(run.teacher.directory), variant=run.teacher.variant))
    variant = DistilledVariant("student", run.out, run.student.directory, initial=nn.Module)
    (file,) = run.student.weights("unet")
    on_disk, loaded = load_file(file), variant.load(family).state_dict()
    assert all(torch.equal(loaded[name], tensor.to(family.dtype)) for name, tensor in on_disk.items())


def test_the_default_dtype_holds_every_weight(run: HalfRun) -> None:
    printed_lines: list[str] = []
    settings = TeacherSettings(pipeline=str(run.teacher.directory), variant=run.teacher.variant)
    family = load_teacher(settings)
    recipe = SimpleNamespace(teacher=settings, variant=lambda _: (None, DistillSettings()))
    tiny: Any = SimpleNamespace(recipe=recipe, teacher=settings, family=family, say=printed_lines.append)
    dtype = run.teacher.dtype("unet")
    assert stage._save_dtype(tiny, "student", family.denoiser) == dtype
    assert not printed_lines
    with torch.no_grad():
        family.denoiser.conv_in.bias[0] = 1e6
    assert stage._save_dtype(tiny, "student", family.denoiser) == ("float32" if dtype == "float16" else dtype)
    assert len(printed_lines) == (dtype == "float16")
    assert all("conv_in.bias is too large for float16" in line for line in printed_lines)


def test_a_damaged_student_is_named_with_a_cure(run: HalfRun, tmp_path: Path) -> None:
    pipeline = Path(shutil.copytree(run.student.directory, tmp_path / "pipeline"))
    (weights,) = PipelineFiles.read(pipeline).weights("unet")
    weights.write_bytes(weights.read_bytes()[:-100])
    family = load_teacher(TeacherSettings(pipeline=str(run.student.directory)))
    with pytest.raises(CondistillError, match=r"unet cannot be loaded \(.*\); delete .*pipeline, and the same command"):
        DistilledVariant("student", run.out, pipeline, initial=nn.Module).load(family)


def test_the_report_has_the_sizes_of_the_files(run: HalfRun) -> None:
    models = Evaluation.load(run.out).models
    for files, record in ((run.teacher, models["teacher"]), (run.student, models[run.student.directory.name])):
        on_disk = [file.stat().st_size for file in (files.directory / "unet").glob("*.safetensors")]
        assert record.size.weight_bytes == sum(on_disk)
        assert record.size.pipeline_bytes == files.total_bytes()
        assert byte_size(sum(on_disk)) in (run.out / "report.html").read_text(encoding="utf-8")
    assert f" {byte_size(files.weight_bytes('unet'))} |" in (files.directory / "README.md").read_text(encoding="utf-8")
