"""Choose the settings of a recipe for a device and a budget of time, from the plan of the whole run.

The rules, in their order:

- **Precision**: mixed precision in the half type of the device; none on a CPU.
- **Student**: the ladder goes from large to small: `koala-1b`, `koala-700m`, `c-micro` for a U-Net that has the KOALA
  presets (SDXL); `b-base`, `c-small`, `c-tiny`, `c-micro` for other U-Nets; half and a quarter of the layers for
  transformers. The largest student is chosen that fits into the memory and can be trained with `ENOUGH` samples in the
  budget; if none can, the smallest that fits, with at least `LEAST` samples. BK-SDM (arXiv 2305.15798) trained with
  50,000 steps of 256, 12.8 M samples.
- **Memory**: a tenth of the device stays free for allocator and libraries. The micro-batch is the largest power of two
  that fits. Gradient checkpointing is on only if fewer than 4 samples fit without it.
- **Time**: at most `CACHE_SHARE` of the budget for the cache, at most `EVALUATION_SHARE` for the evaluation, the rest
  for the training. The cache has at most half of the prompts, so that random conditioning has others to choose from,
  and at most as many as in the paper.
- **Batch**: 256 samples per step, or 128, 64 or 32 where fewer than `GOOD_STEPS` steps would be left.

Without a budget, the training is that of BK-SDM.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from condistill.config.recipe import Recipe
from condistill.config.sections import CacheSettings
from condistill.config.yaml_tree import merge
from condistill.errors import CondistillError
from condistill.plan.devices import DEVICES
from condistill.plan.ladder import FEW_AT_ONCE, LARGEST_BATCH, SPARE, Case, Memory, Rung, Times
from condistill.plan.record import RunCost
from condistill.utils.format import byte_size, duration, percent, quantity
from condistill.utils.quiet import quiet_libraries

PUBLISHED_SAMPLES, PUBLISHED_STEPS = 12_800_000, 50_000
"""Of BK-SDM."""
MOST_STEPS = 400_000
"""Of the paper, which no budget exceeds."""
ENOUGH, LEAST = 128_000, 32_000
"""Samples: a hundredth of BK-SDM's, and 1,000 steps of 32."""
BATCH_SIZES = (LARGEST_BATCH, 128, 64, 32)
GOOD_STEPS = 5_000
CACHE_SHARE, EVALUATION_SHARE = 0.2, 0.05
MOST_CACHED: int = CacheSettings.model_fields["size"].default
USUALLY_CACHED = 10_000
"""Cached latents without a budget."""
FEWEST_CACHED = 100
"""Cached latents that a budget must be enough for."""
EVALUATED = (100, 50, 20, 10)
"""Prompts per split."""


class DoesNotFitError(CondistillError):
    """No student fits into the memory of the device, or none can be trained in the budget."""


@dataclass(frozen=True)
class Choice:
    """The value of a setting, and why it was chosen."""

    setting: str
    value: str
    reason: str

    def __str__(self) -> str:
        return f"{self.setting}: {self.value} ({self.reason})"


@dataclass(frozen=True)
class Fit:
    """The settings that were chosen, and their planned cost."""

    settings: dict[str, Any]
    """Sections `cache`, `student`, `distill` and `evaluate` of a recipe."""
    choices: tuple[Choice, ...]
    cost: RunCost


def fit(case: Case, *, prompts: int, budget: float | None = None) -> Fit:
    """Return the settings for the largest student of the ladder that fits.

    Args:
        prompts: distinct prompts of the pool.
        budget: seconds of the whole run; None: as long as the training of BK-SDM takes.

    Raises:
        DoesNotFitError: no student fits into the memory, or the budget is too small; says what would be enough.
        CondistillError: a run would refuse every student of the ladder; the error is that of the first.
    """
    with quiet_libraries():
        refusals: list[CondistillError] = []
        rung: Rung | None = None
        too_large: list[Rung] = []
        is_enough = False
        for candidate in case.ladder(refusals):
            if candidate.memory is None:
                too_large.append(candidate)
                continue
            rung = candidate
            is_enough = budget is None or _affordable_samples(rung, budget) >= ENOUGH
            if is_enough:
                break
        if rung is None:
            raise _too_large_error(too_large) if too_large else refusals[0]
        return _Chooser(rung, prompts, budget, tuple(each.name for each in too_large), is_enough).choose()


