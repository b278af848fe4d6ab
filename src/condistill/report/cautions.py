"""What a reader must know before judging the students: a run that is only a test, and a short training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from condistill.config.recipe import QUICK_LABEL, Recipe
from condistill.config.sections import MINIATURE, StudentSettings
from condistill.utils.format import percent


@dataclass(frozen=True)
class UsualTraining:
    """The length of a published training."""

    source: str
    steps: int
    batch_size: int

    @property
    def samples(self) -> int:
        return self.steps * self.batch_size


PAPER = UsualTraining("the paper", 400_000, 256)
"""Of students with fewer channels (arXiv 2504.02011), which cannot use all that their weights inherit."""
BK_SDM = UsualTraining("BK-SDM", 50_000, 256)
"""Of students with fewer blocks or layers (arXiv 2305.15798). KOALA's, 100,000 steps of 128, has as many samples."""


def usual_training(student: StudentSettings) -> UsualTraining:
    """Return the published training of students of this kind."""
    preset = student.preset or ""
    removes_layers = preset.startswith(("b-", "koala-")) or student.keep is not None or student.depth is not None
    narrows = preset.startswith("c-") or student.width is not None or student.target is not None
    return BK_SDM if removes_layers and not narrows and student.weights == "teacher" else PAPER


def cautions(recipe: Recipe, names: Mapping[str, str] | None = None) -> list[str]:
    """Return one sentence for each thing to know before the students of a recipe are judged.

    Args:
        names: by variant, the name under which its student is shown, where it is another one.
    """
    return [f"{QUICK_LABEL[:1].upper()}{QUICK_LABEL[1:]}."] * recipe.quick + list(_short_trainings(recipe, names or {}))


def _short_trainings(recipe: Recipe, shown: Mapping[str, str]) -> Iterator[str]:
    """Yield a sentence per length of training that is shorter than the published ones.

    The miniature is small enough to be distilled in minutes, so its students are left out, unless the run is quick.
    """
    if recipe.teacher.pipeline == MINIATURE and not recipe.quick:
        return
    names: dict[tuple[int, int, UsualTraining], list[str]] = {}
    for name in recipe.variants:
        student, distill = recipe.variant(name)
        usual = usual_training(student)
        if distill.steps * distill.batch_size < usual.samples:
            names.setdefault((distill.steps, distill.batch_size, usual), []).append(shown.get(name, name))
    for (steps, batch_size, usual), trained in names.items():
        samples = steps * batch_size
        verb = "was" if len(trained) == 1 else "were"
        yield (
            f"Short training: {' and '.join(trained)} {verb} trained on {samples:,} samples ({steps:,} steps of "
            f"{batch_size:,}), {percent(samples / usual.samples)} of the {usual.samples:,} of {usual.source} "
            f"({usual.steps:,} steps of {usual.batch_size}). Do not judge the method by it."
        )
