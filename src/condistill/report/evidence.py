"""What the scores of an evaluation show: which metric counts, and which differences are larger than their error."""

from __future__ import annotations

from dataclasses import dataclass

from condistill.evaluate.metrics import Metric
from condistill.evaluate.metrics.metric import LATENTS, REFERENCE_FEATURES
from condistill.evaluate.record import Evaluation
from condistill.report.compare import score_alike

PROMPTS = {"seen": "seen prompts", "unseen": "unseen prompts", "all": "all prompts"}


def main_metrics(evaluation: Evaluation) -> list[type[Metric]]:
    """Return the metrics that are no details, in the order of the registry."""
    return [metric for metric in evaluation.metrics if not metric.is_detail]


def is_agreement(metric: type[Metric]) -> bool:
    """Return whether a metric compares the images of a student with those of its teacher from the same noise."""
    return metric.aspect == "teacher" or metric.is_distance_to_teacher()


def is_of_sets(metric: type[Metric]) -> bool:
    """Return whether a metric compares a set of images with reference images, as FID does."""
    return metric.reference != "none" or REFERENCE_FEATURES in metric.needs


def quality_metrics(evaluation: Evaluation) -> list[type[Metric]]:
    """Return the metrics of how good images are, the most telling first.

    A metric of single images comes before one of sets of images: its differences are measured image by image, and a set
    metric such as FID can rank the worst student first. How much images differ from one another comes last.
    """
    metrics = [metric for metric in main_metrics(evaluation) if not is_agreement(metric)]
    return sorted(metrics, key=lambda metric: (metric.aspect == "variety", metric.is_partial, is_of_sets(metric)))


def agreement_metrics(evaluation: Evaluation) -> list[type[Metric]]:
    """Return the metrics of how closely a student follows its teacher: of features of images before latents."""
    metrics = [metric for metric in main_metrics(evaluation) if is_agreement(metric)]
    return sorted(metrics, key=lambda metric: LATENTS in metric.needs)


def missing_companions(evaluation: Evaluation) -> str:
    """Return what is missing next to a distance between sets of images, such as FID; empty where nothing is.

    Such a distance can rank the worst student first, so it is never shown without the agreement of single images with
    their prompt or with the teacher, and without precision and recall.
    """
    metrics = main_metrics(evaluation)
    distances = [metric.label for metric in metrics if is_of_sets(metric) and metric.direction == "lower"]
    missing = []
    if not any(metric.aspect in ("text", "teacher", None) for metric in metrics if not is_of_sets(metric)):
        missing.append("agreement with the prompts or with the teacher")
    if not any(is_of_sets(metric) and metric.direction == "higher" for metric in metrics):
        missing.append("precision and recall")
    if not distances or not missing:
        return ""
    verb = "compares" if len(distances) == 1 else "compare"
    return (
        f"{', '.join(distances)} {verb} whole sets of images and can mislead alone; not measured: {', '.join(missing)}."
    )


def few_images(evaluation: Evaluation) -> list[str]:
    """Return what not to conclude from so few images, one sentence for all metrics that say the same."""
    images = evaluation.images_per_split.get(hardest_split(evaluation), 0)
    return list(dict.fromkeys(filter(None, (metric.caution(images) for metric in main_metrics(evaluation)))))


def hardest_split(evaluation: Evaluation) -> str:
    """Return `unseen` where unseen prompts were evaluated, and else `all`."""
    return next((split for split in ("unseen", "all", "seen") if split in evaluation.splits), "all")


@dataclass(frozen=True, slots=True)
class Difference:
    """How much better one model is than another in one metric, as the sign of `oriented` says."""

    is_clear: bool
    """Whether it is larger than the error of the measurement."""
    is_better: bool
    text: str
    """The difference with its 95 % interval; empty where models were not compared image by image."""


def difference(evaluation: Evaluation, one: str, other: str, split: str, metric: type[Metric]) -> Difference | None:
    """Return the difference of two models; None where one has no score.

    It is taken image by image where that was measured, which needs far fewer images, and else follows from both errors.
    """
    score, other_score = (evaluation.score(name, split, metric) for name in (one, other))
    if score is None or other_score is None:
        return None
    paired = evaluation.comparison(one, other, split, metric)
    if paired is not None:
        write, points = metric.notation.number, " points" if metric.notation.unit == "%" else ""
        text = (
            f"{write(paired.difference)}{points}, 95 % interval {write(paired.low)} to {write(paired.high)} over "
            f"{paired.images:,} images"
        )
        return Difference(paired.separates, metric.oriented(paired.difference) > 0, text)
    images, seeds = evaluation.images_per_split.get(split, 0), len(evaluation.seeds)
    alike = score_alike(metric, score, other_score, images=images, seeds=seeds)
    return Difference(not alike, metric.oriented(score.value) > metric.oriented(other_score.value), "")
