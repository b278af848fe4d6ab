"""The prompts that an evaluation generates: prompts of the text pool, or of files that the recipe names.

A prompt set has splits, from which prompts are chosen, and it knows groups of prompts, by kind: `concept` (the keywords
that a prompt contains; for the miniature, its shape), `category` (a column of the files) and `source` (the file).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from condistill.config.evaluate import EvaluateSettings
from condistill.config.sections import MINIATURE
from condistill.errors import CondistillError
from condistill.prompts import stage as prompts_stage
from condistill.prompts.lines import read_lines
from condistill.prompts.readers import check_column, is_tabular, read_prompts
from condistill.prompts.split import Prompts
from condistill.prompts.text import clean_prompt
from condistill.prompts.words import find_words, has_word
from condistill.run.context import Run

CONCEPT, CATEGORY, SOURCE = "concept", "category", "source"
"""Kinds of groups."""
MOST_PROMPTS = 1_000_000
"""Prompts of files, which are held in memory."""
_CHECKED = 20
"""Prompts of each file that are read before a run."""
_WORD_FILE = ".txt"

Concepts = Callable[[str], Sequence[str]]
"""Returns the concepts of a prompt."""
Groups = dict[str, dict[str, set[tuple[int, int]]]]
"""By kind and group, the seed and number of every sample."""


class PromptSet(Protocol):
    """Prompts to evaluate."""

    @property
    def splits(self) -> Sequence[str]:
        """The names of the splits to evaluate."""

    def choose(self, split: str, n: int, rng: np.random.Generator) -> list[str]:
        """Return `n` distinct prompts of a split, or all of them if the split has fewer."""

    def groups(self, prompt: str) -> Mapping[str, Sequence[str]]:
        """Return the groups of a prompt that was chosen, by kind."""


def groups_of(prompts: PromptSet, rows: Iterable[tuple[int, int, str]]) -> Groups:
    """Return the groups of samples by kind; a kind is left out if it does not divide the samples.

    Args:
        rows: the seed, the number and the prompt of every sample.
    """
    groups: Groups = {}
    samples = set()
    for seed, number, prompt in rows:
        samples.add((seed, number))
        for kind, names in prompts.groups(prompt).items():
            for name in names:
                groups.setdefault(kind, {}).setdefault(name, set()).add((seed, number))
    return {
        kind: dict(sorted(of_kind.items()))
        for kind, of_kind in groups.items()
        if any(members != samples for members in of_kind.values())
    }


def read_keywords(entries: Iterable[str]) -> tuple[str, ...]:
    """Return the words of `evaluate.keywords`, whose entries are words or text files with one word on each line.

    Empty lines, and lines that begin with #, are left out.

    Raises:
        CondistillError: a file cannot be read or has no words, or a word shows nothing.
    """
    words: dict[str, None] = {}
    for entry in entries:
        if not entry.lower().endswith(_WORD_FILE):
            words[entry] = None
            continue
        path = Path(entry)
        if not path.is_file():
            raise CondistillError(
                f"evaluate.keywords: there is no file {path}; write its path from the folder of the recipe, or words"
            )
        lines = [line.strip() for line in read_lines(path)]
        found = [line for line in lines if line and not line.startswith("#")]
        if not found:
            raise CondistillError(f"evaluate.keywords: {path} has no words; write one on each line")
        words |= dict.fromkeys(found)
    has_word("", tuple(words))  # reports a word that shows nothing
    return tuple(words)


def shape_of(prompt: str) -> list[str]:
    """Return the shape that a caption of the miniature's world names; nothing for another prompt."""
    from condistill.miniature.world import parse

    try:
        return [parse(prompt).shape]
    except ValueError:
        return []


def concepts_of(words: Sequence[str], *, miniature: bool) -> Concepts:
    """Return the function of a prompt's concepts: its keywords, or its shape in the miniature's world."""
    return shape_of if miniature else lambda prompt: find_words(prompt, words)


