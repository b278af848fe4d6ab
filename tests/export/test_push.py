"""`condistill push` against a local stand-in of the hub."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hub import ORGANISATION, TOKEN, USER, FakeHub, Repo, fake_hub
from safetensors.torch import save_file

from condistill import cli
from condistill.config.recipe import QUICK_LABEL
from condistill.export import EXPORTERS, ExportOptions, find_source
from condistill.export.record import EXPORT_NAME, ExportedFile, ExportRecord
from condistill.export.write import export_key

HEAD = "---\nlicense: mit\ntags:\n- condistill\n---\n"
CARD = HEAD + '# A student\n\n```python\nDiffusionPipeline.from_pretrained("./small")\n```\n'
TO = f"{USER}/my-student"
Push = Callable[..., tuple[int, str]]


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the files of a pipeline, tiny."""
    folder = tmp_path / "small"
    index = {"_class_name": "StableDiffusionPipeline"}
    for name, kind, stem in (
        ("unet", "UNet2DConditionModel", "diffusion_pytorch_model"),
        ("vae", "AutoencoderKL", "diffusion_pytorch_model"),
    ):
        index |= {name: ["diffusers", kind]}  # type: ignore[dict-item]
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps({"_class_name": kind}), encoding="utf-8")
        save_file({name: torch.arange(4.0)}, folder / name / f"{stem}.safetensors", metadata={"format": "pt"})
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    (folder / "README.md").write_text(CARD, encoding="utf-8")
    (folder / "LICENSE").write_text("MIT License", encoding="utf-8")
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub(monkeypatch) as hub:
        yield hub


@pytest.fixture
def push(capsys: pytest.CaptureFixture[str]) -> Push:
    """Run the command; return its exit code and what it printed."""

    def run(*arguments: str | Path) -> tuple[int, str]:
        with pytest.raises(SystemExit) as exited:
            cli.main(["push", *map(str, arguments)])
        captured = capsys.readouterr()
        assert TOKEN not in captured.out + captured.err
        return int(exited.value.code or 0), captured.out + captured.err

    return run


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, FakeHub], None]:
    """Let the user sit at a terminal and give an answer, before which nothing was sent."""

    def give(text: str, hub: FakeHub) -> None:
        def confirm(*_: object, **__: object) -> bool:
            assert hub.writes == []
            return text == "y"

        monkeypatch.setattr("condistill.cli.push._is_interactive", lambda: True)
        monkeypatch.setattr("typer.confirm", confirm)

    return give


