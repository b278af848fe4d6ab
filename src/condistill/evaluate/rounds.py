"""The prompts of an evaluation, one round of them per evaluation seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from condistill.config.evaluate import EvaluateSettings
from condistill.utils.randomness import Stream, generator

ALL = "all"
"""The split that holds every prompt of a round."""


@dataclass(frozen=True)
class Round:
    """The prompts of one evaluation seed, and the rows of each split; `all` holds every row."""

    seed: int
    prompts: list[str]
    splits: dict[str, slice]
    numbers: tuple[int, ...] = ()
    """By row, the number that its noise depends on; empty: the number of the row."""

    @property
    def parts(self) -> dict[str, slice]:
        """The splits that do not overlap: every split but `all`, or `all` where it is the only one."""
        return {name: rows for name, rows in self.splits.items() if name != ALL} or self.splits

    def number(self, row: int) -> int:
        """Return the number that the noise of a row depends on."""
        return self.numbers[row] if self.numbers else row

    def head(self, per_split: int) -> Round:
        """Return the first prompts of every split as a round, whose noise is the same."""
        prompts: list[str] = []
        numbers: list[int] = []
        splits: dict[str, slice] = {}
        for name, rows in self.parts.items():
            chosen = range(rows.start, min(rows.stop, rows.start + per_split))
            splits[name] = slice(len(prompts), len(prompts) + len(chosen))
            prompts += [self.prompts[row] for row in chosen]
            numbers += [self.number(row) for row in chosen]
        return Round(self.seed, prompts, {**splits, ALL: slice(0, len(prompts))}, tuple(numbers))

    def count(self, split: str) -> int:
        """Return the number of prompts of a split."""
        return len(range(*self.splits[split].indices(len(self.prompts))))


def choose_rounds(
    settings: EvaluateSettings, choose: Callable[[str, int, np.random.Generator], list[str]], splits: Sequence[str]
) -> list[Round]:
    """Return one round per evaluation seed.

    Args:
        choose: returns up to n distinct prompts of a split, given the split, n and a random generator.
    """
    rounds = []
    for seed in settings.seeds:
        prompts: list[str] = []
        rows: dict[str, slice] = {}
        for number, split in enumerate(splits):
            rng = generator(seed, Stream.EVALUATION_PROMPTS, number)
            chosen = choose(split, settings.prompts_per_split, rng)
            rows[split] = slice(len(prompts), len(prompts) + len(chosen))
            prompts += chosen
        rows[ALL] = slice(0, len(prompts))
        rounds.append(Round(seed, prompts, rows))
    return rounds


def diversity_rounds(first: Round, settings: EvaluateSettings) -> list[Round]:
    """Return rounds of the same prompts from different seeds, to measure how much their images differ.

    A prompt has the same number in all of them. Their noise is of a stream of its own.
    """
    per_split = -(-settings.diversity_prompts // len(first.parts))
    head = first.head(per_split)
    prompts = head.prompts[: settings.diversity_prompts]
    if not prompts:
        return []
    return [
        Round((first.seed + index) % 2**63, prompts, {ALL: slice(0, len(prompts))}, head.numbers[: len(prompts)])
        for index in range(settings.diversity_seeds)
    ]
