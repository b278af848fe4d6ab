"""Metrics of generated images, from files of latents and features; only a few rows are in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from condistill.errors import CondistillError
from condistill.evaluate.mapped import Order, Piece
from condistill.evaluate.metrics.metric import (
    IMAGES,
    LATENTS,
    METRICS,
    REFERENCE_FEATURES,
    TEACHER_LATENTS,
    Context,
    ImageKey,
    Metric,
    ReferenceSet,
    Samples,
    Score,
    of_teacher,
)
from condistill.evaluate.rounds import ALL, Round

Scores = dict[str, dict[str, Score]]
"""By split and by the name of the metric."""
Values = dict[ImageKey, float]
"""The values of a metric by the seed and the number of an image."""
Kinds = Iterable[type[Metric]]
NO_REFERENCE: Mapping[str, Mapping[str, ReferenceSet]] = {}


@dataclass(frozen=True)
class Subject:
    """What is measured of a model."""

    name: str
    latents: Callable[[int, range], NDArray[np.float32]]
    """Returns the latents of some rows of the round of this number."""
    features: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """By name, of all rows in the order of `Order`."""
    images: Callable[[int, range], NDArray[np.uint8]] | None = None
    """Decodes some rows; None: metrics of the images themselves are left out."""
    latent_space: str = ""
    """See `EvaluatedModel.latent_space`."""


@dataclass(frozen=True)
class Measured:
    """The results of one model."""

    scores: Scores
    values: dict[str, Values]
    """By metric that has a value per image, over all splits."""


class Measurement:
    """Measures one model after the other on the same rounds."""

    def __init__(
        self,
        rounds: Sequence[Round],
        *,
        true_features: Sequence[NDArray[np.float64]] = (),
        seed: int = 0,
        on_images: Callable[[int, str], object] = lambda _count, _model: None,
    ) -> None:
        """Describe the measurement.

        Args:
            true_features: by round, the classifier's features of true images of its prompts; empty: it has none.
            seed: of random numbers of metrics.
            on_images: called with the number of images of every piece that was measured, and the model.
        """
        self.order = Order(rounds)
        self._rounds, self._on_images = rounds, on_images
        self._true_features, self._seed = true_features, seed

    def measure(
        self,
        subject: Subject,
        teacher: Subject | None = None,
        *,
        reference: Mapping[str, Mapping[str, ReferenceSet]] = NO_REFERENCE,
        kinds: Kinds | None = None,
    ) -> Measured:
        """Return the result of every metric whose features are available; a metric without a result is left out.

        Args:
            teacher: None for the teacher itself, and for models that have none.
            reference: by split, the reference images that the model's are compared with; empty: none.
            kinds: the metrics to compute; None: all that are registered.
        """
        available = self._available(subject, teacher)
        chosen = [kind for kind in METRICS.values() if not kind.over_seeds] if kinds is None else list(kinds)
        of_all = reference.get(ALL, {})
        metrics = [kind for kind in chosen if kind.is_available(available, of_all)]
        needed = {name for kind in metrics for name in kind.needs}
        by_split = {split: self._begin(metrics, reference.get(split, {})) for split in self._rounds[0].parts}
        for piece in self.order.pieces():
            samples = self._samples(piece, needed, subject, teacher)
            for metric in by_split[piece.split]:
                metric.update(samples)
            self._on_images(len(samples), subject.name)
        merged = self._begin(metrics, of_all)
        for metrics_of_split in by_split.values():
            for whole, metric in zip(merged, metrics_of_split, strict=True):
                whole.merge(metric)
        return Measured(
            {split: _results(subject.name, each) for split, each in {**by_split, ALL: merged}.items()},
            {metric.name: values for metric in merged if (values := metric.values())},
        )

    def _begin(self, kinds: Sequence[type[Metric]], reference: Mapping[str, ReferenceSet]) -> list[Metric]:
        return [kind(Context(reference=reference, seed=self._seed)) for kind in kinds]

    def _available(self, subject: Subject, teacher: Subject | None) -> set[str]:
        """Return the names of the features that a model has."""
        available = {LATENTS, *subject.features}
        if subject.images is not None:
            available.add(IMAGES)
        if self._true_features:
            available.add(REFERENCE_FEATURES)
        if teacher is not None:
            available |= {of_teacher(name) for name in teacher.features}
            if teacher.latent_space == subject.latent_space and _shape(teacher) == _shape(subject):
                available.add(TEACHER_LATENTS)
            if teacher.images is not None:
                available.add(of_teacher(IMAGES))
        return available

    def _samples(self, piece: Piece, needed: set[str], subject: Subject, teacher: Subject | None) -> Samples:
        """Return the features of some rows that metrics need."""
        round_, number, rows = self._rounds[piece.round_number], piece.round_number, piece.rows
        features: dict[str, NDArray[Any]] = {}
        for name in needed:
            if name == REFERENCE_FEATURES:
                features[name] = self._true_features[number][rows.start : rows.stop]
            elif (found := _feature(subject, name, piece)) is not None:
                features[name] = found
            elif teacher is not None:
                own = next(each for each in (LATENTS, IMAGES, *teacher.features) if of_teacher(each) == name)
                of_teachers = _feature(teacher, own, piece)
                assert of_teachers is not None
                features[name] = of_teachers
        numbers = [round_.number(row) for row in rows]
        return Samples(round_.seed, round_.prompts[rows.start : rows.stop], features, numbers)


def _shape(subject: Subject) -> tuple[int, ...]:
    """Return the shape of the first latents of a model."""
    return subject.latents(0, range(1)).shape


def _feature(subject: Subject, name: str, piece: Piece) -> NDArray[Any] | None:
    """Return a feature of some rows of a model; None if it has no such feature."""
    if name == LATENTS:
        return subject.latents(piece.round_number, piece.rows)
    if name == IMAGES and subject.images is not None:
        return subject.images(piece.round_number, piece.rows)
    found = subject.features.get(name)
    return None if found is None else found[piece.mapped]


def _results(model: str, metrics: Sequence[Metric]) -> dict[str, Score]:
    results = {metric.name: _compute(metric, model) for metric in metrics}
    return {name: score for name, score in results.items() if score is not None}


def _compute(metric: Metric, model: str) -> Score | None:
    """Return the result of a metric.

    Raises:
        CondistillError: it is not a finite number, which no JSON file can hold.
    """
    try:
        return metric.compute()
    except ValidationError as error:
        raise CondistillError(
            f"the metric {metric.name!r} of {model} is not a finite number; its `compute` must return None where "
            "it has no result"
        ) from error
