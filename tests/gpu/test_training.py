"""The training loop on a GPU: mixed precision, resuming, the check of the losses, and two processes."""

from __future__ import annotations

import copy
import math
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("accelerate", reason="trains a student, and accelerate is not installed")
pytest.importorskip("diffusers", reason="trains a student, and diffusers is not installed")
pytest.importorskip("pyarrow", reason="trains a student, and pyarrow is not installed")
pytest.importorskip("pydantic", reason="trains a student, and pydantic is not installed")
pytest.importorskip("transformers", reason="trains a student, and transformers is not installed")

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import GradScalerKwargs
from torch import Tensor, nn

from condistill.config.distill import DistillSettings
from condistill.config.sections import StudentSettings, TeacherSettings
from condistill.distill.batches import batch_source
from condistill.distill.checkpoints import list_checkpoints, load_checkpoint
from condistill.distill.history import HISTORY_NAME, read_history
from condistill.distill.pending import PendingStep
from condistill.distill.previews import PreviewFolder, PreviewModels, Previews
from condistill.distill.states import Sample
from condistill.distill.trainer import Trainer
from condistill.errors import NonFiniteLossError
from condistill.pipelines.sampling import Sampling
from condistill.students.derive import derive_student
from condistill.teachers.aside import encode_aside
from condistill.teachers.load import load_teacher

if TYPE_CHECKING:
    from condistill.cache.latents import LatentCache
    from condistill.prompts.pool import PromptPool
    from condistill.teachers.family import Family

STEPS = 4
Make = Callable[..., Trainer]


@pytest.fixture
def family(device: torch.device, tiny_settings: TeacherSettings) -> Family:
    """The tiny teacher, loaded again and moved to the device."""
    return load_teacher(tiny_settings, device=device)


@pytest.fixture
def make(device: torch.device, family: Family, tiny_cache: LatentCache, tiny_pool: PromptPool) -> Iterator[Make]:
    """Build trainers of a student of half its teacher's width."""
    student = derive_student(family.denoiser, StudentSettings(width=0.5))

    def build(
        directory: Path, *, precision: str = "no", checkpoint_every: int = 2, log_every: int = 1, **changes: Any
    ) -> Trainer:
        AcceleratorState._reset_state(True)
        scaler = GradScalerKwargs(init_scale=16.0, growth_interval=2)  # so that the scale changes within a few steps
        accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=precision, kwargs_handlers=[scaler])
        settings = DistillSettings.model_validate(
            {
                "steps": STEPS,
                "batch_size": 4,
                "optimizer": {"learning_rate": 1e-3, "ema_decay": 0.9},
                "logging": {"checkpoint_every": checkpoint_every, "log_every": log_every},
                **changes,
            }
        )
        source = batch_source(tiny_cache, tiny_pool, settings, seed=0, accelerator=accelerator)
        return Trainer(family, copy.deepcopy(student), source, settings, directory=directory, accelerator=accelerator)

    yield build
    AcceleratorState._reset_state(True)


def losses(directory: Path) -> list[float]:
    return [record.loss for record in read_history(directory / HISTORY_NAME)]


# precision


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.05), ("fp16", 0.01)])
def test_the_losses_of_half_precision_are_close_to_those_of_float32(
    make: Make, tmp_path: Path, precision: str, tolerance: float
) -> None:
    """A bfloat16 keeps 8 bits and a float16 11: the loss, a square, of a dozen layers may differ by some roundings."""
    make(tmp_path / "float32").run()
    make(tmp_path / "half", precision=precision).run()
    whole, half = losses(tmp_path / "float32"), losses(tmp_path / "half")
    assert len(half) == STEPS
    assert all(math.isfinite(loss) for loss in half)
    assert half == pytest.approx(whole, rel=tolerance)
    assert half != whole


def test_an_interrupted_fp16_run_resumes_with_the_scale_of_its_gradients(make: Make, tmp_path: Path) -> None:
    whole = make(tmp_path / "whole", precision="fp16")
    whole.run()

    def stop(step: int, _record: Any) -> None:
        if step == 3:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        make(tmp_path / "cut", precision="fp16").run(stop)
    _, _, meta = load_checkpoint(list_checkpoints(tmp_path / "cut")[-1])
    assert meta["scaler"]["scale"] == 32  # it has grown once, and a new scaler would begin at 16
    resumed = make(tmp_path / "cut", precision="fp16")
    resumed.run()
    assert resumed.accelerator.scaler.state_dict() == whole.accelerator.scaler.state_dict()
    assert resumed.accelerator.scaler.state_dict()["scale"] == 64
    # some backward kernels add in any order
    assert losses(tmp_path / "cut") == pytest.approx(losses(tmp_path / "whole"), rel=1e-3)