@dataclass
class PoolPrompts:
    """Prompts of the text pool of a run."""

    prompts: Prompts
    concepts: Concepts
    _chosen: dict[str, int] = field(default_factory=dict)
    """The indices into the pool of the prompts that were chosen."""

    @property
    def splits(self) -> Sequence[str]:
        """`seen` and `unseen`, or only `all` if no prompt is unseen."""
        return self.prompts.splits

    def choose(self, split: str, n: int, rng: np.random.Generator) -> list[str]:
        """Return random prompts; see `Prompts.choose`."""
        indices = self.prompts.choose_indices(split, n, rng)
        texts = self.prompts.pool.take(indices)
        self._chosen |= dict(zip(texts, indices, strict=True))
        return texts

    def groups(self, prompt: str) -> Mapping[str, Sequence[str]]:
        """Return the concepts and the source of a prompt."""
        index = self._chosen.get(prompt)
        sources = [name for name, rows in self._ranges().items() if index is not None and index in rows]
        return {CONCEPT: self.concepts(prompt), SOURCE: sources}

    def _ranges(self) -> Mapping[str, range]:
        try:
            return self.prompts.pool.source_ranges()
        except CondistillError:  # sources with one name, or the pool of an older version
            return {}


@dataclass(frozen=True)
class _Row:
    """What is known of one prompt of a file."""

    source: str
    category: str


class FilePrompts:
    """The distinct prompts of files, in their order."""

    def __init__(self, rows: Mapping[str, _Row], keywords: Sequence[str], concepts: Concepts) -> None:
        self._rows, self._texts, self._concepts = rows, tuple(rows), concepts
        unseen = np.fromiter((has_word(text, keywords) for text in self._texts), bool, len(self._texts))
        by_split = {"seen": np.flatnonzero(~unseen), "unseen": np.flatnonzero(unseen)}
        if not unseen.any():
            by_split = {"all": np.arange(len(self._texts))}
        self._indices: dict[str, NDArray[np.int64]] = {name: found for name, found in by_split.items() if len(found)}

    @classmethod
    def read(
        cls,
        settings: EvaluateSettings,
        *,
        unseen_words: Sequence[str] = (),
        miniature: bool = False,
        say: Callable[[str], object] = lambda _: None,
    ) -> FilePrompts:
        """Read the prompts of `evaluate.prompt_files`.

        Args:
            unseen_words: of the recipe, for settings without keywords.
            miniature: whether the concept of a prompt is its shape.
            say: called with a line about prompts that are left out.

        Raises:
            CondistillError: a file cannot be used, there are no prompts or too many, or no prompt has a keyword.
        """
        check_prompt_files(settings)
        keywords = read_keywords(settings.keywords)
        words = keywords or tuple(unseen_words)
        found = cls(_read_files(settings, say), words, concepts_of(words, miniature=miniature))
        if keywords and "unseen" not in found.splits:
            raise CondistillError(
                f"no prompt of {_names(settings.prompt_files)} has any of the {len(keywords)} words of "
                "evaluate.keywords, so no prompt is unseen; correct the words, or leave them out"
            )
        return found

    def __len__(self) -> int:
        return len(self._texts)

    def __iter__(self) -> Any:
        return iter(self._texts)

    @property
    def splits(self) -> Sequence[str]:
        """`seen` and `unseen` where they have prompts, or only `all` if no prompt is unseen."""
        return list(self._indices)

    def choose(self, split: str, n: int, rng: np.random.Generator) -> list[str]:
        """Return `n` random prompts of a split; if it has no more, all of them in the order of the files."""
        indices = self._indices[split]
        chosen = indices if n >= len(indices) else rng.choice(indices, n, replace=False)
        return [self._texts[index] for index in chosen.tolist()]

    def groups(self, prompt: str) -> Mapping[str, Sequence[str]]:
        """Return the concepts, the category and the file of a prompt."""
        row = self._rows.get(prompt)
        if row is None:
            return {}
        category = [row.category] if row.category else []
        return {CONCEPT: self._concepts(prompt), CATEGORY: category, SOURCE: [row.source]}


