"""A plan as plain data: the teacher, the students it could have, what the recipe costs, and what that assumes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from condistill.config.recipe import Recipe
from condistill.errors import CondistillError
from condistill.plan.candidates import Candidate, own_students, possible_students, the_teacher
from condistill.plan.cost import EFFICIENCY, ORDINARY_EFFICIENCY, Job, Measured, Rates, cache_cost, evaluation_cost
from condistill.plan.devices import PRESENT, find_device
from condistill.plan.measure import measure_forward, measure_training
from condistill.students.guidance import guidance_kind_of_config, guidance_learnt
from condistill.teachers.skeleton import Skeleton, teacher_skeleton
from condistill.utils.quiet import quiet_libraries
from condistill.workflow.preflight import check_steps


@dataclass(frozen=True)
class _Planner:
    """What the parts of a plan share."""

    recipe: Recipe
    skeleton: Skeleton
    teacher: Candidate
    students: Mapping[str, Candidate]
    """The recipe's own."""
    rates: Rates
    dtype: torch.dtype
    measure: bool

    def teacher_data(self) -> dict[str, Any]:
        family, teacher = self.skeleton.family, self.teacher
        return {
            "name": self.skeleton.name,
            "family": family.name,
            "denoiser": type(teacher.denoiser).__name__,
            "params": teacher.params,
            "macs": teacher.macs,
            "latent_shape": list(family.latent_shape),
            "text_length": family.text_length,
            "components": self.skeleton.components,
            **self._speed(teacher),
        }

    def student_data(self) -> Iterator[dict[str, Any]]:
        """The recipe's students first, then all that the teacher could have."""
        for own, candidates in ((True, self.students.values()), (False, possible_students(self.skeleton))):
            for candidate in candidates:
                yield {
                    "name": candidate.name,
                    "of_recipe": own,
                    "params": candidate.params,
                    "macs": candidate.macs,
                    "share_params": candidate.params / self.teacher.params,
                    "share_macs": candidate.macs / self.teacher.macs,
                    **self._speed(candidate),
                }

    def _speed(self, candidate: Candidate) -> dict[str, float]:
        """Of one forward of one sample."""
        speed = {"latency_ms": 1000 * self.rates.forward(candidate, self.dtype)}
        return speed | (measure_forward(self.skeleton, candidate, self.dtype) if self.measure else {})

    def cost_data(self) -> dict[str, Any]:
        """What each stage costs, and the whole."""
        measured = {name: measure_training(self._job(name)) if self.measure else None for name in self.students}
        first: Measured | None = next(iter(measured.values()))
        cache = cache_cost(
            self.skeleton,
            self.teacher,
            self.recipe,
            self.rates,
            dtype=self.dtype,
            teacher_sec=first.teacher_sec if first else None,
        )
        training = {name: self._job(name).cost(self.rates, measured[name]) for name in self.students}
        evaluation = evaluation_cost(self.teacher, self.students, self.recipe, self.rates, dtype=self.dtype)
        stages = (cache, *training.values(), evaluation)
        device = self.rates.device
        return {
            "device": {
                "name": device.name,
                "count": self.rates.count,
                "peak_flops": {"half": device.half_flops, "float32": device.single_flops},
                "peak_convolution_flops": device.convolution_flops,
                "memory_bytes": device.memory_bytes,
                "bandwidth": device.bandwidth,
                "measured": device.measured,
                "efficiency": self.rates.efficiency,
                "teacher_dtype": str(self.dtype).removeprefix("torch."),
            },
            "cache": cache,
            "training": training,
            "evaluation": evaluation,
            "hours": sum(stage["hours"] for stage in stages),
            "device_hours": sum(stage["device_hours"] for stage in stages),
        }

    def _job(self, name: str) -> Job:
        taught_by = self.recipe.variants[name].teacher
        teacher = self.students[taught_by] if taught_by else self.teacher
        settings = self.recipe.variant(name)[1]
        return Job(self.skeleton, teacher, self.students[name], settings, self.dtype, self.rates.count)

    def assumptions(self) -> list[str]:
        """What the figures rest on, a sentence each."""
        device, efficiency = self.rates.device, self.rates.efficiency
        how = "measured here by a matrix product and a copy" if device.measured else "its maker's figures"
        flops = (device.half_flops, device.single_flops, device.convolution_flops)
        half, single, convolution = (f"{rate / 1e12:,.3g}" for rate in flops)
        rates = f"{half} TFLOP/s in half precision, {single} in float32 (convolutions {convolution})"
        lines = [f"{device.name} reaches at most {rates}, and {device.bandwidth / 1e9:,.4g} GB/s: {how}"]
        if self.measure:
            lines.append("training and cache take what steps of networks with random weights took here just now")
            lines.append(
                f"the evaluation reaches {efficiency:.0%} of that where it is that of tensor cores, and "
                f"{ORDINARY_EFFICIENCY:.0%} elsewhere"
            )
        else:
            lines.append(
                f"{efficiency:.0%} of that is reached where it is that of tensor cores (--efficiency), and "
                f"{ORDINARY_EFFICIENCY:.0%} elsewhere; --measure times networks here instead"
            )
        return [
            *lines,
            "a backward costs two forwards, and recomputing checkpointed layers one more",
            "MACs count matrix products, convolutions and attention; of text encoders, each matrix once a token",
            "memory is that of tensors: attention never holds its map, and what an allocator or a library sets aside "
            "comes on top",
            "disk of the cache counts latents; prompts, checkpoints and pipelines come on top",
        ]

    def warnings(self) -> Iterator[str]:
        """What `condistill run` would refuse, as far as it can be told without weights; what does not fit."""
        kind = guidance_kind_of_config(self.teacher.denoiser)
        for name in self.students:
            settings = self.recipe.variant(name)[1]
            try:
                check_steps(self.skeleton.family, settings)
                if self.recipe.variants[name].teacher is None and kind is not None:
                    guidance_learnt(kind, self.teacher.denoiser, settings)
            except CondistillError as error:
                yield f"{name}: `condistill run` will refuse this: {error}"


def make_plan(
    recipe: Recipe, *, device: str = PRESENT, count: int = 1, efficiency: float = EFFICIENCY, measure: bool = False
) -> dict[str, Any]:
    """What a recipe will make and cost, as plain data: `teacher`, `students`, `cost`, `assumptions`, `warnings`.

    No weight is read; the teacher may be a directory of configs alone.

    Args:
        device: a name of `devices.DEVICES`, or `present`.
        count: devices that share the work.
        efficiency: share of the device's peak that is reached.
        measure: time networks of random weights on the present device.

    Raises:
        CondistillError: the teacher or one of the recipe's students cannot be made, or nothing can be measured.
    """
    if measure and (device != PRESENT or count != 1):
        raise CondistillError("--measure times the present device alone; leave out --device and --count")
    with quiet_libraries():
        rates = Rates(find_device(device), count, efficiency)
        skeleton = teacher_skeleton(recipe.teacher)
        students = own_students(skeleton, recipe)
        dtype = rates.device.teacher_dtype(recipe.teacher.dtype)
        planner = _Planner(recipe, skeleton, the_teacher(skeleton), students, rates, dtype, measure)
        cost = planner.cost_data()
        return {
            "teacher": planner.teacher_data(),
            "students": list(planner.student_data()),
            "cost": cost,
            "assumptions": planner.assumptions(),
            "warnings": list(planner.warnings()),
        }