def test_a_pipeline_is_sent_in_one_commit_private_and_its_example_loads_from_the_hub(
    pipeline: Path, hub: FakeHub, push: Push
) -> None:
    code, printed = push(pipeline, "--to", TO, "--yes")
    assert code == 0, printed
    repo = hub.repos[TO]
    assert repo.private
    assert len(repo.messages) == 1
    assert "Upload small, made with condistill" in repo.messages[0]
    assert set(repo.files) == {
        ".gitattributes",
        "README.md",
        "LICENSE",
        "model_index.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    }
    for path, content in repo.files.items():
        if path not in (".gitattributes", "README.md"):
            assert content == (pipeline / path).read_bytes()
    assert f'from_pretrained("{TO}")' in repo.files["README.md"].decode()
    assert f"to: {hub.url}/{TO} (new, private)" in printed
    assert "license: mit" in printed
    assert "not sent, since loading the pipeline does not read them: notes.txt" in printed
    assert f"sent: {hub.url}/{TO}/commit/" in printed
    assert (pipeline / "README.md").read_text(encoding="utf-8") == CARD


def test_public_is_a_choice_and_an_organisation_is_a_namespace(pipeline: Path, hub: FakeHub, push: Push) -> None:
    code, printed = push(pipeline, "--to", f"{ORGANISATION}/x", "--yes", "--public")
    assert (code, hub.repos[f"{ORGANISATION}/x"].private) == (0, False)
    assert "(new, public: everyone can load it)" in printed


@pytest.mark.parametrize("text", ["y", "n"])
def test_nothing_is_sent_before_the_answer(
    pipeline: Path, hub: FakeHub, push: Push, answer: Callable[[str, FakeHub], None], text: str
) -> None:
    answer(text, hub)
    code, printed = push(pipeline, "--to", TO)
    assert code == (0 if text == "y" else 1)
    assert (TO in hub.repos) is bool(hub.writes) is (text == "y")
    assert text == "y" or "nothing was sent" in printed


def test_a_dry_run_sends_nothing(pipeline: Path, hub: FakeHub, push: Push) -> None:
    code, printed = push(pipeline, "--to", TO, "--dry-run")
    assert (code, hub.writes) == (0, [])
    assert "nothing was sent: --dry-run" in printed


def test_without_a_terminal_yes_is_needed(pipeline: Path, hub: FakeHub, push: Push) -> None:
    code, printed = push(pipeline, "--to", TO)
    assert (code, hub.requests) == (1, [])
    assert "there is no terminal for the answer; add --yes, or --dry-run" in printed


def test_files_that_are_there_stay_and_those_of_the_same_name_are_replaced(
    pipeline: Path, hub: FakeHub, push: Push
) -> None:
    hub.repos[TO] = Repo(True, {"README.md": b"old", "other.txt": b"keep"})
    code, printed = push(pipeline, "--to", TO, "--yes")
    assert code == 0, printed
    assert hub.repos[TO].files["other.txt"] == b"keep"
    assert hub.repos[TO].files["README.md"] != b"old"
    assert "README.md: 118 B, replaces the one that is there" in printed
    assert "stay as they are: other.txt" in printed


def test_the_same_command_again_makes_no_second_commit(pipeline: Path, hub: FakeHub, push: Push) -> None:
    push(pipeline, "--to", TO, "--yes")
    assert push(pipeline, "--to", TO, "--yes")[0] == 0
    assert len(hub.repos[TO].messages) == 1


def test_an_upload_that_the_network_interrupts_is_resumed_by_the_same_command(
    pipeline: Path, hub: FakeHub, push: Push
) -> None:
    hub.drop_put = 2
    code, printed = push(pipeline, "--to", TO, "--yes")
    assert code == 1
    assert "run the same command again: what was uploaded is not sent again" in printed
    assert hub.repos[TO].messages == []
    assert len(hub.puts) == 1
    hub.drop_put = None
    assert push(pipeline, "--to", TO, "--yes")[0] == 0
    assert len(set(hub.puts)) == len(hub.puts) == 2
    assert hub.repos[TO].files["unet/config.json"] == (pipeline / "unet" / "config.json").read_bytes()


def test_ctrl_c_leaves_the_repository_as_it_was(
    pipeline: Path, hub: FakeHub, push: Push, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    hub.repos[TO] = Repo(True, {"README.md": b"old"})
    with monkeypatch.context() as patched:
        patched.setattr("huggingface_hub._commit_api._upload_lfs_files", interrupt)
        assert push(pipeline, "--to", TO, "--yes")[0] == 130
    assert hub.repos[TO].files == {"README.md": b"old"}
    assert push(pipeline, "--to", TO, "--yes")[0] == 0


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (None, "there is no token for the hub; set HF_TOKEN, or run `hf auth login`"),
        ("hf_wrong", "the hub does not accept the token; set HF_TOKEN"),
    ],
)
def test_without_a_valid_token_the_message_names_the_remedy(
    pipeline: Path, push: Push, monkeypatch: pytest.MonkeyPatch, token: str | None, message: str
) -> None:
    with fake_hub(monkeypatch, token=token) as hub:
        code, printed = push(pipeline, "--to", TO, "--yes")
    assert (code, hub.repos) == (1, {})
    assert message in printed
    assert "hf_wrong" not in printed


def test_refusals_of_the_hub_have_messages(pipeline: Path, hub: FakeHub, push: Push) -> None:
    hub.may_write = False
    assert "the token may not write to me/my-student" in push(pipeline, "--to", TO, "--yes")[1]
    hub.may_write = True
    for status, message in (
        (412, "was changed meanwhile; run the same command again"),
        (400, "the hub refuses the upload to me/my-student"),
    ):
        hub.commit_status = status
        code, printed = push(pipeline, "--to", TO, "--yes")
        assert (code, message in printed) == (1, True), printed


@pytest.mark.parametrize(
    ("to", "message"),
    [
        ("somebody/x", "somebody is neither your account nor one of your organisations; yours: me, my-lab"),
        ("x", "--to x is no name on the hub; give NAMESPACE/NAME"),
        ("me/a b", "is no name on the hub"),
        ("me/a--b", "is no name on the hub"),
    ],
)
def test_names_that_are_not_the_users_are_refused(
    pipeline: Path, hub: FakeHub, push: Push, to: str, message: str
) -> None:
    code, printed = push(pipeline, "--to", to, "--yes")
    assert (code, hub.writes) == (1, [])
    assert message in printed


def test_a_repository_that_exists_keeps_its_visibility(pipeline: Path, hub: FakeHub, push: Push) -> None:
    hub.repos |= {f"{USER}/open": Repo(False), f"{USER}/closed": Repo(True)}
    assert "exists and is public, so everyone could load" in push(pipeline, "--to", f"{USER}/open", "--yes")[1]
    assert (
        "exists and is private, and --public changes"
        in push(pipeline, "--to", f"{USER}/closed", "--yes", "--public")[1]
    )
    assert hub.writes == []
    assert push(pipeline, "--to", f"{USER}/open", "--yes", "--public")[0] == 0


