from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml
from full_size import DATA
from loras import write_lora

from condistill import cli
from condistill.cli import init
from condistill.cli.init import Goal, write_recipe
from condistill.config.evaluate import NetworkSettings
from condistill.config.quick import quick_recipe
from condistill.config.recipe import Recipe
from condistill.errors import CondistillError
from condistill.evaluate.networks import NETWORKS
from condistill.plan import ladder, make_plan
from condistill.plan.fit import Choice
from condistill.plan.ladder import Memory
from condistill.students.derive import Student
from condistill.teachers.skeleton import Skeleton, teacher_skeleton
from condistill.utils.format import byte_size, duration
from condistill.workflow.preflight import preflight

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Teacher = Callable[..., Path]


@pytest.fixture
def teacher(one_thread: None, tmp_path: Path) -> Teacher:
    """Save a tiny pipeline, and return its directory."""
    import tiny

    def save(builder: str, **options: Any) -> Path:
        pipeline: DiffusionPipeline = getattr(tiny, builder)(**options)
        pipeline.save_pretrained(tmp_path / "teacher", safe_serialization=True)
        return tmp_path / "teacher"

    return save


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("".join(f"a {word} ball\n" for word in "abcdefgh"), encoding="utf-8")
    return path


def accepted(path: Path) -> Recipe:
    """Return a recipe after the checks of a run."""
    recipe = Recipe.load(path)
    preflight(recipe, teacher_skeleton(recipe.teacher))
    return recipe


FAMILIES: dict[str, tuple[str, dict[str, Any], tuple[Any, ...]]] = {
    "flux": ("build_flux", {}, (None, 0.5, (1.5, 5.0), 28, 3.5)),
    "flux-schnell": ("build_flux", {"guidance_embeds": False}, (None, 0.5, None, 4, 1.0)),
    "sd": ("build_sd", {}, ("b-base", None, None, 50, 7.5)),
    "sd-inpaint": ("build_sd_inpaint", {}, ("b-base", None, None, 50, 7.5)),
    "sdxl": ("build_sdxl", {}, ("b-base", None, None, 50, 5.0)),
    "sd3": ("build_sd3", {}, (None, 0.5, None, 28, 7.0)),
    "sd3-without-t5": ("build_sd3", {"t5": False}, (None, 0.5, None, 28, 7.0)),
    "pixart": ("build_pixart", {}, (None, 0.5, None, 20, 4.5)),
    "sana": ("build_sana", {}, (None, 0.5, None, 20, 4.5)),
    "dit": ("build_dit", {}, (None, 0.5, None, 50, 4.0)),
}
"""Builder of tests/helpers/tiny.py and its options; preset, depth, distilled guidance, and sampling of the teacher."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "flux-schnell")) for name in FAMILIES]
)
def test_a_run_accepts_what_init_writes_for_every_family_and_its_plan_agrees(
    teacher: Teacher, prompts: Path, tmp_path: Path, name: str
) -> None:
    builder, options, expected = FAMILIES[name]
    lines: list[str] = []
    if name == "dit":
        prompts.write_text("1\n2\n3\n4\n5\n6\n7\ngoldfish\n", encoding="utf-8")
    goal = Goal("2h", "rtx-4090")
    path = write_recipe(str(teacher(builder, **options)), [prompts], tmp_path / "new.yaml", goal=goal, say=lines.append)
    recipe = accepted(path)
    student, distill, cache = recipe.student, recipe.distill, recipe.cache
    assert (
        student.preset,
        student.depth,
        distill.guidance_distillation,
        cache.num_inference_steps,
        cache.guidance_scale,
    ) == expected
    assert (cache.size, recipe.evaluate.prompts_per_split) == (4, 8)  # half of the prompts stay uncached
    assert distill.mixed_precision == "bf16"
    cost = make_plan(recipe, device="rtx-4090").cost
    assert 0.9 * 2 < cost.hours <= 2 or distill.steps == 400_000
    assert all(training.fits for training in cost.training.values())
    assert f"planned on rtx-4090: about {duration(3600 * cost.hours)} (" in "\n".join(lines)
    quick = quick_recipe(recipe)
    preflight(quick, teacher_skeleton(quick.teacher))


@pytest.fixture
def without_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count no memory and make no plan, which takes longest."""
    cost = SimpleNamespace(hours=1, training={"random_conditioning": SimpleNamespace(hours=1)})
    monkeypatch.setattr(ladder.Rung, "memory", Memory(2, False, 10**9))
    monkeypatch.setattr(ladder.Rung, "images_at_once", 2)
    monkeypatch.setattr(ladder.Case, "cost", lambda *_: cost)
    monkeypatch.setattr(init, "cost_lines", lambda _: ["the cost"])


