"""The records of an evaluation: `metrics.json` and `grid.json`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from condistill.config.recipe import SPLITS, TEACHER
from condistill.errors import CondistillError
from condistill.evaluate.metrics import METRICS, Metric, Score
from condistill.pipelines.record import DenoiserSize
from condistill.utils.record import Record, RecordFile

METRICS_NAME = "metrics.json"
GRID_NAME = "grid.json"
_REMEDY = "run `condistill evaluate RECIPE` again"


class SamplingRecord(Record):
    """How a model generates an image."""

    num_inference_steps: int
    guidance_scale: float
    denoiser_evaluations: int
    """Samples that pass through the denoiser for one image; guidance with two evaluations per step doubles them."""


class SizeRecord(DenoiserSize):
    """The size of a denoiser and of the files of its pipeline."""

    weight_bytes: int
    """Of the denoiser's safetensors files on disk."""
    pipeline_bytes: int
    """Of all files on disk that loading the pipeline reads."""


class SpeedRecord(Record):
    """What generating one image costs on the machine of the evaluation."""

    sec_per_image: float
    """The shortest of all rounds."""
    median_sec_per_image: float
    rounds: int
    relative_time: float
    """`sec_per_image` as a share of the teacher's."""
    peak_memory_bytes: int
    """Of the denoiser's weights and of one evaluation."""


class ComputeRecord(Record):
    """What training a student cost, the training of the students that taught it included."""

    teacher_forwards: float
    """Samples that passed forward through the teacher."""
    student_forwards: float
    cache_forwards: float
    """Samples that passed forward through the teacher to fill the cache."""
    train_sec: float | None = None
    """None where it is not known, since the file of a training's seconds was damaged or deleted."""


class ModelRecord(Record):
    """Everything that was measured of one model."""

    scores: dict[str, dict[str, Score]]
    """By split and by the name of the metric."""
    sampling: SamplingRecord
    size: SizeRecord
    speed: SpeedRecord
    compute: ComputeRecord | None = None
    """None for the teacher, which was not trained here."""

    def score(self, split: str, metric: type[Metric]) -> Score | None:
        """Return the score of a metric on a split, if it was measured."""
        return self.scores.get(split, {}).get(metric.name)

    def figures(self) -> dict[str, dict[str, float]]:
        """Return every figure by group and name; the groups are the splits, `sampling`, `size`, `speed`, `compute`."""
        groups = {split: {name: score.value for name, score in scores.items()} for split, scores in self.scores.items()}
        costs = (("sampling", self.sampling), ("size", self.size), ("speed", self.speed), ("compute", self.compute))
        return groups | {name: record.model_dump(exclude_none=True) for name, record in costs if record is not None}


class ReferenceRecord(Record):
    """Distances to the teacher that those of the students are compared with; by split and name of the metric."""

    images_per_split: dict[str, int]
    """Images of each reference."""
    other_seed: dict[str, dict[str, Score]]
    """Of the teacher from other noise."""
    untrained: dict[str, dict[str, dict[str, Score]]]
    """By student, of its weights before the training."""


class Evaluation(RecordFile):
    """`metrics.json`: how teacher and students were evaluated, and every figure."""

    format: Literal[4] = 4
    quick: bool = False
    """Whether the run is a test of the set-up, whose students are not for use."""
    classifier: str
    baseline: str | None = None
    """The variant of plain distillation, p(u) = 0, that the other students are compared with."""
    seeds: tuple[int, ...]
    images_per_split: dict[str, int]
    """Images per model, over all seeds."""
    num_inference_steps: int
    guidance_scale: float
    device: str
    dtype: str
    """Of the weights in memory, with which everything was measured."""
    torch: str
    models: dict[str, ModelRecord]
    """The teacher first, then the students in the order of the recipe."""
    references: ReferenceRecord | None = None
    """None where no metric is a distance to the teacher."""

    @property
    def teacher(self) -> ModelRecord:
        """The record of the teacher."""
        return self.models[TEACHER]

    @property
    def students(self) -> list[str]:
        """The names of the students, in order."""
        return [name for name in self.models if name != TEACHER]

    @property
    def splits(self) -> list[str]:
        """The splits on which some model has a score."""
        return [split for split in SPLITS if any(model.scores.get(split) for model in self.models.values())]

    def score(self, name: str | None, split: str, metric: type[Metric]) -> Score | None:
        """Return the score of a model; None where the model (None: no model) has none."""
        return self.models[name].score(split, metric) if name is not None else None

    def before_training(self, name: str, split: str, metric: type[Metric]) -> Score | None:
        """Return the distance to the teacher that a student had before its training, if it was measured."""
        untrained = self.references.untrained.get(name, {}) if self.references else {}
        return untrained.get(split, {}).get(metric.name)

    def of_other_seed(self, split: str, metric: type[Metric]) -> Score | None:
        """Return the distance between images of the teacher from different noise, if it was measured."""
        return self.references.other_seed.get(split, {}).get(metric.name) if self.references else None

    @property
    def metrics(self) -> list[type[Metric]]:
        """The metrics of which some model has a score, in the order of the registry.

        Raises:
            CondistillError: a metric is not registered.
        """
        return measured_metrics(list(self.models.values()))

    @classmethod
    def load(cls, directory: Path) -> Evaluation:
        """Read `metrics.json` of a run or of its evaluation."""
        return cls.read(directory / METRICS_NAME, remedy=_REMEDY)


def measured_metrics(models: Sequence[ModelRecord]) -> list[type[Metric]]:
    """Return the metrics of which some model has a score, in the order of the registry.

    Raises:
        CondistillError: a metric is not registered.
    """
    names = {name for model in models for scores in model.scores.values() for name in scores}
    if unknown := sorted(names - set(METRICS)):
        raise CondistillError(
            f"{METRICS_NAME} has scores of {', '.join(unknown)}, which no installed package registers as a metric; "
            f"install the plugin that does, or {_REMEDY}"
        )
    return [metric for name, metric in METRICS.items() if name in names]


class GridEntry(Record):
    """One prompt of the grid, and the image of every model."""

    prompt: str
    images: dict[str, str]
    """File name by model."""
    correct: dict[str, bool]
    """By model, whether the classifier found every attribute correct; empty without a classifier."""


class Grid(RecordFile):
    """`grid.json`: the images that the report shows."""

    format: Literal[2] = 2
    splits: dict[str, tuple[GridEntry, ...]]

    @classmethod
    def load(cls, directory: Path) -> Grid:
        """Read `grid.json` of an evaluation."""
        return cls.read(directory / GRID_NAME, remedy=_REMEDY)
