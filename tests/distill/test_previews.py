from __future__ import annotations

import copy
import importlib
import random
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import TINY
from training import Make, assert_same_state, settings_of

from condistill.distill import stopwatch as stopwatch_module
from condistill.distill.previews import (
    PREVIEW_STEPS,
    RECORD_NAME,
    PreviewFolder,
    PreviewModels,
    Previews,
    preview_prompts,
    preview_steps,
)
from condistill.distill.stopwatch import Stopwatch, train_sec
from condistill.distill.tracking import track_image, tracked
from condistill.errors import CondistillError
from condistill.pipelines.sampling import Sampling
from condistill.students.derive import Student
from condistill.teachers.family import Family
from condistill.teachers.registry import FAMILIES

stage = importlib.import_module("condistill.distill.stage")
PROMPTS = [("seen", "a red ball"), ("unseen", "a <b>star</b>")]
MODELS = PreviewModels.of(Sampling(2, 3.0), Sampling(2, 3.0))


def previews_of(family: Family, folder: Path, prompts: list[tuple[str, str]] = PROMPTS) -> Previews:
    return Previews(family, folder, MODELS, choose=lambda: prompts, seed=5)


def pixels(images: list[Image.Image]) -> list[np.ndarray[Any, Any]]:
    return [np.asarray(image) for image in images]


@pytest.mark.parametrize(
    ("changes", "quick", "expected"),
    [
        ({"steps": 40}, False, [*range(0, 41, 4)]),
        ({"steps": 45}, False, [*range(0, 45, 5), 45]),
        ({"steps": 3}, False, [0, 1, 2, 3]),
        ({"steps": 10, "preview_every": 4}, False, [0, 4, 8, 10]),
        ({"steps": 10, "preview_every": 99}, False, [0, 10]),
        ({"steps": 10, "preview_every": 0}, False, []),
        ({"steps": 10}, True, [0, 10]),
        ({"steps": 10, "preview_every": 5}, True, [0, 5, 10]),
    ],
)
def test_previews_are_made_at_the_start_in_between_and_at_the_end(
    changes: dict[str, Any], quick: bool, expected: list[int]
) -> None:
    steps = preview_steps(settings_of(**changes), quick=quick)
    assert list(steps) == expected == steps[:]
    assert not expected or steps[-2] == expected[-2]
    assert [step for step in range(settings_of(**changes).steps + 3) if step in steps] == expected


def test_a_billion_steps_with_a_preview_each_need_no_memory() -> None:
    steps = preview_steps(settings_of(steps=10**9, preview_every=1))
    assert (len(steps), steps[0], steps[-1], 10**9 in steps, 10**9 + 1 in steps) == (10**9 + 1, 0, 10**9, True, False)


def test_models_are_sampled_in_few_steps_unless_they_were_trained_for_a_number() -> None:
    few = settings_of(few_steps={"num_inference_steps": 20}).few_steps
    models = PreviewModels.of(Sampling(50, 7.5), Sampling(20, 7.5, few))
    assert (models.teacher.num_inference_steps, models.student.num_inference_steps) == (PREVIEW_STEPS, 20)
    assert MODELS.student.num_inference_steps == 2


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in TINY if name != "stable_diffusion"]


@pytest.mark.parametrize("name", ["stable_diffusion", *SLOW])
def test_a_student_equal_to_its_teacher_gives_the_same_images_in_every_family(name: str, tmp_path: Path) -> None:
    tiny = TINY[name]
    family = FAMILIES[name](tiny.build(), resolution=tiny.resolution)
    previews = previews_of(family, tmp_path, [("all", prompt) for prompt in tiny.prompts])
    previews.make(0, family.denoiser, None)
    rows = previews.folder.rows(0)
    assert rows is not None
    teacher, student = map(pixels, rows)
    assert len(teacher) == len(tiny.prompts)
    assert all(np.array_equal(one, other) for one, other in zip(teacher, student, strict=True))
    assert not np.array_equal(teacher[0], teacher[1])


@pytest.fixture
def student(narrow: Student) -> Student:
    return copy.deepcopy(narrow)


@pytest.mark.slow
def test_a_training_with_previews_has_the_same_losses_weights_and_random_states(
    make: Make, tiny_family: Family, tmp_path: Path
) -> None:
    states = []
    for name in ("with", "without"):
        trainer = make(tmp_path / name, steps=2, optimizer={"ema_decay": 0.5})
        previews = previews_of(tiny_family, tmp_path / name)

        def on_step(step: int, _record: Any, trainer: Any = trainer, previews: Previews = previews) -> None:
            if previews.folder.path.parent.name == "with":
                previews.make(step, trainer.trained.denoiser, trainer.ema)

        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        assert trainer.trained.denoiser.training
        trainer.run(on_step)
        assert trainer.trained.denoiser.training
        states.append((random.random(), float(np.random.random()), float(torch.rand(1))))
    assert states[0] == states[1]
    assert_same_state(tmp_path / "with", tmp_path / "without")
    assert list(PreviewFolder(tmp_path / "with" / "previews").grids()) == [0, 1, 2]


def test_a_preview_shows_the_weights_that_will_be_saved(tiny_family: Family, student: Student, tmp_path: Path) -> None:
    from diffusers.training_utils import EMAModel

    average = EMAModel(student.denoiser.parameters())
    before = [weight.clone() for weight in student.denoiser.parameters()]
    previews_of(tiny_family, tmp_path / "saved").make(0, student.denoiser, None)
    with torch.no_grad():
        for weight in student.denoiser.parameters():
            weight.add_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    now = [weight.data_ptr() for weight in student.denoiser.parameters()]
    previews = previews_of(tiny_family, tmp_path / "averaged")
    previews.make(0, student.denoiser, average)
    previews_of(tiny_family, tmp_path / "last").make(0, student.denoiser, None)
    grids = [(tmp_path / name / "previews" / "step-000000.png").read_bytes() for name in ("saved", "averaged", "last")]
    assert grids[0] == grids[1] != grids[2]
    assert [weight.data_ptr() for weight in student.denoiser.parameters()] == now
    assert all(torch.equal(a, b) for a, b in zip(before, average.shadow_params, strict=True))


