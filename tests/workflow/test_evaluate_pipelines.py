"""Tests of the evaluation of finished pipelines: of several families, with images and scores, and all refusals."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console
from runs import times

from condistill.config.evaluate import EvaluateSettings, NetworkSettings
from condistill.config.recipe import TEACHER
from condistill.errors import CondistillError
from condistill.evaluate.record import Evaluation
from condistill.workflow import pipeline_models
from condistill.workflow.after_evaluation import Extras
from condistill.workflow.evaluate_pipelines import evaluate_pipelines
from condistill.workflow.pipeline_models import find_pipelines, pipeline_labels

SCORER = Path(__file__).parents[2] / "docs" / "examples" / "score_images.py"
PROMPTS = ("a red fox", "a grey cat", "a tall tower", "a sofa", "two cats")


class Given(NamedTuple):
    """Pipelines of two families, and their prompts."""

    teacher: Path
    student: Path
    other: Path
    settings: EvaluateSettings


@pytest.fixture(scope="module")
def given(tiny_pipeline_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Given:
    from tiny import build_pixart, build_sd

    folder = tmp_path_factory.mktemp("pipelines")
    build_sd().save_pretrained(folder / "student", safe_serialization=True)
    build_pixart().save_pretrained(folder / "pixart", safe_serialization=True)
    prompts = folder / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS), encoding="utf-8")
    settings = {
        "prompt_files": (str(prompts),),
        "keywords": ("cat",),
        "num_inference_steps": 2,
        "batch_size": 2,
        "grid": 1,
        "seeds": (3, 4),
    }
    return Given(tiny_pipeline_dir, folder / "student", folder / "pixart", EvaluateSettings.model_validate(settings))


def run(given: Given, out: Path, **options: Any) -> str:
    """Evaluate the pipelines, and return what was printed."""
    console = Console(record=True, width=200, file=io.StringIO())
    sources = [str(path) for path in (given.teacher, given.student, given.other)]
    evaluate_pipelines(sources, given.settings, out, console=console, **options)
    return console.export_text()


@pytest.mark.slow
def test_pipelines_of_two_families_are_evaluated_with_images_and_outside_scores(
    given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, images = tmp_path / "out", tmp_path / "images"
    text = run(given, out, extras=Extras(images=images))
    evaluation = Evaluation.load(out)
    assert list(evaluation.models) == [TEACHER, "student", "pixart"]
    assert evaluation.images_per_split == {"seen": 6, "unseen": 4, "all": 10}
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Pipeline pixart" in page
    assert "one model after the other" in page
    assert f"teacher ({given.teacher.name})" in text
    assert "latent_rmse" in evaluation.models["student"].scores["all"]
    assert "latent_rmse" not in evaluation.models["pixart"].scores["all"]  # its autoencoder is another one

    assert sorted(path.name for path in images.iterdir()) == ["pixart", "student", TEACHER]
    lines = (images / "student" / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["prompt"] for line in lines][5:] == [PROMPTS[n] for n in (0, 2, 3, 1, 4)]
    before = times(images)
    run(given, out, extras=Extras(images=images))
    assert times(images) == before

    scores = tmp_path / "scores.json"
    subprocess.run([sys.executable, str(SCORER), str(images), str(scores)], check=True)
    text = run(given, out, extras=Extras(scores=(scores,)))
    assert "Colourfulness, all (higher is better)" in text
    merged = Evaluation.load(out)
    metric = merged.metrics[-1]
    assert (metric.name, metric.label) == ("colourfulness", "Colourfulness")
    found = merged.comparison("pixart", TEACHER, "unseen", metric)
    assert found is not None
    assert found.images == 4
    assert "Colourfulness" in (out / "report.html").read_text(encoding="utf-8")
    table = pq.read_table(out / "evaluation" / "figures" / "images.parquet")
    assert table.num_rows == 3 * 10
    assert table.column("colourfulness").null_count == 0

    (out / "evaluation" / "figures" / "grid.json").unlink()  # the figures are made again
    run(given, out)
    assert (
        Evaluation.load(out).models["student"].scores["all"]["colourfulness"]
        == (merged.models["student"].scores["all"]["colourfulness"])
    )


@pytest.mark.slow
def test_pipelines_of_two_families_are_compared_by_networks_and_with_real_images(
    given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tiny_networks import write_dinov2

    photos = _folder(tmp_path / "photos")
    for number in range(4):
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (20, 20, 3), np.uint8)).save(
            photos / f"{number}.png"
        )
    changes = {
        "networks": NetworkSettings(dinov2=str(write_dinov2(tmp_path / "dinov2"))),
        "reference": str(photos),
        "resize": 16,
        "seeds": (3,),
        "diversity_prompts": 2,
        "diversity_seeds": 2,
    }
    console = Console(quiet=True)
    sources = [str(given.teacher), str(given.other)]
    evaluate_pipelines(sources, given.settings.model_copy(update=changes), tmp_path / "out", console=console)
    evaluation = Evaluation.load(tmp_path / "out")
    assert evaluation.networks.keys() == {"dinov2"}
    assert evaluation.reference_images is not None
    assert evaluation.reference_images.images == 4
    of_teacher, of_other = (evaluation.models[name].scores["all"] for name in (TEACHER, "pixart"))
    assert {"fd_dinov2", "diversity"} <= of_teacher.keys()
    assert {"fd_dinov2", "diversity", "dinov2_distance"} <= of_other.keys()
    assert "latent_rmse" not in of_other
    assert evaluation.references is not None
    assert "dinov2_distance" in evaluation.references.other_seed["all"]


@pytest.mark.slow
def test_splits_and_categories_are_those_of_the_settings_of_now(
    given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = tmp_path / "prompts.csv"
    prompts.write_text("prompt,kind,size\na fox,animal,small\na cat,animal,small\na tower,thing,large\n", "utf-8")

    def evaluated(*keywords: str, column: str) -> Evaluation:
        changes = {"prompt_files": (str(prompts),), "prompt_column": "prompt", "category_column": column, "seeds": (3,)}
        settings = given.settings.model_copy(update={**changes, "keywords": keywords})
        console = Console(file=io.StringIO())
        evaluate_pipelines([str(given.teacher), str(given.student)], settings, tmp_path / "out", console=console)
        return Evaluation.load(tmp_path / "out")

    first = evaluated("tower", column="kind")
    assert first.images_per_split == {"seen": 2, "unseen": 1, "all": 3}
    assert [*first.groups["category"]] == ["animal", "thing"]
    latents = times(tmp_path / "out" / "evaluation" / "latents")
    second = evaluated("cat", "tower", column="size")  # the prompts are in the same order
    assert second.images_per_split == {"seen": 1, "unseen": 2, "all": 3}
    assert [*second.groups["category"]] == ["large", "small"]
    assert times(tmp_path / "out" / "evaluation" / "latents") == latents


def test_labels_are_the_ends_of_paths_that_differ(tmp_path: Path) -> None:
    names = ("a/pipelines/plain", "b/pipelines/plain", "b/Small U-Net", "b/teacher")
    for name in names:
        (tmp_path / name).mkdir(parents=True)
    labels = pipeline_labels([*(str(tmp_path / name) for name in names), "org/model", "miniature"])
    assert list(labels.values()) == [
        "a-pipelines-plain",
        "b-pipelines-plain",
        "small-u-net",
        "b-teacher",
        "model",
        "miniature",
    ]
    assert list(pipeline_labels(["x/a b", "x/a-b"]).values()) == ["x-a-b", "x-a-b-2"]


@pytest.mark.slow
def test_the_teacher_is_the_first_pipeline_or_the_one_that_is_named(given: Given) -> None:
    sources = [str(given.student), str(given.teacher)]
    assert [model.name for model in find_pipelines(sources, given.settings)] == [TEACHER, given.teacher.name]
    for name in (str(given.teacher), given.teacher.name, f"{given.teacher}/"):
        found = find_pipelines(sources, given.settings, teacher=name)
        assert [(model.name, model.label) for model in found] == [
            (TEACHER, given.teacher.name),
            ("student", "student"),
        ]
    with pytest.raises(CondistillError, match="--teacher studnt is none of the pipelines; did you mean 'student'"):
        find_pipelines(sources, given.settings, teacher="studnt")


@pytest.fixture
def nothing_heavy(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a pipeline was loaded")

    monkeypatch.setattr(pipeline_models, "load_teacher", refuse)


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_heavy")
def test_what_cannot_be_evaluated_is_refused_before_a_pipeline_is_loaded(given: Given, tmp_path: Path) -> None:
    def refused(message: str, *sources: Any, out: Path | None = None, **options: Any) -> None:
        settings = given.settings.model_copy(update=options.pop("changes", {}))
        with pytest.raises(CondistillError, match=message):
            evaluate_pipelines([*map(str, sources)], settings, out or tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()

    refused("is given twice; give each once", given.teacher, given.teacher)
    refused("pipeline .*empty has no model_index.json", given.teacher, _folder(tmp_path / "empty"))
    run_folder = _folder(tmp_path / "run")
    (run_folder / "run.json").write_text("{}", encoding="utf-8")
    refused(r"run is a run directory; give its recipe \(.*recipe.yaml --out .*run\)", given.teacher, run_folder)
    refused("cannot sample with 5000 steps", given.teacher, changes={"num_inference_steps": 5000})
    refused("there is no prompt file", given.teacher, changes={"prompt_files": ("gone.txt",)})
    refused("classifies images of 64x64 pixels", given.teacher, given.other, changes={"classifier": "miniature"})
    refused("evaluate.classifier is 'miniature', and the capt", "miniature", changes={"classifier": "miniature"})
    networks = {"networks": NetworkSettings(clip="org/clip"), "num_inference_steps": 2}
    refused(r"images of different sizes \(.*set evaluate.resize, to 16", given.teacher, given.other, changes=networks)
    refused("evaluate.networks.dinov2: .*gone", given.teacher, changes={"networks": NetworkSettings(dinov2="/gone")})
    mine = _folder(tmp_path / "images" / TEACHER)
    (mine / "photo.jpg").write_bytes(b"x")
    refused("files that condistill did not write", given.teacher, extras=Extras(images=tmp_path / "images"))
    refused("gone.json: no such file", given.teacher, extras=Extras(scores=(tmp_path / "gone.json",)))
    scores = tmp_path / "scores.json"
    scores.write_text('{"format": 1, "metrics": {"x": {}}, "scores": [1]}', encoding="utf-8")
    refused("has no metrics.json, so the scores belong to no image", given.teacher, extras=Extras(scores=(scores,)))
    refused("holds no run of condistill; choose another --out", given.teacher, out=tmp_path / "images")


def _folder(path: Path) -> Path:
    path.mkdir(parents=True)
    return path
