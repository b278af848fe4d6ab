"""Inception-v3 is torch-fidelity's own class; its weights are read without running code."""

from __future__ import annotations

import hashlib
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from inception_weights import inception_state, write_inception
from torchvision_stand_in import torchvision_stand_in

from condistill.errors import CondistillError
from condistill.evaluate.metrics.metric import INCEPTION, INCEPTION_LOGITS
from condistill.evaluate.networks import inception
from condistill.evaluate.networks.inception import FILE_NAME, InceptionNetwork

CPU = torch.device("cpu")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch-fidelity counts as installed; nothing of it is imported."""
    monkeypatch.setattr(inception, "extractor_class", lambda: None)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inception(tmp_path_factory.mktemp("inception") / "weights.safetensors")


def _images(count: int, size: int = 24) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)


class Folder:
    """Images as torch-fidelity reads them."""

    def __init__(self, images: np.ndarray, folder: Path) -> None:
        from PIL import Image

        self.images, self.folder = images, folder
        folder.mkdir()
        for number, image in enumerate(images):
            Image.fromarray(image).save(folder / f"{number:03d}.png")


@pytest.mark.slow
def test_features_and_figures_equal_those_of_torch_fidelity_on_the_same_images(tmp_path: Path, weights: Path) -> None:
    pickled = tmp_path / "weights.pth"
    torch.save(inception_state(), pickled)
    one, two = Folder(_images(5), tmp_path / "one"), Folder(_images(4, 20), tmp_path / "two")
    options: dict[str, Any] = {
        "input1": str(one.folder),
        "input2": str(two.folder),
        "feature_extractor": "inception-v3-compat",
        "feature_extractor_weights_path": str(pickled),
        "cuda": False,
        "batch_size": 3,
        "save_cpu_ram": True,
        "verbose": False,
        "kid_subsets": 3,
        "kid_subset_size": 4,
        "samples_shuffle": False,
        "prc_neighborhood": 2,
        "isc_splits": 2,
    }
    with torchvision_stand_in():
        import torch_fidelity
        from torch_fidelity import metric_isc, metric_kid, metric_prc, utils

        figures = torch_fidelity.calculate_metrics(isc=True, kid=True, prc=True, **options)
        extractor = utils.create_feature_extractor("inception-v3-compat", ["2048", "logits_unbiased"], **options)
        theirs = utils.extract_featuresdict_from_input_id(1, extractor, **options)
    network = InceptionNetwork.locate(str(weights)).load(CPU)
    parts = [network.extract(one.images[rows], None) for rows in (slice(3), slice(3, 5))]
    ours = {name: np.concatenate([part[name] for part in parts]) for name in (INCEPTION, INCEPTION_LOGITS)}
    np.testing.assert_array_equal(ours[INCEPTION], theirs["2048"].numpy())
    np.testing.assert_array_equal(ours[INCEPTION_LOGITS], theirs["logits_unbiased"].numpy())

    other = torch.from_numpy(network.extract(two.images, None)[INCEPTION])
    mine = torch.from_numpy(ours[INCEPTION])
    again = metric_isc.isc_features_to_metric(
        torch.from_numpy(ours[INCEPTION_LOGITS]), splits=2, shuffle=False, rng_seed=2020
    )
    again |= metric_kid.kid_features_to_metric(mine, other, **options)
    again |= metric_prc.prc_features_to_metric(mine, other, **options)
    assert again == pytest.approx(figures, rel=1e-4)


@pytest.mark.slow
def test_features_do_not_depend_on_the_file_format_of_the_weights(tmp_path: Path, weights: Path) -> None:
    pickled = write_inception(tmp_path / "weights.pth")
    images = _images(2)
    one, two = (InceptionNetwork.locate(str(file)).load(CPU).extract(images, None) for file in (weights, pickled))
    assert all(np.array_equal(one[name], two[name]) for name in InceptionNetwork.features)
    assert one[INCEPTION].shape == (2, 2048)
    assert one[INCEPTION].dtype == np.float32
    assert one[INCEPTION_LOGITS].shape == (2, 1008)


def test_weights_of_another_model_are_refused_before_anything_is_generated(installed: None, tmp_path: Path) -> None:
    file = tmp_path / "torchvision.pth"
    torch.save({"fc.weight": torch.zeros(1).expand(1000, 2048), "fc.bias": torch.zeros(1000)}, file)
    reason = (
        r"has no Conv2d_1a_3x3\.conv\.weight \[32, 3, 3, 3\], so it is no Inception-v3 of torch-fidelity; .*91\.2 MiB"
    )
    with pytest.raises(CondistillError, match=reason):
        InceptionNetwork.locate(str(file))


@pytest.mark.slow
def test_weights_that_lack_a_layer_are_refused(tmp_path: Path, weights: Path) -> None:
    file = tmp_path / "part.pth"
    state = inception_state()
    state.pop("Mixed_7c.branch1x1.conv.weight")
    torch.save(state, file)
    with torchvision_stand_in(), pytest.raises(CondistillError, match=r"does not fit Inception-v3 of torch-fidelity"):
        InceptionNetwork.locate(str(file)).load(CPU)


def test_a_file_with_code_is_refused_and_the_code_does_not_run(installed: None, tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    file = tmp_path / "weights.pth"
    torch.save({"fc.weight": Code()}, file)
    old = tmp_path / "old.pth"
    old.write_bytes(pickle.dumps({"fc.weight": Code()}))
    for each in (file, old):
        with pytest.raises(CondistillError, match=r"inception: .*cannot be read as weights .*since they can run code"):
            InceptionNetwork.locate(str(each))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"no weights", b"text", b"PK\x03\x04 no zip"])
@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
def test_a_file_that_holds_no_weights_is_refused(installed: None, tmp_path: Path, name: str, content: bytes) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(CondistillError, match=rf"inception: {file} (cannot be read as weights|is no safetensors)"):
        InceptionNetwork.locate(str(file))


@pytest.mark.parametrize("state", [{"epoch": 3}, {}, [torch.zeros(1)], {"state_dict": {"a": 1}}])
def test_a_file_without_named_tensors_is_refused(installed: None, tmp_path: Path, state: Any) -> None:
    file = tmp_path / "x.pth"
    torch.save(state, file)
    with pytest.raises(CondistillError, match=r"holds no tensors by name"):
        InceptionNetwork.locate(str(file))


def test_a_missing_file_is_reported_with_its_name_source_and_size(installed: None, tmp_path: Path) -> None:
    with pytest.raises(CondistillError) as caught:
        InceptionNetwork.locate(str(tmp_path / "weights.pth"))
    assert str(caught.value) == (
        f"evaluate.networks.inception: {tmp_path}/weights.pth does not exist; give a file, a directory or a hub name "
        f"(OWNER/NAME); the usual weights are {FILE_NAME} of torch-fidelity's release v0.2.0 "
        f"(https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE_NAME}), 91.2 MiB"
    )


def test_a_directory_has_the_published_file_or_is_refused(installed: None, tmp_path: Path) -> None:
    with pytest.raises(CondistillError, match=rf"{tmp_path} has no {FILE_NAME}; give the file itself"):
        InceptionNetwork.locate(str(tmp_path))
    file = tmp_path / FILE_NAME.replace(".pth", ".safetensors")
    file.write_bytes(b"x")
    with pytest.raises(CondistillError, match=r"is damaged: its SHA-256 does not start with 6726825d"):
        InceptionNetwork.locate(str(tmp_path))


def test_the_release_of_torch_fidelity_is_found_in_the_cache_of_torch(
    installed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(inception, "_HASH", hashlib.sha256(b"x").hexdigest()[:8])
    monkeypatch.setattr(inception, "_check_shapes", lambda *_: None)
    assert InceptionNetwork.locate("torch-fidelity", download=False).download_bytes == 95_628_359
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CondistillError, match=r"does not exist and cannot be downloaded .*91\.2 MiB"):
        InceptionNetwork.locate("torch-fidelity")
    file = tmp_path / "hub" / "checkpoints" / FILE_NAME
    file.parent.mkdir(parents=True)
    file.write_bytes(b"x")
    located = InceptionNetwork.locate("torch-fidelity")
    assert located.weights == (file,)
    assert located.record().sha256 == hashlib.sha256(b"x").hexdigest()


def test_the_release_is_downloaded_once_and_an_error_is_reported(
    installed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)

    def fail(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torch.hub.download_url_to_file", fail)
    with pytest.raises(CondistillError, match=r"cannot be downloaded \(no route to host\); download it elsewhere"):
        InceptionNetwork.locate("torch-fidelity")


def test_a_missing_or_broken_torch_fidelity_is_reported_before_anything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(CondistillError, match=r"needs torch-fidelity.*pip install 'condistill\[eval\]'"):
        InceptionNetwork.locate(str(tmp_path / "weights.pth"))
