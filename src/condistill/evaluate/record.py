"""The records of an evaluation: `metrics.json` and `grid.json`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from condistill.config.recipe import SPLITS, TEACHER
from condistill.errors import CondistillError
from condistill.evaluate.metrics import METRICS, Metric, Score
from condistill.evaluate.outside_metric import OutsideRecord, outside_metric
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
    outside: dict[str, OutsideRecord] = Field(default_factory=dict)
    """By name, the metrics among the scores that another program computed."""

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


class NetworkRecord(Record):
    """A network whose features metrics read."""

    source: str
    """The path or hub name, as the recipe gives it."""
    sha256: str
    """Of its weights."""
    resize: str
    """How an image becomes its input, such as `bicubic to 224 px`."""


class ReferenceImagesRecord(Record):
    """The images that the sets of generated images are compared with."""

    source: str
    """A folder, a statistics file, or `teacher`."""
    images: int
    sha256: str
    """Of the file names and their contents; empty for the teacher's images."""


FEWEST_TO_SEPARATE = 5
"""Images that two models need to be called different: an interval over fewer assumes what nobody can check."""


class Comparison(Record):
    """The mean difference of two models over the same prompts and noise: `one` minus `other`."""

    metric: str
    split: str
    one: str
    other: str
    difference: float
    low: float
    high: float
    """Ends of the 95 % interval over the prompts."""
    images: int

    @property
    def separates(self) -> bool:
        """Whether there are images enough, and the interval excludes that there is no difference."""
        return self.images >= FEWEST_TO_SEPARATE and (self.low > 0 or self.high < 0)


class Evaluation(RecordFile):
    """`metrics.json`: how teacher and students were evaluated, and every figure."""

    format: Literal[5] = 5
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
    networks: dict[str, NetworkRecord] = Field(default_factory=dict)
    """By name."""
    reference_images: ReferenceImagesRecord | None = None
    comparisons: tuple[Comparison, ...] = ()
    """Of every metric with a value per image: each student with the teacher, and the students with one another."""
    groups: dict[str, dict[str, dict[str, dict[str, Score]]]] = Field(default_factory=dict)
    """Scores of some prompts: by kind (`concept`, `source`), group, model and metric; empty where none is known."""

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

    def comparison(self, one: str, other: str, split: str, metric: type[Metric]) -> Comparison | None:
        """Return the difference of two models, `one` minus `other`, if it was measured."""
        for found in self.comparisons:
            if (found.metric, found.split) != (metric.name, split):
                continue
            if (found.one, found.other) == (one, other):
                return found
            if (found.one, found.other) == (other, one):
                turned = {"difference": -found.difference, "low": -found.high, "high": -found.low}
                return found.model_copy(update={"one": one, "other": other, **turned})
        return None

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
    """Return the metrics of which some model has a score, in the order of the registry; those of outside scores last.

    Raises:
        CondistillError: a metric is not registered.
    """
    outside = {name: record for model in models for name, record in model.outside.items()}
    names = {name for model in models for scores in model.scores.values() for name in scores}
    if unknown := sorted(names - set(METRICS) - set(outside)):
        raise CondistillError(
            f"{METRICS_NAME} has scores of {', '.join(unknown)}, which no installed package registers as a metric; "
            f"install the plugin that does, or {_REMEDY}"
        )
    registered = [metric for name, metric in METRICS.items() if name in names]
    return registered + [outside_metric(name, record) for name, record in outside.items() if name in names]


class GridEntry(Record):
    """One prompt of the grid, and the image of every model."""

    prompt: str
    images: dict[str, str]
    """File name by model."""
    correct: dict[str, bool]
    """By model, whether the classifier found every attribute correct; empty without a classifier."""
    split: str = ""
    seed: int = 0
    values: dict[str, float] = Field(default_factory=dict)
    """By student, the value of the metric that ranked the prompt."""


class Grid(RecordFile):
    """`grid.json`: the images that the report shows."""

    format: Literal[3] = 3
    splits: dict[str, tuple[GridEntry, ...]]
    """The first prompts of each split, which are random."""
    ranked_by: str | None = None
    """The metric that ranks the prompts of `worst` and `best`; None where no metric compares images with the teacher's.
    """
    worst: tuple[GridEntry, ...] = ()
    """The prompts with the largest mean disagreement with the teacher over all students, the largest first."""
    best: tuple[GridEntry, ...] = ()
    """The prompts with the smallest, the smallest first."""

    @classmethod
    def load(cls, directory: Path) -> Grid:
        """Read `grid.json` of an evaluation."""
        return cls.read(directory / GRID_NAME, remedy=_REMEDY)