def test_previews_leave_the_losses_and_the_random_states_of_a_gpu(
    make: Make, family: Family, device: torch.device, tmp_path: Path
) -> None:
    sampling, states = Sampling(2, 3.0), []
    for name in ("with", "without"):
        trainer = make(tmp_path / name, precision="bf16")
        models, prompts = PreviewModels(sampling, sampling), [("seen", "a red ball")]
        previews = Previews(family, tmp_path / name, models, choose=lambda prompts=prompts: prompts, seed=0)

        def on_step(
            step: int, _record: Any, trainer: Trainer = trainer, previews: Previews = previews, name: str = name
        ) -> None:
            if name == "with":
                previews.make(step, trainer.trained.denoiser, trainer.ema)

        torch.manual_seed(0)
        trainer.run(on_step)
        states.append(float(torch.rand(1, device=device)))
    assert states[0] == states[1]
    assert losses(tmp_path / "with") == pytest.approx(losses(tmp_path / "without"), rel=1e-3)
    assert len(PreviewFolder(tmp_path / "with" / "previews").grids()) == STEPS + 1


# the check of the losses


@contextmanager
def no_synchronisation(device: torch.device) -> Iterator[None]:
    """Raise an error where the CPU waits for the device."""
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")


def sample_of(losses: Tensor) -> Sample:
    """A sample with as many states as there are losses."""
    count, empty = len(losses), torch.empty(0)
    prompts, timesteps = [f"prompt {i}" for i in range(count)], torch.arange(count)
    return Sample(empty, timesteps, prompts, torch.zeros(count, dtype=torch.bool), empty, empty)


def keep_busy(device: torch.device) -> Tensor:
    """Queue products of matrices, a tenth of a second of work on a fast GPU, and return the last."""
    product = matrix = torch.randn(4096, 4096, device=device) / 64
    for _ in range(50):
        product = product @ matrix
    return product


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"micro_batch_size": 2},
        {"loss": {"guidance_weight": 0.1, "task_weight": 0.1}},
        {"guidance_distillation": 3.0, "few_steps": {"num_inference_steps": 5}},
        {"few_steps": {"method": "consistency", "num_inference_steps": 5, "solver_steps": 50}},
        {"path": {"start": "noise", "buffer": 2, "guidance_scale": 3.0}},
    ],
    ids=["paper", "micro-batches", "guidance", "few steps", "consistency", "path"],
)
def test_a_training_step_is_queued_without_waiting_for_the_models(
    make: Make, device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    trainer = make(tmp_path, precision="bf16", **changes)
    batches = [trainer.source(step) for step in range(STEPS)]
    for batch in batches[:2]:
        trainer.train_step(batch)
    waits: list[str] = []

    def note(message: Any, *_: Any, **__: Any) -> None:
        if "synchroniz" in str(message) and torch.cuda.current_stream(device) == torch.cuda.default_stream(device):
            waits.append("".join(traceback.format_stack(limit=8)[:-1]))

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        monkeypatch.setattr(warnings, "showwarning", note)
        try:
            for batch in batches[2:]:
                trainer.train_step(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert not waits, waits[0]


def test_prompts_that_are_encoded_aside_have_the_condition_of_the_family(family: Family, device: torch.device) -> None:
    prompts = ["a red ball", "", "a small blue star at the left on snow"]
    expected = family.encode(prompts)
    for _ in range(3):  # memory of the stream aside is used again
        busy = keep_busy(device)
        found = encode_aside(family, prompts)
        for name, tensor in expected.tensors.items():
            assert torch.equal(found.tensors[name] + 0 * busy.mean(), tensor)


@pytest.mark.parametrize("bad", [None, 2])
def test_the_check_of_a_step_starts_without_waiting_for_the_device(device: torch.device, bad: int | None) -> None:
    values = torch.ones(2, 4, device=device)
    if bad is not None:
        values[1, bad] = math.nan
    pending = PendingStep(7)
    with no_synchronisation(device):
        busy = keep_busy(device)[0, 0] * 0
        for part in values:
            pending.add(part + busy, sample_of(part))
        pending.start_check(signal=15)
        pending.finish(busy + 1)
        assert isinstance(pending._copied, torch.cuda.Event)
        assert not pending._copied.query()  # the device is still busy
    assert pending.loss_is_finite is (bad is None)
    assert (pending.norm_is_finite, pending.signal) == (True, 15)
    assert pending.describe() == ([] if bad is None else ["t=2 'prompt 2'"])


def test_a_nan_is_found_one_step_late_and_never_saved(
    make: Make, family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict, calls, spoilt = family.predict, 0, 1

    def spoil(denoiser: nn.Module, *args: Any) -> Tensor:
        nonlocal calls
        prediction: Tensor = predict(denoiser, *args)
        if denoiser is not family.denoiser:
            calls += 1
            if calls == spoilt + 1:
                prediction = prediction * math.nan
        return prediction

    monkeypatch.setattr(family, "predict", spoil)
    seen: list[int] = []
    with pytest.raises(NonFiniteLossError, match=r"the loss of step 1 is not finite for 4 sample\(s\)"):
        make(tmp_path, checkpoint_every=STEPS, log_every=STEPS).run(lambda step, _: seen.append(step))
    assert seen == [0, 1, 2]  # the step after the spoilt one was under way
    assert list_checkpoints(tmp_path) == []
