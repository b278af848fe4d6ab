"""Tests of protocols: those that come with condistill, files of users, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from condistill.config.evaluate import EvaluateSettings
from condistill.config.recipe import Recipe
from condistill.errors import CondistillError
from condistill.evaluate.prompt_sets import FilePrompts, read_keywords
from condistill.evaluate.protocols import (
    Protocol,
    evaluate_settings,
    load_protocol,
    protocol_names,
    protocol_of_prompts,
)
from condistill.prompts.words import has_word

RECIPE = {
    "teacher": {"pipeline": "org/teacher"},
    "prompts": {"files": ["pool.txt"]},
    "student": {"width": 0.5},
    "evaluate": {
        "batch_size": 3,
        "reference": "mine.npz",
        "prompt_files": ["mine.txt"],
        "networks": {"inception": "/inception.pth", "clip": "/clip"},
    },
}


def recipe_with(protocol: Protocol, *overrides: str) -> Recipe:
    return Recipe.parse(json.dumps(RECIPE), [*protocol.overrides(), *overrides])


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    def write_file(text: str, name: str = "mine.yaml") -> str:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return write_file


def test_four_protocols_come_with_the_package() -> None:
    assert protocol_names() == ["coco-30k", "prompt-set", "quick-look", "unseen-animals"]
    assert all(load_protocol(name).description for name in protocol_names())


def test_the_protocol_of_the_paper_has_its_settings() -> None:
    given = ("evaluate.prompt_files=[captions.txt]", "evaluate.reference=coco.npz")
    protocol = load_protocol("coco-30k")
    protocol.check(Recipe.parse(json.dumps(RECIPE)).evaluate, given)
    settings = recipe_with(protocol, *given).evaluate
    assert (settings.prompts_per_split, settings.num_inference_steps, settings.guidance_scale) == (30_000, 25, 7.5)
    assert (settings.resize, settings.resize_filter) == (256, "bicubic")
    assert settings.networks.clip == "laion/CLIP-ViT-g-14-laion2B-s12B-b42K"
    assert settings.networks.inception == "/inception.pth"  # the recipe's
    assert settings.batch_size == 3
    assert settings.keywords == ()


def test_the_prompts_and_the_reference_of_the_recipe_are_not_those_of_a_protocol() -> None:
    with pytest.raises(CondistillError, match="the protocol coco-30k needs what is not given") as refused:
        load_protocol("coco-30k").check(Recipe.parse(json.dumps(RECIPE)).evaluate, ["evaluate.batch_size=2"])
    lines = str(refused.value).splitlines()[1:]
    assert [line.split(":")[0].strip() for line in lines] == ["evaluate.prompt_files", "evaluate.reference"]
    assert lines[0].endswith("one per image; add --prompts FILE")
    assert recipe_with(load_protocol("coco-30k")).evaluate.reference is None


def test_a_network_that_neither_recipe_nor_command_names_is_missing() -> None:
    with pytest.raises(CondistillError, match=r"networks\.inception: .*; add -s evaluate\.networks\.inception=PATH"):
        load_protocol("coco-30k").with_prompts(["a.txt"]).check(EvaluateSettings(), ["evaluate.reference=x.npz"])


def test_settings_without_a_recipe_are_those_of_the_protocol_and_the_command(tmp_path: Path) -> None:
    protocol = load_protocol("prompt-set").with_prompts([str(tmp_path / "a.csv")])
    settings = evaluate_settings(protocol, ["evaluate.batch_size=2", "evaluate.networks.clip=org/clip"])
    assert (settings.prompt_files, settings.category_column) == ((str(tmp_path / "a.csv"),), "Category")
    assert (settings.batch_size, settings.networks.clip) == (2, "org/clip")


@pytest.mark.parametrize(
    ("protocol", "change", "message"),
    [
        (None, "distill.steps=3", "-s takes settings of evaluate only, and got distill"),
        (None, "evaluate=3", "evaluate is a section"),
        (None, "evaluate.seed=3", "evaluate.seed is not a setting; did you mean 'seeds'"),
        (None, "evaluate.prompt_column=a", "prompt_column is about the prompts of prompt_files, which is empty"),
        ("prompt-set", "evaluate.batch_size=3", "the protocol prompt-set needs what is not given"),
    ],
)
def test_settings_without_a_recipe_that_cannot_be_used_are_refused(
    protocol: str | None, change: str, message: str
) -> None:
    with pytest.raises(CondistillError, match=message):
        evaluate_settings(load_protocol(protocol) if protocol else None, [change])


def test_prompt_files_are_an_evaluation_with_the_name_of_the_first() -> None:
    protocol = protocol_of_prompts(["/x/My prompts.txt", "/x/b.txt"])
    assert (protocol.name, protocol.description) == ("My-prompts", "the prompts of My prompts.txt, b.txt")
    assert recipe_with(protocol).evaluate.prompt_files == ("/x/My prompts.txt", "/x/b.txt")


def test_captions_with_animals_are_the_unseen_split(tmp_path: Path) -> None:
    captions = tmp_path / "captions.txt"
    captions.write_text("A herd of Zebras\na man rides a horse-drawn cart\na catalogue\nSki poles in snow\n", "utf-8")
    protocol = load_protocol("unseen-animals")
    change = f"evaluate.prompt_files=[{captions}]"
    prompts = FilePrompts.read(recipe_with(protocol, change, "evaluate.reference=x.npz").evaluate)
    assert len(prompts.choose("unseen", 9, None)) == 2  # type: ignore[arg-type]
    assert prompts.choose("seen", 9, None) == ["a catalogue", "Ski poles in snow"]  # type: ignore[arg-type]


def test_the_list_of_animals_has_the_ten_of_coco_and_no_common_other_word() -> None:
    words = read_keywords(load_protocol("unseen-animals").evaluate["keywords"])
    assert {"bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe"} <= {*words}
    assert len({*words}) == len(words) > 100
    assert not has_word("a computer mouse, a baseball bat, a construction crane and a hot plate", words)


def test_settings_that_a_protocol_does_not_name_stay() -> None:
    settings = recipe_with(load_protocol("quick-look")).evaluate
    assert settings.prompts_per_split == 200
    assert (settings.prompt_files, settings.reference) == (("mine.txt",), "mine.npz")


def test_a_change_on_the_command_line_wins() -> None:
    assert recipe_with(load_protocol("quick-look"), "evaluate.prompts_per_split=7").evaluate.prompts_per_split == 7


def test_a_file_is_a_protocol_whose_paths_start_at_its_folder(write: Callable[..., str], tmp_path: Path) -> None:
    write("fox\n", "words.txt")
    file = write("evaluate: {prompt_files: [./a.txt], keywords: [words.txt, cat], reference: stats.npz}")
    protocol = load_protocol(file)
    assert (protocol.name, protocol.description) == ("mine", "mine.yaml")
    settings = recipe_with(protocol).evaluate
    assert settings.prompt_files == (str(tmp_path / "a.txt"),)
    assert settings.keywords == (str(tmp_path / "words.txt"), "cat")
    assert settings.reference == str(tmp_path / "stats.npz")


def test_all_mistakes_of_a_file_are_listed_with_their_lines(write: Callable[..., str]) -> None:
    file = write("distill: {steps: 3}\nneeds: {prompt_file: x}\nevaluate:\n  prompt_per_split: 3\n  seeds: []\n")
    with pytest.raises(CondistillError, match=r"mine\.yaml has 4 mistake\(s\)") as refused:
        load_protocol(file)
    text = str(refused.value)
    assert "line 1: distill is not part of a protocol, which replaces settings of evaluate only" in text
    assert "line 2: needs.prompt_file is no setting; did you mean 'prompt_files'?" in text
    assert "line 4: evaluate.prompt_per_split is not a setting; did you mean 'prompts_per_split'?" in text
    assert "line 5: evaluate.seeds" in text


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("coco30k", "; did you mean 'coco-30k'?"),
        ("gone.yaml", "the protocol cannot be read: .*gone.yaml: no such file"),
        ("a b.yaml", "the protocol file a b.yaml names a folder of results; use letters"),
    ],
)
def test_a_protocol_that_does_not_exist_is_refused(name: str, message: str) -> None:
    with pytest.raises(CondistillError, match=message.replace("?", r"\?")):
        load_protocol(name)


@pytest.mark.parametrize(
    "text", ["- a\n", "evaluate: 3\n", "needs: [prompt_files]\nevaluate: {}\n", "description: 3\n"]
)
def test_a_file_of_another_form_is_refused(write: Callable[..., str], text: str) -> None:
    with pytest.raises(CondistillError, match=r"must be a mapping|no mapping|is no text"):
        load_protocol(write(text))