def test_files_with_paths_of_the_machine_are_refused_before_anything_is_asked(
    pipeline: Path, hub: FakeHub, push: Push
) -> None:
    config = pipeline / "unet" / "config.json"
    for place in ("/home/alice/models/sd", str(pipeline), "C:\\Users\\alice\\x", "~/private/x"):
        config.write_text(json.dumps({"_name_or_path": place}), encoding="utf-8")
        code, printed = push(pipeline, "--to", TO, "--yes")
        assert code == 1
        assert "unet/config.json holds the path" in printed
    config.write_text("{}", encoding="utf-8")
    save_file(
        {"a": torch.zeros(1)}, pipeline / "vae" / "diffusion_pytorch_model.safetensors", metadata={"from": "/home/a/b"}
    )
    assert "vae/diffusion_pytorch_model.safetensors holds the path /home/a/b" in push(pipeline, "--to", TO, "--yes")[1]
    assert hub.requests == []


def test_web_addresses_are_no_paths_of_a_machine(pipeline: Path, hub: FakeHub, push: Push) -> None:
    (pipeline / "README.md").write_text(CARD + "https://x.org/home/me and a/tmp/b or 1/2\n", encoding="utf-8")
    assert push(pipeline, "--to", TO, "--yes")[0] == 0


def test_pickles_are_never_sent(pipeline: Path, hub: FakeHub, push: Push) -> None:
    (pipeline / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"x")
    code, printed = push(pipeline, "--to", TO, "--yes")
    assert code == 0
    assert "unet/diffusion_pytorch_model.bin" in printed.partition("not sent")[2]
    assert not any(path.endswith(".bin") for path in hub.repos[TO].files)
    (pipeline / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    code, printed = push(pipeline, "--to", f"{USER}/other", "--yes")
    assert code == 1
    assert "has only pickle weights" in printed


def test_the_miniature_and_a_pipeline_without_a_card_are_refused(pipeline: Path, hub: FakeHub, push: Push) -> None:
    assert "miniature is part of condistill and is not uploaded" in push("miniature", "--to", TO, "--yes")[1]
    (pipeline / "README.md").unlink()
    assert "has no README.md, the model card; run `condistill report`" in push(pipeline, "--to", TO, "--yes")[1]
    assert hub.requests == []


def test_what_a_reader_of_the_card_must_know_is_a_warning(pipeline: Path, hub: FakeHub, push: Push) -> None:
    assert "warning:" not in push(pipeline, "--to", TO, "--dry-run")[1]
    card = pipeline / "README.md"
    card.write_text(CARD.replace("mit", "unknown") + f"**{QUICK_LABEL.capitalize()}.**\n", encoding="utf-8")
    printed = push(pipeline, "--to", TO, "--dry-run")[1]
    assert "warning: the card names no known licence" in printed
    assert f"warning: this is a {QUICK_LABEL}" in printed
    card.write_text("# no metadata\n", encoding="utf-8")
    assert "has no metadata at its head" in push(pipeline, "--to", TO, "--dry-run")[1]


def test_exports_are_sent_in_their_folder_if_they_are_whole(pipeline: Path, hub: FakeHub, push: Push) -> None:
    printed = push(pipeline, "--to", TO, "--yes", "--export", "comfyui")[1]
    assert "small has no export in exports/small-comfyui; run `condistill export --to comfyui` first" in printed
    folder = Path("exports", "small-comfyui")
    folder.mkdir(parents=True)
    save_file({"a": torch.zeros(1)}, folder / "small.safetensors")
    size = (folder / "small.safetensors").stat().st_size

    key = export_key(find_source(str(pipeline)), EXPORTERS["comfyui"], ExportOptions())

    def write_record(files: dict[str, ExportedFile], key: str = key) -> None:
        ExportRecord(
            exporter="comfyui",
            version="0",
            pipeline="small",
            key=key,
            dtype=None,
            weights=None,
            files=files,
            comparisons=(),
            seconds=1.0,
        ).write(folder / EXPORT_NAME)

    write_record({"small.safetensors": ExportedFile(bytes=size + 1, sha256="a")})
    assert "is missing or damaged" in push(pipeline, "--to", TO, "--yes", "--export", "comfyui")[1]
    write_record({"../secret": ExportedFile(bytes=1, sha256="a")})
    assert "which is outside of exports/small-comfyui" in push(pipeline, "--to", TO, "--yes", "--export", "comfyui")[1]
    write_record({"small.safetensors": ExportedFile(bytes=size, sha256="a")}, key="of an older student")
    printed = push(pipeline, "--to", TO, "--yes", "--export", "comfyui")[1]
    assert "exports/small-comfyui was exported from other weights or configs than" in printed
    assert hub.requests == []
    write_record({"small.safetensors": ExportedFile(bytes=size, sha256="a")})
    code, printed = push(pipeline, "--to", TO, "--yes", "--export", "comfyui")
    assert code == 0, printed
    assert {"small-comfyui/small.safetensors", f"small-comfyui/{EXPORT_NAME}"} <= set(hub.repos[TO].files)
    assert "README.md does not name the export to comfyui; run `condistill report`" in printed


def test_an_unreachable_or_switched_off_hub_has_a_message(
    pipeline: Path, hub: FakeHub, push: Push, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in push(pipeline, "--to", TO, "--yes")[1]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert f"the upload to {TO} was interrupted" in push(pipeline, "--to", TO, "--yes")[1]
