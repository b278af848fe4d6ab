"""DINOv2 is loaded by transformers from a whole directory of a known kind; its feature is the class token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_networks import image_processor, write_dinov2

from condistill.errors import CondistillError
from condistill.evaluate.metrics.metric import DINOV2
from condistill.evaluate.networks import dinov2
from condistill.evaluate.networks.dinov2 import Dinov2Network

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dinov2(tmp_path_factory.mktemp("dinov2") / "model")


def _images(count: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8)


def _copy(directory: Path, folder: Path, **changes: Any) -> Path:
    """Copy a model with changes of its config."""
    folder.mkdir()
    config = json.loads((directory / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    (folder / "model.safetensors").write_bytes((directory / "model.safetensors").read_bytes())
    return folder


@pytest.mark.parametrize("registers", [False, True])
def test_the_feature_is_the_class_token_that_transformers_computes(registers: bool, tmp_path: Path) -> None:
    import transformers

    path = write_dinov2(tmp_path / "model", registers=registers)
    kind = "Dinov2WithRegistersModel" if registers else "Dinov2Model"
    model = getattr(transformers, kind).from_pretrained(path).eval()
    pixels = image_processor("bit")(
        size={"height": 224, "width": 224},
        do_center_crop=False,
        resample=3,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )(list(_images()), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = model(pixel_values=pixels).pooler_output.numpy()
    located = Dinov2Network.locate(str(path))
    features = located.load(CPU).extract(_images(), None)
    assert set(features) == {DINOV2}
    assert features[DINOV2].dtype == np.float32
    np.testing.assert_allclose(features[DINOV2], expected, rtol=1e-4, atol=1e-5)
    assert np.ptp(features[DINOV2], axis=0).max() > 1e-3, "the images cannot be told apart"
    assert located.record().resize == "bicubic to 224 px"


def test_pickled_weights_are_read_as_tensors_only(directory: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    other = _copy(directory, tmp_path / "pickled")
    torch.save(load_file(other / "model.safetensors"), other / "pytorch_model.bin")
    (other / "model.safetensors").unlink()
    one, two = (Dinov2Network.locate(str(each)).load(CPU).extract(_images(), None) for each in (directory, other))
    np.testing.assert_array_equal(one[DINOV2], two[DINOV2])

    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"x": Code()}, other / "pytorch_model.bin")
    with pytest.raises(CondistillError, match=r"pytorch_model\.bin cannot be read as weights"):
        Dinov2Network.locate(str(other))
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_sharded_weights_are_read_and_hashed_whole(directory: Path, tmp_path: Path) -> None:
    from transformers import Dinov2Model

    Dinov2Model.from_pretrained(directory).save_pretrained(tmp_path, max_shard_size="20KB")
    located = Dinov2Network.locate(str(tmp_path))
    assert len(located.weights) > 1
    one, two = (Dinov2Network.locate(str(each)).load(CPU).extract(_images(), None) for each in (directory, tmp_path))
    np.testing.assert_array_equal(one[DINOV2], two[DINOV2])
    located.weights[1].unlink()
    with pytest.raises(CondistillError, match=rf"has no {located.weights[1].name}, which model\.safetensors\.index"):
        Dinov2Network.locate(str(tmp_path))


def test_a_config_changes_the_inputs(directory: Path, tmp_path: Path) -> None:
    other = _copy(directory, tmp_path / "other", layer_norm_eps=1e-3)
    one, two = (Dinov2Network.locate(str(each)).inputs() for each in (directory, other))
    assert one["weights"] == two["weights"]
    assert one["configs"] != two["configs"]


def test_missing_weights_are_not_replaced_by_random_numbers(directory: Path, tmp_path: Path) -> None:
    other = _copy(directory, tmp_path / "more_layers", num_hidden_layers=3)
    with pytest.raises(CondistillError, match=r"the weights lack encoder\.layer\.2\..* and \d+ others"):
        Dinov2Network.locate(str(other)).load(CPU)


@pytest.mark.parametrize("changes", [{"hidden_size": 64}, {"hidden_size": "large"}])
def test_a_config_that_does_not_fit_the_weights_is_reported(
    directory: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    other = _copy(directory, tmp_path / "other", **changes)
    with pytest.raises(CondistillError, match=r"cannot be loaded as a Dinov2Model"):
        Dinov2Network.locate(str(other)).load(CPU)


def test_code_that_comes_with_a_model_does_not_run(directory: Path, tmp_path: Path) -> None:
    other = _copy(directory, tmp_path / "code", auto_map={"AutoModel": "evil.Model", "AutoConfig": "evil.Config"})
    (other / "evil.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n")
    Dinov2Network.locate(str(other)).load(CPU)
    assert not (tmp_path / "ran").exists()


def test_a_model_of_another_kind_is_refused(directory: Path, tmp_path: Path) -> None:
    other = _copy(directory, tmp_path / "clip", model_type="clip")
    with pytest.raises(CondistillError, match=r"is a model of the kind 'clip', and this network must be one of dinov2"):
        Dinov2Network.locate(str(other))


def test_missing_files_are_reported_with_the_usual_source_and_size(tmp_path: Path) -> None:
    usual = r"; the usual weights are model\.safetensors of facebook/dinov2-large on the hub, 1\.13 GiB$"
    with pytest.raises(CondistillError, match=rf"^evaluate\.networks\.dinov2: {tmp_path} has no config\.json.*{usual}"):
        Dinov2Network.locate(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "dinov2"}')
    with pytest.raises(CondistillError, match=rf"{tmp_path} has no model\.safetensors{usual}"):
        Dinov2Network.locate(str(tmp_path))
    with pytest.raises(CondistillError, match=rf"config\.json is a file; give the directory.*{usual}"):
        Dinov2Network.locate(str(tmp_path / "config.json"))
    with pytest.raises(
        CondistillError, match=rf"{tmp_path}/none does not exist; give a directory or a hub name.*{usual}"
    ):
        Dinov2Network.locate(str(tmp_path / "none"))


@pytest.mark.slow
def test_half_precision_gives_nearly_the_same_features(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    located = Dinov2Network.locate(str(directory))
    whole = located.load(CPU).extract(_images(), None)[DINOV2]
    monkeypatch.setattr(dinov2, "precision", lambda _: torch.float16)
    half = located.load(CPU).extract(_images(), None)[DINOV2]
    assert half.dtype == np.float32
    np.testing.assert_allclose(half, whole, atol=0.02)
    assert not np.array_equal(half, whole)


def test_features_that_are_not_finite_are_an_error_and_no_figure(directory: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    other = _copy(directory, tmp_path / "damaged")
    state = load_file(other / "model.safetensors")
    state["layernorm.weight"][0] = torch.nan
    save_file(state, other / "model.safetensors", {"format": "pt"})
    network = Dinov2Network.locate(str(other)).load(CPU)
    with pytest.raises(CondistillError, match=r"dinov2: dinov2 of .* is not finite for some images"):
        network.extract(_images(), None)


def test_weights_that_are_cut_off_are_refused_before_anything_is_generated(directory: Path, tmp_path: Path) -> None:
    other = _copy(directory, tmp_path / "cut")
    file = other / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CondistillError, match=r"dinov2: .*model\.safetensors is cut off: it has [\d,]+ bytes of"):
        Dinov2Network.locate(str(other))
    file.write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(CondistillError, match=r"model\.safetensors is no safetensors file, or is damaged"):
        Dinov2Network.locate(str(other))
