"""Metrics of generated latents. Images stream through once, in batches; every feature is extracted once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from condistill.config.recipe import TEACHER
from condistill.errors import CondistillError
from condistill.evaluate.generate import ALL, Round
from condistill.evaluate.metrics.classifier import ImageClassifier
from condistill.evaluate.metrics.metric import (
    ALL_CORRECT,
    CLASSIFIER_FEATURES,
    IMAGES,
    LATENTS,
    METRICS,
    REFERENCE_FEATURES,
    TEACHER_LATENTS,
    Metric,
    Samples,
    Score,
)
from condistill.evaluate.record import Grid, GridEntry

Decode = Callable[[torch.Tensor], NDArray[np.uint8]]
"""Latents `[N, C, h, w]` to images uint8 `[N, H, W, 3]`."""
LatentsByRound = Sequence[NDArray[np.float32]]
Scores = dict[str, dict[str, Score]]
"""By split and by the name of the metric."""


class PictureGrid:
    """The images that the report shows: of every model, the first prompts of every split of the first round."""

    def __init__(self, directory: Path, first: Round, *, per_split: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._round = first
        self._rows = {
            row: split for split, rows in first.parts.items() for row in range(rows.start, rows.stop)[:per_split]
        }
        self._images: dict[int, dict[str, str]] = {row: {} for row in self._rows}
        self._correct: dict[int, dict[str, bool]] = {row: {} for row in self._rows}

    def rows(self, round_: Round, start: int, stop: int) -> list[int]:
        """Return the rows of a batch that are shown."""
        return [row for row in range(start, stop) if row in self._rows] if round_ is self._round else []

    def add(self, model: str, row: int, image: NDArray[np.uint8], *, correct: bool | None) -> None:
        """Write one image, and note whether the classifier found it correct (None: it was not classified)."""
        file = f"{self._rows[row]}-{row:04d}-{model}.png"
        Image.fromarray(image).save(self._directory / file)
        self._images[row][model] = file
        if correct is not None:
            self._correct[row][model] = correct

    def record(self) -> Grid:
        """Return which files belong to which prompt."""
        splits: dict[str, list[GridEntry]] = {split: [] for split in self._round.parts}
        for row, split in self._rows.items():
            prompt = self._round.prompts[row]
            splits[split].append(GridEntry(prompt=prompt, images=self._images[row], correct=self._correct[row]))
        return Grid(splits={split: tuple(entries) for split, entries in splits.items()})


class Measurement:
    """Measures one model after the other on the same rounds."""

    def __init__(
        self,
        rounds: Sequence[Round],
        decode: Decode,
        *,
        batch_size: int,
        classifier: ImageClassifier | None = None,
        grid: PictureGrid | None = None,
        on_images: Callable[[int, str], None] = lambda _count, _model: None,
    ) -> None:
        """Describe the measurement.

        Args:
            decode: of latents.
            batch_size: images that are decoded and classified at once.
            on_images: called with the number of images of every batch that was measured, and the model.
        """
        self._rounds, self._on_images = rounds, on_images
        self._decode = decode
        self._batch_size = batch_size
        self._classifier = classifier
        self._grid = grid
        self._references = [classifier.reference(r.prompts, seed=r.seed) for r in rounds] if classifier else []

    def measure(self, latents: Mapping[str, LatentsByRound]) -> dict[str, Scores]:
        """Return the scores of the teacher and of every student, from the latents of each."""
        teacher = latents[TEACHER]
        return {
            name: self.scores(name, of_model, None if name == TEACHER else teacher)
            for name, of_model in latents.items()
        }

    def scores(
        self,
        model: str,
        latents: LatentsByRound,
        teacher_latents: LatentsByRound | None = None,
        *,
        kinds: Iterable[type[Metric]] | None = None,
    ) -> Scores:
        """Return the result of every metric whose features are available; a metric without a result is left out.

        Args:
            latents: the latents that the model generated in every round, each `[N, C, h, w]`.
            teacher_latents: the teacher's latents; None for the teacher itself.
            kinds: the metrics to compute; None: all that are registered.
        """
        available = self._available(has_teacher=teacher_latents is not None)
        chosen = METRICS.values() if kinds is None else kinds
        metrics = [metric for metric in chosen if available.issuperset(metric.needs)]
        needs_images = self._classifier is not None or any(IMAGES in metric.needs for metric in metrics)
        by_split = {split: [metric() for metric in metrics] for split in self._rounds[0].parts}
        for number, round_ in enumerate(self._rounds):
            for start in range(0, len(round_.prompts), self._batch_size):
                rows = slice(start, min(start + self._batch_size, len(round_.prompts)))
                shown = self._grid.rows(round_, rows.start, rows.stop) if self._grid else []
                features: dict[str, NDArray[Any]] = {LATENTS: latents[number][rows]}
                if teacher_latents is not None:
                    features[TEACHER_LATENTS] = teacher_latents[number][rows]
                if needs_images or shown:
                    features |= self._image_features(number, rows, features[LATENTS])
                samples = Samples(round_.seed, round_.prompts[rows], features)
                self._show(model, samples, shown, start)
                for split, of_split in round_.parts.items():
                    inside = slice(max(of_split.start - start, 0), max(of_split.stop - start, 0))
                    for metric in by_split[split]:
                        metric.update(samples.part(inside))
                self._on_images(len(samples), model)
        return _results(model, by_split, metrics)

    def _available(self, *, has_teacher: bool) -> set[str]:
        """Return the names of the features that a model has."""
        available = {LATENTS, IMAGES}
        if has_teacher:
            available.add(TEACHER_LATENTS)
        if self._classifier is not None:
            available |= {*self._classifier.attributes, CLASSIFIER_FEATURES, REFERENCE_FEATURES}
        return available

    def _image_features(self, number: int, rows: slice, latents: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """Decode a batch of a round, and classify its images."""
        images = self._decode(torch.from_numpy(latents.copy()))
        features: dict[str, NDArray[Any]] = {IMAGES: images}
        if self._classifier is not None:
            correct, classifier_features = self._classifier.classify(images, self._rounds[number].prompts[rows])
            references = self._references[number][rows]
            features |= {**correct, CLASSIFIER_FEATURES: classifier_features, REFERENCE_FEATURES: references}
        return features

    def _show(self, model: str, samples: Samples, shown: Sequence[int], start: int) -> None:
        """Add the rows of a batch that are shown to the grid."""
        flags = samples.features.get(ALL_CORRECT)
        for row in shown:
            correct = None if flags is None else bool(flags[row - start])
            assert self._grid is not None
            self._grid.add(model, row, samples.features[IMAGES][row - start], correct=correct)


def _results(model: str, by_split: Mapping[str, Sequence[Metric]], metrics: Sequence[type[Metric]]) -> Scores:
    """Return the results of a model on every split, and on all splits together."""
    of_all = [metric() for metric in metrics]
    for of_split in by_split.values():
        for merged, metric in zip(of_all, of_split, strict=True):
            merged.merge(metric)
    results = {
        split: {metric.name: _compute(metric, model) for metric in of_split}
        for split, of_split in {**by_split, ALL: of_all}.items()
    }
    return {
        split: {name: score for name, score in scores.items() if score is not None} for split, scores in results.items()
    }


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