@pytest.mark.slow
@pytest.mark.usefixtures("without_costs")
@pytest.mark.parametrize("name", ["sd14", "sd21", "sdxl", "sd35_medium", "flux_dev", "pixart_sigma", "sana_1600m"])
def test_a_run_accepts_what_init_writes_for_published_teachers(prompts: Path, tmp_path: Path, name: str) -> None:
    accepted(write_recipe(str(DATA / name), [prompts], tmp_path / "new.yaml", goal=Goal(device="h200", quick=True)))


@pytest.mark.slow
@pytest.mark.usefixtures("without_costs")
def test_the_networks_of_the_evaluation_are_listed_with_their_sizes_as_a_comment(
    tiny_pipeline_dir: Path, prompts: Path, tmp_path: Path
) -> None:
    path = write_recipe(str(tiny_pipeline_dir), [prompts], tmp_path / "new.yaml")
    text = path.read_text(encoding="utf-8")
    assert Recipe.load(path).evaluate.networks == NetworkSettings()
    used = re.sub(r"(?m)^  # ( *)(networks|inception|dinov2|clip|pickscore|hpsv2):", r"  \1\2:", text)
    networks = Recipe.parse(used).evaluate.networks
    assert networks.model_dump() == {name: network.usual for name, network in NETWORKS.items()}
    for network in NETWORKS.values():
        assert f"{network.usual} " in text
        assert f"# {byte_size(network.weights_bytes)}: {network.serves}" in text
    assert all(len(line) <= 120 for line in text.splitlines())
    assert "networks:" not in write_recipe("miniature", [prompts], tmp_path / "own.yaml").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.usefixtures("without_costs")
def test_a_teacher_that_may_take_the_guidance_scale_gets_a_hint(
    tiny_pipeline_dir: Path, prompts: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(tiny_pipeline_dir, tmp_path / "lcm")
    config = copy / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "time_cond_proj_dim": 256}))
    path = write_recipe(str(copy), [prompts], tmp_path / "new.yaml")
    accepted(path)
    assert "# guidance_distillation: [3.0, 13.0]  # needed if the guidance scale is an input" in path.read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("without_costs")