def _read_files(settings: EvaluateSettings, say: Callable[[str], object]) -> dict[str, _Row]:
    """Return what is known of every distinct prompt of the files."""
    rows: dict[str, _Row] = {}
    read = 0
    for file, source in _sources(settings.prompt_files).items():
        for text, category in islice(_pairs(file, settings), MOST_PROMPTS + 1 - read):
            read += 1
            prompt = clean_prompt(text)[0]
            if prompt:
                rows.setdefault(prompt, _Row(source, clean_prompt(category)[0]))
        if read > MOST_PROMPTS:
            raise CondistillError(
                f"evaluate.prompt_files has more than {MOST_PROMPTS:,} prompts; write those to evaluate to a file"
            )
    if not rows:
        raise CondistillError(f"evaluate.prompt_files: {_names(settings.prompt_files)} has no prompts; add some")
    if read > len(rows):
        say(f"evaluate.prompt_files: {len(rows):,} prompts ({read - len(rows):,} duplicates and empty ones left out)")
    return rows


def check_prompt_files(settings: EvaluateSettings) -> None:
    """Check that the first prompts of every file, and all keywords, can be read.

    Raises:
        CondistillError: names the file, the column or the word.
    """
    read_keywords(settings.keywords)
    for file in settings.prompt_files:
        for _ in islice(_pairs(file, settings), _CHECKED):
            pass
    tables = [file for file in settings.prompt_files if is_tabular(file)]
    for column in (settings.prompt_column, settings.category_column):
        if column and not tables:
            _naming(lambda column=column: check_column(settings.prompt_files, column))  # type: ignore[misc]


def _pairs(file: str, settings: EvaluateSettings) -> Iterable[tuple[str, str]]:
    """Yield each prompt of a file with its category, which is empty where the file has no columns."""
    if not is_tabular(file):
        prompts = _naming(lambda: read_prompts(file))
        yield from ((prompt, "") for prompt in prompts)
        return
    prompts = _naming(lambda: read_prompts(file, column=settings.prompt_column))
    if settings.category_column is None:
        yield from ((prompt, "") for prompt in prompts)
        return
    categories = _naming(lambda: read_prompts(file, column=settings.category_column))
    try:
        yield from zip(prompts, categories, strict=True)
    except ValueError as error:
        raise CondistillError(
            f"evaluate.category_column: {file} has rows with several prompts or categories; write one of each in a row"
        ) from error


def _naming(read: Callable[[], Any]) -> Any:
    """Return what a reader returns; its error names the setting that chooses the column here."""
    try:
        return read()
    except CondistillError as error:
        message = str(error).replace("`column`", "evaluate.prompt_column")
        raise CondistillError(f"evaluate.prompt_files: {message}") from error


def _sources(files: Sequence[str]) -> dict[str, str]:
    """Return the name of each file, with its folder where two files have the same name."""
    names = [Path(file).name for file in files]
    return {
        file: name if names.count(name) == 1 else f"{Path(file).parent.name}/{name}"
        for file, name in zip(files, names, strict=True)
    }


def _names(files: Sequence[str]) -> str:
    return ", ".join(Path(file).name for file in files)


def open_prompt_set(run: Run) -> PromptSet:
    """Return the prompts that a run evaluates.

    Raises:
        CondistillError: `evaluate.prompt_files` cannot be used.
    """
    return run.once("evaluate/prompt_set", lambda: _open(run))


def _open(run: Run) -> PromptSet:
    recipe = run.recipe
    settings, words = recipe.evaluate, recipe.prompts.unseen_words
    miniature = MINIATURE in (settings.classifier, *settings.prompt_files) or (
        not settings.prompt_files and MINIATURE in recipe.prompts.files
    )
    if settings.prompt_files:
        return FilePrompts.read(settings, unseen_words=words, miniature=miniature, say=run.say)
    return PoolPrompts(prompts_stage.open(run), concepts_of(words, miniature=miniature))


def prompt_set_inputs(run: Run) -> dict[str, Any]:
    """Return what the prompts that a run evaluates depend on, by name, for the key of a stage."""
    settings = run.recipe.evaluate
    if not settings.prompt_files:
        return {prompts_stage.NAME: prompts_stage.key(run)}
    files = [Path(file) for file in settings.prompt_files]
    hashes = {f"evaluate.prompt_files[{n}] file {file.name}": file for n, file in enumerate(files) if file.is_file()}
    return {
        "evaluate.prompt_files": [file.name for file in files],
        **{name: run.directory.hashes.of(file) for name, file in hashes.items()},
        "evaluate.prompt_column": settings.prompt_column,
        "evaluate.keywords": list(read_keywords(settings.keywords) or run.recipe.prompts.unseen_words),
    }
