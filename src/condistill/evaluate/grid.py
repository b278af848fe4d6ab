"""The images that the report shows: the first prompts of every split, and those with the largest disagreement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from condistill.evaluate.measure import Values
from condistill.evaluate.record import Grid, GridEntry
from condistill.evaluate.rounds import Round


@dataclass(frozen=True)
class Place:
    """A row of a round."""

    round_number: int
    row: int
    split: str


@dataclass(frozen=True)
class Ranking:
    """The prompts in the order of their mean disagreement with the teacher, the largest first."""

    metric: str
    places: tuple[Place, ...]
    values: Mapping[Place, Mapping[str, float]]
    """By student."""

    @classmethod
    def of(cls, metric: str, values: Mapping[str, Values], rounds: Sequence[Round], *, sign: float = 1.0) -> Ranking:
        """Rank the rows for which every student has a value.

        Args:
            values: by student.
            sign: 1 where larger values are larger disagreement, -1 where they are smaller.
        """
        found: dict[Place, dict[str, float]] = {}
        for number, each in enumerate(rounds):
            for split, rows in each.parts.items():
                for row in range(*rows.indices(len(each.prompts))):
                    of_row = {name: known.get((each.seed, each.number(row))) for name, known in values.items()}
                    given = {name: value for name, value in of_row.items() if value is not None}
                    if given and len(given) == len(of_row):
                        found[Place(number, row, split)] = given
        means = {place: sign * float(np.mean(list(of_row.values()))) for place, of_row in found.items()}
        return cls(metric, tuple(sorted(found, key=lambda place: means[place], reverse=True)), found)


@dataclass(frozen=True)
class PictureGrid:
    """Chooses rows, and keeps their images as files."""

    folder: Path
    rounds: Sequence[Round]
    per_split: int
    """Prompts per split, and of the worst and the best prompts."""
    ranking: Ranking | None = None
    _images: dict[Place, dict[str, str]] = field(default_factory=dict)
    _correct: dict[Place, dict[str, bool]] = field(default_factory=dict)

    def places(self) -> list[Place]:
        """Return all rows that are shown, each once."""
        return list(dict.fromkeys([*self._first(), *self._worst(), *self._best()]))

    def _first(self) -> list[Place]:
        return [
            Place(0, row, split)
            for split, rows in self.rounds[0].parts.items()
            for row in range(rows.start, rows.stop)[: self.per_split]
        ]

    def _worst(self) -> tuple[Place, ...]:
        return self.ranking.places[: self.per_split] if self.ranking else ()

    def _best(self) -> tuple[Place, ...]:
        """Return the rows with the smallest disagreement, the smallest first; none of the worst."""
        rest = self.ranking.places[self.per_split :] if self.ranking else ()
        return rest[::-1][: self.per_split]

    def add(self, model: str, place: Place, image: NDArray[np.uint8], *, correct: bool | None) -> None:
        """Write one image, and note whether the classifier found it correct (None: it was not classified)."""
        seed = f"seed{self.rounds[place.round_number].seed}-" if place.round_number else ""
        file = f"{seed}{place.split}-{place.row:04d}-{model}.png"
        self.folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(self.folder / file)
        self._images.setdefault(place, {})[model] = file
        if correct is not None:
            self._correct.setdefault(place, {})[model] = correct

    def record(self) -> Grid:
        """Return which files belong to which prompt."""
        splits: dict[str, list[GridEntry]] = {split: [] for split in self.rounds[0].parts}
        for place in self._first():
            splits[place.split].append(self._entry(place))
        return Grid(
            splits={split: tuple(entries) for split, entries in splits.items()},
            ranked_by=self.ranking.metric if self.ranking else None,
            worst=tuple(map(self._entry, self._worst())),
            best=tuple(map(self._entry, self._best())),
        )

    def _entry(self, place: Place) -> GridEntry:
        of_round = self.rounds[place.round_number]
        return GridEntry(
            prompt=of_round.prompts[place.row],
            images=self._images.get(place, {}),
            correct=self._correct.get(place, {}),
            split=place.split,
            seed=of_round.seed,
            values=dict(self.ranking.values.get(place, {})) if self.ranking else {},
        )
