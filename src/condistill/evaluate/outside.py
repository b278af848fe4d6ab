"""Scores of single images that another program computed, in a JSON file (docs/evaluation.md has the schema)::

    {"format": 1,
     "metrics": {"hpsv3": {"label": "HPSv3", "direction": "higher", "description": "..."}},
     "scores": [{"model": "student", "image": "000000000012.png", "hpsv3": 9.1},
                {"model": "teacher", "seed": 0, "number": 12, "hpsv3": 9.4}]}

An image is named by the file that `--images` wrote, or by its seed and its number in that seed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from condistill.errors import CondistillError, nearest, system_message
from condistill.evaluate.export_images import Image, image_number
from condistill.evaluate.metrics import METRICS
from condistill.evaluate.outside_metric import OutsideRecord
from condistill.utils.text import shorten

FORMAT = 1
_MOST_LINES = 20
"""Mistakes that a message lists."""
_MOST_NAMED = 3
"""Missing images that a line names."""
_LARGEST = 1e30
"""Of a score, in absolute value: means, squares and differences of such scores are finite."""
_PLACE = ("model", "image", "seed", "number")
_RESERVED = {*_PLACE, "prompt", "split"}
_NAME = re.compile(r"[a-z][a-z0-9_]{0,59}")
Place = tuple[int, int]
"""The seed and the number of an image."""


@dataclass
class OutsideScores:
    """Scores of one or several files."""

    metrics: dict[str, OutsideRecord] = field(default_factory=dict)
    values: dict[str, dict[str, dict[Place, float]]] = field(default_factory=dict)
    """By metric and model."""

    def models(self, metric: str) -> list[str]:
        """Return the models that have scores of a metric."""
        return list(self.values.get(metric, {}))


def load_scores(files: Sequence[Path]) -> list[tuple[Path, dict[str, Any]]]:
    """Return the content of score files, after the checks that need no evaluation.

    Raises:
        CondistillError: a file cannot be read or has another form.
    """
    return [(path, _load(path)) for path in files]


def check_scores(
    files: Sequence[tuple[Path, Mapping[str, Any]]], *, models: Collection[str], images: Sequence[Image]
) -> OutsideScores:
    """Return the scores of several files, which together have every image of each model that they name.

    Args:
        files: see `load_scores`.
        models: the names of the models of the evaluation.
        images: every image of each model, in the order of their file names.

    Raises:
        CondistillError: lists the mistakes of all files.
    """
    scores = OutsideScores()
    lines = [line for path, content in files for line in _add(scores, path, content, models, images)]
    lines += _missing(scores, images)
    if lines:
        more = [f"  and {len(lines) - _MOST_LINES:,} more"] if len(lines) > _MOST_LINES else []
        names = ", ".join(path.name for path, _ in files)
        raise CondistillError(
            f"{names} cannot be merged, {len(lines):,} mistake(s):\n" + "\n".join([*lines[:_MOST_LINES], *more])
        )
    return scores


def _load(path: Path) -> dict[str, Any]:
    """Return the content of a file with the right format and its three keys."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CondistillError(f"--scores: {system_message(error)}") from error
    except (ValueError, RecursionError) as error:
        raise CondistillError(f"--scores: {path} is not JSON: {shorten(str(error), 200)}; write it again") from error
    if not isinstance(content, dict):
        raise CondistillError(f"--scores: {path} is no JSON object; write one with format, metrics and scores")
    if content.get("format") != FORMAT or isinstance(content["format"], bool):
        raise CondistillError(
            f"--scores: {path} has format {content.get('format')!r}, and this version of condistill reads {FORMAT}"
        )
    if unknown := sorted(content.keys() - {"format", "metrics", "scores"}):
        raise CondistillError(
            f"--scores: {path} has the key {shorten(unknown[0])!r}; a file of scores has format, metrics and scores"
        )
    if not isinstance(content.get("metrics"), dict) or not content["metrics"]:
        raise CondistillError(f'--scores: {path} needs metrics, such as {{"hpsv3": {{"label": "HPSv3", ...}}}}')
    if not isinstance(content.get("scores"), list) or not content["scores"]:
        raise CondistillError(f"--scores: {path} needs scores, a list with an object for each image of each model")
    return content


