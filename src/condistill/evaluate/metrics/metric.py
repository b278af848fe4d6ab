"""The contract of a metric, and the registry of metrics.

Adding a metric is one file with a subclass of `Metric` and one line that registers it. Evaluation computes every
registered metric whose features are available. Tables, model cards, sweeps, plots and the verdict show it by its
label, notation and direction, and name no metric themselves.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from condistill.errors import CondistillError
from condistill.evaluate.metrics.moments import Moments
from condistill.utils.format import article, significant
from condistill.utils.record import Record
from condistill.utils.registry import Registry

LATENTS = "latents"
"""Feature: the latents, float32 `[N, C, h, w]`."""
TEACHER_LATENTS = "teacher_latents"
"""Feature: the teacher's latents of the same prompts from the same noise; not available for the teacher itself."""
IMAGES = "images"
"""Feature: the decoded images, uint8 `[N, H, W, 3]`."""
ALL_CORRECT = "all_correct"
"""Feature: whether the classifier finds every attribute of the prompt correct, bool `[N]`. Every single attribute is a
feature of the attribute's name."""
CLASSIFIER_FEATURES = "classifier_features"
"""Feature: the classifier's feature vectors of the images, float64 `[N, D]`."""
REFERENCE_FEATURES = "reference_features"
"""Feature: the classifier's feature vectors of true images of the same prompts, float64 `[N, D]`."""
INCEPTION = "inception"
"""Feature: the pooled features of Inception-v3, float32 `[N, 2048]`."""
INCEPTION_LOGITS = "inception_logits"
"""Feature: the logits of Inception-v3 without their bias, float32 `[N, 1008]`."""
DINOV2 = "dinov2"
"""Feature: the class token of a DINOv2 network after its last norm, float32 `[N, D]`."""
CLIP_IMAGE = "clip_image"
"""Feature: the image embeddings of a CLIP or SigLIP network, of norm 1, float32 `[N, D]`."""
CLIP_SCORE = "clip_score"
"""Feature: the cosine of the image's and the prompt's embedding of the same network, float32 `[N]`."""
PICKSCORE = "pickscore"
"""Feature: the score that PickScore gives an image and its prompt, float32 `[N]`."""
HPSV2 = "hpsv2"
"""Feature: the score that HPSv2 gives an image and its prompt, float32 `[N]`."""

ImageKey = tuple[int, int]
"""Evaluation seed and number of an image."""
Aspect = Literal["text", "teacher", "images", "variety"]
"""What a metric judges: agreement with the prompts (`text`), agreement with the teacher's images of the same noise
(`teacher`), a set of images against a reference set (`images`), or how much images differ from one another (`variety`).
"""


def of_teacher(feature: str) -> str:
    """Return the name of the same feature of the teacher's images: same prompts, same noise.

    It is not available for the teacher itself.
    """
    return f"teacher_{feature}"


@dataclass(frozen=True)
class Notation:
    """How the values of a metric are written: `factor * value` in `unit`."""

    unit: str = ""
    factor: float = 1.0
    decimals: int | None = None
    """Decimals of a number in a table; None: three significant digits."""

    def number(self, value: float, digits: int = 3) -> str:
        """Return the value without its unit; `digits` are significant digits, used where no decimals are fixed."""
        scaled = self.factor * value
        number = significant(scaled, digits) if self.decimals is None else f"{scaled:.{self.decimals}f}"
        return number.removeprefix("-") if not float(number.replace(",", "")) else number  # a difference of -0.0 is 0

    def text(self, value: float) -> str:
        """Return the value with its unit, as a sentence needs it: `67 %`, `0.420`."""
        scaled = self.factor * value
        number = significant(scaled) if self.decimals is None else f"{scaled:.{max(self.decimals - 1, 0)}f}"
        return f"{number} {self.unit}" if self.unit else number

    def spread(self, spread: float) -> str:
        """Return a spread as a note to a value: `± 1.3`."""
        return f"± {self.number(spread, 2)}"


PLAIN = Notation()
PERCENT = Notation("%", factor=100.0, decimals=1)


class Score(Record):
    """The result of a metric; always finite."""

    value: float
    spread: float | None = None
    """Standard deviation over the evaluation seeds; None for one seed, or where the metric has none."""
    low: float | None = None
    high: float | None = None
    """Ends of the 95 % interval over the prompts; None where the metric has none."""


@dataclass(frozen=True)
class Samples:
    """N samples that one model generated from prompts of one evaluation seed."""

    seed: int
    prompts: Sequence[str]
    features: Mapping[str, NDArray[Any]]
    """By name, each with N rows; they are extracted once and shared by all metrics."""
    numbers: Sequence[int] = ()
    """The position of each sample among all samples of its seed; images of equal prompts differ in it."""

    def __len__(self) -> int:
        return len(self.prompts)

    def part(self, rows: slice) -> Samples:
        """Return some of the samples."""
        features = {name: values[rows] for name, values in self.features.items()}
        return Samples(self.seed, self.prompts[rows], features, self.numbers[rows])


