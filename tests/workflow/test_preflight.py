from __future__ import annotations

import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from loras import write_lora
from rich.console import Console
from runs import tiny_recipe
from tiny import TINY

from condistill import cli
from condistill.config.recipe import Recipe
from condistill.errors import CondistillError
from condistill.evaluate.rounds import Round
from condistill.plan import make_plan
from condistill.run.directory import RunMark
from condistill.teachers.skeleton import Skeleton, teacher_skeleton
from condistill.workflow import preflight as checks
from condistill.workflow.compress import compress
from condistill.workflow.preflight import check_inputs, check_space, examine, preflight, recipe_warnings

RecipeOf = Callable[..., Recipe]
WIDTH = {"width": 0.5}


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"cache": {"num_inference_steps": 1001}},
            r"cache.num_inference_steps is 1001, .* DDIMScheduler .* 1000 timesteps; lower it",
        ),
        (
            {"evaluate": {"num_inference_steps": 9999}},
            r"evaluate.num_inference_steps is 9999, .* 1000 timesteps; lower it",
        ),
        (
            {"teacher": {"resolution": 128}, "evaluate": {"classifier": "miniature"}},
            r"classifies images of 64x64 pixels, and the teacher's have 128x128; set it to 'none'",
        ),
    ],
)
def test_what_cache_and_evaluation_cannot_do_is_refused_before_training(
    tiny_pipeline_dir: Path, recipe_of: RecipeOf, sections: dict[str, Any], message: str
) -> None:
    from condistill.teachers.skeleton import teacher_skeleton

    teacher = {"pipeline": str(tiny_pipeline_dir), **sections.pop("teacher", {})}
    recipe = recipe_of(tiny_pipeline_dir, WIDTH, teacher=teacher, **sections)
    with pytest.raises(CondistillError, match=message):
        preflight(recipe, teacher_skeleton(recipe.teacher))


@pytest.mark.parametrize(
    ("evaluate", "message"),
    [
        ({"classifier": "miniature", "prompts_per_split": 1}, "needs 2 images of every split; raise it to 2 or more"),
        ({"seeds": [3, 1, 3]}, "seeds has 3 twice"),
        ({"seeds": [0, 0]}, "seeds has 0 twice"),
    ],
)
def test_an_evaluation_without_statistics_is_refused_by_the_recipe(
    recipe_of: RecipeOf, evaluate: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        recipe_of("miniature", WIDTH, evaluate=evaluate)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({"column": "text"}, r"column 'text' applies to none of miniature.*leave the column out"),
        ({"unseen_words": ["star", "\u200b"]}, r"'\\u200b' is not a word; remove it"),
        ({"unseen_words": [""]}, "'' is not a word"),
    ],
)
def test_prompts_that_the_first_stage_cannot_use_are_refused_by_validate(
    recipe_of: RecipeOf, prompts: dict[str, Any], message: str
) -> None:
    recipe = recipe_of("miniature", WIDTH, prompts={"files": ["miniature"], **prompts})
    with pytest.raises(CondistillError, match=message):
        check_inputs(recipe)


def test_one_prompt_of_two_seeds_is_enough_for_the_classifier(recipe_of: RecipeOf) -> None:
    assert recipe_of("miniature", WIDTH, evaluate={"classifier": "miniature", "prompts_per_split": 1, "seeds": [0, 1]})


def test_settings_without_effect_are_warned_of(recipe_of: RecipeOf) -> None:
    warmup = {"optimizer": {"lr_scheduler": "cosine", "warmup_steps": 9}, "steps": 5}
    recipe = recipe_of(
        "miniature",
        WIDTH,
        distill={**warmup, "path": {"start": "noise"}},
        evaluate={"grid": 9, "prompts_per_split": 3},
    )
    lines = [*recipe_warnings(recipe)]
    assert [line.partition(",")[0] for line in lines] == [
        "no student learns from a cached latent; set cache.size: 0 to skip the cache",
        "evaluate.grid is 9",
        "random_conditioning: distill.optimizer.warmup_steps is 9 and distill.steps is 5",
    ]
    assert not [*recipe_warnings(recipe_of("miniature", WIDTH, evaluate={"prompts_per_split": 3}))]  # grid is a default


