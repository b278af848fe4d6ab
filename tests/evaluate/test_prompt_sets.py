"""Tests of the prompts that an evaluation generates: splits, order, groups, and files that cannot be used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from condistill.config.evaluate import EvaluateSettings
from condistill.errors import CondistillError
from condistill.evaluate import prompt_sets
from condistill.evaluate.prompt_sets import (
    FilePrompts,
    PoolPrompts,
    check_prompt_files,
    concepts_of,
    groups_of,
    read_keywords,
)
from condistill.prompts.pool import PromptPool
from condistill.prompts.split import Prompts, split_indices

TABLE = "Prompt,Category\na red fox,Animals\nthe tall tower,Buildings\ntwo foxes and a cat,Animals\na sofa,\n"


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    def write_file(name: str, text: str) -> str:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return write_file


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_prompts_of_files_are_split_by_whole_keywords(write: Callable[..., str]) -> None:
    file = write("a.txt", "a red fox\na foxhole\nTwo Foxes\na sofa\n")
    prompts = FilePrompts.read(EvaluateSettings(prompt_files=(file,), keywords=("fox",)))
    assert prompts.splits == ["seen", "unseen"]
    assert prompts.choose("unseen", 9, rng()) == ["a red fox", "Two Foxes"]
    assert prompts.choose("seen", 9, rng()) == ["a foxhole", "a sofa"]


def test_without_keywords_the_words_of_the_recipe_split_and_else_nothing_does(write: Callable[..., str]) -> None:
    settings = EvaluateSettings(prompt_files=(write("a.txt", "a fox\na sofa\n"),))
    assert FilePrompts.read(settings, unseen_words=("fox",)).splits == ["seen", "unseen"]
    assert FilePrompts.read(settings, unseen_words=("cat",)).splits == ["all"]
    assert FilePrompts.read(settings).choose("all", 5, rng()) == ["a fox", "a sofa"]


def test_all_prompts_keep_the_order_of_the_files_and_fewer_are_distinct_and_random(write: Callable[..., str]) -> None:
    texts = [f"prompt {number}" for number in range(30)]
    settings = EvaluateSettings(prompt_files=(write("a.txt", "\n".join([*texts, "prompt 3", " "])),))
    said: list[str] = []
    prompts = FilePrompts.read(settings, say=said.append)
    assert said == ["evaluate.prompt_files: 30 prompts (2 duplicates and empty ones left out)"]
    assert prompts.choose("all", 30, rng()) == prompts.choose("all", 99, rng()) == texts
    chosen = prompts.choose("all", 10, rng())
    assert len({*chosen}) == 10
    assert chosen != texts[:10]
    assert chosen == prompts.choose("all", 10, rng())


def test_groups_are_by_concept_category_and_source(write: Callable[..., str]) -> None:
    files = (write("a.csv", TABLE), write("b.txt", "a fox\na foxglove\n"))
    columns = {"prompt_column": "Prompt", "category_column": "Category"}
    prompts = FilePrompts.read(EvaluateSettings(prompt_files=files, keywords=("fox", "cat"), **columns))
    rows = [(7, number, prompt) for number, prompt in enumerate(prompts)]
    assert groups_of(prompts, rows) == {
        "concept": {"cat": {(7, 2)}, "fox": {(7, 0), (7, 2), (7, 4)}},
        "category": {"Animals": {(7, 0), (7, 2)}, "Buildings": {(7, 1)}},
        "source": {"a.csv": {(7, 0), (7, 1), (7, 2), (7, 3)}, "b.txt": {(7, 4), (7, 5)}},
    }


def test_a_kind_that_does_not_divide_the_prompts_is_left_out(write: Callable[..., str]) -> None:
    prompts = FilePrompts.read(EvaluateSettings(prompt_files=(write("a.txt", "a fox\n"),), keywords=("fox",)))
    assert groups_of(prompts, [(0, 0, "a fox")]) == {}


def test_files_with_one_name_are_told_apart_by_their_folders(write: Callable[..., str]) -> None:
    files = (write("one/a.txt", "a fox\n"), write("two/a.txt", "a cat\n"))
    prompts = FilePrompts.read(EvaluateSettings(prompt_files=files))
    assert list(groups_of(prompts, [(0, 0, "a fox"), (0, 1, "a cat")])["source"]) == ["one/a.txt", "two/a.txt"]


def test_prompts_of_the_pool_know_their_concept_and_source(tmp_path: Path, write: Callable[..., str]) -> None:
    files = [write("a.txt", "a red fox\na sofa\n"), write("b.txt", "a cat\na sofa\n")]
    pool = PromptPool.build(files, tmp_path / "pool.arrow")
    prompts = PoolPrompts(
        Prompts(pool, [], *split_indices(pool, unseen_words=["fox"])), concepts_of(["fox"], miniature=False)
    )
    assert prompts.splits == ["seen", "unseen"]
    chosen = [*prompts.choose("seen", 2, rng()), *prompts.choose("unseen", 2, rng())]
    groups = groups_of(prompts, [(0, number, prompt) for number, prompt in enumerate(chosen)])
    named = {kind: {name: {chosen[n] for _, n in rows} for name, rows in of.items()} for kind, of in groups.items()}
    assert named == {
        "concept": {"fox": {"a red fox"}},
        "source": {"a.txt": {"a red fox", "a sofa"}, "b.txt": {"a cat"}},
    }


def test_the_concept_of_a_caption_of_the_miniature_is_its_shape() -> None:
    concepts = concepts_of(["fox"], miniature=True)
    assert list(concepts("a small red star at the left on snow")) == ["star"]
    assert not concepts("a fox")


def test_keywords_are_words_or_files_of_words(write: Callable[..., str]) -> None:
    file = write("words.txt", "# animals\ncat\n\npolar bear\nfox\n")
    assert read_keywords(("fox", file)) == ("fox", "cat", "polar bear")


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        (("gone.txt",), "evaluate.keywords: there is no file gone.txt; write its path"),
        ((" ",), "' ' is not a word"),
        (("dragon",), "no prompt of a.txt has any of the 1 words of evaluate.keywords"),
    ],
)
def test_keywords_that_cannot_be_used_are_refused(
    write: Callable[..., str], keywords: tuple[str, ...], message: str
) -> None:
    settings = EvaluateSettings(prompt_files=(write("a.txt", "a fox\n"),), keywords=keywords)
    with pytest.raises(CondistillError, match=message):
        FilePrompts.read(settings)


def test_a_file_of_words_without_words_is_refused(write: Callable[..., str]) -> None:
    with pytest.raises(CondistillError, match=r"words\.txt has no words; write one on each line"):
        read_keywords((write("words.txt", "# nothing\n"),))


@pytest.mark.parametrize(
    ("name", "text", "columns", "message"),
    [
        ("gone", None, {}, "evaluate.prompt_files: there is no prompt file"),
        ("a.csv", TABLE, {}, "more than one text column .* name one with evaluate.prompt_column"),
        ("a.csv", TABLE, {"prompt_column": "Promt"}, "has no column 'Promt'"),
        ("a.csv", TABLE, {"prompt_column": "Prompt", "category_column": "Kind"}, "has no column 'Kind'"),
        ("a.txt", "a fox\n", {"category_column": "Kind"}, "column 'Kind' applies to none of a.txt"),
        (
            "a.jsonl",
            '{"p": ["a fox", "a cat"], "c": "x"}\n',
            {"prompt_column": "p", "category_column": "c"},
            "has rows with several prompts or categories",
        ),
    ],
)
def test_files_that_cannot_be_used_are_refused_before_a_run(
    write: Callable[..., str], name: str, text: str | None, columns: dict[str, str], message: str
) -> None:
    file = name if text is None else write(name, text)
    settings = EvaluateSettings(prompt_files=(file,), keywords=("fox",), **columns)
    with pytest.raises(CondistillError, match=message):
        check_prompt_files(settings)


def test_more_prompts_than_memory_should_hold_and_no_prompts_are_refused(
    write: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_sets, "MOST_PROMPTS", 3)
    with pytest.raises(CondistillError, match="has more than 3 prompts"):
        FilePrompts.read(EvaluateSettings(prompt_files=(write("a.txt", "a\nb\nc\nd\n"),)))
    with pytest.raises(CondistillError, match=r"b\.txt has no prompts; add some"):
        FilePrompts.read(EvaluateSettings(prompt_files=(write("b.txt", " \n\n"),)))


@pytest.mark.parametrize("name", ["prompt_column", "category_column", "keywords"])
def test_settings_of_prompt_files_without_files_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is about the prompts of prompt_files, which is empty"):
        EvaluateSettings.model_validate({name: ["fox"] if name == "keywords" else "fox"})
