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


class StudentPlan(DenoiserCost):
    """A student that the teacher could have."""

    name: str
    """A variant of the recipe, or the settings of the student."""
    of_recipe: bool
    """Whether it is a variant of the recipe."""
    share_params: float
    share_macs: float
    """As shares of the teacher's."""


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
    """The cost of the images of the evaluation, on one device; decoding and classifying are not counted."""

    images: int


class TrainingMemory(Record):
    """Bytes on one device at the peak of a training, by part."""

    teacher: int
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
    flops_per_sample: float
    samples_per_sec: float
    sec_per_step: float
    checkpoint_bytes: int
    memory_bytes: TrainingMemory
    fits: bool
    """Whether the memory of one device is enough."""
    measured_memory_bytes: int | None = None


class RunCost(StageCost):
    """The cost of a whole run, by stage."""

    device: DevicePlan
    cache: CacheCost
    training: dict[str, TrainingCost]
    """By variant."""
    evaluation: EvaluationCost


class Plan(Record):
    """The denoisers that a recipe makes and could make, and the cost of its run."""

    format: Literal[1] = 1
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