@pytest.mark.slow
@pytest.mark.slow
def test_loras_in_the_folder_of_the_teacher_that_are_not_used_are_pointed_out(
    recipe_of: RecipeOf, tiny_pipeline_dir: Path, tmp_path: Path
) -> None:
    pipeline = Path(shutil.copytree(tiny_pipeline_dir, tmp_path / "pipeline"))
    files = [write_lora(pipeline / f"{name}.safetensors", {"x.lora_A.weight": torch.ones(1, 1)}) for name in "abcde"]
    (line,) = recipe_warnings(recipe_of(pipeline, WIDTH))
    assert "has LoRAs that teacher.loras does not mention, so they are not used: a.safetensors, b.safetens" in line
    assert (
        f"c.safetensors and 2 more; add those that you want (teacher.loras: [{{path: {files[0]}, scale: 1.0}}])" in line
    )
    loras = [{"path": str(file)} for file in files]
    used = recipe_of(pipeline, WIDTH, teacher={"pipeline": str(pipeline), "loras": loras})
    assert not [*recipe_warnings(used)]
    single = pipeline / "model.safetensors"
    single.write_bytes(b"")
    (line,) = recipe_warnings(recipe_of(single, WIDTH))
    assert "a.safetensors, b.safetensors, c.safetensors and 2 more" in line


@pytest.mark.slow
def test_validate_and_plan_report_the_same_warnings(
    tiny_pipeline_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("a\nb\n", encoding="utf-8")
    path = tmp_path / "recipe.yaml"
    text = f"teacher: {{pipeline: {tiny_pipeline_dir}}}\nprompts: {{files: [a.txt]}}\nstudent: {{width: 0.5}}\n"
    path.write_text(text + "distill: {path: {start: noise}, logging: {tracker: wandb}}\n", encoding="utf-8")
    with pytest.raises(SystemExit) as exited:
        cli.main(["validate", str(path)])
    assert not exited.value.code
    shown = capsys.readouterr().err
    warnings = make_plan(Recipe.load(path), device="a100-80gb").warnings
    lines = shown.partition("where students load:")[0].splitlines()
    assert [line.removeprefix("warning: ") for line in lines] == list(warnings)
    assert any("no student learns from a cached latent" in line for line in warnings)
    assert any("pip install 'condistill[wandb]'" in line for line in warnings)


@pytest.mark.slow
def test_validate_refuses_what_plan_says_a_run_will_refuse(
    tiny_pipeline_dir: Path, tiny_skeleton: Skeleton, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("a\nb\n", encoding="utf-8")
    path = tmp_path / "recipe.yaml"
    text = f"teacher: {{pipeline: {tiny_pipeline_dir}}}\nprompts: {{files: [a.txt]}}\nstudent: {{width: 0.5}}\n"
    text += (
        "variants: {a: {distill: {loss: {extra: {gone: 1.0}}}}, b: {distill: {few_steps: {num_inference_steps: 7}}}}"
    )
    path.write_text(text, encoding="utf-8")
    refused = examine(Recipe.load(path), tiny_skeleton).refused
    assert [line.partition(":")[0] for line in refused] == ["b", "a"]
    with pytest.raises(SystemExit) as exited:
        cli.main(["validate", str(path)])
    assert exited.value.code == 1
    assert capsys.readouterr().err == "error: " + "\n".join(refused) + "\n"


def test_students_that_do_not_fit_on_the_disk_are_refused_before_anything_is_written(
    tiny_pipeline_dir: Path,
    tiny_skeleton: Skeleton,
    recipe_of: RecipeOf,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = recipe_of(tiny_pipeline_dir, WIDTH, cache={"size": 10})
    students = preflight(recipe, tiny_skeleton)
    run: Any = SimpleNamespace(recipe=recipe, path=tmp_path / "new" / "run")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 10**5))
    with pytest.raises(
        CondistillError, match=r"needs at least .* MiB more .* for checkpoints, .* choose another --out"
    ):
        check_space(run, students, tiny_skeleton)
    assert not (tmp_path / "new").exists()
    run.path.mkdir(parents=True)
    (run.path / "weights").write_bytes(b"x" * 10**7)  # what is there already needs no more space
    check_space(run, students, tiny_skeleton)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 10**9))
    (run.path / "weights").unlink()
    check_space(run, students, tiny_skeleton)


