"""Tests of the evaluation of a recipe by a protocol, with images and scores; the run's own results stay."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from runs import Run, times, tiny_recipe

from condistill.config.recipe import Recipe
from condistill.errors import CondistillError
from condistill.evaluate.protocols import protocol_of_prompts
from condistill.evaluate.record import Evaluation
from condistill.workflow.after_evaluation import Extras
from condistill.workflow.evaluate_recipe import evaluate_recipe


@pytest.mark.slow
def test_a_protocol_has_results_of_its_own_and_leaves_those_of_the_run(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, recipe_text = times(run.out), (run.out / "recipe.yaml").read_bytes()
    prompts = tmp_path / "faces.txt"
    prompts.write_text("a face\na small star\nan old hand\n", encoding="utf-8")
    protocol = protocol_of_prompts([str(prompts)])
    base = tiny_recipe(run.folder, run.teacher, "distill.preview_every=3")
    recipe = tiny_recipe(run.folder, run.teacher, "distill.preview_every=3", *protocol.overrides())
    console = Console(record=True, width=200, file=io.StringIO())
    results = evaluate_recipe(
        recipe,
        run.out,
        protocol=(protocol.name, base),
        extras=Extras(images=tmp_path / "images"),
        console=console,
    )
    assert results == run.out / "evaluations" / "faces"
    evaluation = Evaluation.load(results)
    assert evaluation.images_per_split == {"seen": 2, "unseen": 1, "all": 3}  # by the words of the recipe
    assert (results / "report.html").is_file()
    assert Recipe.load(results / "recipe.yaml") == recipe
    assert len([*(tmp_path / "images" / "plain").glob("*.png")]) == 3
    assert "Latent RMSE, all (lower is better)" in console.export_text()
    changed = {path.relative_to(run.out).parts[0] for path, time in times(run.out).items() if before.get(path) != time}
    assert changed <= {"evaluations", "hashes.json", "status.json", "recipe.yaml", "run.lock"}
    assert (run.out / "recipe.yaml").read_bytes() == recipe_text

    scores = tmp_path / "scores.json"
    rows = [{"model": "plain", "seed": 0, "number": number, "ours": number} for number in range(3)]
    described = {"ours": {"label": "Ours", "direction": "lower"}}
    scores.write_text(json.dumps({"format": 1, "metrics": described, "scores": rows}), encoding="utf-8")
    evaluate_recipe(recipe, run.out, protocol=(protocol.name, base), extras=Extras(scores=(scores,)), console=console)
    assert Evaluation.load(results).models["plain"].scores["all"]["ours"].value == 1.0
    assert "ours" not in Evaluation.load(run.out).models["plain"].scores["all"]


@pytest.mark.slow
def test_categories_are_those_of_the_column_of_now(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = tmp_path / "categories.csv"
    prompts.write_text("prompt,kind,size\na face,body,large\nan old hand,body,small\n", encoding="utf-8")
    protocol = protocol_of_prompts([str(prompts)])
    base = tiny_recipe(run.folder, run.teacher, "distill.preview_every=3")

    def categories(column: str) -> list[str]:
        columns = ("evaluate.prompt_column=prompt", f"evaluate.category_column={column}")
        recipe = tiny_recipe(run.folder, run.teacher, "distill.preview_every=3", *protocol.overrides(), *columns)
        console = Console(file=io.StringIO())
        results = evaluate_recipe(recipe, run.out, protocol=(protocol.name, base), console=console)
        return [*Evaluation.load(results).groups["category"]]

    assert categories("size") == ["large", "small"]
    prompts_stay = times(run.out / "evaluations" / "categories" / "evaluation" / "latents")
    with pytest.raises(KeyError):  # a category that all prompts have is no group
        categories("kind")
    assert times(run.out / "evaluations" / "categories" / "evaluation" / "latents") == prompts_stay


@pytest.mark.slow
@pytest.mark.usefixtures("no_teacher")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["evaluate.num_inference_steps=5000"], "evaluate.num_inference_steps is 5000"),
        (["evaluate.prompt_files=[gone.txt]"], "evaluate.prompt_files: there is no prompt file"),
        (["evaluate.classifier=miniature"], "evaluate.classifier is 'miniature', and the caption"),
        (["evaluate.networks.dinov2=./gone"], "evaluate.networks.dinov2"),
    ],
)
def test_an_evaluation_that_cannot_be_is_refused_where_the_students_are_finished(
    run: Run, changes: list[str], message: str
) -> None:
    base = tiny_recipe(run.folder, run.teacher, "distill.preview_every=3")
    recipe = tiny_recipe(run.folder, run.teacher, "distill.preview_every=3", *changes)
    with pytest.raises(CondistillError, match=message):
        evaluate_recipe(recipe, run.out, protocol=("mine", base), console=Console(quiet=True))
    assert not (run.out / "evaluations").exists()


def test_scores_without_an_evaluation_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text('{"format": 1, "metrics": {"x": {}}, "scores": [1]}', encoding="utf-8")
    recipe = tiny_recipe(tmp_path, tmp_path / "teacher")
    extras = Extras(scores=(tmp_path / "s.json",))
    with pytest.raises(CondistillError, match=r"first write the images with `condistill evaluate RECIPE --images FOL"):
        evaluate_recipe(recipe, tmp_path / "run", extras=extras, console=Console(quiet=True))
    assert not (tmp_path / "run").exists()