def _affordable_samples(rung: Rung, budget: float) -> float:
    seconds = (1 - CACHE_SHARE - EVALUATION_SHARE) * budget
    return LARGEST_BATCH * seconds / rung.times.step(LARGEST_BATCH)


@dataclass(frozen=True)
class _Chooser:
    """Chooses the sizes for a student."""

    rung: Rung
    prompts: int
    budget: float | None
    too_large: tuple[str, ...]
    """Students of the ladder that need more memory."""
    is_enough: bool
    """Whether the budget is enough for `ENOUGH` samples."""

    @property
    def most_cached(self) -> int:
        """Latents that may be cached at most: half of the prompts."""
        return min(MOST_CACHED, max(self.prompts // 2, 1))

    @property
    def memory(self) -> Memory:
        assert self.rung.memory is not None
        return self.rung.memory

    def choose(self) -> Fit:
        """Return the settings, whose plan is not longer than the budget."""
        if self.budget is not None and _affordable_samples(self.rung, self.budget) < LEAST:
            raise self._too_short()
        case = self.rung.case
        settings = self._settings()
        while True:
            recipe = Recipe.from_dict(merge(case.base, settings))
            cost = case.cost(recipe)
            over = 0.0 if self.budget is None else 3600 * cost.hours - self.budget
            (training,) = cost.training.values()
            steps = settings["distill"]["steps"]
            if over <= 0 or steps == 1:
                return Fit(settings, tuple(self._reasons(settings)), cost)
            # what `times` leaves out, such as previews
            settings["distill"]["steps"] = round_down(steps - 1.01 * over / (3600 * training.hours / steps))

    def _settings(self) -> dict[str, Any]:
        times, case = self.rung.times, self.rung.case
        evaluated = self._evaluated(times)
        if self.budget is None:
            cached = min(USUALLY_CACHED, self.most_cached)
            batch, steps = case.batch_size(LARGEST_BATCH), PUBLISHED_STEPS
        else:
            cached = max(min(self.most_cached, int(CACHE_SHARE * self.budget / times.image)), 1)
            rest = self.budget - evaluated * times.prompt - cached * times.image
            sizes = [case.batch_size(size) for size in BATCH_SIZES]
            batch = next((size for size in sizes if rest / times.step(size) >= GOOD_STEPS), sizes[-1])
            steps = min(round_down(rest / times.step(batch)), MOST_STEPS)
        at_once = self.rung.images_at_once
        return {
            "cache": {"size": cached, "batch_size": at_once},
            "student": self.rung.settings,
            "distill": {
                "steps": steps,
                "batch_size": batch,
                "micro_batch_size": min(self.memory.micro_batch_size, batch // case.hardware.count),
                "mixed_precision": case.mixed_precision,
                "gradient_checkpointing": self.memory.checkpointing,
            },
            "evaluate": {"prompts_per_split": evaluated, "batch_size": at_once},
        }

    def _evaluated(self, times: Times) -> int:
        """Return the prompts of the evaluation."""
        allowed = math.inf if self.budget is None else EVALUATION_SHARE * self.budget / times.prompt
        return min(next((size for size in EVALUATED if size <= allowed), EVALUATED[-1]), self.prompts)

    def _reasons(self, settings: Mapping[str, Any]) -> Iterator[Choice]:
        """Yield the choices with their reasons."""
        case, distill = self.rung.case, settings["distill"]
        device, samples = case.hardware.device, distill["steps"] * distill["batch_size"]
        yield Choice("student", self.rung.name, self._why_student())
        yield Choice(
            "steps",
            f"{distill['steps']:,} of {distill['batch_size']} samples",
            f"{quantity(samples)} samples, {percent(samples / PUBLISHED_SAMPLES)} of the {quantity(PUBLISHED_SAMPLES)} "
            "of BK-SDM" + ("" if samples >= PUBLISHED_SAMPLES / 10 else ": a short training, which the images show"),
        )
        size = settings["cache"]["size"]
        yield Choice("cache", f"{size:,} of {self.prompts:,} prompts", self._why_cached(size))
        yield Choice(
            "micro-batch",
            f"{distill['micro_batch_size']}",
            f"the training needs {byte_size(self.memory.total)} of {byte_size(device.memory_bytes)}; "
            f"{percent(SPARE)} stay free",
        )
        few = f"fewer than {FEW_AT_ONCE} samples fit without it"
        on = self.memory.checkpointing
        yield Choice("gradient checkpointing", "on" if on else "off", few if on else "the memory is enough without it")
        half = case.mixed_precision
        why = "half precision is seldom faster on a CPU" if half == "no" else f"the half precision of {device.name}"
        yield Choice("mixed precision", half, why)

    def _why_student(self) -> str:
        rung = self.rung
        why = f"{percent(rung.candidate.params / rung.case.teacher.params)} of the parameters of the teacher"
        if self.too_large:
            why += f"; {' and '.join(self.too_large)} would need more memory"
        elif self.budget is not None and self.is_enough:
            why += "; the largest usual student for which the budget is enough"
        elif self.budget is not None:
            why += "; the smallest usual student, for a small budget"
        return why

    def _why_cached(self, cached: int) -> str:
        if cached == self.prompts:
            return "the only one, so random conditioning has none to choose from; give more prompts"
        if cached == self.prompts // 2:
            return "at least half stay uncached, for random conditioning to choose from"
        if self.budget is None or cached == MOST_CACHED:
            return "random conditioning chooses from all"
        return f"{percent(CACHE_SHARE)} of the budget; random conditioning chooses from all prompts"

    def _too_short(self) -> DoesNotFitError:
        """Return the error for a budget that is too small for any student that fits."""
        rung, device, times = self.rung, self.rung.case.hardware.device, self.rung.times
        batch = rung.case.batch_size(BATCH_SIZES[-1])
        training = LEAST * times.step(LARGEST_BATCH) / LARGEST_BATCH / (1 - CACHE_SHARE - EVALUATION_SHARE)
        caching = min(FEWEST_CACHED, self.most_cached) * times.image / CACHE_SHARE
        assert self.budget is not None
        return DoesNotFitError(
            f"a budget of {duration(self.budget)} is too small on {device.name}: {rung.name}, the smallest usual "
            f"student that fits, needs about {duration(max(training, caching))} for {LEAST:,} samples in steps of "
            f"{batch} ({percent(LEAST / PUBLISHED_SAMPLES, 2)} of BK-SDM's); give a larger --budget or a faster "
            "--device, or --quick for a test of the set-up"
        )


def _too_large_error(rungs: list[Rung]) -> DoesNotFitError:
    """Return the error for a device into whose memory no student fits."""
    smallest, device = rungs[-1], rungs[-1].case.hardware.device
    needed = smallest.least_memory
    enough = [name for name, each in DEVICES.items() if (1 - SPARE) * each.memory_bytes >= needed]
    advice = f"devices with enough memory: {', '.join(enough)}" if enough else "no known device has so much"
    return DoesNotFitError(
        f"no usual student of this teacher can be trained on {device.name}: {smallest.name}, the smallest of "
        f"{', '.join(rung.name for rung in rungs)}, needs {byte_size(needed)}, and {percent(1 - SPARE)} of "
        f"{byte_size(device.memory_bytes)} may be used; {advice} (--device)"
    )


def round_down(number: float) -> int:
    """Return a whole number of at least 1 with three significant digits, not above `number`."""
    unit = 10 ** max(math.floor(math.log10(max(number, 1))) - 2, 0)
    return max(int(number // unit * unit), 1)
