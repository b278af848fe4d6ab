from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny import TINY

from condistill.config.recipe import Recipe
from condistill.config.sections import TeacherSettings
from condistill.pipelines.card import PipelineParts, model_card
from condistill.pipelines.record import DenoiserSize, StudentRecord
from condistill.pipelines.save import save_pipeline
from condistill.teachers.load import load_teacher
from condistill.teachers.source import teacher_files

pytestmark = pytest.mark.slow  # a pipeline of every family
SIZE = DenoiserSize(parameters=1, macs=1)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str, str], Path]:
    """Return the directory of a student's pipeline, whose teacher has files of one dtype and is loaded in another."""

    def save(family_name: str, on_disk: str, loaded: str) -> Path:
        folder, tiny = tmp_path_factory.mktemp(family_name), TINY[family_name]
        tiny.build().to(getattr(torch, on_disk)).save_pretrained(folder / "teacher")
        # diffusers generates 1024 pixels with every Sana that is called without a size
        resolution = 64 if family_name == "sana" else tiny.resolution
        settings = TeacherSettings(pipeline=str(folder / "teacher"), resolution=resolution, dtype=loaded)
        family, teacher = load_teacher(settings), teacher_files(settings)
        dtype = teacher.dtype(family.denoiser_name)
        assert dtype == on_disk
        recipe = Recipe.from_dict(
            {
                "teacher": settings.model_dump(),
                "prompts": {"files": ["prompts.txt"]},
                "cache": {"num_inference_steps": 2},
                "student": {"width": 0.5},
                "variants": {"small": {}},
            }
        )
        record = StudentRecord(kept=("all",), teacher_size=SIZE, student_size=SIZE)
        card = model_card(name="small", recipe=recipe, student=record, parts=PipelineParts.of(teacher))
        student = folder / "small"
        save_pipeline(family, family.denoiser, student, card=card, teacher=teacher, dtype=getattr(torch, dtype))
        return student

    return save


@pytest.mark.parametrize(
    ("family_name", "on_disk"),
    [*((name, "bfloat16") for name in TINY), ("stable_diffusion", "float32"), ("stable_diffusion", "float16")],
)
def test_the_cards_snippet_runs_as_printed_for_every_family_in_the_dtype_of_the_files(
    family_name: str, on_disk: str, saved: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = saved(family_name, on_disk, "bfloat16")
    (code,) = re.findall(r"^```python\n(.*?)^```$", (student / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "small").symlink_to(student, target_is_directory=True)
    for name in ("image", "mask"):
        Image.new("RGB", (64, 64)).save(tmp_path / f"{name}.png")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(code, "snippet", "exec", dont_inherit=True), names)
    assert isinstance(names["image"], Image.Image)
    models = [part for part in names["pipeline"].components.values() if isinstance(part, torch.nn.Module)]
    assert {next(model.parameters()).dtype for model in models} == {getattr(torch, on_disk)}
