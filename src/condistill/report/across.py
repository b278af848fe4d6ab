"""Students of different runs compared image by image: the same prompts, from the same noise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from condistill.config.recipe import TEACHER
from condistill.evaluate.image_values import IMAGES_NAME
from condistill.evaluate.metrics import METRICS
from condistill.evaluate.metrics.metric import ImageKey
from condistill.evaluate.metrics.paired import compare
from condistill.evaluate.record import Comparison
from condistill.evaluate.rounds import ALL
from condistill.report.inputs import ReportInputs


@dataclass(frozen=True)
class _Images:
    """The values of all images of a run, under the names of the page."""

    seed: int
    prompts: Mapping[ImageKey, str]
    splits: Mapping[ImageKey, str]
    values: Mapping[str, Mapping[str, Mapping[ImageKey, float]]]
    """By student and metric."""


def comparisons_across(runs: Sequence[ReportInputs]) -> Iterator[Comparison]:
    """Yield the differences of every two students of different runs, on every split and on all prompts.

    Only images of the same seed, number and prompt are compared, which start from the same noise if the runs have
    latents of the same shape. A run without a table of its images, as of an older version, is left out.
    """
    tables = [table for table in map(_read, runs) if table is not None]
    for one, other in combinations(tables, 2):
        shared = {key: prompt for key, prompt in one.prompts.items() if other.prompts.get(key) == prompt}
        splits: dict[str, set[ImageKey]] = {ALL: set(shared)}
        for key in shared:
            splits.setdefault(one.splits[key], set()).add(key)
        for first in one.values:
            for second in other.values:
                yield from _compare(one, other, (first, second), splits)


def _compare(
    one: _Images, other: _Images, names: tuple[str, str], splits: Mapping[str, set[ImageKey]]
) -> Iterator[Comparison]:
    """Yield the differences of two students in every metric that both have."""
    first, second = one.values[names[0]], other.values[names[1]]
    for metric in [name for name in first if name in second and not METRICS[name].is_detail]:
        for split, keys in splits.items():
            parts = [{key: value for key, value in each[metric].items() if key in keys} for each in (first, second)]
            found = compare(parts[0], parts[1], one.seed, prompts=one.prompts)
            if found is not None:
                yield Comparison(metric=metric, split=split, one=names[0], other=names[1], **found._asdict())


def _read(run: ReportInputs) -> _Images | None:
    """Return the values of the images of a run; None without a readable table."""
    try:
        table: dict[str, list[Any]] = pq.read_table(run.grid_folder.parent / IMAGES_NAME).to_pydict()
        models, prompts, splits = table["model"], table["prompt"], table["split"]
        keys = list(zip(table["seed"], table["number"], strict=True))
    except (OSError, KeyError, pa.ArrowInvalid):
        return None
    names = {run.variants.get(name, name): name for name in run.evaluation.students if name != TEACHER}
    values: dict[str, dict[str, dict[ImageKey, float]]] = {name: {} for name in names.values()}
    for metric in [name for name in table if name in METRICS]:
        for model, key, value in zip(models, keys, table[metric], strict=True):
            if model in names and value is not None:
                values[names[model]].setdefault(metric, {})[key] = value
    known = dict(zip(keys, prompts, strict=True)), dict(zip(keys, splits, strict=True))
    return _Images(run.evaluation.seeds[0], *known, values)
