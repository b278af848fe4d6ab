"""The records of a plan, as `condistill plan --json` prints them.

MACs are multiply-accumulates of one forward of one sample; FLOPs are twice as many. Times are in the unit of the name.
"""

from __future__ import annotations

import json
from typing import Literal

from condistill.utils.record import Record
from condistill.utils.text import printable


class DenoiserCost(Record):
    """The size of a denoiser, and one forward of one sample."""

    params: int
    macs: int
    latency_ms: float
    """From the MACs and the rate of the device."""
    measured_latency_ms: float | None = None
    measured_memory_bytes: int | None = None
    """Weights and the peak of one forward."""


class TeacherPlan(DenoiserCost):
    """The teacher of a recipe."""

    name: str
    family: str
    denoiser: str
    """Class of the denoiser."""
    latent_shape: tuple[int, int, int]
    """(C, h, w)."""
    text_length: int
    """Tokens of the prompt."""
    components: dict[str, int]
    """Parameters of every component of the pipeline that has some, the denoiser among them."""


class LoadingPlan(Record):
    """Whether an application loads a student; see `export.loads_in`."""

    application: str
    loads: bool
    reason: str
    source: str


class StudentPlan(DenoiserCost):
    """A student that the teacher could have, and what its training with the recipe's other settings costs."""

    name: str
    """A variant of the recipe, or the settings of the student."""
    of_recipe: bool
    """Whether it is a variant of the recipe."""
    share_params: float
    share_macs: float
    """As shares of the teacher's."""
    training_memory_bytes: int
    """On one device at the peak of a step; of a student that is none of the recipe's, about."""
    fits: bool
    """Whether the memory of one device is enough."""
    sec_per_step: float
    training_hours: float
    """Of the recipe's steps."""
    steps_in_budget: int | None = None
    """Steps in the time that cache and evaluation leave of the budget; None without a budget."""
    loads_in: tuple[LoadingPlan, ...] = ()
    """Other applications than diffusers, as far as they were looked at."""


class PeakFlops(Record):
    """FLOP/s that a device reaches at most, by dtype."""

    half: float
    float32: float


class DevicePlan(Record):
    """The devices that share the work."""

    name: str
    count: int
    peak_flops: PeakFlops
    peak_convolution_flops: float
    """In float32."""
    memory_bytes: int
    bandwidth: float
    """Bytes per second."""
    measured: bool
    """Whether the rates were measured here; otherwise they are the manufacturer's."""
    efficiency: float
    """Assumed share of the peak that is reached."""
    teacher_dtype: str


class StageCost(Record):
    """The time that a stage takes."""

    hours: float
    device_hours: float


class CacheCost(StageCost):
    """The cost of the cached latents."""

    images: int
    teacher_forwards: int
    disk_bytes: int


class EvaluationCost(StageCost):
    """The cost of the images of the evaluation, decoding included; what networks compute is not counted."""

    images: int


class TrainingMemory(Record):
    """Bytes on one device at the peak of a training, by part."""

    teacher: int
    process: int
    """On a CPU, of libraries, interpreter and allocator; 0 on other devices."""
    other_components: int
    student: int
    gradients: int
    optimizer: int
    ema: int
    activations: int
    total: int


class TrainingCost(StageCost):
    """The cost of training one variant."""

    steps: int
    batch_size: int
    micro_batch_size: int
    teacher_forwards_per_sample: float
    student_forwards_per_sample: float
    preview_hours: float
    """Of the images that are made during the training; part of its hours."""
    flops_per_sample: float
    samples_per_sec: float
    sec_per_step: float
    checkpoint_bytes: int
    memory_bytes: TrainingMemory
    fits: bool
    """Whether the memory of one device is enough."""
    measured_memory_bytes: int | None = None


class StageMemory(Record):
    """Bytes at the peak of a stage, of one process."""

    device: int
    """On its device; a CPU's memory is that of the host."""
    host: int
    """On the machine."""


class RunMemory(Record):
    """The peak of each stage; with several variants, the largest."""

    load: StageMemory
    cache: StageMemory
    training: StageMemory
    checkpoint: StageMemory
    saving: StageMemory
    evaluation: StageMemory


class RunDisk(Record):
    """Bytes of the files of a run."""

    teacher: int
    """Of the pipeline that is made of a single file, of LoRAs or of other components; 0 for an ordinary pipeline."""
    latents: int
    checkpoints: int
    """When the last training writes its last one."""
    pipelines: int
    evaluation: int
    """Latents and features of the images of the evaluation."""
    total: int


class RunCost(StageCost):
    """The cost of a whole run, by stage."""

    device: DevicePlan
    cache: CacheCost
    training: dict[str, TrainingCost]
    """By variant."""
    evaluation: EvaluationCost
    memory: RunMemory
    disk: RunDisk
    budget_hours: float | None = None


class Plan(Record):
    """The denoisers that a recipe makes and could make, and the cost of its run."""

    format: Literal[2] = 2
    teacher: TeacherPlan
    students: tuple[StudentPlan, ...]
    """Those of the recipe first."""
    cost: RunCost
    assumptions: tuple[str, ...]
    warnings: tuple[str, ...]

    def to_json(self) -> str:
        """Return the plan as JSON; fields that are None are left out."""
        text = self.model_dump_json(indent=2, exclude_none=True)
        return text if printable(text) == text else json.dumps(json.loads(text), indent=2)
