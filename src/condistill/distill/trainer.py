"""The one training loop: a teacher forward, a student forward and backward, and as little else as can be."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from condistill.cache.latents import LatentCache
from condistill.config.distill import DistillSettings
from condistill.distill import random_conditioning as rc
from condistill.distill.batches import Batch, BatchSource, prefetch
from condistill.distill.checkpoints import (
    list_checkpoints,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from condistill.distill.history import HISTORY_NAME, History
from condistill.distill.objective import Objective, StudentForward
from condistill.distill.paths import Paths
from condistill.distill.prompt_choice import PromptChoice
from condistill.distill.schedules import probability_of
from condistill.distill.states import noised_latents
from condistill.errors import CondistillError, NonFiniteLossError
from condistill.prompts.pool import PromptPool
from condistill.students.derive import Student
from condistill.teachers.family import Family


@dataclass
class _Pending:
    """A step whose losses are not yet known to be finite: asking at once would make the device wait."""

    step: int
    losses: list[Tensor]
    timesteps: list[Tensor]
    prompts: list[list[str]]
    finite: Tensor | None = None
    copied: torch.cuda.Event | None = None

    def ask(self) -> None:
        """Begin to bring the answer to the CPU; the step's backward is queued behind it."""
        self.finite = torch.isfinite(torch.cat(self.losses)).all().to("cpu", non_blocking=True)
        if self.losses[0].is_cuda:
            self.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self.copied.record()

    def is_finite(self) -> bool:
        """The answer, once it is there."""
        if self.copied is not None:
            self.copied.synchronize()
        assert self.finite is not None
        return bool(self.finite)


