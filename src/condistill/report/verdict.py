"""The result of a run in one sentence: computed from the scores, never chosen to look good."""

from __future__ import annotations

import math
from dataclasses import dataclass

from condistill.evaluate.metrics import Metric, Score
from condistill.evaluate.record import Evaluation
from condistill.report.compare import score_alike, take_as_long
from condistill.utils.format import duration, percent

PROMPTS = {"seen": "seen prompts", "unseen": "unseen prompts", "all": "all prompts"}


def gap_closed(baseline: float, student: float, teacher: float) -> float | None:
    """Return the share of the gap between plain distillation and the teacher that a student closes.

    It is below 0 where the student is worse than the baseline, and above 1 where it is better than its teacher.
    Higher scores are better; None where the teacher is no better than the baseline.
    """
    return None if teacher <= baseline else (student - baseline) / (teacher - baseline)


def subject(evaluation: Evaluation) -> str:
    """Return the student that the verdict is about: the best on the hardest split that is not the baseline."""
    students = [name for name in evaluation.students if name != evaluation.baseline] or evaluation.students
    split = hardest_split(evaluation)

    def rank(name: str) -> list[float]:
        scores = [(metric, evaluation.score(name, split, metric)) for metric in _main_metrics(evaluation)]
        return [metric.oriented(score.value) if score else -math.inf for metric, score in scores]

    return max(students, key=rank)


def hardest_split(evaluation: Evaluation) -> str:
    """Return `unseen` where unseen prompts were evaluated, and else `all`."""
    return next((split for split in ("unseen", "all", "seen") if split in evaluation.splits), "all")


def verdict(evaluation: Evaluation) -> tuple[str, str]:
    """Return one sentence on the result, and a short second line (empty where nothing is to be added)."""
    sentence, detail = _verdict(evaluation)
    closeness = closer_than_before(evaluation, subject(evaluation))
    return sentence, f"{detail} {closeness}".strip()


def closer_than_before(evaluation: Evaluation, name: str) -> str:
    """Return a sentence that compares a student's distance to its teacher with two references; empty without them.

    The references are the student before its training, and two images of the teacher from different noise.
    """
    split = hardest_split(evaluation)
    for metric in _main_metrics(evaluation):
        now = evaluation.score(name, split, metric)
        before = evaluation.before_training(name, split, metric)
        if now is not None and before is not None:
            break
    else:
        return ""
    write, oriented = metric.notation.text, metric.oriented
    figures = f"{metric.label} {write(now.value)} against {write(before.value)} on {PROMPTS[split]}"
    if oriented(now.value) > oriented(before.value):
        less = f", {percent(1 - now.value / before.value)} less" if before.value else ""
        sentence = f"{name} is closer to its teacher than before training: {figures}{less}"
    else:
        sentence = f"{name} is no closer to its teacher than before training: {figures}"
    other = evaluation.of_other_seed(split, metric)
    if other is None:
        return f"{sentence}."
    apart = f"two images of the teacher from different seeds differ by {write(other.value)}"
    if oriented(now.value) < oriented(other.value):
        apart += ", so its images differ more from the teacher's than the teacher's do from each other"
    return f"{sentence}; {apart}."


def _verdict(evaluation: Evaluation) -> tuple[str, str]:
    """Return the sentence on the result, and the lines on seen prompts, time and metric."""
    name, split = subject(evaluation), hardest_split(evaluation)
    metric = next((m for m in _main_metrics(evaluation) if evaluation.score(name, split, m)), None)
    if metric is None:
        return f"{name} {_size_and_time(evaluation, name)}.", _time_line(evaluation, name)
    headline = _Comparison.of(evaluation, name, split, metric)
    lines = [_time_line(evaluation, name)]
    if headline.teacher is None:
        sentence = _without_teacher(evaluation, headline)
        if evaluation.classifier == "none":
            lines.append(f"No classifier was used. {metric.label}: {metric.description}.")
    else:
        sentence = _with_teacher(evaluation, headline, headline.teacher)
        if split == "unseen" and evaluation.score(name, "seen", metric):
            lines.insert(0, _seen_line(_Comparison.of(evaluation, name, "seen", metric)))
    return sentence, " ".join(lines)


