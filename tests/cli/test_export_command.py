"""The command `condistill export`: what it lists, writes, refuses, and leaves behind when it is stopped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from checkpoints import tiny_checkpoint

from condistill import cli
from condistill.cli.export import _student_names
from condistill.export import EXPORTERS, Comparison
from condistill.export.comfyui import ComfyUI
from condistill.export.single_file.unet import UNetLayout
from condistill.run.directory import MARK_NAME


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def any_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tiny widths pass the check."""
    monkeypatch.setattr(UNetLayout, "check", lambda *_: ())


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("export") / "b-tiny"
    tiny_checkpoint("sd1", "b-tiny").save_pretrained(directory)
    (directory / "sampling.json").write_text('{"num_inference_steps": 4, "guidance_scale": 1.0}', encoding="utf-8")
    return str(directory)


def said(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    """Return what a command prints, on one line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exited:
        cli.main(["export", *arguments])
    printed = capsys.readouterr()
    assert int(exited.value.code or 0) == code, printed
    assert "unexpected" not in printed.err
    return " ".join((printed.out + printed.err).split())


def test_without_a_format_all_are_listed_with_what_is_possible(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "miniature")
    assert all(f" {name} " in text for name in EXPORTERS)
    assert "comfyui no its U-Net has norm_num_groups 8 instead of 32; its stages have 64, 96 and 128 channels" in text
    assert text.endswith("write one: condistill export miniature --to FORMAT")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("./gone",), "./gone is neither a run directory (with run.json), nor a diffusers pipeline (with model_index"),
        (("org/gone",), "nor the name of a pipeline that was downloaded from the hub; give one of these, or miniature"),
        (("recipe.yaml",), "recipe.yaml is a recipe; give the run directory that `condistill run` made with it"),
        (("model.safetensors",), "is one file, and pipeline directories are exported. A checkpoint loads in ComfyUI"),
        (("run",), "the run run has no finished student; run `condistill run` with its recipe first"),
        (("miniature", "--student", "a"), "--student a is for run directories, and miniature is none; leave it out"),
        (("miniature", "--to", "comfui"), "there is no format 'comfui'; did you mean 'comfyui'?"),
        (("miniature", "--to", "comfyui"), "miniature cannot be exported to ComfyUI: its U-Net has norm_num_groups 8"),
        (("miniature", "--to", "comfyui", "--to", "sdcpp", "-o", "x"), "--out is one directory, and --to was given 2"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_exported_is_refused_with_what_to_do(
    arguments: tuple[str, ...], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("recipe.yaml", "model.safetensors"):
        (folder / name).touch()
    (folder / "run").mkdir()
    (folder / "run" / MARK_NAME).write_text("{}", encoding="utf-8")
    assert message in said(capsys, *arguments, code=1)
    assert not (folder / "exports").exists()


@pytest.mark.usefixtures("any_width")
def test_an_export_is_written_once_and_says_how_it_is_loaded(
    pipeline: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = said(capsys, pipeline, "--to", "comfyui")
    for part in (
        "unet: bit-equal to the pipeline",
        "vae: bit-equal",
        "text_encoder: bit-equal",
        "`steps: 4`, `cfg: 1`",
    ):
        assert part in text
    record = json.loads((folder / "exports" / "b-tiny-comfyui" / "export.json").read_text("utf-8"))
    assert "b-tiny.safetensors" in record["files"]
    assert "configs/tokenizer/tokenizer.json" in record["files"]
    assert "exports/b-tiny-comfyui holds this export already" in said(capsys, pipeline, "--to", "comfyui")
    other = said(capsys, pipeline, "--to", "comfyui", "--dtype", "float16", code=1)
    assert "holds an export of other files or options; delete it, or choose another --out" in other
    assert "--dtype int8 is not possible with --to comfyui; choose from float32, float16, bfloat16" in said(
        capsys, pipeline, "--to", "comfyui", "--dtype", "int8", code=1
    )
    assert "is no export; choose another --out" in said(capsys, pipeline, "--to", "comfyui", "-o", pipeline, code=1)


@pytest.mark.usefixtures("any_width")
def test_what_is_stopped_or_differs_leaves_nothing(
    pipeline: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ComfyUI, "verify", interrupt)
        said(capsys, pipeline, "--to", "comfyui", code=130)
    assert list((folder / "exports").iterdir()) == []
    with monkeypatch.context() as patched:
        patched.setattr(ComfyUI, "verify", lambda *_: (Comparison("unet", 0.5, 0.1),))
        text = said(capsys, pipeline, "--to", "comfyui", code=1)
    assert "differs from the pipeline, so it was not kept: unet by 0.5" in text
    assert list((folder / "exports").iterdir()) == []
    (folder / "exports" / ".b-tiny-comfyui.partial").mkdir()  # of a process that was killed
    said(capsys, pipeline, "--to", "comfyui")
    assert [each.name for each in (folder / "exports").iterdir()] == ["b-tiny-comfyui"]


@pytest.mark.usefixtures("any_width")
def test_files_of_the_user_stay_as_they_are_where_an_export_is_written(
    pipeline: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "sub").mkdir()
    others = [folder / name for name in (".zshrc.old", ".notes.partial", "sub/.other.partial")]
    for file in others:
        file.write_text("of the user", encoding="utf-8")
    said(capsys, pipeline, "--to", "comfyui", "-o", "out")
    assert all(file.read_text("utf-8") == "of the user" for file in others)


@pytest.mark.usefixtures("any_width")
def test_a_disk_that_is_too_small_is_named_before_anything_is_written(
    pipeline: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    text = said(capsys, pipeline, "--to", "comfyui", code=1)
    assert "the export needs about" in text
    assert "are free; free some space, or choose another --out" in text
    assert list((folder / "exports").iterdir()) == []


def test_a_hub_name_that_was_downloaded_is_a_pipeline(
    pipeline: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    repository = folder / "models--org--small"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40, encoding="utf-8")
    (repository / "snapshots").mkdir()
    (repository / "snapshots" / ("0" * 40)).symlink_to(pipeline)
    assert "small: a StableDiffusionPipeline" in said(capsys, "org/small")


def test_a_shell_completes_the_students_of_a_run(folder: Path) -> None:
    for name in ("plain", "paired", "other"):
        (folder / "run" / "pipelines" / name).mkdir(parents=True)
        (folder / "run" / "pipelines" / name / "model_index.json").touch()
    context = SimpleNamespace(params={"pipeline": str(folder / "run")})
    assert _student_names(context, "p") == ["paired", "plain"]  # type: ignore[arg-type]