@dataclass(frozen=True)
class ReferenceSet:
    """One feature of the reference images of a split: of real images, or of the teacher's."""

    moments: Moments
    """Count, mean and covariance."""
    features: NDArray[np.float32] | None = None
    """`[M, D]`, perhaps mapped from a file; None where only the moments are known, as from a statistics file."""
    prompts: Sequence[str] | None = None
    """By row, where the images are those of another model for prompts of the evaluation; None for other images."""


@dataclass(frozen=True)
class Context:
    """What a metric may know besides its samples."""

    reference: Mapping[str, ReferenceSet] = field(default_factory=dict)
    """By feature, the reference images of the split; empty without reference images."""
    seed: int = 0
    """Of random numbers, such as those of a bootstrap."""


EMPTY = Context()


class Metric(ABC):
    """A metric of one model on one split. Samples arrive in pieces; an instance keeps what its result needs."""

    name: ClassVar[str]
    """The key in `metrics.json`."""
    label: ClassVar[str]
    """The name in tables."""
    description: ClassVar[str]
    """The measured quantity in a few words, as it follows the label: `Latent RMSE: distance to ...`."""
    direction: ClassVar[Literal["higher", "lower"]]
    """Which values are better."""
    needs: ClassVar[tuple[str, ...]]
    """Names of the features that `update` reads; the metric is computed where all of them are available."""
    notation: ClassVar[Notation] = PLAIN
    upper_bound: ClassVar[float | None] = None
    """The largest possible value; the report plots bars for a metric that has one."""
    is_detail: ClassVar[bool] = False
    """Whether the metric is shown in the folded table of details only."""
    reference: ClassVar[Literal["none", "moments", "features"]] = "none"
    """What it reads of the reference images, in the first feature that it needs."""
    over_seeds: ClassVar[bool] = False
    """Whether it compares several images of each prompt. Its samples are those of `evaluate.diversity_prompts` and
    `diversity_seeds`, and its score belongs to the split `all`."""
    aspect: ClassVar[Aspect | None] = None
    """What it judges; None: something else."""
    is_partial: ClassVar[bool] = False
    """Whether it can rank a worse model first, so that it is shown with metrics of other aspects or with a sentence
    that says which are missing."""

    def __init__(self, context: Context = EMPTY) -> None:
        """Begin without samples.

        Args:
            context: holds at least what `reference` names.
        """
        self.context = context

    @abstractmethod
    def update(self, samples: Samples) -> None:
        """Add some samples."""

    @abstractmethod
    def merge(self: AnyMetric, other: AnyMetric) -> None:
        """Add the samples of another instance, such as that of another split or process."""

    @abstractmethod
    def compute(self) -> Score | None:
        """Return the result over all samples; None for too few samples, or if the result is not finite."""

    def values(self) -> dict[ImageKey, float]:
        """Return the value of each image by its seed and number; empty for a metric of a set of images.

        Two models are compared by their differences image by image: same prompt, same noise.
        """
        return {}

    @classmethod
    def is_available(cls, features: Collection[str], reference: Mapping[str, ReferenceSet]) -> bool:
        """Return whether these features, and the reference images, are all that it needs."""
        if not set(cls.needs) <= set(features):
            return False
        if cls.reference == "none":
            return True
        known = reference.get(cls.needs[0])
        return known is not None and (cls.reference == "moments" or known.features is not None)

    @classmethod
    def predicate(cls, value: float, prompts: str) -> str:
        """Return the rest of a sentence that begins with a model's name; `prompts` is such as "unseen prompts"."""
        return f"has {article(cls.label)} {cls.label} of {cls.notation.text(value)} on {prompts}"

    @classmethod
    def sampling_error(cls, value: float, images: int) -> float | None:  # noqa: ARG003
        """Return the standard error of a value over this many images, where it follows from the two."""
        return None

    @classmethod
    def caution(cls, images: int) -> str:  # noqa: ARG003
        """Return a sentence on what not to conclude from a value over this many images; empty if there are enough.

        Metrics with the same caution return the same sentence, which is then shown once.
        """
        return ""

    @classmethod
    def is_distance_to_teacher(cls) -> bool:
        """Return whether the metric compares each image or latent of a student with its teacher's of the same noise."""
        return any(of_teacher(feature) in cls.needs for feature in cls.needs)

    @classmethod
    def oriented(cls, value: float) -> float:
        """Return the value, or its negative where lower is better, so that higher is always better."""
        return value if cls.direction == "higher" else -value


AnyMetric = TypeVar("AnyMetric", bound=Metric)
AnyMetricType = TypeVar("AnyMetricType", bound=type[Metric])

METRICS: Registry[type[Metric]] = Registry("metric")
"""Every metric by name. The order is that of the tables; the verdict is about the first metric that was measured."""


def register_metric(metric: AnyMetricType) -> AnyMetricType:
    """Add a metric to the registry and return it, so that this can decorate a class.

    Raises:
        CondistillError: the metric lacks an attribute of the contract, or its name is taken.
    """
    required = ("name", "label", "description", "direction", "needs")
    if missing := [attribute for attribute in required if not hasattr(metric, attribute)]:
        raise CondistillError(f"the metric {metric.__name__} has no {', '.join(missing)}; see Metric")
    if metric.direction not in ("higher", "lower"):
        raise CondistillError(f"the metric {metric.name!r} has direction {metric.direction!r}; set higher or lower")
    METRICS.register(metric.name, metric)
    return metric