class Trainer:
    """Distils one student; made anew for every run, and goes on from the newest checkpoint."""

    def __init__(
        self,
        family: Family,
        student: Student,
        cache: LatentCache,
        pool: PromptPool,
        settings: DistillSettings,
        *,
        seed: int,
        directory: Path,
        accelerator: Accelerator,
    ) -> None:
        self.family, self.settings, self.directory, self.accelerator = family, settings, directory, accelerator
        conditioning = settings.conditioning
        self.conditioning = rc.RandomConditioning(
            probability_of(conditioning.probability), conditioning.empty_prompt_probability
        )
        self.source = batch_source(cache, pool, settings, seed=seed, accelerator=accelerator)
        text = conditioning.prompt_choice
        self.prompt_choice = (
            PromptChoice(family, text, cache, pool, seed=seed, accelerator=accelerator) if text else None
        )
        features = settings.loss.features if settings.loss.feature_weight > 0 else None
        self.objective = Objective(family, settings, accelerator, student.pairs if features else ())
        self.paths: Paths | None = None
        if settings.path:
            positions = self.source.positions
            self.paths = Paths(
                family,
                settings.path,
                self.conditioning,
                positions,
                total_steps=settings.steps,
                with_guidance=settings.guidance_range is not None,
            )
        if settings.gradient_checkpointing:
            student.denoiser.enable_gradient_checkpointing()
        trained = StudentForward(family, student, features=features).to(family.device).train()
        self.trained = trained
        self.raw_optimizer = torch.optim.AdamW(
            trained.parameters(),
            lr=settings.optimizer.learning_rate,
            weight_decay=settings.optimizer.weight_decay,
            fused=family.device.type in ("cpu", "cuda"),
        )
        self.schedule = get_scheduler(
            settings.optimizer.lr_scheduler,
            self.raw_optimizer,
            num_warmup_steps=settings.optimizer.warmup_steps,
            num_training_steps=settings.steps,
        )
        self.model, self.optimizer = accelerator.prepare(trained, self.raw_optimizer)
        self.ema: EMAModel | None = None
        if settings.optimizer.ema_decay:
            self.ema = EMAModel(trained.denoiser.parameters(), decay=settings.optimizer.ema_decay, foreach=True)
        directory.mkdir(parents=True, exist_ok=True)
        self.history = History(directory / HISTORY_NAME, family.device)
        self.step = self.saved_step = 0
        """Optimiser steps done, and those that the newest checkpoint holds."""
        self._pending: _Pending | None = None

    def run(self, on_step: Callable[[int, dict[str, Any] | None], None] = lambda *_: None) -> nn.Module:
        """Train to the end and return the student with its averaged weights.

        Args:
            on_step: called after every step with the number of steps done, and the means where they were logged.

        Raises:
            NonFiniteLossError: names step, timesteps and prompts; the last good checkpoint stays.
            KeyboardInterrupt: on Ctrl-C, after a checkpoint was written.
        """
        self._resume()
        on_step(self.step, None)
        settings = self.settings
        with _interruptible() as interrupted:
            for micro_batches in prefetch(self.source, range(self.step, settings.steps)):
                self._train_step(micro_batches)
                record = None
                if self.step % settings.logging.log_every == 0 or self.step == settings.steps:
                    record = self._log()
                stop = self._agreed(interrupted())
                if self.step % settings.logging.checkpoint_every == 0 or self.step == settings.steps or stop:
                    self._save()
                on_step(self.step, record)
                if stop:
                    raise KeyboardInterrupt
        self.objective.teacher_recorder.remove()  # the teacher serves the next student too
        denoiser: nn.Module = self.trained.denoiser
        if self.ema is not None:
            self.ema.copy_to(denoiser.parameters())
        return denoiser

    def _agreed(self, stop: bool) -> bool:
        """Whether any process was told to stop. They ask each other only now and then: it makes them wait."""
        if self.accelerator.num_processes == 1:
            return stop
        if self.step % 10:
            return False
        told = torch.tensor(float(stop), device=self.family.device)
        return bool(self.accelerator.reduce(told, reduction="sum") > 0)

    def _train_step(self, micro_batches: Sequence[Batch]) -> None:
        pending = _Pending(self.step, [], [], [])
        for i, batch in enumerate(micro_batches):
            last = i + 1 == len(micro_batches)
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                loss = self._loss(i, batch, pending)
                if last:
                    pending.ask()
                self.accelerator.backward(loss / len(micro_batches))
        self._check_finite()
        self._pending = pending
        self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.optimizer.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        if self.ema is not None:
            self.ema.step(self.trained.denoiser.parameters())
        if self.prompt_choice:
            self.prompt_choice.update()
        self.step += 1

    def _loss(self, number: int, batch: Batch, pending: _Pending) -> Tensor:
        """Micro-batch `number` of a step: choose its states, compare both models there, and move on what moves."""
        family, settings, paths = self.family, self.settings, self.paths
        rows = slice(number * len(batch.own), (number + 1) * len(batch.own))
        if self.prompt_choice:
            batch = self.prompt_choice.choose(batch)
        sample = noised_latents(
            family,
            self.conditioning,
            batch,
            timestep_bias=settings.conditioning.timestep_bias,
            grid=self.objective.grid,
        )
        replaced_prompt = sample.replaced_prompt
        if sample.blend:
            replaced_prompt &= sample.blend.weight == 0  # a blend is of no cluster
        if paths:
            sample = paths.place(self.step, rows, sample, batch)
        terms, predictions = self.objective(self.model, sample)
        if paths:
            moves, scale = paths.moves(self.step, rows, batch), paths.settings.guidance_scale
            direction = self.objective.direction(self.trained.denoiser, sample, predictions, moves, scale)
            paths.advance(self.step, rows, sample, direction)
            replaced_prompt &= ~moves.on_path
        level = family.noise.noise_level(sample.timesteps).to(family.device)
        if self.prompt_choice:
            self.prompt_choice.note(batch, terms["output"], level, replaced_prompt)
        self.history.add({**terms, "replaced_prompt": sample.replaced.to(family.device)}, level)
        pending.losses.append(terms["loss"].detach())
        pending.timesteps.append(sample.timesteps)
        pending.prompts.append(sample.prompts)
        return terms["loss"].mean()

    def _check_finite(self) -> None:
        """Look at the last step's losses, now that they have long been computed."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        if pending.is_finite():
            return
        bad = (~torch.isfinite(torch.cat(pending.losses))).nonzero().flatten().tolist()
        timesteps = torch.cat(pending.timesteps).cpu()[bad].tolist()
        prompts = [prompt for part in pending.prompts for prompt in part]
        named = "; ".join(f"t={t} {prompts[i]!r}" for t, i in list(zip(timesteps, bad, strict=True))[:4])
        kept = list_checkpoints(self.directory)
        raise NonFiniteLossError(
            f"the loss of step {pending.step} is not finite for {len(bad)} sample(s): {named}. "
            f"{f'The checkpoint {kept[-1].name} is good and is kept' if kept else 'No checkpoint was written yet'}; "
            "try a lower distill.optimizer.learning_rate, or distill.mixed_precision: bf16 instead of fp16"
        )

    def _log(self) -> dict[str, Any]:
        accelerator = self.accelerator
        record = self.history.flush(
            self.step,
            self.schedule.get_last_lr()[0],
            reduce=lambda sums: accelerator.reduce(sums, reduction="sum"),
            write=accelerator.is_main_process,
        )
        if accelerator.trackers:
            accelerator.log({k: v for k, v in record.items() if k not in ("step", "bins")}, step=self.step)
        return record

    def _save(self) -> None:
        """A checkpoint that is whole, and only of weights whose losses were finite."""
        self._check_finite()
        self.saved_step = self.step
        moving, prompts = self.paths.state(self.accelerator) if self.paths else ({}, [])
        if self.accelerator.is_main_process:
            parts = {
                "trained": dict(self.trained.state_dict()),
                "optimizer": optimizer_tensors(self.raw_optimizer),
                "history": self.history.state(),
            }
            if self.ema is not None:
                names = [name for name, _ in self.trained.denoiser.named_parameters()]
                parts["ema"] = dict(zip(names, self.ema.shadow_params, strict=True))
            scaler = self.accelerator.scaler
            meta = {"scaler": scaler.state_dict() if scaler else None}
            if self.paths:
                parts["paths"] = moving
                meta["path_prompts"] = prompts
            if self.prompt_choice:
                parts["prompt_choice"] = self.prompt_choice.state()
            save_checkpoint(self.directory, self.step, parts, keep=self.settings.logging.keep_checkpoints, meta=meta)
        self.accelerator.wait_for_everyone()

    def _resume(self) -> None:
        kept = list_checkpoints(self.directory)
        if not kept:
            self.history.restore(self.history.state(), 0, write=self.accelerator.is_main_process)
            return
        self.step, parts, meta = load_checkpoint(kept[-1])
        self.saved_step = self.step
        self.trained.load_state_dict(parts["trained"])
        restore_optimizer(self.raw_optimizer, parts["optimizer"])
        self.history.restore(parts["history"], self.step, write=self.accelerator.is_main_process)
        if self.ema is not None:
            names = [name for name, _ in self.trained.denoiser.named_parameters()]
            device = self.family.device
            self.ema.shadow_params = [parts["ema"][name].to(device) for name in names]
            self.ema.optimization_step = self.step
        if self.accelerator.scaler and meta["scaler"]:
            self.accelerator.scaler.load_state_dict(meta["scaler"])
        if self.paths:
            self.paths.restore(parts["paths"], meta["path_prompts"])
        if self.prompt_choice:
            self.prompt_choice.restore(parts.get("prompt_choice", {}))
        self.schedule.last_epoch = self.step - 1
        self.raw_optimizer._opt_called = True  # type: ignore[attr-defined]  # the schedule warns otherwise
        self.schedule.step()


def batch_source(
    cache: LatentCache, pool: PromptPool, settings: DistillSettings, *, seed: int, accelerator: Accelerator
) -> BatchSource:
    """Cut the global batch over processes and micro-batches.

    Raises:
        CondistillError: it cannot be cut evenly.
    """
    processes = accelerator.num_processes
    share, rest = divmod(settings.batch_size, processes)
    micro = settings.micro_batch_size or share
    if rest or share % micro:
        raise CondistillError(
            f"distill.batch_size {settings.batch_size} cannot be cut evenly over {processes} process(es) with "
            f"micro_batch_size {micro}; make it a multiple of {processes * micro}"
        )
    place = (accelerator.process_index, processes)
    asked = (settings.conditioning.prompt_choice, settings.guidance_range)
    return BatchSource(cache, pool, seed, settings.batch_size, micro, *place, *asked)


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C, or the SIGTERM of a scheduler, end the loop after a whole step; a second one ends it at once."""
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield pressed.is_set
        return

    def on_interrupt(_signal: int, _frame: object) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    before = {number: signal.signal(number, on_interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield pressed.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
