"""The one training loop: a teacher forward, a student forward and backward, and as little else as possible.

The method itself is in `random_conditioning`. A step does this for every micro-batch: choose the states and their
prompts, compare both models at the states, and carry on the states that move.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from torch import Tensor, nn

from condistill.config.distill import DistillSettings
from condistill.distill.batches import Batch, BatchSource, prefetch
from condistill.distill.checkpoints import TrainingState, list_checkpoints
from condistill.distill.history import HISTORY_NAME, History, HistoryRecord
from condistill.distill.interrupts import any_process, interruptible
from condistill.distill.objective import Objective
from condistill.distill.paths import Paths
from condistill.distill.pending import PendingLosses
from condistill.distill.prompt_choice import PromptChoice
from condistill.distill.random_conditioning import RandomConditioning
from condistill.distill.schedules import probability_of
from condistill.distill.states import Sample, noised_latents
from condistill.distill.student import StudentForward
from condistill.distill.update import Update, build_average, build_optimizer
from condistill.errors import NonFiniteLossError
from condistill.students.derive import Student
from condistill.teachers.family import Family


class Trainer:
    """Distils one student. A new trainer resumes from the newest checkpoint in its directory."""

    def __init__(
        self,
        family: Family,
        student: Student,
        source: BatchSource,
        settings: DistillSettings,
        *,
        directory: Path,
        accelerator: Accelerator,
    ) -> None:
        """Prepare the student, its optimiser and the teacher; `directory` is for checkpoints and the history."""
        self.family, self.source, self.settings = family, source, settings
        self.directory, self.accelerator = directory, accelerator
        conditioning, choice = settings.conditioning, settings.conditioning.prompt_choice
        self.conditioning = RandomConditioning(
            probability_of(conditioning.probability), conditioning.empty_prompt_probability
        )
        self.prompt_choice = PromptChoice(family, choice, source, accelerator) if choice else None
        features = settings.loss.features if settings.loss.feature_weight > 0 else None
        self.objective = Objective(family, settings, accelerator, student.pairs if features else ())
        if settings.gradient_checkpointing:
            student.denoiser.enable_gradient_checkpointing()
        self.trained = StudentForward(family.predict, student, features=features).to(family.device).train()
        self.paths = self._build_paths() if settings.path else None
        optimizer = settings.optimizer
        self.raw_optimizer = build_optimizer(self.trained, optimizer)
        self.schedule = get_scheduler(
            optimizer.lr_scheduler,
            self.raw_optimizer,
            num_warmup_steps=optimizer.warmup_steps,
            num_training_steps=settings.steps,
        )
        self.model, self.optimizer = accelerator.prepare(self.trained, self.raw_optimizer)
        self.ema = build_average(self.trained, optimizer)
        self._update = Update(self.trained, self.optimizer, self.ema, self._clip)
        directory.mkdir(parents=True, exist_ok=True)
        terms = [term.name for term in self.objective.terms]
        self.history = History(directory / HISTORY_NAME, family.device, terms)
        self.step = self.saved_step = 0
        """Optimiser steps done, and those of the newest checkpoint."""
        self._pending: PendingLosses | None = None

    def _build_paths(self) -> Paths:
        return Paths(
            self.family,
            self.settings,
            self.conditioning,
            positions=self.source.positions,
            student=self.trained.denoiser,
            accelerator=self.accelerator,
        )

    def run(self, on_step: Callable[[int, HistoryRecord | None], None] = lambda *_: None) -> nn.Module:
        """Train to the end and return the student's denoiser with its averaged weights.

        Args:
            on_step: called after every step with the number of steps done, and the record if one was logged.

        Raises:
            NonFiniteLossError: names step, timesteps and prompts; the last good checkpoint stays.
            KeyboardInterrupt: on Ctrl-C, after a checkpoint was written.
        """
        self._resume()
        on_step(self.step, None)
        steps, logging = self.settings.steps, self.settings.logging
        with interruptible() as interrupted:
            for micro_batches in prefetch(self.source, range(self.step, steps)):
                self.train_step(micro_batches)
                is_last, record = self.step == steps, None
                if self.step % logging.log_every == 0 or is_last:
                    record = self._log()
                stop = any_process(self.accelerator, self.step, interrupted=interrupted())
                if self.step % logging.checkpoint_every == 0 or is_last or stop:
                    self._save()
                on_step(self.step, record)
                if stop:
                    raise KeyboardInterrupt
        self.objective.close()
        denoiser: nn.Module = self.trained.denoiser
        if self.ema is not None:
            self.ema.copy_to(denoiser.parameters())
        return denoiser

    def train_step(self, micro_batches: Sequence[Batch]) -> None:
        """Take one optimiser step."""
        pending = PendingLosses(self.step)
        for number, batch in enumerate(micro_batches):
            is_last = number + 1 == len(micro_batches)
            with nullcontext() if is_last else self.accelerator.no_sync(self.model):
                loss = self._loss(number, batch, pending)
                if is_last:
                    pending.start_check()
                self.accelerator.backward(loss / len(micro_batches))
        self._check_finite()
        self._pending = pending
        self._update()
        self.schedule.step()
        if self.prompt_choice:
            self.prompt_choice.update()
        self.step += 1

    def _clip(self) -> None:
        self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.optimizer.max_grad_norm)

    def _loss(self, number: int, batch: Batch, pending: PendingLosses) -> Tensor:
        """Return the mean loss of micro-batch `number` of a step, and carry on its moving states."""
        if self.prompt_choice:
            batch = self.prompt_choice.choose(batch)
        sample = self._states(number, batch)
        comparison = self.objective.compare(self.model, sample)
        losses = self.objective.losses(comparison)
        if self.paths:
            self.paths.advance(comparison)
        noise_level = self.family.noise.noise_level(sample.timesteps).to(self.family.device)
        if self.prompt_choice:
            self.prompt_choice.note(batch, losses.terms["output"], noise_level, sample.has_random_prompt)
        self.history.add(losses.total, losses.terms, comparison.replaced, noise_level)
        pending.add(losses.total, sample)
        return losses.total.mean()

    def _states(self, number: int, batch: Batch) -> Sample:
        """Choose the states of micro-batch `number` of a step."""
        isolated = noised_latents(
            self.family,
            self.conditioning,
            batch,
            timestep_bias=self.settings.conditioning.timestep_bias,
            grid=self.objective.target.grid,
        )
        if self.paths is None:
            return isolated
        count = len(isolated.prompts)
        return self.paths.place(self.step, slice(number * count, (number + 1) * count), isolated, batch)

    def _check_finite(self) -> None:
        """Check the losses of the step before, which the device has finished by now."""
        pending, self._pending = self._pending, None
        if pending is None or pending.is_finite():
            return
        kept = list_checkpoints(self.directory)
        checkpoint = f"The checkpoint {kept[-1].name} is good and is kept" if kept else "No checkpoint was written yet"
        raise NonFiniteLossError(
            f"{pending.describe()} {checkpoint}; try a lower distill.optimizer.learning_rate, or "
            "distill.mixed_precision: bf16 instead of fp16"
        )

    def _log(self) -> HistoryRecord:
        accelerator = self.accelerator
        record = self.history.flush(
            self.step,
            self.schedule.get_last_lr()[0],
            reduce=lambda sums: accelerator.reduce(sums, reduction="sum"),
            write=accelerator.is_main_process,
        )
        if accelerator.trackers:
            accelerator.log(record.scalars(), step=self.step)
        return record

    @property
    def _state(self) -> TrainingState:
        return TrainingState(self.trained, self.raw_optimizer, self.ema, self.history, self.paths, self.prompt_choice)

    def _save(self) -> None:
        """Write a checkpoint, and only of weights whose losses were finite."""
        self._check_finite()
        self.saved_step = self.step
        keep = self.settings.logging.keep_checkpoints
        self._state.save(self.directory, self.step, self.accelerator, keep=keep)

    def _resume(self) -> None:
        self.step = self.saved_step = self._state.restore(self.directory, self.accelerator)
        if self.step:
            self.schedule.last_epoch = self.step - 1
            self.raw_optimizer._opt_called = True  # type: ignore[attr-defined]  # the schedule warns otherwise
            self.schedule.step()