@pytest.mark.slow
def test_a_float32_student_of_a_half_precision_teacher_is_shown(student: Student, tmp_path: Path) -> None:
    family = FAMILIES["stable_diffusion"](TINY["stable_diffusion"].build()).to(torch.device("cpu"))
    family.pipeline.to(torch.bfloat16)
    previews_of(family, tmp_path).make(0, student.denoiser, None)
    assert {weight.dtype for weight in student.denoiser.parameters()} == {torch.float32}
    assert PreviewFolder(tmp_path / "previews").rows(0) is not None


@pytest.mark.slow
def test_the_teacher_is_sampled_once_and_a_grid_that_exists_is_kept(
    tiny_family: Family, student: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampled: list[Any] = []
    sample = tiny_family.sample

    def watched(denoiser: Any, *args: Any, **options: Any) -> Any:
        sampled.append(denoiser)
        return sample(denoiser, *args, **options)

    monkeypatch.setattr(tiny_family, "sample", watched)
    for step in (0, 1, 1):
        previews_of(tiny_family, tmp_path).make(step, student.denoiser, None)
    assert [denoiser is tiny_family.denoiser for denoiser in sampled] == [True] * 2 + [False] * 4
    (tmp_path / "previews" / "step-000001.png").write_bytes(b"\x89PNG damaged")
    (tmp_path / "previews" / "teacher.png").write_bytes(b"")
    previews_of(tiny_family, tmp_path).make(1, student.denoiser, None)
    assert len(sampled) == 10


def test_a_damaged_grid_or_record_is_left_out(tiny_family: Family, student: Student, tmp_path: Path) -> None:
    folder = previews_of(tiny_family, tmp_path).folder
    previews_of(tiny_family, tmp_path).make(0, student.denoiser, None)
    (folder.path / "step-x.png").write_bytes(b"")
    assert list(folder.grids()) == [0]
    for name in ("step-000000.png", RECORD_NAME):
        whole = (folder.path / name).read_bytes()
        for damage in (b"", b"\x89PNG\r\n\x1a\n", b"text", whole[:60]):
            (folder.path / name).write_bytes(damage)
            assert folder.rows(0) is None
        (folder.path / name).write_bytes(whole)
        assert folder.rows(0) is not None


def test_a_preview_that_fails_is_a_warning_and_leaves_the_weights(
    tiny_family: Family, student: Student, tmp_path: Path
) -> None:
    printed_lines: list[str] = []
    run = SimpleNamespace(
        accelerator=SimpleNamespace(trackers=[]), say=lambda text, **_: printed_lines.append(text), recipe=None
    )
    with torch.no_grad():
        next(iter(student.denoiser.parameters())).fill_(float("nan"))
    before = [weight.data_ptr() for weight in student.denoiser.parameters()]
    trainer = SimpleNamespace(step=1500, trained=SimpleNamespace(denoiser=student.denoiser), ema=None)
    previews = previews_of(tiny_family, tmp_path)
    with pytest.raises(CondistillError):
        previews.make(1500, student.denoiser, None)
    stage._preview(run, "small", trainer, previews)
    (line,) = printed_lines
    assert line.startswith("warning: small: no preview of step 1,500: the autoencoder decodes latents to NaN")
    assert line.endswith("; the training goes on")
    assert [weight.data_ptr() for weight in student.denoiser.parameters()] == before
    assert previews.folder.grids() == {}


def test_a_training_that_a_signal_stops_says_so_before_its_last_preview(make: Make, tmp_path: Path) -> None:
    stopping: dict[int, bool] = {}
    trainer = make(tmp_path, steps=4)

    def on_step(step: int, _record: Any) -> None:
        stopping[step] = trainer.is_stopping
        if step == 1:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        trainer.run(on_step)
    assert stopping == {0: False, 1: False, 2: True}


def test_the_time_of_previews_is_not_time_of_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(stopwatch_module.time, "monotonic", lambda: now)
    watch = Stopwatch(tmp_path)
    watch.on_step(0, checkpoint=False)
    for _ in range(2):
        with watch.paused():
            now += 100
        now += 7
    watch.on_step(2, checkpoint=True)
    assert train_sec(tmp_path, 2) == 14.0


@pytest.mark.slow
def test_previews_are_images_of_the_tracker(tmp_path: Path) -> None:
    from accelerate import Accelerator
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=str(tmp_path))
    image = np.full((4, 6, 3), 200, np.uint8)
    with tracked(accelerator, "tensorboard", "small"):
        for step in (0, 7):
            track_image(accelerator, "preview", image, step=step)
    events = EventAccumulator(str(tmp_path / "small"))
    events.Reload()
    assert [(event.step, event.width, event.height) for event in events.Images("preview")] == [(0, 6, 4), (7, 6, 4)]


def test_a_tracker_of_another_kind_gets_the_image_without_a_layout() -> None:
    calls: list[Any] = []
    tracker = SimpleNamespace(name="wandb", log_images=lambda *_, **options: calls.append(options))
    track_image(SimpleNamespace(trackers=[tracker]), "preview", np.zeros((2, 2, 3), np.uint8), step=3)
    assert calls == [{"step": 3}]


def test_a_preview_of_a_quick_run_shows_one_prompt_of_each_split() -> None:
    assert (preview_prompts(quick=True), preview_prompts(quick=False)) == (1, 2)
