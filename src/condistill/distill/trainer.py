"""The one training loop: a teacher forward, a student forward and backward, and as little else as possible.

The method itself is in `random_conditioning`. A step does this for every micro-batch: choose the states and their
prompts, compare both models at the states, and carry on the states that move.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NoReturn

from accelerate import Accelerator
from accelerate.utils import gather_object
from diffusers.optimization import get_scheduler
from torch import Tensor, nn

from condistill.config.distill import DistillSettings
from condistill.distill.batches import Batch, BatchSource, prefetch
from condistill.distill.checkpoints import TrainingState, prune_checkpoints
from condistill.distill.failures import FAILURE_NAME, Failure, advice, fall_back, read_failure
from condistill.distill.history import HISTORY_NAME, History, HistoryRecord
from condistill.distill.objective import Objective
from condistill.distill.paths import Paths
from condistill.distill.pending import PendingStep
from condistill.distill.prompt_choice import PromptChoice
from condistill.distill.random_conditioning import RandomConditioning
from condistill.distill.schedules import probability_of
from condistill.distill.states import Sample, noised_latents
from condistill.distill.student import StudentForward
from condistill.distill.update import Update, build_average, build_optimizer
from condistill.errors import NonFiniteLossError
from condistill.students.derive import Student
from condistill.teachers.family import Family
from condistill.utils.atomic import remove
from condistill.utils.distributed import OtherProcessError, from_main_process
from condistill.utils.signals import Stopped, stop_later

_MOST_SKIPPED = 50
"""Steps in a row that the scaler of fp16 may skip: each halves the scale, and none has more than 50 halves to lose."""


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
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Prepare the student, its optimiser and the teacher.

        Args:
            directory: for checkpoints and the history.
            say: called with a line for the user where a training resumes from something else than it might.
        """
        self.family, self.source, self.settings = family, source, settings
        self.directory, self.accelerator, self._say = directory, accelerator, say
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
        self.is_stopping = False
        """Whether a signal has come: after `on_step` of this step the run ends, on every process."""
        self.doing: Callable[[str], None] = lambda _: None
        """Called with a few words before something other than a step that may take long."""
        self._pending: PendingStep | None = None
        self._failure: Failure | None = None
        """Of a training before this one, until its step is passed."""
        self._own_signal: Callable[[], int] = lambda: 0
        self._signal = self._skipped = 0
        """The signal that all processes know of, and the last steps in a row that the scaler of fp16 skipped."""

    def close(self) -> None:
        """Remove the hooks from the teacher, which serves the next student too."""
        self.objective.close()

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
            Stopped: after a signal, once a checkpoint was written.
        """
        self._resume()
        on_step(self.step, None)
        steps, logging = self.settings.steps, self.settings.logging
        with stop_later() as self._own_signal:
            for micro_batches in prefetch(self.source, range(self.step, steps)):
                self.train_step(micro_batches)
                is_last, record = self.step == steps, None
                if self.step % logging.log_every == 0 or is_last:
                    record = self._log()
                stop = self._signal if self.accelerator.num_processes > 1 else self._own_signal()
                if self.step % logging.checkpoint_every == 0 or is_last or stop:
                    self._save()
                self.is_stopping = bool(stop)
                on_step(self.step, record)
                if stop:
                    raise Stopped(stop, f"the checkpoint of step {self.step:,} is kept")
            if late := self._own_signal():
                raise Stopped(late)
        self._prune()
        self.close()
        denoiser: nn.Module = self.trained.denoiser
        if self.ema is not None:
            self.ema.copy_to(denoiser.parameters())
        return denoiser

    def train_step(self, micro_batches: Sequence[Batch]) -> None:
        """Take one optimiser step."""
        pending, processes = PendingStep(self.step), self.accelerator.num_processes
        for number, batch in enumerate(micro_batches):
            is_last = number + 1 == len(micro_batches)
            with nullcontext() if is_last else self.accelerator.no_sync(self.model):
                loss = self._loss(number, batch, pending)
                if is_last:
                    pending.start_check(signal=self._own_signal(), processes=processes)
                self.accelerator.backward(loss / len(micro_batches))
        self._check()
        pending.finish(self._update())
        self._pending = pending
        if self.family.device.type == "cpu":  # has finished the step: there is nothing to wait for
            self._signal = pending.signal
        self.schedule.step()
        if self.prompt_choice:
            self.prompt_choice.update()
        self.step += 1

    def _clip(self) -> Tensor:
        norm: Tensor = self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.optimizer.max_grad_norm)
        return norm

    def _loss(self, number: int, batch: Batch, pending: PendingStep) -> Tensor:
        """Return the mean loss of micro-batch `number` of a step, and carry on its moving states."""
        if self.prompt_choice:
            batch = self.prompt_choice.choose(batch)
        sample = self._states(number, batch)
        comparison = self.objective.compare(self.model, sample)
        losses = self.objective.losses(comparison)
        if self.paths:
            self.paths.advance(comparison)
        noise_level = self.family.noise.noise_level(comparison.timesteps)
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

    def _check(self) -> None:
        """Check the losses and the gradients of the step before, which the device has finished by now."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        self._signal = pending.signal
        if not pending.loss_is_finite:
            self._fail(pending, "the loss")
        scaler = self.accelerator.scaler
        self._skipped = 0 if pending.norm_is_finite else self._skipped + 1
        if self._skipped > (_MOST_SKIPPED if scaler else 0):  # with a scaler, an infinite gradient changes no weight
            self._fail(pending, f"the gradient of the last {self._skipped} steps" if scaler else "the gradient")
        if pending.step == self.saved_step:
            self._prune()  # the newest checkpoint has proved to be good
        if self._failure and pending.step >= self._failure.step:
            self._failure = None
            if self.accelerator.is_main_process:
                remove(self.directory / FAILURE_NAME)

    def _fail(self, pending: PendingStep, what: str) -> NoReturn:
        """Raise the error of a step that all processes know to be infinite."""
        samples = [sample for of_process in gather_object([pending.describe()]) for sample in of_process]
        named = f" for {len(samples)} sample(s): {'; '.join(samples[:4])}" if samples else ""
        reason = f"{what} of step {pending.step} is not finite{named}"
        self._give_up(Failure(step=pending.step, reason=reason), weights_are_bad=not pending.loss_is_finite)

    def _give_up(self, failure: Failure, *, weights_are_bad: bool) -> NoReturn:
        kept = from_main_process(
            self.accelerator, lambda: fall_back(self.directory, failure, weights_are_bad=weights_are_bad)
        )
        text = f"{failure.reason}. {kept} {advice(self.settings, failure.step, teacher_dtype=self.family.dtype)}"
        raise NonFiniteLossError(text) if self.accelerator.is_main_process else OtherProcessError(text)

    def _log(self) -> HistoryRecord:
        self._check()  # so that no record has the losses of a step that is not finite
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
        """Write a checkpoint, and only of weights whose losses and gradients were finite.

        The one before it stays until the next step has shown that the loss of the new one is finite.
        """
        self._check()
        self.doing("writing a checkpoint")
        if bad := self._state.save(self.directory, self.step, self.accelerator):
            reason = f"{bad} is not finite after step {self.step - 1}"
            self._give_up(Failure(step=self.step - 1, reason=reason), weights_are_bad=False)
        self.saved_step = self.step

    def _prune(self) -> None:
        if self.accelerator.is_main_process:
            prune_checkpoints(self.directory, self.settings.logging.keep_checkpoints)

    def _resume(self) -> None:
        self.doing("reading the newest checkpoint")
        self.step = self.saved_step = self._state.restore(self.directory, self.accelerator, self._say)
        self._failure = from_main_process(self.accelerator, lambda: read_failure(self.directory))
        if self._failure and self.accelerator.is_main_process:
            self._say(self._failure.notice())
        if self.step:
            self.schedule.last_epoch = self.step - 1
            self.raw_optimizer._opt_called = True  # type: ignore[attr-defined]  # the schedule warns otherwise
            self.schedule.step()