def test_more_clusters_than_prompts_are_refused_before_the_cache(recipe_of: RecipeOf) -> None:
    choice = {"candidates": 4, "disagreement": 1.0, "clusters": 64}
    recipe = recipe_of("miniature", WIDTH, distill={"conditioning": {"prompt_choice": choice}})
    with pytest.raises(CondistillError, match=r"clusters is 64, and the pool has 63 prompts; lower it"):
        checks._check_clusters(recipe, 63)
    checks._check_clusters(recipe, 64)


def test_a_split_with_too_few_prompts_is_refused_or_warned_of(recipe_of: RecipeOf) -> None:
    printed_lines: list[str] = []
    rounds = [Round(0, ["a", "b", "c"], {"seen": slice(0, 2), "unseen": slice(2, 3), "all": slice(0, 3)})]
    run: Any = SimpleNamespace(say=lambda text, **_: printed_lines.append(text))
    run.recipe = recipe_of("miniature", WIDTH, evaluate={"prompts_per_split": 2})
    checks._check_rounds(run, rounds)
    assert printed_lines == [
        "warning: evaluate.prompts_per_split is 2, and the split unseen has 1 prompts, which are all evaluated"
    ]
    run.recipe = recipe_of("miniature", WIDTH, evaluate={"prompts_per_split": 2, "classifier": "miniature"})
    with pytest.raises(CondistillError, match="needs 2 images of every split, and unseen has 1 prompt; give more"):
        checks._check_rounds(run, rounds)


@pytest.mark.parametrize(("processes", "multiple"), [(3, 6), (4, 8)])
def test_a_batch_that_cannot_be_shared_evenly_is_refused_at_once(
    recipe_of: RecipeOf, processes: int, multiple: int
) -> None:
    recipe = recipe_of("miniature", WIDTH, distill={"batch_size": 4, "micro_batch_size": 2})
    checks.check_processes(recipe, 2)
    with pytest.raises(CondistillError, match=rf"into {processes} processes and .* make it a multiple of {multiple}"):
        checks.check_processes(recipe, processes)


@pytest.mark.parametrize("place", ["pipelines/small", "teacher"])
def test_a_teacher_in_a_folder_that_the_run_would_move_is_refused_before_it_is_moved(
    place: str, tiny_pipeline_dir: Path, tmp_path: Path
) -> None:
    teacher = tmp_path / "run" / place
    shutil.copytree(tiny_pipeline_dir, teacher)
    RunMark(program="condistill", version="0").write(tmp_path / "run" / "run.json")
    recipe = tiny_recipe(tmp_path, teacher, f"teacher.scheduler={tiny_pipeline_dir / 'scheduler'}")
    with pytest.raises(CondistillError, match=r"teacher.pipeline: .* lies in .*, which this run writes; choose anoth"):
        compress(recipe, tmp_path / "run", update=True, console=Console(quiet=True))
    assert (teacher / "model_index.json").is_file()


def test_prompts_that_the_teacher_cannot_read_are_refused_before_it_is_loaded(tmp_path: Path) -> None:
    TINY["dit"].build().save_pretrained(tmp_path / "teacher")
    sections = {"student": {"depth": 0.5}, "prompts": {"files": [str(tmp_path / "prompts.txt")]}}
    recipe = Recipe.from_dict({"teacher": {"pipeline": str(tmp_path / "teacher")}, **sections})
    skeleton = teacher_skeleton(recipe.teacher)
    (tmp_path / "prompts.txt").write_text("goldfish\n\n  tench  \n3\n", encoding="utf-8")
    assert examine(recipe, skeleton).students
    (tmp_path / "prompts.txt").write_text("goldfish\na red star\n", encoding="utf-8")
    with pytest.raises(CondistillError, match="'a red star' is not a label of this teacher, nor a number"):
        examine(recipe, skeleton)
    with pytest.raises(CondistillError, match="'a red star' is not a label"):
        compress(recipe, tmp_path / "out")
    assert not (tmp_path / "out" / "prompts").exists()
