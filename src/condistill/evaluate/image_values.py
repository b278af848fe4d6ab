"""Values of every image: comparisons of models, scores of groups of prompts, and a table for further analysis."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from condistill.config.recipe import TEACHER
from condistill.evaluate.measure import Values
from condistill.evaluate.metrics.mean import score_of_values
from condistill.evaluate.metrics.metric import METRICS, ImageKey, Score
from condistill.evaluate.metrics.paired import compare
from condistill.evaluate.record import Comparison
from condistill.evaluate.rounds import ALL, Round
from condistill.utils.atomic import atomic_file

IMAGES_NAME = "images.parquet"
"""The table in the directory of the figures."""
Groups = Mapping[str, Mapping[str, set[ImageKey]]]
"""By kind and group, the images that belong to it."""
GroupScores = dict[str, dict[str, dict[str, dict[str, Score]]]]
"""By kind, group, model and metric."""


@dataclass(frozen=True)
class ImageValues:
    """The values of all images of all models."""

    rounds: Sequence[Round]
    models: Mapping[str, Mapping[str, Values]]
    """By model and metric."""

    @property
    def metrics(self) -> list[str]:
        """The metrics that have a value per image, in the order of the registry."""
        return [name for name in METRICS if any(name in of_model for of_model in self.models.values())]

    @cached_property
    def prompts(self) -> dict[ImageKey, str]:
        """The prompt of every image."""
        return {
            (each.seed, each.number(row)): prompt for each in self.rounds for row, prompt in enumerate(each.prompts)
        }

    @cached_property
    def splits(self) -> dict[ImageKey, str]:
        """The split of every image."""
        return {
            (each.seed, each.number(row)): split
            for each in self.rounds
            for split, rows in each.parts.items()
            for row in range(*rows.indices(len(each.prompts)))
        }

    def comparisons(self) -> Iterator[Comparison]:
        """Yield the difference of every student and the teacher, and of every two students, on every split."""
        students = [name for name in self.models if name != TEACHER]
        pairs = [(student, TEACHER) for student in students if TEACHER in self.models]
        pairs += list(combinations(students, 2))
        seed = self.rounds[0].seed
        for metric in self.metrics:
            for one, other in pairs:
                first, second = (self.models[name].get(metric, {}) for name in (one, other))
                for split in dict.fromkeys([*self.rounds[0].parts, ALL]):
                    of_split = self._of_split(first, split), self._of_split(second, split)
                    if (found := compare(of_split[0], of_split[1], seed, prompts=self.prompts)) is not None:
                        yield Comparison(metric=metric, split=split, one=one, other=other, **found._asdict())

    def _of_split(self, values: Values, split: str) -> Values:
        return values if split == ALL else {key: value for key, value in values.items() if self.splits[key] == split}

    def groups(self, groups: Groups) -> GroupScores:
        """Return the scores of groups of prompts; groups without a value are left out."""
        scores: GroupScores = {}
        for kind, of_kind in groups.items():
            for group, members in of_kind.items():
                for model, of_model in self.models.items():
                    found = {
                        metric: score
                        for metric in self.metrics
                        if (score := self._mean(metric, of_model.get(metric, {}), members)) is not None
                    }
                    if found:
                        scores.setdefault(kind, {}).setdefault(group, {})[model] = found
        return scores

    def _mean(self, metric: str, values: Values, members: set[ImageKey]) -> Score | None:
        """Return the mean over some images, where every seed counts alike, with its interval over prompts."""
        chosen = {key: values[key] for key in members & values.keys()}
        return score_of_values(METRICS[metric], chosen, self.prompts, seed=self.rounds[0].seed)

    def write(self, path: Path) -> None:
        """Write a table with one row per image and model, and one column per metric; a value may be missing."""
        columns = {name: pa.float64() for name in self.metrics}
        schema = pa.schema(
            {
                "model": pa.string(),
                "seed": pa.int64(),
                "number": pa.int64(),
                "split": pa.string(),
                "prompt": pa.string(),
                **columns,
            }
        )
        keys = list(self.prompts)
        with atomic_file(path) as partial, pq.ParquetWriter(partial, schema) as writer:
            for model, of_model in self.models.items():
                writer.write_table(
                    pa.table(
                        {
                            "model": [model] * len(keys),
                            "seed": [seed for seed, _ in keys],
                            "number": [number for _, number in keys],
                            "split": [self.splits[key] for key in keys],
                            "prompt": [self.prompts[key] for key in keys],
                            **{name: [of_model.get(name, {}).get(key) for key in keys] for name in columns},
                        },
                        schema=schema,
                    )
                )
