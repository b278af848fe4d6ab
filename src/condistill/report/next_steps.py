"""What to do next, in plain sentences, each with the evidence that it follows from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from condistill.config.recipe import TEACHER
from condistill.evaluate.metrics import Metric
from condistill.report.agreement import Agreement
from condistill.report.evidence import PROMPTS, difference, hardest_split, is_of_sets, quality_metrics
from condistill.report.inputs import ReportInputs
from condistill.report.plots import History
from condistill.report.verdict import best_student, not_separated, subject
from condistill.utils.format import percent, significant

FEW_EVALUATIONS = 8
"""Denoiser evaluations of an image up to which a student is a few-step student."""
_FEWEST_RECORDS = 10
"""Records of a history from which a trend is read."""
_LEAST_FALL = 0.01
"""The share by which a loss must fall over the last fifth of a training to count as falling."""
_MOST_IMAGES = 100
"""How many times as many images are worth a recommendation."""


@dataclass(frozen=True, slots=True)
class Advice:
    """One thing to do, and why."""

    action: str
    evidence: str


@dataclass(frozen=True, slots=True)
class Trend:
    """The line through the logarithms of the losses of the second half of a training."""

    last: float
    """Its loss at the end."""
    fall: float
    """The share by which it falls over the last fifth of the training; negative where it rises."""
    is_clear: bool
    """Whether its slope is larger than two standard errors."""

    @property
    def is_falling(self) -> bool:
        """Whether the loss falls by more than its noise, and by enough to matter."""
        return self.is_clear and self.fall > _LEAST_FALL


def loss_trend(history: History) -> Trend | None:
    """Return how the loss moves at the end of a training; None for a history that is too short."""
    known = [(record.step, record.loss) for record in history if 0 < record.loss < math.inf]
    if len(known) < _FEWEST_RECORDS:
        return None
    half = known[len(known) // 2 :]
    steps, losses = np.array([step for step, _ in half], float), np.log([loss for _, loss in half])
    (slope, intercept), covariance = np.polyfit(steps, losses, 1, cov="unscaled")
    residuals = losses - slope * steps - intercept
    error = math.sqrt(float((residuals**2).sum()) / (len(half) - 2) * float(covariance[0, 0]))
    fall = 1 - math.exp(float(slope) * known[-1][0] / 5)
    return Trend(math.exp(float(slope) * known[-1][0] + float(intercept)), fall, abs(float(slope)) > 2 * error)


def next_steps(inputs: ReportInputs) -> list[Advice]:
    """Return what to do next with the students of a run, the most important first."""
    if inputs.recipe is not None and inputs.recipe.quick:
        evidence = "This run only tested the set-up, and its students are not for use."
        return [Advice("Run the recipe without `quick`.", evidence)]
    if not inputs.evaluation.students:
        return []
    found = [
        *_measure_quality(inputs),
        *_train_longer(inputs),
        *_enlarge(inputs),
        *_cache_more(inputs),
        *_go_smaller(inputs),
        *_evaluate_more(inputs),
    ]
    return found or [Advice("Judge by the pictures.", "The figures point to no next step.")]


def _metric(inputs: ReportInputs, name: str) -> type[Metric] | None:
    """Return the most telling metric of quality of which a student has a score."""
    split = hardest_split(inputs.evaluation)
    return next((m for m in quality_metrics(inputs.evaluation) if inputs.evaluation.score(name, split, m)), None)


def _measure_quality(inputs: ReportInputs) -> Iterator[Advice]:
    if not quality_metrics(inputs.evaluation):
        yield Advice(
            "Measure the quality of the images: name `evaluate.networks.dinov2` and `evaluate.networks.clip`, and "
            "evaluate again.",
            "Only the distance to the teacher was measured, which does not tell a sharp image from a blurred one.",
        )


def _train_longer(inputs: ReportInputs) -> Iterator[Advice]:
    falling = {
        name: trend
        for name, history in inputs.histories.items()
        if (trend := loss_trend(history)) is not None and trend.is_falling
    }
    if falling:
        figures = [f"{name} by {percent(trend.fall)}" for name, trend in falling.items()]
        yield Advice(
            f"Train {_names(list(falling))} for more steps (`distill.steps`).",
            f"The loss still falls over the last fifth of the training: {_some(figures)}.",
        )


def _enlarge(inputs: ReportInputs) -> Iterator[Advice]:
    """Yield the advice for students whose loss is flat and which are still worse than their teacher."""
    evaluation, split = inputs.evaluation, hardest_split(inputs.evaluation)
    for name in dict.fromkeys([subject(evaluation), best_student(evaluation)]):
        trend = loss_trend(inputs.histories.get(name, ()))
        if trend is None or trend.is_falling:
            continue
        flat = f"The loss of {name} no longer falls ({significant(trend.last)} at the end)"
        metric = _metric(inputs, name)
        found = difference(evaluation, name, TEACHER, split, metric) if metric else None
        agreement = Agreement.of(evaluation, name)
        if metric and found and found.is_clear and not found.is_better:
            score, best = evaluation.score(name, split, metric), evaluation.score(TEACHER, split, metric)
            assert score is not None
            assert best is not None
            figures = f"{metric.notation.text(score.value)} against {metric.notation.text(best.value)}"
            worse = f"it is clearly worse than its teacher on {PROMPTS[split]}: {metric.label} {figures}"
        elif found is None and agreement and agreement.share is not None and agreement.share >= 1:
            worse = f"it {agreement.words}: {agreement.figures()}"
        else:
            continue
        yield Advice(
            f"Use a larger student than {name} (`student`: a larger preset, width or depth).", f"{flat}, and {worse}."
        )
        return


def _cache_more(inputs: ReportInputs) -> Iterator[Advice]:
    """Yield the advice for a student that loses more on unseen prompts than its teacher does."""
    evaluation = inputs.evaluation
    name = subject(evaluation)
    metric = _metric(inputs, name)
    if metric is None or is_of_sets(metric):
        return  # the distances of two splits to different reference images are not comparable
    scores = {
        (model, split): evaluation.score(model, split, metric)
        for model in (name, TEACHER)
        for split in ("seen", "unseen")
    }
    values = {key: metric.oriented(score.value) for key, score in scores.items() if score}
    if len(values) < len(scores):
        return
    lost = {model: values[model, "seen"] - values[model, "unseen"] for model in (name, TEACHER)}
    error = math.hypot(*(_error(inputs, model, split, metric) for model, split in scores))
    if lost[name] - lost[TEACHER] > 2 * error > 0:
        write = metric.notation.number
        yield Advice(
            "Show the student more prompts: a larger `cache.size`, a larger pool, or a higher re-pairing probability "
            "(`distill.conditioning.probability`).",
            f"From seen to unseen prompts {name} loses {write(lost[name])} in {metric.label}, its teacher "
            f"{write(lost[TEACHER])}.",
        )


def _error(inputs: ReportInputs, model: str, split: str, metric: type[Metric]) -> float:
    """Return the standard error of a score; 0 where it is not known."""
    score = inputs.evaluation.score(model, split, metric)
    if score is None:
        return 0.0
    if score.low is not None and score.high is not None:
        return (score.high - score.low) / (2 * 1.96)
    return metric.sampling_error(score.value, inputs.evaluation.images_per_split.get(split, 0)) or 0.0


def _go_smaller(inputs: ReportInputs) -> Iterator[Advice]:
    """Yield the advice for a student that is as good as its teacher: fewer steps, or a smaller student."""
    evaluation, split = inputs.evaluation, hardest_split(inputs.evaluation)
    name = subject(evaluation)
    metric = _metric(inputs, name)
    found = difference(evaluation, name, TEACHER, split, metric) if metric else None
    if metric is None or found is None or (found.is_clear and not found.is_better):
        return
    evidence = f"In {metric.label} on {PROMPTS[split]}, {name} is not clearly worse than its teacher"
    evaluations = evaluation.models[name].sampling.denoiser_evaluations
    if evaluations > FEW_EVALUATIONS:
        yield Advice(
            f"Train {name} to sample in fewer steps (`distill.few_steps`, `distill.guidance_distillation`).",
            f"{evidence}, and an image takes {evaluations} denoiser evaluations.",
        )
    yield Advice("Try a smaller student.", f"{evidence}.")


def _evaluate_more(inputs: ReportInputs) -> Iterator[Advice]:
    """Yield the advice where the evidence does not separate students, with the number of images that would."""
    evaluation, split = inputs.evaluation, hardest_split(inputs.evaluation)
    best = best_student(evaluation)
    metric, others = _metric(inputs, best), not_separated(evaluation, best)
    if metric is None or not others:
        return
    evidence = f"The figures do not separate {best} from {_some(others)}"
    paired = evaluation.comparison(best, others[0], split, metric)
    if paired is not None and paired.low == paired.high == 0 and len(others) == 1:
        return  # equal image by image: no number of images separates them
    if paired is not None and paired.difference:
        times = ((paired.high - paired.low) / 2 / paired.difference) ** 2
        if 1 < times <= _MOST_IMAGES:
            evidence += (
                f"; if the difference stays as it is, about {significant(times * paired.images, 2)} images would"
            )
    yield Advice("Evaluate more images (`evaluate.prompts_per_split`).", f"{evidence}.")


def _names(names: list[str]) -> str:
    return " and ".join(names) if len(names) < 3 else f"{', '.join(names[:3])}" + (" and others" if names[3:] else "")


def _some(parts: list[str]) -> str:
    return ", ".join(parts[:4]) + (f" and {len(parts) - 4} more" if len(parts) > 4 else "")
