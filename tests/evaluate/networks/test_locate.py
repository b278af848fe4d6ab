"""Networks are found before anything is loaded: on the disk, in the hub's cache, or on the hub; faults come at once."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from huggingface_hub.errors import RepositoryNotFoundError
from PIL import Image
from tiny_networks import write_dinov2

from condistill.config.evaluate import EvaluateSettings, NetworkSettings
from condistill.errors import CondistillError
from condistill.evaluate import statistics_file
from condistill.evaluate.networks import hpsv2, inception
from condistill.evaluate.networks.clip import ClipNetwork
from condistill.evaluate.networks.dinov2 import Dinov2Network
from condistill.evaluate.networks.hpsv2 import Hpsv2Network
from condistill.evaluate.networks.locate import check_evaluation_files, locate_networks
from condistill.teachers.hub import hub_commit, repository_files

COMMIT = "a" * 40
NAME = "someone/dinov2"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A hub with one repository, whose files lie in `folder`; None: the hub cannot be reached."""
    answer: dict[str, Any] = {"folder": tmp_path / "hub", "cache": tmp_path / "cache", "requests": [], "downloaded": []}
    answer["folder"].mkdir()

    def model_info(_self: object, name: str, revision: str | None = None, **_: Any) -> SimpleNamespace:
        answer["requests"].append((name, revision))
        if answer["folder"] is None:
            raise OSError("no route to host")
        files = [SimpleNamespace(rfilename=file.name) for file in answer["folder"].iterdir()]
        return SimpleNamespace(sha=COMMIT, siblings=files)

    def snapshot(name: str) -> Path:
        return Path(answer["cache"]) / f"models--{name.replace('/', '--')}" / "snapshots" / COMMIT

    def cached(name: str, file: str, revision: str) -> str | None:
        assert revision == COMMIT
        return str(snapshot(name) / file) if (snapshot(name) / file).is_file() else None

    def download(name: str, file: str, revision: str, local_files_only: bool) -> str:
        if local_files_only or answer["folder"] is None:
            raise OSError(f"{file} is not in the local cache")
        answer["downloaded"].append(file)
        snapshot(name).mkdir(parents=True, exist_ok=True)
        (snapshot(name).parents[1] / "refs").mkdir(exist_ok=True)
        (snapshot(name).parents[1] / "refs" / "main").write_text(COMMIT)
        return str(shutil.copy(answer["folder"] / file, snapshot(name) / file))

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", cached)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.hf_hub_url", lambda _name, file, **_: file)
    monkeypatch.setattr(
        "huggingface_hub.get_hf_file_metadata",
        lambda file, **_: SimpleNamespace(size=(answer["folder"] / file).stat().st_size),
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(answer["cache"]))
    for function in (hub_commit, repository_files):
        function.cache_clear()
    yield answer
    for function in (hub_commit, repository_files):
        function.cache_clear()


def _forget() -> None:
    hub_commit.cache_clear()
    repository_files.cache_clear()


def test_a_hub_name_is_downloaded_once_and_used_without_a_network(hub: dict[str, Any]) -> None:
    write_dinov2(hub["folder"])
    (hub["folder"] / "tf_model.h5").write_bytes(b"never needed")
    located = Dinov2Network.locate(NAME)
    assert sorted(hub["downloaded"]) == ["config.json", "model.safetensors"]
    assert located.weights[0].read_bytes() == (hub["folder"] / "model.safetensors").read_bytes()
    hub["folder"] = None
    _forget()
    assert Dinov2Network.locate(NAME).inputs() == located.inputs()


def test_before_a_run_nothing_large_is_downloaded_and_the_size_is_known(hub: dict[str, Any]) -> None:
    write_dinov2(hub["folder"])
    size = (hub["folder"] / "model.safetensors").stat().st_size
    settings = EvaluateSettings(networks=NetworkSettings(dinov2=NAME))
    (line,) = check_evaluation_files(settings, download=False)
    assert line.startswith("evaluate.networks.dinov2: the run will download ")
    assert line.endswith(f" of {NAME}")
    assert hub["downloaded"] == ["config.json"]
    assert Dinov2Network.locate(NAME, download=False).download_bytes == size
    assert check_evaluation_files(settings, download=True) == ()
    assert check_evaluation_files(settings, download=False) == ()


def test_weights_are_not_downloaded_for_a_model_of_another_kind(hub: dict[str, Any]) -> None:
    write_dinov2(hub["folder"])
    with pytest.raises(CondistillError, match=r"of the kind 'dinov2', and this network must be one of clip, siglip"):
        ClipNetwork.locate(NAME)
    assert hub["downloaded"] == ["config.json"]


def test_a_revision_of_a_hub_name_is_used(hub: dict[str, Any]) -> None:
    write_dinov2(hub["folder"])
    Dinov2Network.locate(f"{NAME}@v2")
    assert hub["requests"][0] == (NAME, "v2")


def test_one_file_of_a_repository_can_be_named(hub: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hpsv2, "check_checkpoint", lambda *_: None)
    (hub["folder"] / "mine.pt").write_bytes(b"x")
    (hub["folder"] / "HPS_v2.1_compressed.pt").write_bytes(b"published")
    assert Hpsv2Network.locate("someone/hps/mine.pt").weights[0].read_bytes() == b"x"
    assert Hpsv2Network.locate("someone/hps").weights[0].read_bytes() == b"published"
    with pytest.raises(CondistillError, match=r"is one file on the hub; give the name of its repository, someone/x"):
        Dinov2Network.locate("someone/x/model.safetensors")