def _add(
    scores: OutsideScores,
    path: Path,
    content: Mapping[str, Any],
    models: Collection[str],
    images: Sequence[Image],
) -> Iterator[str]:
    """Add the scores of a file, and yield a line for each of its mistakes."""
    known: dict[str, OutsideRecord] = {}
    for name, described in content["metrics"].items():
        record = yield from _metric(scores, path, name, described)
        if record is not None:
            known[name] = record
    if not known:
        return
    places = {(image.seed, image.number) for image in images}
    for number, row in enumerate(content["scores"]):
        at = f"  {path.name}, scores[{number}]"
        if not isinstance(row, dict):
            yield f"{at} is no object; write one with model, image and scores"
            continue
        if unknown := sorted(row.keys() - {*_RESERVED, *content["metrics"]}):
            yield f"{at}: {shorten(unknown[0])!r} is not in metrics{nearest(unknown[0], content['metrics'])}"
        model = row.get("model")
        if not isinstance(model, str) or model not in models:
            yield f"{at}: there is no model {shorten(str(model))!r}{nearest(str(model), models)}"
            continue
        try:
            place = _place(row, images, places)
        except ValueError as mistake:
            yield f"{at}: {mistake}"
            continue
        for name in known.keys() & row.keys():
            value = _number(row[name])
            if value is None:
                yield (
                    f"{at}: {name} is {shorten(repr(row[name]))}, which is no number between -{_LARGEST:g} and "
                    f"{_LARGEST:g}"
                )
                continue
            of_model = scores.values[name].setdefault(model, {})
            if of_model.setdefault(place, value) != value:
                yield f"{at}: {name} of {model} and {_shown(place)} is given twice, with different values; remove one"


def _metric(scores: OutsideScores, path: Path, name: str, described: Any) -> Generator[str, None, OutsideRecord | None]:
    """Add the description of a metric and return it; None, after a line, where it cannot be used."""
    at = f"  {path.name}, metrics.{shorten(name)}"
    if not _NAME.fullmatch(name) or name in _RESERVED:
        yield f"{at} cannot name a metric: use a-z, 0-9 and _, and not {', '.join(sorted(_RESERVED))}"
        return None
    if name in METRICS:
        yield f"{at} is the name of a metric that condistill computes; choose another name"
        return None
    try:
        record = OutsideRecord.model_validate(described)
    except ValidationError as error:
        for mistake in error.errors():
            key = ".".join(map(str, mistake["loc"])) or "it"
            yield f"{at}: {key}: {mistake['msg'][0].lower()}{mistake['msg'][1:]}; give label and direction"
        return None
    if scores.metrics.setdefault(name, record) != record:
        yield f"{at} is described in another way than in another file; give it the same label and direction in both"
        return None
    scores.values.setdefault(name, {})
    return record


def _place(row: Mapping[str, Any], images: Sequence[Image], places: Collection[Place]) -> Place:
    """Return the seed and number of the image of a row.

    Raises:
        ValueError: says what is wrong.
    """
    by_file, by_number = "image" in row, bool({"seed", "number"} & row.keys())
    if by_file == by_number:
        raise ValueError("name the image by its file (image), or by seed and number, and not by both")
    if by_file:
        index = image_number(row["image"])
        if index is None:
            raise ValueError(f"image is {shorten(repr(row['image']))}, which is no name such as 000000000012.png")
        if index >= len(images):
            raise ValueError(
                f"image {row['image']} is outside of the evaluation, which has {len(images):,} images per model"
            )
        return images[index].seed, images[index].number
    seed, number = row.get("seed"), row.get("number")
    if type(seed) is not int or type(number) is not int:
        raise ValueError("seed and number are whole numbers, and both are needed")
    if (seed, number) not in places:
        raise ValueError(f"{_shown((seed, number))} is outside of the evaluation")
    return seed, number


def _number(value: object) -> float | None:
    """Return a score; None for what is no number, or one that no mean of many can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -_LARGEST <= value <= _LARGEST:
        return None
    return float(value)


def _missing(scores: OutsideScores, images: Sequence[Image]) -> Iterator[str]:
    """Yield a line for every model that has scores of some images only, and for metrics without scores."""
    for name, by_model in scores.values.items():
        if not by_model:
            yield f"  {name} has no score of any image; add them, or remove the metric"
        for model, values in by_model.items():
            absent = [image for image in images if (image.seed, image.number) not in values]
            if absent:
                named = ", ".join(image.file_name for image in absent[:_MOST_NAMED])
                more = f" and {len(absent) - _MOST_NAMED:,} more" if len(absent) > _MOST_NAMED else ""
                yield f"  {name} of {model} is missing for {len(absent):,} of {len(images):,} images: {named}{more}"


def _shown(place: Place) -> str:
    return f"seed {place[0]}, number {place[1]}"
