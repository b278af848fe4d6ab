"""An evaluation as lines on the terminal: one table, the verdict, and what must not be concluded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from condistill.evaluate.metrics import Metric, Score
from condistill.evaluate.record import Evaluation
from condistill.report.evidence import few_images, main_metrics, missing_companions
from condistill.report.verdict import verdict
from condistill.utils.format import duration, quantity

MISSING = "-"


def print_evaluation(
    evaluation: Evaluation, *, say: Callable[..., None], labels: Mapping[str, str] | None = None
) -> None:
    """Print the scores of every model with their intervals, and the verdict.

    Args:
        say: prints one line.
        labels: headings of models that are not their names.
    """
    headings, *rows = table(evaluation)
    for line in lines([[(labels or {}).get(name, name) for name in headings], *rows]):
        say(line)
    for caution in filter(None, [missing_companions(evaluation), *few_images(evaluation)]):
        say(caution, style="yellow")
    if evaluation.students:
        sentence, detail = verdict(evaluation)
        say(f"\n{sentence}", style="bold")
        say(detail)


def table(evaluation: Evaluation) -> list[list[str]]:
    """Return the headings, and one row for each metric and split: the value and the interval of every model."""
    rows = [["", *evaluation.models]]
    for metric in main_metrics(evaluation):
        for split in evaluation.splits:
            scores = [model.score(split, metric) for model in evaluation.models.values()]
            if any(scores):
                unit = f" {metric.notation.unit}" if metric.notation.unit else ""
                label = f"{metric.label}{unit}, {split} ({metric.direction} is better)"
                rows.append([label, *(_cell(metric, score) for score in scores)])
    models = evaluation.models.values()
    rows.append(["Parameters", *(quantity(model.size.parameters) for model in models)])
    rows.append(["Steps", *(str(model.sampling.num_inference_steps) for model in models)])
    rows.append(["Time per image", *(duration(model.speed.sec_per_image, 2) for model in models)])
    return rows


def _cell(metric: type[Metric], score: Score | None) -> str:
    """Return a score with its 95 % interval, or else with its spread over the seeds."""
    if score is None:
        return MISSING
    text = metric.notation.number(score.value)
    if score.low is not None and score.high is not None:
        return f"{text} ({metric.notation.number(score.low)} to {metric.notation.number(score.high)})"
    return text if score.spread is None else f"{text} {metric.notation.spread(score.spread)}"


def lines(rows: list[list[str]]) -> Iterator[str]:
    """Yield a table as lines of aligned columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        first, *others = (text.ljust(width) for text, width in zip(row, widths, strict=True))
        yield "  ".join([first, *others]).rstrip()
