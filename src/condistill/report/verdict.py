"""The result of a run in a few sentences: computed from the scores, never chosen to look good.

The first sentence has the quality of a student, by the most telling metric that was measured, and its size. The rest
has its agreement with the teacher, what the evidence does not separate, the time of an image, and what is not known.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from condistill.config.recipe import TEACHER
from condistill.evaluate.metrics import Metric, Score
from condistill.evaluate.record import Evaluation
from condistill.report.agreement import Agreement
from condistill.report.compare import cost_the_same, take_as_long
from condistill.report.evidence import (
    PROMPTS,
    Difference,
    agreement_metrics,
    difference,
    hardest_split,
    missing_companions,
    quality_metrics,
)
from condistill.utils.format import duration, percent

CHEAPER = 0.95
"""Multiply-accumulates for an image, as a share of another student's, from which on a student counts as cheaper."""


def gap_closed(baseline: float, student: float, teacher: float) -> float | None:
    """Return the share of the gap between plain distillation and the teacher that a student closes.

    It is below 0 where the student is worse than the baseline, and above 1 where it is better than its teacher.
    Higher scores are better; None where the teacher is no better than the baseline.
    """
    return None if teacher <= baseline else (student - baseline) / (teacher - baseline)


def subject(evaluation: Evaluation) -> str:
    """Return the student that the verdict is about: the cheapest of those that no student is clearly better than.

    The baseline is left out. Students are compared on the hardest split, by quality and, without it, by agreement.
    """
    best = best_student(evaluation)
    equals = [best, *not_separated(evaluation, best)]
    cheapest = min(equals, key=lambda name: _work(evaluation, name))
    return cheapest if _work(evaluation, cheapest) < CHEAPER * _work(evaluation, best) else best


def best_student(evaluation: Evaluation) -> str:
    """Return the student with the best score on the hardest split that is not the baseline."""
    students = [name for name in evaluation.students if name != evaluation.baseline] or evaluation.students
    split = hardest_split(evaluation)
    metrics = [*quality_metrics(evaluation), *agreement_metrics(evaluation)]

    def rank(name: str) -> list[float]:
        scores = [(metric, evaluation.score(name, split, metric)) for metric in metrics]
        return [metric.oriented(score.value) if score else -math.inf for metric, score in scores]

    return max(students, key=rank)


def not_separated(evaluation: Evaluation, best: str) -> list[str]:
    """Return the other students that the evidence does not separate from the best, in quality and in agreement."""
    metrics = [*quality_metrics(evaluation)[:1], *agreement_metrics(evaluation)[:1]]
    found = []
    for name in evaluation.students:
        differences = [difference(evaluation, best, name, hardest_split(evaluation), metric) for metric in metrics]
        known = [each for each in differences if each is not None]
        if name not in (best, evaluation.baseline) and known and not any(d.is_clear and d.is_better for d in known):
            found.append(name)
    return found


def _work(evaluation: Evaluation, name: str) -> float:
    """Return the multiply-accumulates of one image."""
    model = evaluation.models[name]
    return float(model.size.macs) * model.sampling.denoiser_evaluations


def verdict(evaluation: Evaluation) -> tuple[str, str]:
    """Return one sentence on the result, and the sentences that belong to it (empty where nothing is to be added)."""
    headline, sentences = verdict_sentences(evaluation)
    return headline, " ".join(sentences)


def verdict_sentences(evaluation: Evaluation) -> tuple[str, list[str]]:
    """Return one sentence on the result, and the sentences that belong to it."""
    if not evaluation.students:
        return "There is no student to judge: only the teacher was evaluated.", []
    name, split = subject(evaluation), hardest_split(evaluation)
    metric = next((m for m in quality_metrics(evaluation) if evaluation.score(name, split, m)), None)
    time, agreement = _time_line(evaluation, name), _agreement(evaluation, name)
    if metric is None:
        headline = _without_quality(evaluation, name)
        return headline, [*agreement, time, _not_measured(evaluation), *_separation(evaluation, name)]
    scores = _Scores.of(evaluation, name, split, metric)
    is_seen_too = split == "unseen" and evaluation.score(name, "seen", metric) is not None
    needs_companions = metric.is_partial or any(m.reference != "none" for m in quality_metrics(evaluation))
    missing = missing_companions(evaluation) if needs_companions else ""
    return _with_quality(evaluation, scores), [
        *([_seen_line(_Scores.of(evaluation, name, "seen", metric))] if is_seen_too else []),
        *_interval(scores),
        time,
        *agreement,
        *_other_metrics(evaluation, name, split, metric),
        *([missing] if missing else []),
        *_separation(evaluation, name),
    ]


