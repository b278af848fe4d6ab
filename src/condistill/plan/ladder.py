"""The usual students of a teacher from large to small, each with the memory and the time that its training needs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from condistill.config.recipe import Recipe
from condistill.config.yaml_tree import merge
from condistill.errors import CondistillError
from condistill.pipelines.sampling import Sampling
from condistill.plan.candidates import Candidate, recipe_candidates, teacher_candidate
from condistill.plan.cost import PROCESS_BYTES, UPDATE_BYTES, TrainingJob, cache_cost, evaluation_cost, forward_sec
from condistill.plan.devices import Hardware
from condistill.plan.make import plan_cost
from condistill.plan.record import RunCost
from condistill.plan.stages import decoded_numbers, forward_numbers
from condistill.profiling.forwards import evaluations_per_image
from condistill.teachers.skeleton import Skeleton
from condistill.workflow.preflight import preflight

UNET_LADDERS = (("koala-1b", "koala-700m", "c-micro"), ("b-base", "c-small", "c-tiny", "c-micro"))
"""The first of which the largest student exists is used."""
DEPTHS = (0.5, 0.25)
"""Shares of the layers of a transformer."""
LARGEST_BATCH = 256
MOST_AT_ONCE, MOST_IMAGES = 64, 8
"""Samples of a micro-batch, and images that are generated at once."""
FEW_AT_ONCE = 4
"""Samples of a micro-batch below which gradient checkpointing is used."""
SPARE = 0.1
"""Share of the memory that stays free, for the allocator and libraries."""

_BYTES_PER_WEIGHT = 20
"""Weight, gradient, two numbers of AdamW and the average, in float32."""
_EVALUATED = 100
"""Prompts of an evaluation, over which its constant parts are spread."""


@dataclass(frozen=True)
class Memory:
    """The largest micro-batch that fits."""

    micro_batch_size: int
    checkpointing: bool
    total: int
    """Bytes of the training."""


@dataclass(frozen=True)
class Times:
    """Seconds of the parts of a run with one student."""

    sample: float
    """Of a sample of a training step, on one device."""
    update: float
    """Of an update of the weights."""
    image: float
    """Of a cached latent."""
    prompt: float
    """Of an evaluated prompt, with all models and splits."""
    count: int
    """Devices."""

    def step(self, batch_size: int) -> float:
        """Return the seconds of a training step."""
        return self.sample * math.ceil(batch_size / self.count) + self.update


@dataclass(frozen=True)
class Case:
    """A teacher, the devices, and the settings of a recipe that are not to be chosen."""

    skeleton: Skeleton
    hardware: Hardware
    base: Mapping[str, Any]
    """Such as `teacher`, `prompts` and the sampling of the cache."""

    @cached_property
    def teacher(self) -> Candidate:
        """The teacher's own denoiser."""
        return teacher_candidate(self.skeleton)

    @property
    def mixed_precision(self) -> str:
        """The mixed precision of the device; `no` on a CPU."""
        device = self.hardware.device
        if device.is_host:
            return "no"
        return {torch.float16: "fp16", torch.bfloat16: "bf16"}[device.half]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the teacher on the device."""
        return self.hardware.device.teacher_dtype(self.base["teacher"].get("dtype", "auto"))

    @property
    def memory_limit(self) -> int:
        """Bytes that a training may need on one device."""
        return int((1 - SPARE) * self.hardware.device.memory_bytes)

    def cost(self, recipe: Recipe) -> RunCost:
        """Return the planned cost of a recipe for this teacher."""
        hardware, skeleton = self.hardware, self.skeleton
        return plan_cost(
            recipe, device=hardware.device, count=hardware.count, efficiency=hardware.efficiency, skeleton=skeleton
        )

    def batch_size(self, wanted: int) -> int:
        """Return the batch size near to `wanted` of which each device gets a power of two."""
        return self.hardware.count * self.share(wanted)

    def share(self, wanted: int) -> int:
        """Return the samples of a batch near to `wanted` that each device gets."""
        return int(2 ** max(math.floor(math.log2(wanted / self.hardware.count)), 0))

    def _rung(self, settings: dict[str, Any]) -> Rung:
        """Return a student, which is derived once, so that its memory and times are counted once."""
        name = repr(settings)
        if name not in self._rungs:
            self._rungs[name] = Rung.of(self, settings)
        return self._rungs[name]

    @cached_property
    def _rungs(self) -> dict[str, Rung]:
        return {}

    def ladder(self, refusals: list[CondistillError]) -> Iterator[Rung]:
        """Yield the usual students that a run accepts, from large to small.

        Args:
            refusals: gets the errors of the others.
        """
        if not self.skeleton.family.can_cut_width:
            ladders: list[list[dict[str, Any]]] = [[{"depth": depth} for depth in DEPTHS]]
        else:
            ladders = [[{"preset": preset} for preset in presets] for presets in UNET_LADDERS]
        for number, ladder in enumerate(ladders):
            for place, settings in enumerate(ladder):
                try:
                    yield self._rung(settings)
                except CondistillError as error:
                    if place == 0 and number < len(ladders) - 1:
                        break
                    refusals.append(error)
            else:
                return


@dataclass(frozen=True)
class Rung:
    """A student of the ladder."""

    case: Case
    settings: dict[str, Any]
    """The recipe's `student`."""
    candidate: Candidate

    @classmethod
    def of(cls, case: Case, settings: dict[str, Any]) -> Rung:
        """Derive a student on the meta device.

        Raises:
            CondistillError: a run would refuse it.
        """
        recipe = Recipe.from_dict({**case.base, "student": settings})
        (candidate,) = recipe_candidates(case.skeleton, preflight(recipe, case.skeleton)).values()
        if candidate.params >= case.teacher.params:
            raise CondistillError(f"the student {settings} is not smaller than the teacher")
        return cls(case, settings, candidate)

    @property
    def name(self) -> str:
        """The preset or the depth."""
        return str(self.settings.get("preset") or f"depth {self.settings['depth']:g}")

    def recipe(self, **sections: Mapping[str, Any]) -> Recipe:
        """Return the recipe of this student with some settings."""
        return Recipe.from_dict(merge({**self.case.base, "student": self.settings}, sections))

    @cached_property
    def memory(self) -> Memory | None:
        """The largest micro-batch that fits, with gradient checkpointing if few samples fit without it; None: none."""
        most = min(self.case.share(LARGEST_BATCH), MOST_AT_ONCE)
        if self._weights > self.case.memory_limit:
            return None
        return self._largest(min(FEW_AT_ONCE, most), most, checkpointing=False) or self._largest(
            1, most, checkpointing=True
        )

    @property
    def _weights(self) -> int:
        """Bytes of all that does not depend on the micro-batch: the least that a training needs."""
        case = self.case
        trained = self.candidate.params * _BYTES_PER_WEIGHT
        return sum(case.skeleton.components.values()) * case.dtype.itemsize + trained

    @property
    def least_memory(self) -> int:
        """Bytes of the training with one sample at once."""
        return self._memory(1, checkpointing=True)

    @cached_property
    def times(self) -> Times:
        """The seconds of a sample, a cached latent and an evaluated prompt."""
        case, memory = self.case, self.memory
        assert memory is not None
        hardware = case.hardware
        recipe = self.recipe(cache={"size": 1}, evaluate={"prompts_per_split": _EVALUATED})
        sampling = Sampling(recipe.cache.num_inference_steps, recipe.cache.guidance_scale)
        cache = cache_cost(
            case.skeleton,
            recipe,
            hardware,
            evaluations_per_image=evaluations_per_image(sampling, case.teacher.denoiser),
            evaluation_sec=forward_sec(hardware, case.teacher, case.dtype),
            dtype=case.dtype,
        )
        (name,) = recipe.variants
        evaluation = evaluation_cost(recipe, hardware, (case.teacher, {name: self.candidate}), dtype=case.dtype)
        step = self._job(1, checkpointing=memory.checkpointing).step_sec(hardware, self.candidate)
        update = self.candidate.params * UPDATE_BYTES / hardware.device.bandwidth
        sample = max(step - update, 0)
        return Times(sample, update, 3600 * cache.hours, 3600 * evaluation.hours / _EVALUATED, hardware.count)

    def _job(self, micro_batch_size: int, *, checkpointing: bool, micro_batches: int = 1) -> TrainingJob:
        """Return the training with some micro-batches per step."""
        case, count = self.case, self.case.hardware.count
        recipe = self.recipe(
            distill={
                "batch_size": micro_batches * micro_batch_size * count,
                "micro_batch_size": micro_batch_size,
                "mixed_precision": case.mixed_precision,
                "gradient_checkpointing": checkpointing,
            }
        )
        (name,) = recipe.variants
        return TrainingJob(case.skeleton, case.teacher, self.candidate, recipe.variant(name)[1], case.dtype, count)

    def _memory(self, micro_batch_size: int, *, checkpointing: bool) -> int:
        """Return the bytes of a training with a micro-batch on one device, if a step has several."""
        job = self._job(micro_batch_size, checkpointing=checkpointing, micro_batches=2)
        return job.memory(on_host=self.case.hardware.device.is_host).total

    @cached_property
    def images_at_once(self) -> int:
        """Images that teacher and student can generate and decode at once, a power of two up to `MOST_IMAGES`."""
        case, recipe = self.case, self.recipe()
        skeleton, itemsize = case.skeleton, case.dtype.itemsize
        sampling = Sampling(1, recipe.cache.guidance_scale)
        evaluations = evaluations_per_image(sampling, case.teacher.denoiser)
        numbers = max(evaluations * forward_numbers(skeleton, case.teacher), decoded_numbers(skeleton))
        image = max(numbers * itemsize, 1)
        held = (sum(skeleton.components.values()) + self.candidate.params) * itemsize
        count = (case.memory_limit - held - PROCESS_BYTES) // image
        return int(2 ** math.floor(math.log2(min(max(count, 1), MOST_IMAGES))))

    def _largest(self, least: int, most: int, *, checkpointing: bool) -> Memory | None:
        """Return the largest micro-batch that fits, a power of two from `least` to `most`; None if `least` does not."""
        low, high = int(math.log2(least)), int(math.log2(most))
        found, size = None, high  # the largest first, which often fits; then the smallest, which often does not
        while low <= high:
            total = self._memory(2**size, checkpointing=checkpointing)
            if total <= self.case.memory_limit:
                found, low = Memory(2**size, checkpointing, total), size + 1
            elif size == low:
                return found
            else:
                high = size - 1
            size = (low + high + 1) // 2 if found else low
        return found
