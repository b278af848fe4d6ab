from __future__ import annotations

from pathlib import Path

import pytest
from recipes import BASE

from condistill.config.recipe import Recipe
from condistill.errors import CondistillError


def test_a_tilde_in_files_and_teacher_is_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, folder = tmp_path / "home", tmp_path / "recipes"
    (home / "pipeline").mkdir(parents=True)
    folder.mkdir()
    monkeypatch.setenv("HOME", str(home))
    path = folder / "recipe.yaml"
    path.write_text(BASE.replace("miniature}", "~/pipeline}").replace("[miniature]", "['~/a.txt']"))
    recipe = Recipe.load(path, ["prompts.unseen_files=[~/b.txt]"])
    assert recipe.teacher.pipeline == str(home / "pipeline")
    assert recipe.prompts.every_file == (str(home / "a.txt"), str(home / "b.txt"))
    for override in ("prompts.files=[~nosuchuser/a.txt]", "teacher.pipeline=~nosuchuser/pipeline"):
        with pytest.raises(CondistillError, match=r"'~nosuchuser/.*there is no home directory for '~nosuchuser'"):
            Recipe.load(path, [override])


def test_the_files_of_the_teacher_are_relative_to_the_folder_of_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "recipes"
    (folder / "models").mkdir(parents=True)
    (folder / "models" / "mine.safetensors").touch()
    path = folder / "recipe.yaml"
    path.write_text(BASE.replace("pipeline: miniature", "pipeline: models/mine.safetensors, config: ./configs"))
    monkeypatch.chdir(tmp_path)
    loras = "teacher.loras=[{path: style.safetensors}, {path: ~/b.safetensors, scale: -0.5}]"
    recipe = Recipe.load(path, [loras, "teacher.vae=vae", "teacher.scheduler=../euler"])
    teacher = recipe.teacher
    assert teacher.pipeline == str(folder / "models" / "mine.safetensors")
    assert teacher.config == str(folder / "configs")
    assert [lora.path for lora in teacher.loras] == [
        str(folder / "style.safetensors"),
        str(Path.home() / "b.safetensors"),
    ]
    assert [lora.scale for lora in teacher.loras] == [1.0, -0.5]
    assert (teacher.vae, teacher.scheduler) == (str(folder / "vae"), str(tmp_path / "euler"))
    assert Recipe.load(path, ["teacher.config=sd-1"]).teacher.config == "sd-1"
    (tmp_path / "moved.yaml").write_text(recipe.to_yaml())
    assert Recipe.load(tmp_path / "moved.yaml") == recipe


def test_the_files_of_the_evaluation_are_relative_to_the_folder_of_the_recipe(tmp_path: Path) -> None:
    folder = tmp_path / "recipes"
    (folder / "models" / "dinov2").mkdir(parents=True)
    path = folder / "recipe.yaml"
    networks = "{inception: ../inception.pth, dinov2: models/dinov2, clip: openai/clip, hpsv2: ~/hps.pt}"
    files = "prompt_files: [a.csv], keywords: [words.txt, dog]"
    path.write_text(f"{BASE}evaluate: {{reference: coco, {files}, networks: {networks}}}\n")
    recipe = Recipe.load(path)
    evaluate = recipe.evaluate
    assert evaluate.reference == str(folder / "coco")
    assert evaluate.prompt_files == (str(folder / "a.csv"),)
    assert evaluate.keywords == (str(folder / "words.txt"), "dog")
    assert evaluate.networks.model_dump(exclude_none=True) == {
        "inception": str(tmp_path / "inception.pth"),
        "dinov2": str(folder / "models" / "dinov2"),
        "clip": "openai/clip",
        "hpsv2": str(Path.home() / "hps.pt"),
    }
    (tmp_path / "moved.yaml").write_text(recipe.to_yaml())
    assert Recipe.load(tmp_path / "moved.yaml") == recipe


@pytest.mark.parametrize("evaluate", ["networks: [a/b]", "networks: {clip: 3}", "reference: [a]", "keywords: {a: b}"])
def test_values_of_another_kind_are_reported_and_not_resolved(evaluate: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"{BASE}evaluate: {{{evaluate}}}\n")
    with pytest.raises(CondistillError, match=r"evaluate\.\w+"):
        Recipe.load(path)