def test_a_student_that_a_run_refuses_is_replaced_or_nothing_is_written(
    tiny_pipeline_dir: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(recipe: Recipe, skeleton: Skeleton) -> dict[str, Student]:
        if recipe.student.preset in refused:
            raise CondistillError(f"the blocks of {recipe.student.preset} are gone")
        return preflight(recipe, skeleton)

    refused = ["b-base"]
    monkeypatch.setattr(ladder, "preflight", refuse)
    goal = Goal(device="h200")
    path = write_recipe(str(tiny_pipeline_dir), [prompts], tmp_path / "new.yaml", goal=goal)
    assert Recipe.load(path).student.preset == "c-micro"  # the others are no whole groups of this teacher
    refused.append("c-micro")
    with pytest.raises(CondistillError, match="the blocks of b-base are gone"):
        write_recipe(str(tiny_pipeline_dir), [prompts], tmp_path / "other.yaml", goal=goal)
    assert not (tmp_path / "other.yaml").exists()


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip what takes longest: the choice of the settings, their plan and the checks of the student."""

    def choose(_: object, *, prompts: int, budget: float | None) -> Any:
        assert budget is None
        distill = {"batch_size": 4, "micro_batch_size": 2, "mixed_precision": "no", "gradient_checkpointing": False}
        settings: dict[str, Any] = {
            "cache": {"size": prompts, "batch_size": 2},
            "student": {"width": 0.5},
            "distill": {"steps": 3, **distill},
            "evaluate": {"prompts_per_split": 1, "batch_size": 1},
        }
        names = ("student", "steps", "cache", "micro-batch", "gradient checkpointing", "mixed precision")
        choices = tuple(Choice(name, "1", "why") for name in names)
        return SimpleNamespace(settings=settings, choices=choices, cost=SimpleNamespace(hours=1))

    monkeypatch.setattr(init, "fit", choose)
    monkeypatch.setattr(init, "cost_lines", lambda _: ["the cost"])
    monkeypatch.setattr(init, "preflight", lambda *_: None)
    monkeypatch.setattr(init, "find_device", lambda name: SimpleNamespace(name=name))


@pytest.mark.usefixtures("unchecked")
def test_sizes_are_counted_after_duplicates(tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a star\na moon\n\u200b\na star\n a moon\n\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("a moon\na cross\n", encoding="utf-8")
    lines: list[str] = []
    path = write_recipe(
        str(tiny_pipeline_dir), [tmp_path / "a.txt", tmp_path / "b.txt"], tmp_path / "new.yaml", say=lines.append
    )
    assert Recipe.load(path).cache.size == 3
    assert lines == [
        "a.txt: the first prompt is 'a star'",
        "b.txt: the first prompt is 'a moon'",
        "prompts: 3 of the 8 may be cached (3 duplicates and 2 empty ones dropped)",
        "choosing the settings for present",
        *(f"{name}: 1 (why)" for name in ("student", "steps", "cache")),
        "micro-batch: 1 (why)",
        "gradient checkpointing: 1 (why)",
        "mixed precision: 1 (why)",
        "the cost",
    ]


@pytest.mark.usefixtures("unchecked")
def test_loras_next_to_the_teacher_are_pointed_out(tiny_pipeline_dir: Path, prompts: Path, tmp_path: Path) -> None:
    pipeline = Path(shutil.copytree(tiny_pipeline_dir, tmp_path / "pipeline"))
    write_lora(pipeline / "style.safetensors", {"x.lora_A.weight": torch.ones(1, 1)})
    lines: list[str] = []
    write_recipe(str(pipeline), [prompts], tmp_path / "new.yaml", say=lines.append)
    assert lines[0].startswith("warning: the teacher's folder has LoRAs that teacher.loras does not mention")


@pytest.mark.usefixtures("unchecked")
def test_the_column_is_written_and_must_exist(tiny_pipeline_dir: Path, prompts: Path, tmp_path: Path) -> None:
    table = tmp_path / "a.csv"
    table.write_text("yes,no\na star,1\na moon,2\n")
    out, lines = tmp_path / "new.yaml", []
    with pytest.raises(CondistillError, match=r"more than one text column \(yes, no\)"):
        write_recipe(str(tiny_pipeline_dir), [table], out)
    with pytest.raises(CondistillError, match="column 'yes' applies to none of"):
        write_recipe(str(tiny_pipeline_dir), [prompts], out, column="yes")
    write_recipe(str(tiny_pipeline_dir), [table, prompts], out, column="yes", say=lines.append)
    recipe = Recipe.load(out)
    assert (recipe.prompts.column, recipe.cache.size) == ("yes", 10)
    assert lines[0] == "a.csv, column 'yes': the first prompt is 'a star'"


@pytest.mark.usefixtures("unchecked")
def test_a_tilde_is_the_home_directory_in_every_path(
    tiny_pipeline_dir: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "teacher").symlink_to(tiny_pipeline_dir)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert write_recipe("~/teacher", [Path("~/prompts.txt")], Path("~/new.yaml")) == tmp_path / "new.yaml"
    recipe = Recipe.load(tmp_path / "new.yaml")
    assert recipe.teacher.pipeline == str(tiny_pipeline_dir)
    assert recipe.prompts.files == (str(prompts),)
    with pytest.raises(CondistillError, match="no home directory for '~nosuchuser'"):
        write_recipe("~/teacher", [Path("~nosuchuser/prompts.txt")], tmp_path / "other.yaml")


@pytest.mark.usefixtures("unchecked")
def test_a_file_whose_prompts_show_nothing_is_refused(tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\u200b\n\u00a0\n", encoding="utf-8")
    with pytest.raises(CondistillError, match=r"a.txt contains no prompts; choose another file"):
        write_recipe(str(tiny_pipeline_dir), [tmp_path / "a.txt"], tmp_path / "new.yaml")


@pytest.mark.usefixtures("unchecked")
def test_files_near_the_recipe_are_named_relative_to_it_and_others_by_their_whole_path(
    tiny_pipeline_dir: Path, tmp_path: Path
) -> None:
    home, far = tmp_path / "home" / "me", tmp_path / "far.txt"
    (home / "recipes").mkdir(parents=True)
    near = home / "prompts.txt"
    far.write_text("a star\n", encoding="utf-8")
    near.write_text("a moon\na sun\n", encoding="utf-8")
    path = write_recipe(str(tiny_pipeline_dir), [near, far], home / "recipes" / "new.yaml")
    made = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert made["prompts"]["files"] == ["../prompts.txt", str(far)]
    assert Recipe.load(path).prompts.files == (str(near), str(far))
    assert Recipe.load(path).teacher.pipeline == str(tiny_pipeline_dir)


@pytest.mark.usefixtures("unchecked")
def test_a_teacher_next_to_the_recipe_is_a_path_and_no_hub_name(tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_pipeline_dir, tmp_path / "org" / "model")
    (tmp_path / "a # b.txt").write_text("a star\n", encoding="utf-8")
    path = write_recipe(str(tmp_path / "org" / "model"), [tmp_path / "a # b.txt"], tmp_path / "new.yaml")
    made = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert made["teacher"]["pipeline"] == "./org/model"
    assert made["prompts"]["files"] == ["a # b.txt"]
    assert all(len(line) <= 120 for line in path.read_text(encoding="utf-8").splitlines())


def test_a_wrong_budget_or_device_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    for goal, message in (
        (Goal("two days"), "--budget is 'two days'; give a number and a unit"),
        (Goal("0h"), "--budget is 0h; it must be above 0"),
        (Goal(device="rtx-9090"), "the device 'rtx-9090' is not known; choose one of present, a100-40gb"),
    ):
        with pytest.raises(CondistillError, match=message):
            write_recipe("nowhere", [tmp_path / "gone.txt"], tmp_path / "new.yaml", goal=goal)


@pytest.mark.usefixtures("unchecked")
def test_prompts_that_the_text_encoder_does_not_read_to_their_end_are_counted(
    tiny_pipeline_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("a star\n" + "a red star " * 77 + "\n", encoding="utf-8")
    lines: list[str] = []
    write_recipe(str(tiny_pipeline_dir), [tmp_path / "a.txt"], tmp_path / "new.yaml", say=lines.append)
    assert any(line.startswith("warning: 1 of 2 prompts are longer than the") for line in lines)


@pytest.mark.usefixtures("unchecked")
def test_settings_of_the_teacher_are_written_with_paths_relative_to_the_recipe(
    tiny_pipeline_dir: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_pipeline_dir / "vae", tmp_path / "parts" / "vae")
    (tmp_path / "recipes").mkdir()
    monkeypatch.chdir(tmp_path)
    options = {"vae": "parts/vae", "resolution": 32}
    path = write_recipe(str(tiny_pipeline_dir), [prompts], Path("recipes/new.yaml"), options=options)
    made = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert made["teacher"] | {"pipeline": ""} == {
        "pipeline": "",
        "family": "stable_diffusion",
        "vae": "../parts/vae",
        "resolution": 32,
    }
    assert Recipe.load(path).teacher.vae == str(tmp_path / "parts" / "vae")
    with pytest.raises(CondistillError, match="varian"):
        write_recipe(str(tiny_pipeline_dir), [prompts], Path("other.yaml"), options={"varian": "fp16"})


def test_init_takes_settings_of_the_teacher_only(prompts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for change, message in (
        ("distill.steps=3", "`init` takes settings of the teacher only, and chooses distill itself"),
        ("teacher=3", "teacher is a section; give one of its settings, such as teacher.variant=fp16"),
    ):
        with pytest.raises(SystemExit):
            cli.main(["init", "miniature", "--prompts", str(prompts), "-s", change])
        assert message in capsys.readouterr().err
