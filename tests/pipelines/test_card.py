from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import diffusers
import pytest
import yaml

from condistill.config.recipe import Recipe
from condistill.errors import CondistillError
from condistill.pipelines.card import escape, model_card

SIZES = {
    "teacher": {"parameters": 6978372, "macs": 123_000_000},
    "student": {"parameters": 1884160, "macs": 36_000_000},
}
METRICS: dict[str, Any] = {
    "classifier": "miniature",
    "num_inference_steps": 12,
    "guidance_scale": 2.5,
    "images_per_split": {"all": 200},
    "models": {
        "teacher": {"unseen": {"all_correct": 0.88}},
        "plain": {"unseen": {"all_correct": 0.23, "latent_rmse": 0.7}},
        "small": {"unseen": {"all_correct": 0.67, "latent_rmse": 0.42}},
    },
}


def _card(
    pipeline: str = "miniature",
    *,
    words: list[str] | None = None,
    evaluate: dict[str, Any] | None = None,
    **changes: Any,
) -> str:
    recipe = Recipe.from_dict(
        {
            "teacher": {"pipeline": pipeline},
            "prompts": {"files": ["/home/me/secret/prompts.txt"], "unseen_words": words or []},
            "cache": {"guidance_scale": 2.5},
            "student": {"preset": "b-small"},
            "variants": {"small": {"distill": {"steps": 1234}}},
            "evaluate": evaluate or {},
        }
    )
    given: dict[str, Any] = {"name": "small", "recipe": recipe, "kept": ["half"], "sizes": SIZES, "metrics": None}
    return model_card(**{**given, "pipeline_class": "StableDiffusionPipeline", **changes})


def _front(card: str) -> dict[str, Any]:
    held: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return held


def test_front_matter_names_the_library_and_a_hub_teacher() -> None:
    front = _front(_card("CompVis/stable-diffusion-v1-4"))
    assert front["library_name"] == "diffusers"
    assert front["base_model"] == "CompVis/stable-diffusion-v1-4"
    assert "base_model" not in _front(_card())


@pytest.mark.parametrize("pipeline", ["/home/me/models/my-teacher", "../models/my-teacher/", "C:\\me\\my-teacher"])
def test_a_folder_shows_its_last_part_only(pipeline: str) -> None:
    card = _card(pipeline)
    assert "base_model" not in _front(card)
    assert "my\\-teacher" in card
    assert not re.search(r"home|models|secret|\bC:|\.\./", card)
    assert "prompts.txt" in card


def test_a_folder_that_looks_like_a_hub_name_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert "base_model" not in _front(_card("models/mine"))


def test_sizes_settings_and_what_was_kept_are_there() -> None:
    card = _card()
    assert "| Parameters of the denoiser | 6.98 M | 1.88 M | 27 % |" in card
    assert "| distill.steps | 1234 |" in card
    assert "- half" in card
    assert "licence" in card
    assert "No training image" in card


def test_scores_are_shown_where_there_are_any() -> None:
    assert "## Scores" not in _card()
    assert "## Scores" not in _card(metrics={"models": {}})
    card = _card(metrics=METRICS)
    assert "| All right, unseen prompts | 88 % | 23 % | 67 % |" in card
    assert "| Latent RMSE, unseen prompts | – | 0.700 | 0.420 |" in card
    assert "not FID on MS-COCO" in card


def test_the_loading_example_is_python_with_the_measured_settings() -> None:
    code = re.findall(r"```python\n(.*?)```", _card(evaluate={"num_inference_steps": 12}), re.DOTALL)
    assert len(code) == 1
    ast.parse(code[0])
    assert "DiffusionPipeline.from_pretrained(" in code[0]
    assert "num_inference_steps=12, guidance_scale=2.5" in code[0]


@pytest.mark.parametrize(
    ("pipeline_class", "asked"),
    [
        ("StableDiffusionXLPipeline", {"num_inference_steps", "guidance_scale"}),
        ("StableDiffusionInpaintPipeline", {"image", "mask_image", "num_inference_steps", "guidance_scale"}),
        ("DiTPipeline", {"class_labels", "num_inference_steps", "guidance_scale"}),
    ],
)
def test_the_loading_example_asks_each_kind_of_pipeline_for_what_it_takes(pipeline_class: str, asked: set[str]) -> None:
    card = _card(pipeline_class=pipeline_class)
    assert f"A cheaper `{pipeline_class}`" in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    named = next(call for call in calls if getattr(call.func, "id", "") == "pipeline")
    assert {keyword.arg for keyword in named.keywords} == asked
    taken = inspect.signature(getattr(diffusers, pipeline_class).__call__).parameters
    assert asked <= set(taken)


def test_the_loading_example_names_a_scale_that_the_student_is_told() -> None:
    for fold, scale in (([3, 8], 3.0), ([2, 8], 2.5), (3.0, 3.0)):
        data: dict[str, Any] = {
            "teacher": {"pipeline": "miniature"},
            "prompts": {"files": ["miniature"]},
            "cache": {"guidance_scale": 2.5},
            "student": {"preset": "b-small"},
            "variants": {"small": {"distill": {"guidance_distillation": fold}}},
        }
        assert f"guidance_scale={scale})" in _card(recipe=Recipe.from_dict(data))


def test_markdown_in_words_and_lines_does_nothing() -> None:
    card = _card(kept=["<script>x</script>\n# head | [a](b)"], words=["a|b", "**bold**"])
    assert "<script>" not in card
    assert "\n# head" not in card
    assert "a\\|b, \\*\\*bold\\*\\*" in card
    assert escape("a_b\n`c`") == "a\\_b \\`c\\`"


def test_an_unknown_student_is_refused() -> None:
    with pytest.raises(CondistillError, match="no student 'smal'; did you mean 'small'"):
        _card(name="smal")


def test_equal_input_gives_an_equal_card() -> None:
    assert _card(metrics=METRICS) == _card(metrics=METRICS)
