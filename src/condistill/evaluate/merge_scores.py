"""Merge scores that another program computed with an evaluation; they are kept, and merged again when it is made again.

A merged score is like any other score of single images: it has an interval, differences between models, and groups.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from condistill.config.recipe import TEACHER
from condistill.errors import CondistillError
from condistill.evaluate.engine import Host
from condistill.evaluate.export_images import Image
from condistill.evaluate.image_values import IMAGES_NAME, Groups
from condistill.evaluate.metrics import Metric, Score
from condistill.evaluate.metrics.metric import Context, Samples
from condistill.evaluate.metrics.paired import compare
from condistill.evaluate.outside import FORMAT, OutsideScores, Place, check_scores
from condistill.evaluate.outside_metric import outside_feature, outside_metric
from condistill.evaluate.record import METRICS_NAME, Comparison, Evaluation
from condistill.evaluate.results import Job
from condistill.evaluate.rounds import ALL, Round
from condistill.run.stage_directory import StageDir
from condistill.utils.atomic import atomic_file, write_text

SCORES_NAME = "scores.json"


def images_of(rounds: Sequence[Round]) -> list[Image]:
    """Return every image of a model, seed by seed."""
    found: list[Image] = []
    for each in rounds:
        splits = {row: split for split, rows in each.parts.items() for row in range(rows.start, rows.stop)}
        for row, prompt in enumerate(each.prompts):
            found.append(Image(len(found), each.seed, each.number(row), splits[row], prompt))
    return found


def scores_directory(host: Host, job: Job) -> StageDir:
    """Return the directory of the scores of the images of a job."""
    directory = host.stage(
        "evaluation/scores", lambda: {task.model.name: task.model.latents.key for task in job.models}
    )
    directory.is_costly = False
    return directory


def keep_scores(directory: StageDir, scores: OutsideScores) -> None:
    """Write the scores of an evaluation to its directory, instead of those that are there."""
    record = directory.record()
    if record is not None and record.key != directory.key:
        (directory.path / SCORES_NAME).unlink(missing_ok=True)
    path = directory.begin_again()
    write_text(path / SCORES_NAME, json.dumps(_as_file(scores)) + "\n")
    directory.finish([path / SCORES_NAME])


def kept_scores(host: Host, directory: StageDir, job: Job) -> OutsideScores | None:
    """Return the scores that were kept for the same images; None, after a line, if they cannot be used."""
    scores = _read(directory, [task.model.name for task in job.models], images_of(job.rounds))
    if scores is None and directory.record() is not None:
        host.say(f"{directory.path / SCORES_NAME} {_why_not(directory)}")
    return scores


def _read(directory: StageDir, models: Sequence[str], images: Sequence[Image]) -> OutsideScores | None:
    record = directory.record()
    if record is None or record.key != directory.key or not record.done or directory.damaged():
        return None
    path = directory.path / SCORES_NAME
    try:
        return check_scores([(path, json.loads(path.read_text(encoding="utf-8")))], models=models, images=images)
    except CondistillError:  # such as a name that a metric of condistill has now
        return None


def merge_again(host: Host, job: Job, figures: Path, groups: Groups) -> None:
    """Merge the scores that were kept with figures that were made again, on the main process.

    Args:
        figures: the directory of the figures.
    """
    scores = kept_scores(host, scores_directory(host, job), job)
    if scores is not None:
        merge_into(figures, scores, images_of(job.rounds), groups)


def _why_not(directory: StageDir) -> str:
    """Return why scores that were kept are not merged, and what to do."""
    record = directory.record()
    if record is not None and record.key == directory.key and directory.damaged():
        return "is missing, damaged or was edited, so it is not merged; merge the scores again with --scores"
    return "is of other images, so it is not merged; score the images again"


def merge_into(figures: Path, scores: OutsideScores, images: Sequence[Image], groups: Groups) -> None:
    """Merge scores with `metrics.json` and the table of all images in a directory of figures."""
    evaluation = Evaluation.load(figures)
    before = {name for model in evaluation.models.values() for name in model.outside}
    _add_columns(figures / IMAGES_NAME, scores, before)
    merge_scores(evaluation, scores, images, groups).write(figures / METRICS_NAME)


def _add_columns(path: Path, scores: OutsideScores, before: Collection[str]) -> None:
    """Add a column for each metric to the table of all images, instead of those that were merged before."""
    table = pq.read_table(path)
    table = table.drop_columns([name for name in table.column_names if name in {*before, *scores.values}])
    keys = list(zip(*(table.column(name).to_pylist() for name in ("model", "seed", "number")), strict=True))
    for name, by_model in scores.values.items():
        values = [by_model.get(model, {}).get((seed, number)) for model, seed, number in keys]
        table = table.append_column(name, pa.array(values, pa.float64()))
    with atomic_file(path) as partial:
        pq.write_table(table, partial)


def joined(first: OutsideScores | None, second: OutsideScores) -> OutsideScores:
    """Return the scores of both; where both have a metric of a model, those of the second."""
    if first is None:
        return second
    names = [*first.values, *second.values]
    values = {name: {**first.values.get(name, {}), **second.values.get(name, {})} for name in names}
    return OutsideScores({**first.metrics, **second.metrics}, values)


def merge_scores(
    evaluation: Evaluation, scores: OutsideScores, images: Sequence[Image], groups: Groups | None = None
) -> Evaluation:
    """Return an evaluation with the outside scores in place of those that it has.

    Args:
        images: every image of each model.
        groups: for which scores are computed too.
    """
    evaluation = _without_outside(evaluation)
    seed = evaluation.seeds[0]
    models = dict(evaluation.models)
    comparisons = list(evaluation.comparisons)
    of_groups: dict[str, dict[str, dict[str, dict[str, Score]]]] = {
        kind: {group: {name: dict(found) for name, found in of.items()} for group, of in named.items()}
        for kind, named in evaluation.groups.items()
    }
    for name, by_model in scores.values.items():
        metric = outside_metric(name, scores.metrics[name])
        for model, values in by_model.items():
            record = models[model]
            found = dict(_scores(metric, values, images, seed))
            models[model] = record.model_copy(
                update={
                    "scores": {split: {**record.scores.get(split, {}), **of} for split, of in _by_split(found, record)},
                    "outside": {**record.outside, name: scores.metrics[name]},
                }
            )
            for kind, named in (groups or {}).items():
                for group, members in named.items():
                    inside = [image for image in images if (image.seed, image.number) in members]
                    if score := _score(metric, values, inside, seed):
                        of_groups.setdefault(kind, {}).setdefault(group, {}).setdefault(model, {})[name] = score
        comparisons += _comparisons(metric, by_model, images, seed, list(models))
    return evaluation.model_copy(update={"models": models, "comparisons": tuple(comparisons), "groups": of_groups})


def _without_outside(evaluation: Evaluation) -> Evaluation:
    """Return an evaluation as it was before outside scores were merged."""
    names = {name for model in evaluation.models.values() for name in model.outside}
    if not names:
        return evaluation

    def kept(scores: Mapping[str, Score]) -> dict[str, Score]:
        return {name: score for name, score in scores.items() if name not in names}

    models = {
        name: model.model_copy(
            update={"scores": {split: kept(of) for split, of in model.scores.items()}, "outside": {}}
        )
        for name, model in evaluation.models.items()
    }
    groups = {
        kind: {group: {name: kept(of) for name, of in named.items()} for group, named in of_kind.items()}
        for kind, of_kind in evaluation.groups.items()
    }
    comparisons = tuple(each for each in evaluation.comparisons if each.metric not in names)
    return evaluation.model_copy(update={"models": models, "groups": groups, "comparisons": comparisons})


def _by_split(found: Mapping[str, dict[str, Score]], record: Any) -> Iterator[tuple[str, dict[str, Score]]]:
    for split in dict.fromkeys([*record.scores, *found]):
        yield split, found.get(split, {})


def _splits(images: Sequence[Image]) -> list[str]:
    return list(dict.fromkeys([*(image.split for image in images), ALL]))


def _inside(images: Sequence[Image], split: str) -> list[Image]:
    return [image for image in images if split in (ALL, image.split)]


def _scores(
    metric: type[Metric], values: Mapping[Place, float], images: Sequence[Image], seed: int
) -> Iterator[tuple[str, dict[str, Score]]]:
    """Yield each split with the score of a model on it."""
    for split in _splits(images):
        if score := _score(metric, values, _inside(images, split), seed):
            yield split, {metric.name: score}


def _score(metric: type[Metric], values: Mapping[Place, float], images: Sequence[Image], seed: int) -> Score | None:
    """Return the score of some images; None if there are none."""
    if not images:
        return None
    measured = metric(Context(seed=seed))
    for of_seed in dict.fromkeys(image.seed for image in images):
        part = [image for image in images if image.seed == of_seed]
        row = np.array([values[image.seed, image.number] for image in part], np.float64)
        numbers = [image.number for image in part]
        prompts = [image.prompt for image in part]
        measured.update(Samples(of_seed, prompts, {outside_feature(metric.name): row}, numbers))
    return measured.compute()


def _comparisons(
    metric: type[Metric],
    by_model: Mapping[str, Mapping[Place, float]],
    images: Sequence[Image],
    seed: int,
    order: Sequence[str],
) -> Iterator[Comparison]:
    """Yield the differences of each student to the teacher, and between students."""
    names = [name for name in order if name in by_model]
    pairs = [(name, TEACHER) for name in names if name != TEACHER and TEACHER in names]
    pairs += list(combinations([name for name in names if name != TEACHER], 2))
    for split in _splits(images):
        places = {(image.seed, image.number): image.prompt for image in _inside(images, split)}
        for one, other in pairs:
            first, second = ({place: by_model[name][place] for place in places} for name in (one, other))
            found = compare(first, second, seed, prompts=places)
            if found is not None:
                yield Comparison(metric=metric.name, split=split, one=one, other=other, **found._asdict())


def _as_file(scores: OutsideScores) -> dict[str, Any]:
    """Return the scores in the form that `check_scores` reads."""
    rows: dict[tuple[str, Place], dict[str, Any]] = {}
    for name, by_model in scores.values.items():
        for model, values in by_model.items():
            for place, value in values.items():
                row = rows.setdefault((model, place), {"model": model, "seed": place[0], "number": place[1]})
                row[name] = value
    described = {name: record.model_dump() for name, record in scores.metrics.items()}
    return {"format": FORMAT, "metrics": described, "scores": list(rows.values())}
