"""Make a plan: the teacher, the students it could have, the cost of the recipe, and the assumptions behind it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch

from condistill.config.recipe import Recipe
from condistill.errors import CondistillError
from condistill.pipelines.sampling import Sampling
from condistill.plan.candidates import Candidate, possible_students, recipe_candidates, teacher_candidate
from condistill.plan.cost import (
    PROCESS_BYTES,
    RESERVE_BYTES,
    TrainingJob,
    cache_cost,
    decode_macs,
    evaluation_cost,
    forward_sec,
    preview_hours,
)
from condistill.plan.devices import EFFICIENCY, OTHER_EFFICIENCY, PRESENT, Device, Hardware, find_device
from condistill.plan.loading import student_loading
from condistill.plan.measure import measure_forward, measure_step
from condistill.plan.record import (
    DenoiserCost,
    DevicePlan,
    LoadingPlan,
    PeakFlops,
    Plan,
    RunCost,
    StudentPlan,
    TeacherPlan,
    TrainingCost,
)
from condistill.plan.stages import GPU_PROCESS_BYTES, Footprint
from condistill.profiling.forwards import evaluations_per_image
from condistill.students.derive import Student
from condistill.teachers.skeleton import Skeleton, teacher_skeleton
from condistill.utils.format import byte_size, percent, significant
from condistill.utils.meta import plain_config
from condistill.utils.quiet import quiet_libraries
from condistill.workflow.preflight import examine, preflight


def make_plan(
    recipe: Recipe,
    *,
    device: str | Device = PRESENT,
    count: int = 1,
    efficiency: float = EFFICIENCY,
    measure: bool = False,
    budget: float | None = None,
) -> Plan:
    """Return the plan of a recipe. No weight is read, so a directory with the teacher's configs is enough.

    Args:
        device: a name of `DEVICES`, `present`, or a device from `find_device`, whose rates are not measured again.
        count: devices that share the work.
        efficiency: assumed share of the device's peak that is reached.
        measure: whether to time networks with random weights on the present device.
        budget: seconds of the whole run, for which the steps of each student are counted.

    Raises:
        CondistillError: the teacher's configs cannot be read, a student of the recipe has no shapes, or another device
            than the present one is to be measured.
    """
    if measure and (device != PRESENT or count != 1):
        raise CondistillError("--measure times the present device only; leave out --device and --count")
    with quiet_libraries():
        skeleton = teacher_skeleton(recipe.teacher)
        findings = examine(recipe, skeleton)
        hardware = Hardware(find_device(device), count, efficiency)
        planner = _Planner.of(recipe, skeleton, findings.students, hardware, measure=measure, budget=budget)
        cost = planner.cost()
        return Plan(
            teacher=planner.teacher_plan(),
            students=tuple(planner.student_plans(cost)),
            cost=cost,
            assumptions=tuple(planner.assumptions()),
            warnings=(*findings.refused, *findings.warnings),
        )


def plan_cost(
    recipe: Recipe,
    *,
    device: str | Device = PRESENT,
    count: int = 1,
    efficiency: float = EFFICIENCY,
    skeleton: Skeleton | None = None,
) -> RunCost:
    """Return the cost of a recipe, which is that of its plan, without a look at other students.

    Args:
        device: see `make_plan`.
        count: see `make_plan`.
        efficiency: see `make_plan`.
        skeleton: the teacher, if it is built already.

    Raises:
        CondistillError: a run would refuse the recipe.
    """
    with quiet_libraries():
        skeleton = skeleton or teacher_skeleton(recipe.teacher)
        hardware = Hardware(find_device(device), count, efficiency)
        return _Planner.of(recipe, skeleton, preflight(recipe, skeleton), hardware).cost()


@dataclass(frozen=True)
class _Planner:
    """The parts of a plan, which share these inputs."""

    recipe: Recipe
    skeleton: Skeleton
    teacher: Candidate
    students: Mapping[str, Candidate]
    """The recipe's, by name of the variant."""
    hardware: Hardware
    dtype: torch.dtype
    """Of the teacher and of every model that generates images."""
    measure: bool
    budget: float | None
    """Seconds of the whole run."""
    measured: dict[str, tuple[float, int]] = field(default_factory=dict)
    """Seconds and bytes of one forward by the config of the denoiser: equal networks are measured once."""

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        skeleton: Skeleton,
        students: Mapping[str, Student],
        hardware: Hardware,
        *,
        measure: bool = False,
        budget: float | None = None,
    ) -> _Planner:
        """Return the planner of a recipe.

        Args:
            students: from `preflight`.
        """
        candidates, dtype = recipe_candidates(skeleton, students), hardware.device.teacher_dtype(recipe.teacher.dtype)
        return cls(recipe, skeleton, teacher_candidate(skeleton), candidates, hardware, dtype, measure, budget)

    def teacher_plan(self) -> TeacherPlan:
        """Describe the teacher."""
        family, teacher = self.skeleton.family, self.teacher
        return TeacherPlan(
            **self._denoiser_cost(teacher).model_dump(),
            name=self.skeleton.name,
            family=family.name,
            denoiser=type(teacher.denoiser).__name__,
            latent_shape=family.latent_shape,
            text_length=family.text_length,
            components=self.skeleton.components,
        )

    def student_plans(self, cost: RunCost) -> Iterator[StudentPlan]:
        """Describe the recipe's students first, then all that the teacher could have.

        Args:
            cost: of the recipe.
        """
        for name, candidate in self.students.items():
            training = cost.training[name]
            memory, seconds = training.memory_bytes.total, training.sec_per_step
            yield self._student_plan(candidate, cost, memory, seconds, training=training)
        name = next(name for name, variant in self.recipe.variants.items() if variant.teacher is None)
        job, training = self._job(name), cost.training[name]
        for candidate in possible_students(self.skeleton):
            memory = job.memory_of(candidate, training.memory_bytes)
            seconds = job.step_sec(self.hardware, candidate)
            yield self._student_plan(candidate, cost, memory, seconds, steps=training.steps)

    def _student_plan(
        self,
        candidate: Candidate,
        cost: RunCost,
        memory: int,
        sec_per_step: float,
        *,
        training: TrainingCost | None = None,
        steps: int = 0,
    ) -> StudentPlan:
        left = None if self.budget is None else self.budget - 3600 * (cost.cache.hours + cost.evaluation.hours)
        variant = candidate.name if training else None
        loading = student_loading(self.recipe, self.skeleton, candidate.denoiser, variant)
        return StudentPlan(
            **self._denoiser_cost(candidate).model_dump(),
            name=candidate.name,
            of_recipe=training is not None,
            share_params=candidate.params / self.teacher.params,
            share_macs=candidate.macs / self.teacher.macs,
            training_memory_bytes=memory,
            fits=memory <= self.hardware.device.memory_bytes,
            sec_per_step=sec_per_step,
            training_hours=training.hours if training else steps * sec_per_step / 3600,
            steps_in_budget=None if left is None else max(int(left / sec_per_step), 0),
            loads_in=tuple(
                LoadingPlan(application=each.application, loads=each.loads, reason=each.reason, source=each.source)
                for each in loading
            ),
        )

    def _denoiser_cost(self, candidate: Candidate) -> DenoiserCost:
        seconds, memory = None, None
        if self.measure:
            config = repr((type(candidate.denoiser), sorted(plain_config(candidate.denoiser).items())))
            if config not in self.measured:
                self.measured[config] = measure_forward(self.skeleton, candidate, self.dtype)
            seconds, memory = self.measured[config]
        return DenoiserCost(
            params=candidate.params,
            macs=candidate.macs,
            latency_ms=1000 * forward_sec(self.hardware, candidate, self.dtype),
            measured_latency_ms=None if seconds is None else 1000 * seconds,
            measured_memory_bytes=memory,
        )

    def cost(self) -> RunCost:
        """Add up the cost of the stages."""
        jobs = {name: self._job(name) for name in self.students}
        measured = {name: measure_step(job) if self.measure else None for name, job in jobs.items()}
        first, settings = next(iter(measured.values())), self.recipe.cache
        sampling = Sampling(settings.num_inference_steps, settings.guidance_scale)
        cache = cache_cost(
            self.skeleton,
            self.recipe,
            self.hardware,
            evaluations_per_image=evaluations_per_image(sampling, self.teacher.denoiser),
            evaluation_sec=first.teacher_sec if first else forward_sec(self.hardware, self.teacher, self.dtype),
            dtype=self.dtype,
        )
        training = {
            name: job.cost(self.hardware, measured[name], preview_hours=self._preview_hours(name))
            for name, job in jobs.items()
        }
        evaluation = evaluation_cost(
            self.recipe,
            self.hardware,
            (self.teacher, self.students),
            dtype=self.dtype,
            decode_macs=decode_macs(self.skeleton),
        )
        stages = (cache, *training.values(), evaluation)
        memory = {name: each.memory_bytes for name, each in training.items()}
        footprint = Footprint(
            self.recipe,
            self.skeleton,
            self.teacher,
            self.students,
            memory,
            self.dtype,
            on_host=self.hardware.device.is_host,
        )
        return RunCost(
            hours=sum(stage.hours for stage in stages),
            device_hours=sum(stage.device_hours for stage in stages),
            device=self._device_plan(),
            cache=cache,
            training=training,
            evaluation=evaluation,
            memory=footprint.memory(),
            disk=footprint.disk(cache.disk_bytes),
            budget_hours=None if self.budget is None else self.budget / 3600,
        )

    def _preview_hours(self, name: str) -> float:
        models = (self.teacher, self.students[name])
        return preview_hours(self.recipe, name, self.skeleton, self.hardware, models, dtype=self.dtype)

    def _device_plan(self) -> DevicePlan:
        device = self.hardware.device
        return DevicePlan(
            name=device.name,
            count=self.hardware.count,
            peak_flops=PeakFlops(half=device.half_flops, float32=device.single_flops),
            peak_convolution_flops=device.convolution_flops,
            memory_bytes=device.memory_bytes,
            bandwidth=device.bandwidth,
            measured=device.measured,
            efficiency=self.hardware.efficiency,
            teacher_dtype=str(self.dtype).removeprefix("torch."),
        )

    def _job(self, name: str) -> TrainingJob:
        teacher = self.recipe.variants[name].teacher
        settings = self.recipe.variant(name)[1]
        teacher_candidate = self.students[teacher] if teacher else self.teacher
        return TrainingJob(
            self.skeleton, teacher_candidate, self.students[name], settings, self.dtype, self.hardware.count
        )

    def assumptions(self) -> list[str]:
        """Return what the figures assume, one sentence each."""
        device = self.hardware.device
        tensor_cores, other = percent(self.hardware.efficiency), percent(OTHER_EFFICIENCY)
        source = "measured here by a matrix product and a copy" if device.measured else "the figures of docs/plan.md"
        flops = (device.half_flops, device.single_flops, device.convolution_flops)
        half, single, convolution = (significant(rate / 1e12) for rate in flops)
        rates = f"{half} TFLOP/s in half precision, {single} in float32 (convolutions {convolution})"
        lines = [f"{device.name} reaches at most {rates}, and {significant(device.bandwidth / 1e9)} GB/s: {source}"]
        if self.measure:
            lines.append("the times of training and cache were measured here, with networks of random weights")
            lines.append(
                f"the evaluation reaches {tensor_cores} of the peak of tensor cores, and {other} of that of other "
                "arithmetic"
            )
        else:
            lines.append(
                f"{tensor_cores} of the peak of tensor cores is reached (--efficiency), and {other} of that of other "
                "arithmetic; --measure times networks here instead"
            )
        return [
            *lines,
            "a backward costs two forwards, and recomputing checkpointed layers one more",
            "MACs count matrix products, convolutions and attention; for text encoders, each matrix once per token",
            "memory is that of tensors: the attention map is never held, and memory that an allocator or a library "
            "reserves is not counted",
            *self._about_memory(),
            "disk: latents, the checkpoints that are kept and the one that is written, all pipelines, and latents and "
            "features of the evaluation; prompts and shown images are not counted",
            "the evaluation counts generating and decoding; what its networks compute is not in its time",
            "the memory of students that are none of the recipe's is about right: activations are in proportion",
        ]

    def _about_memory(self) -> list[str]:
        if self.hardware.device.is_host:
            return [
                f"the process without models needs {byte_size(PROCESS_BYTES)}, and a training or an evaluation "
                f"{byte_size(RESERVE_BYTES)} for buffers and the allocator"
            ]
        return [
            f"memory of the host: {byte_size(GPU_PROCESS_BYTES)} for the process and the libraries of CUDA, and a "
            "component of the teacher while it is loaded"
        ]