@dataclass(frozen=True)
class _Scores:
    """One metric on one split: the score of a student, of the baseline and of the teacher."""

    name: str
    split: str
    metric: type[Metric]
    student: Score
    baseline_name: str
    baseline: Score | None
    """None without a baseline, or if the student is the baseline."""
    teacher: Score | None
    to_baseline: Difference | None
    to_teacher: Difference | None
    baseline_to_teacher: Difference | None

    @classmethod
    def of(cls, evaluation: Evaluation, name: str, split: str, metric: type[Metric]) -> _Scores:
        """Read the scores of a student that has one."""
        student = evaluation.score(name, split, metric)
        assert student is not None
        other = evaluation.baseline if evaluation.baseline not in (None, name) else None
        return cls(
            name,
            split,
            metric,
            student,
            other or "",
            evaluation.score(other, split, metric),
            evaluation.score(TEACHER, split, metric),
            difference(evaluation, name, other, split, metric) if other else None,
            difference(evaluation, name, TEACHER, split, metric),
            difference(evaluation, other, TEACHER, split, metric) if other else None,
        )

    def against(self) -> str:
        """Return the scores of baseline and teacher as the end of a sentence; empty if neither has one."""
        write = self.metric.notation.text
        others = [f"{write(self.baseline.value)} for {self.baseline_name}"] if self.baseline else []
        others += [f"{write(self.teacher.value)} for the teacher"] if self.teacher else []
        return f", against {' and '.join(others)}" if others else ""

    def predicate(self) -> str:
        """Return the student's score as a sentence without its subject."""
        return self.metric.predicate(self.student.value, PROMPTS[self.split])


def _with_quality(evaluation: Evaluation, scores: _Scores) -> str:
    """Return the first sentence where the quality of images was measured."""
    size = f", at {percent(_share_of_parameters(evaluation, scores.name))} of the parameters"
    sentence = f"{scores.name} {scores.predicate()}{scores.against()}"
    to_baseline = scores.to_baseline
    if to_baseline and not to_baseline.is_clear:
        return f"{sentence}: too close to {scores.baseline_name} to call{size}."
    if to_baseline and not to_baseline.is_better:
        return f"{scores.name} does worse than {scores.baseline_name}: it {scores.predicate()}{scores.against()}{size}."
    outcome = _outcome(scores)
    return f"{sentence}{f': {outcome}' if outcome else ''}{size}."


def _outcome(scores: _Scores) -> str:
    """Return how a student that is no worse than the baseline compares with its teacher; empty without its score."""
    if scores.teacher is None or scores.to_teacher is None:
        return ""
    if scores.baseline is None or scores.baseline_to_teacher is None:
        return _against_teacher(scores, scores.teacher, scores.to_teacher)
    reaches_teacher = not scores.to_teacher.is_clear
    values = (scores.baseline.value, scores.student.value, scores.teacher.value)
    closed = gap_closed(*map(scores.metric.oriented, values))
    if closed is None:
        return f"{scores.baseline_name} already reaches the teacher, so there was no gap to close"
    if not scores.baseline_to_teacher.is_clear:
        return f"{scores.baseline_name} reaches the teacher within the error, so there was no gap to close"
    if closed > 1:
        return "it closes the whole gap" + ("" if reaches_teacher else " and is better than its teacher")
    rest = "; the rest is within the error" if closed < 1 and reaches_teacher else ""
    return f"it closes {percent(closed)} of the gap{rest}"


def _against_teacher(scores: _Scores, teacher: Score, to_teacher: Difference) -> str:
    """Return how a student compares with its teacher where there is no baseline."""
    student, best = scores.student.value, teacher.value
    if not to_teacher.is_clear:
        return "as good as its teacher" + (", within the error" if student != best else "")
    if to_teacher.is_better:
        return "better than its teacher"
    is_share = scores.metric.notation.unit == "%"  # half a logit or half a cosine is not half as good
    if is_share and scores.metric.direction == "higher" and best > 0:
        return f"it keeps {percent(student / best)} of that"
    return "worse than its teacher"


