from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from condistill.cli import init
from condistill.cli.init import write_recipe
from condistill.config.recipe import Recipe
from condistill.errors import CondistillError
from condistill.teachers.skeleton import teacher_skeleton
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


@pytest.mark.parametrize(
    ("builder", "options", "expected"),
    [
        pytest.param("build_flux", {}, (None, 0.5, (1.5, 5.0), 3.5), marks=pytest.mark.slow),
        ("build_flux", {"guidance_embeds": False}, (None, 0.5, None, 1.0)),
        pytest.param("build_sd", {}, ("b-base", None, None, 7.5), marks=pytest.mark.slow),
        pytest.param("build_sd_inpaint", {}, ("b-base", None, None, 7.5), marks=pytest.mark.slow),
        pytest.param("build_sdxl", {}, ("b-base", None, None, 7.5), marks=pytest.mark.slow),
        pytest.param("build_sd3", {}, (None, 0.5, None, 7.5), marks=pytest.mark.slow),
        pytest.param("build_sd3", {"t5": False}, (None, 0.5, None, 7.5), marks=pytest.mark.slow),
        pytest.param("build_pixart", {}, (None, 0.5, None, 7.5), marks=pytest.mark.slow),
        pytest.param("build_sana", {}, (None, 0.5, None, 7.5), marks=pytest.mark.slow),
        pytest.param("build_dit", {}, (None, 0.5, None, 7.5), marks=pytest.mark.slow),
    ],
)
def test_a_run_accepts_what_init_writes_for_every_family(
    teacher: Teacher, prompts: Path, tmp_path: Path, *, builder: str, options: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    recipe = accepted(write_recipe(str(teacher(builder, **options)), [prompts], tmp_path / "new.yaml"))
    student, guidance = recipe.student, recipe.distill.guidance_distillation
    assert (student.preset, student.depth, guidance, recipe.cache.guidance_scale) == expected
    assert (recipe.cache.size, recipe.evaluate.prompts_per_split) == (8, 8)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd14", "sd21", "sdxl", "sd35_medium", "flux_dev", "pixart_sigma", "sana_1600m"])
def test_a_run_accepts_what_init_writes_for_published_teachers(prompts: Path, tmp_path: Path, name: str) -> None:
    accepted(write_recipe(str(Path("tests/data") / name), [prompts], tmp_path / "new.yaml"))


@pytest.mark.slow
def test_a_teacher_that_may_take_the_guidance_scale_gets_a_hint(
    tiny_pipeline_dir: Path, prompts: Path, tmp_path: Path
) -> None:
    import shutil

    copy = shutil.copytree(tiny_pipeline_dir, tmp_path / "lcm")
    config = copy / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "time_cond_proj_dim": 256}))
    path = write_recipe(str(copy), [prompts], tmp_path / "new.yaml")
    accepted(path)
    assert "# guidance_distillation: [3.0, 13.0]  # needed if the guidance scale is an input" in path.read_text()


def test_a_student_that_a_run_refuses_is_replaced_or_nothing_is_written(
    tiny_pipeline_dir: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(recipe: Recipe, _: object) -> None:
        if recipe.student.preset:
            raise CondistillError("the blocks of b-base are gone")

    monkeypatch.setattr(init, "preflight", refuse)
    path = write_recipe(str(tiny_pipeline_dir), [prompts], tmp_path / "new.yaml")
    assert Recipe.load(path).student.width == 0.5
    monkeypatch.setattr(init, "preflight", lambda *_: refuse(Recipe.load(path, ["student={preset: b-base}"]), None))
    with pytest.raises(CondistillError, match=r"no recipe is written: the blocks of b-base are gone"):
        write_recipe(str(tiny_pipeline_dir), [prompts], tmp_path / "other.yaml")
    assert not (tmp_path / "other.yaml").exists()


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the checks of the student, which take longest."""
    monkeypatch.setattr(init, "preflight", lambda *_: None)


@pytest.mark.usefixtures("unchecked")
def test_the_cache_is_as_large_as_the_prompts_allow(tiny_pipeline_dir: Path, tmp_path: Path) -> None:
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
    ]


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