def test_without_a_network_the_error_names_setting_source_and_size(hub: dict[str, Any]) -> None:
    hub["folder"] = None
    usual = r"; the usual weights are model\.safetensors of facebook/dinov2-large on the hub, 1\.13 GiB$"
    reason = (
        rf"^evaluate\.networks\.dinov2: '{NAME}' is no directory here, and the hub cannot be reached \(no route to "
        rf"host\); check the name or the network, or give the directory of the model{usual}"
    )
    with pytest.raises(CondistillError, match=reason):
        Dinov2Network.locate(NAME)


def test_a_file_that_is_not_in_the_cache_is_named_without_a_network(hub: dict[str, Any]) -> None:
    write_dinov2(hub["folder"])
    Dinov2Network.locate(NAME, download=False)
    hub["folder"] = None
    _forget()
    for download in (True, False):
        with pytest.raises(
            CondistillError,
            match=r"dinov2 in the local cache \(the hub cannot be reached\) has no model\.safetensors.*1\.13 GiB",
        ):
            Dinov2Network.locate(NAME, download=download)


def test_a_download_that_fails_names_the_file_and_its_size(
    hub: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (hub["folder"] / "HPS_v2.1_compressed.pt").write_bytes(b"published")

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    reason = (
        r"hpsv2: HPS_v2\.1_compressed\.pt \(9\.00 B\) of someone/hps on the hub cannot be downloaded: No space left"
    )
    with pytest.raises(CondistillError, match=reason):
        Hpsv2Network.locate("someone/hps")


def test_a_repository_that_does_not_exist_is_reported(hub: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx

    def missing(*_: Any, **__: Any) -> None:
        raise RepositoryNotFoundError("404", response=httpx.Response(404, request=httpx.Request("GET", "http://hub")))

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", missing)
    reason = r"^evaluate\.networks\.dinov2: '\S+' is neither a directory here nor a public repository .*1\.13 GiB$"
    with pytest.raises(CondistillError, match=reason):
        Dinov2Network.locate(NAME)


@pytest.mark.parametrize(
    "source", ["dinov2", "a/b.safetensors", "/none", "./none", "a b/c", "~nobody/x", "x\0y", "é" * 300]
)
def test_what_is_neither_a_path_nor_a_hub_name_is_refused_without_a_request_to_the_hub(
    source: str, hub: dict[str, Any]
) -> None:
    with pytest.raises(CondistillError, match=r"^evaluate\.networks\.dinov2: .*(does not exist|no home directory)"):
        Dinov2Network.locate(source)
    assert hub["requests"] == []


def test_every_missing_network_and_the_reference_are_reported_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inception, "extractor_class", lambda: None)
    names = ("inception", "dinov2", "clip", "pickscore", "hpsv2")
    networks = NetworkSettings(**{name: str(tmp_path / f"none-{name}") for name in names})
    with pytest.raises(CondistillError) as caught:
        locate_networks(networks)
    assert str(caught.value).count("does not exist") == 5
    with pytest.raises(CondistillError) as caught:
        check_evaluation_files(EvaluateSettings(networks=networks, reference=str(tmp_path / "none")))
    heading, *lines = str(caught.value).split("\n")
    assert heading == "6 files of the section evaluate cannot be used:"
    assert [line.split(":")[0].strip() for line in lines] == [
        *(f"evaluate.networks.{name}" for name in names),
        "evaluate.reference",
    ]


def test_networks_that_are_not_named_are_not_looked_for() -> None:
    assert locate_networks(NetworkSettings()) == {}
    assert check_evaluation_files(EvaluateSettings()) == ()


def _reference(folder: Path, size: int) -> str:
    folder.mkdir()
    for number in range(2):
        Image.fromarray(np.zeros((size, size, 3), np.uint8)).save(folder / f"{number}.png")
    return str(folder)


def test_reference_images_of_another_size_than_generated_ones_need_a_size(tmp_path: Path) -> None:
    path = write_dinov2(tmp_path / "dinov2")
    settings = EvaluateSettings(
        networks=NetworkSettings(dinov2=str(path)), reference=_reference(tmp_path / "images", 16)
    )
    check_evaluation_files(settings)
    check_evaluation_files(settings, image_size=(16, 16))
    with pytest.raises(CondistillError, match=r"have 16x16 pixels and generated ones 32x24, .*resize, to 16 for"):
        check_evaluation_files(settings, image_size=(24, 32))
    check_evaluation_files(settings.model_copy(update={"resize": 8}), image_size=(24, 32))


def test_a_size_of_images_that_no_network_reads_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CondistillError, match=r"evaluate\.resize is 16, and no network reads the images; set"):
        check_evaluation_files(EvaluateSettings(resize=16, classifier="miniature"))
    networks = NetworkSettings(dinov2=str(write_dinov2(tmp_path / "dinov2")))
    check_evaluation_files(EvaluateSettings(resize=16, networks=networks))


def test_a_reference_that_no_network_reads_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _reference(tmp_path / "images", 16)
    with pytest.raises(CondistillError, match=r"and no network reads the images; set evaluate\.networks\.inception"):
        check_evaluation_files(EvaluateSettings(reference=folder))
    monkeypatch.setattr(statistics_file, "_DIM", 3)
    np.savez(tmp_path / "x.npz", mu=np.ones(3), sigma=np.eye(3))
    networks = NetworkSettings(dinov2=str(write_dinov2(tmp_path / "dinov2")))
    with pytest.raises(
        CondistillError, match=r"and evaluate\.networks\.inception is not set; set it, or give a folder"
    ):
        check_evaluation_files(EvaluateSettings(reference=str(tmp_path / "x.npz"), networks=networks))