def _without_quality(evaluation: Evaluation, name: str) -> str:
    """Return the first sentence where no metric says how good an image is: the agreement in words, and the size."""
    size = _size_and_time(evaluation, name)
    found = Agreement.of(evaluation, name)
    if found is None or not found.words:
        return f"{name} {size}; how good its images are was not measured."
    return f"{name} {found.words} and {size}; how good its images are was not measured."


def _agreement(evaluation: Evaluation, name: str) -> list[str]:
    """Return the agreement with the teacher as a sentence; none where it was not measured."""
    found = Agreement.of(evaluation, name)
    return [found.sentence()] if found else []


def _not_measured(evaluation: Evaluation) -> str:
    """Return what is missing to judge the quality of images, and what to do."""
    if evaluation.networks:
        return "No metric of the quality of images was measured; judge by the pictures, the worst prompts first."
    return (
        "No classifier and no network was given, so nothing but the distance to the teacher was measured: judge by the "
        "pictures, the worst prompts first, and name networks in `evaluate.networks`."
    )


def _interval(scores: _Scores) -> Iterator[str]:
    """Yield the differences that were measured image by image, with their intervals."""
    pairs = ((scores.baseline_name, scores.to_baseline), ("the teacher", scores.to_teacher))
    known = [f"to {name} {each.text}" for name, each in pairs if each is not None and each.text]
    if known:
        yield f"Difference {'; '.join(known)}."


def _other_metrics(evaluation: Evaluation, name: str, split: str, headline: type[Metric]) -> Iterator[str]:
    """Yield a sentence with the other metrics of quality."""
    parts = []
    for metric in quality_metrics(evaluation):
        score, best = evaluation.score(name, split, metric), evaluation.score(TEACHER, split, metric)
        if metric is headline or score is None:
            continue
        of_teacher = f" (teacher {metric.notation.text(best.value)})" if best else ""
        parts.append(f"{metric.label} {metric.notation.text(score.value)}{of_teacher}")
    if parts:
        yield f"Also on {PROMPTS[split]}: {', '.join(parts)}."


def _separation(evaluation: Evaluation, name: str) -> Iterator[str]:
    """Yield what the evidence does not separate: the other students that may be as good, and which is cheapest."""
    best = best_student(evaluation)
    equals = not_separated(evaluation, best)
    others = [each for each in dict.fromkeys([best, *equals]) if each != name]
    if not others:
        return
    metric = next(iter([*quality_metrics(evaluation), *agreement_metrics(evaluation)]))
    found = difference(evaluation, name, others[0], hardest_split(evaluation), metric)
    detail = f" ({metric.label}: difference to {others[0]} {found.text})" if found and found.text else ""
    shown = ", ".join(others[:4]) + (f" and {len(others) - 4} more" if len(others) > 4 else "")
    yield f"The evidence does not separate {name} from {shown}{detail}."
    if name != best:
        share = percent(_work(evaluation, name) / _work(evaluation, best))
        yield f"{name} is the cheapest of them, with {share} of the multiply-accumulates of {best} for an image."


def _share_of_parameters(evaluation: Evaluation, name: str) -> float:
    return evaluation.models[name].size.parameters / evaluation.teacher.size.parameters


def _size_and_time(evaluation: Evaluation, name: str) -> str:
    student, share = evaluation.models[name], percent(_share_of_parameters(evaluation, name))
    if take_as_long(student, evaluation.teacher):
        return f"has {share} of the teacher's parameters and takes about as long for an image"
    time = percent(student.speed.relative_time)
    return f"has {share} of the teacher's parameters and generates an image in {time} of its time"


def _seen_line(scores: _Scores) -> str:
    return f"On {PROMPTS[scores.split]}: {scores.metric.notation.text(scores.student.value)}{scores.against()}."


def _time_line(evaluation: Evaluation, name: str) -> str:
    student, teacher = evaluation.models[name], evaluation.teacher
    times = [duration(model.speed.sec_per_image, 2) for model in (student, teacher)]
    if take_as_long(student, teacher):
        if cost_the_same(student, teacher) or times[0] == times[1]:
            return f"An image takes as long as with the teacher, {times[1]}."
        return f"An image takes {times[0]}, and {times[1]} with the teacher: a difference within the spread of times."
    return f"An image takes {times[0]} instead of {times[1]}."
