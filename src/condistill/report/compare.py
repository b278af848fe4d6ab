"""Decide whether two models differ in a figure by more than the error of its measurement."""

from __future__ import annotations

import math

from condistill.evaluate.metrics import Metric, Score
from condistill.evaluate.metrics.intervals import standard_error
from condistill.evaluate.record import ModelRecord

TOLERANCE = 0.05
"""Relative difference of two times, or of two peaks of memory, that is within the error of the measurement."""
UNKNOWN_ERROR = 0.05
"""Relative difference of two scores up to which they are alike where nothing is known of their error."""


def cost_the_same(one: ModelRecord, other: ModelRecord) -> bool:
    """Return whether two models do the same work for an image: equal parameters, MACs and denoiser evaluations."""

    def work(model: ModelRecord) -> tuple[int, int, int]:
        return model.size.parameters, model.size.macs, model.sampling.denoiser_evaluations

    return work(one) == work(other)


def take_as_long(one: ModelRecord, other: ModelRecord) -> bool:
    """Return whether the times of an image differ by no more than their spread, or belong to the same work.

    The spread of a time is the distance from the shortest round to the median of all rounds.
    """
    times = (one.speed.sec_per_image, other.speed.sec_per_image)
    spreads = (model.speed.median_sec_per_image - model.speed.sec_per_image for model in (one, other))
    return cost_the_same(one, other) or abs(times[0] - times[1]) <= max(*spreads, TOLERANCE * min(times))


def need_the_same_memory(one: ModelRecord, other: ModelRecord) -> bool:
    """Return whether the peaks of memory are within the error of their measurement, or belong to the same work."""
    peaks = (one.speed.peak_memory_bytes, other.speed.peak_memory_bytes)
    return cost_the_same(one, other) or abs(peaks[0] - peaks[1]) <= TOLERANCE * min(peaks)


def score_alike(metric: type[Metric], one: Score, other: Score, *, images: int, seeds: int) -> bool:
    """Return whether two scores differ by two standard errors of the difference or less.

    The standard error of a score follows from its interval or else from the number of images, or from the spread if
    that is larger. The spread is over evaluation seeds, so the error of their mean is smaller by the square root of
    their number. Where neither score has any of them, such as FID of one seed, they are alike if they differ by 5 % or
    less: they have an error, although it was not measured.

    The errors are taken as independent. Where two models were compared image by image (`Evaluation.comparison`), that
    comparison decides instead: it needs far fewer images.
    """
    scores = (one, other)
    sampling = math.hypot(*(_sampling_error(metric, score, images) for score in scores))
    spread = math.hypot(*(score.spread or 0.0 for score in scores)) / math.sqrt(seeds)
    error = 2 * max(sampling, spread)
    if not error:
        error = UNKNOWN_ERROR * max(abs(one.value), abs(other.value))
    return abs(one.value - other.value) <= error


def _sampling_error(metric: type[Metric], score: Score, images: int) -> float:
    """Return the standard error of a score over its images; 0 where it is not known."""
    if score.low is not None and score.high is not None:
        return standard_error((score.low, score.high))
    return metric.sampling_error(score.value, images) or 0.0
