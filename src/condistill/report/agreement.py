"""How closely a student follows its teacher, compared with two references that give the distance a scale."""

from __future__ import annotations

from dataclasses import dataclass

from condistill.evaluate.metrics import Metric, Score
from condistill.evaluate.record import Evaluation
from condistill.report.evidence import PROMPTS, agreement_metrics, hardest_split
from condistill.utils.format import percent

CLOSE = 0.5
"""The share of the distance between two seeds of the teacher below which a student follows its teacher closely."""
NEAR = 0.9
"""The share of the way from the distance before training to that of two seeds from which on a student is near."""
ABOUT = 1.1
"""The share of the distance between two seeds of the teacher up to which the two distances are about equal."""


@dataclass(frozen=True)
class Agreement:
    """The distance of one student to its teacher on one split."""

    name: str
    split: str
    metric: type[Metric]
    score: Score
    before: Score | None
    """Of the student before its training."""
    other_seed: Score | None
    """Between two images of the teacher from different noise."""

    @classmethod
    def of(cls, evaluation: Evaluation, name: str) -> Agreement | None:
        """Return the agreement by the best metric that was measured, one with references before one without."""
        split = hardest_split(evaluation)
        found = [
            cls(
                name,
                split,
                metric,
                score,
                evaluation.before_training(name, split, metric),
                evaluation.of_other_seed(split, metric),
            )
            for metric in agreement_metrics(evaluation)
            if (score := evaluation.score(name, split, metric))
        ]
        return next((each for each in found if each.before or each.other_seed), found[0] if found else None)

    @property
    def has_improved(self) -> bool | None:
        """Whether the training brought the student closer to its teacher; None where it is not known."""
        if self.before is None:
            return None
        return self.metric.oriented(self.score.value) > self.metric.oriented(self.before.value)

    @property
    def share(self) -> float | None:
        """The distance as a share of that of two seeds of the teacher; None where it is not known."""
        if self.other_seed is None or self.metric.direction == "higher" or self.other_seed.value <= 0:
            return None
        return self.score.value / self.other_seed.value

    @property
    def progress(self) -> float | None:
        """How far the training came on the way from the first weights to the distance of two seeds; None if unknown."""
        if self.before is None or self.other_seed is None or self.before.value <= self.other_seed.value:
            return None
        return (self.before.value - self.score.value) / (self.before.value - self.other_seed.value)

    @property
    def words(self) -> str:
        """The agreement as a verb phrase; empty without a reference."""
        if self.has_improved is False:
            return "is no closer to its teacher than before training"
        if self.share is None:
            return "is closer to its teacher than before training" if self.has_improved else ""
        if self.share < 1:
            return f"follows its teacher {'closely' if self.share < CLOSE else 'loosely'}"
        return self._words_of_a_larger_distance(self.share)

    def _words_of_a_larger_distance(self, share: float) -> str:
        """Return the agreement of a student that is not as close to its teacher as another seed."""
        if self.before is None:
            return "is further from its teacher than another seed of the teacher"
        if self.progress is None or self.progress < NEAR:
            return "is still far from its teacher"
        if share <= ABOUT:
            return "is about as close to its teacher as another seed of the teacher"
        return "is much closer to its teacher than before training, but not as close as another seed of the teacher"

    def figures(self) -> str:
        """Return the distance with its references, as the end of a sentence."""
        write = self.metric.notation.text
        text = f"{self.metric.label} {write(self.score.value)} on {PROMPTS[self.split]}"
        references = [f"{write(self.before.value)} before training"] if self.before else []
        references += [f"{write(self.other_seed.value)} between two seeds of the teacher"] if self.other_seed else []
        return text + (f", against {' and '.join(references)}" if references else "")

    def sentence(self) -> str:
        """Return the agreement as a sentence."""
        if not self.words:
            return f"Agreement with the teacher: {self.figures()}."
        less = ""
        if self.has_improved and self.before and self.before.value:
            less = f"; that is {percent(abs(1 - self.score.value / self.before.value))} "
            less += "less than before training" if self.metric.direction == "lower" else "more than before training"
        return f"{self.name} {self.words}: {self.figures()}{less}."


def closer_than_before(evaluation: Evaluation, name: str) -> str:
    """Return a sentence that compares a student's distance to its teacher with its references; empty without them."""
    found = Agreement.of(evaluation, name)
    return found.sentence() if found and (found.before or found.other_seed) else ""