@dataclass(frozen=True)
class _Comparison:
    """One metric on one split: the score of a student, of the baseline and of the teacher."""

    name: str
    split: str
    metric: type[Metric]
    student: Score
    baseline_name: str
    baseline: Score | None
    """None without a baseline, or if the student is the baseline."""
    teacher: Score | None
    """None where the metric is a distance to the teacher."""
    images: int
    """Images per model on the split, over all seeds."""
    seeds: int

    @classmethod
    def of(cls, evaluation: Evaluation, name: str, split: str, metric: type[Metric]) -> _Comparison:
        """Read the scores of a student that has one."""
        student = evaluation.score(name, split, metric)
        assert student is not None
        other = evaluation.baseline if evaluation.baseline != name else None
        baseline = evaluation.score(other, split, metric)
        teacher = evaluation.teacher.score(split, metric)
        images, seeds = evaluation.images_per_split.get(split, 0), len(evaluation.seeds)
        return cls(name, split, metric, student, other or "", baseline, teacher, images, seeds)

    def against(self) -> str:
        """Return the scores of baseline and teacher as the end of a sentence; empty if neither has one."""
        write = self.metric.notation.text
        others = [f"{write(self.baseline.value)} for {self.baseline_name}"] if self.baseline else []
        others += [f"{write(self.teacher.value)} for the teacher"] if self.teacher else []
        return f", against {' and '.join(others)}" if others else ""

    def predicate(self) -> str:
        """Return the student's score as a sentence without its subject."""
        return self.metric.predicate(self.student.value, PROMPTS[self.split])

    def is_worse_than_baseline(self) -> bool:
        """Return whether the baseline has the better score."""
        oriented = self.metric.oriented
        return self.baseline is not None and oriented(self.student.value) < oriented(self.baseline.value)

    def is_close(self, one: Score, other: Score | None) -> bool:
        """Return whether another model's score is too close to one to call."""
        return other is not None and score_alike(self.metric, one, other, images=self.images, seeds=self.seeds)


def _main_metrics(evaluation: Evaluation) -> list[type[Metric]]:
    return [metric for metric in evaluation.metrics if not metric.is_detail]


def _with_teacher(evaluation: Evaluation, scores: _Comparison, teacher: Score) -> str:
    """Return the sentence on a metric that the teacher has a score of."""
    share = _share_of_parameters(evaluation, scores.name)
    size = f", at {percent(share)} of the parameters"
    sentence = f"{scores.name} {scores.predicate()}{scores.against()}"
    if scores.is_close(scores.student, scores.baseline):
        return f"{sentence}: too close to {scores.baseline_name} to call{size}."
    if scores.is_worse_than_baseline():
        return f"{scores.name} does worse than {scores.baseline_name}: it {scores.predicate()}{scores.against()}{size}."
    outcome = _outcome(scores, teacher)
    return f"{sentence}: {outcome}{size}."


def _outcome(scores: _Comparison, teacher: Score) -> str:
    """Return how a student that is no worse than the baseline compares with its teacher."""
    if scores.baseline is None:
        return _against_teacher(scores, teacher)
    oriented, reaches_teacher = scores.metric.oriented, scores.is_close(scores.student, teacher)
    values = (scores.baseline.value, scores.student.value, teacher.value)
    closed = gap_closed(*map(oriented, values))
    if closed is None:
        return f"{scores.baseline_name} already reaches the teacher, so there was no gap to close"
    if scores.is_close(scores.baseline, teacher):
        return f"{scores.baseline_name} reaches the teacher within the error, so there was no gap to close"
    if closed > 1:
        return "it closes the whole gap" + ("" if reaches_teacher else " and is better than its teacher")
    rest = "; the rest is within the error" if closed < 1 and reaches_teacher else ""
    return f"it closes {percent(closed)} of the gap{rest}"


def _against_teacher(scores: _Comparison, teacher: Score) -> str:
    """Return how a student compares with its teacher where there is no baseline."""
    student, best = scores.metric.oriented(scores.student.value), scores.metric.oriented(teacher.value)
    if scores.is_close(scores.student, teacher):
        return "as good as its teacher" + (", within the error" if student != best else "")
    if student > best:
        return "better than its teacher"
    if scores.metric.direction == "higher":
        return f"it keeps {percent(student / best)} of that"
    return "worse than its teacher"


def _without_teacher(evaluation: Evaluation, scores: _Comparison) -> str:
    """Return the sentence on a metric that compares a student with its teacher, and which the teacher has not."""
    outcome = ""
    if scores.is_close(scores.student, scores.baseline):
        outcome = ", too close to call"
    elif scores.is_worse_than_baseline():
        outcome = ", which is better"
    size_and_time = _size_and_time(evaluation, scores.name)
    return f"{scores.name} {size_and_time}; it {scores.predicate()}{scores.against()}{outcome}."


def _share_of_parameters(evaluation: Evaluation, name: str) -> float:
    return evaluation.models[name].size.parameters / evaluation.teacher.size.parameters


def _size_and_time(evaluation: Evaluation, name: str) -> str:
    student, share = evaluation.models[name], percent(_share_of_parameters(evaluation, name))
    if take_as_long(student, evaluation.teacher):
        return f"has {share} of the teacher's parameters and takes as long for an image"
    time = percent(student.speed.relative_time)
    return f"has {share} of the teacher's parameters and generates an image in {time} of its time"


def _seen_line(scores: _Comparison) -> str:
    return f"On {PROMPTS[scores.split]}: {scores.metric.notation.text(scores.student.value)}{scores.against()}."


def _time_line(evaluation: Evaluation, name: str) -> str:
    student, teacher = evaluation.models[name], evaluation.teacher
    if take_as_long(student, teacher):
        return f"An image takes as long as with the teacher, {duration(teacher.speed.sec_per_image, 2)}."
    times = [duration(model.speed.sec_per_image, 2) for model in (student, teacher)]
    return f"An image takes {times[0]} instead of {times[1]}."
