"""CLIP and SigLIP are models of transformers; embeddings have norm 1, and scores are cosines."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_networks import image_processor, write_clip, write_dinov2, write_siglip

from condistill.errors import CondistillError
from condistill.evaluate.metrics.metric import CLIP_IMAGE, CLIP_SCORE
from condistill.evaluate.networks import text_image
from condistill.evaluate.networks.clip import ClipNetwork
from condistill.evaluate.networks.network import Features

CPU = torch.device("cpu")
PROMPTS = ["a red dog", "a cat on grass", "dog"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "model")


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import AutoTokenizer

    path = write_siglip(tmp_path_factory.mktemp("siglip") / "model")
    try:
        AutoTokenizer.from_pretrained(path)
    except AttributeError:
        pytest.skip("this version of transformers reads no tokenizer of SigLIP without sentencepiece")
    return path


def _images(count: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8)


def _features(path: Path, prompts: list[str] | None = PROMPTS) -> Features:
    return ClipNetwork.locate(str(path)).load(CPU).extract(_images(), prompts)


def _without(source: Path, folder: Path, *names: str) -> Path:
    """Copy a model without some files."""
    return Path(shutil.copytree(source, folder, ignore=lambda _, found: [name for name in found if name in names]))


@pytest.mark.slow
def test_clip_equals_transformers_and_does_not_depend_on_the_batch(clip: Path) -> None:
    from transformers import CLIPModel, CLIPTokenizer

    model, tokenizer = CLIPModel.from_pretrained(clip).eval(), CLIPTokenizer.from_pretrained(clip)
    pixels = image_processor("clip").from_pretrained(clip)(list(_images()), return_tensors="pt")
    with torch.no_grad():
        output = model(**tokenizer(PROMPTS, padding=True, return_tensors="pt"), **pixels)
    found = _features(clip)
    np.testing.assert_allclose(found[CLIP_IMAGE], output.image_embeds.numpy(), rtol=1e-4, atol=1e-6)
    cosines = (output.image_embeds * output.text_embeds).sum(1).numpy()
    np.testing.assert_allclose(found[CLIP_SCORE], cosines, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found[CLIP_IMAGE], axis=1), 1, rtol=1e-5)
    network = ClipNetwork.locate(str(clip)).load(CPU)
    one = network.extract(_images()[1:2], PROMPTS[1:2])
    np.testing.assert_allclose(one[CLIP_SCORE], found[CLIP_SCORE][1:2], rtol=1e-4, atol=1e-6)


def test_siglip_equals_transformers_with_texts_of_the_length_it_was_trained_on(siglip: Path) -> None:
    from transformers import AutoTokenizer, SiglipModel

    model, tokenizer = SiglipModel.from_pretrained(siglip).eval(), AutoTokenizer.from_pretrained(siglip)
    pixels = image_processor("siglip").from_pretrained(siglip)(list(_images()), return_tensors="pt")
    tokens = tokenizer(PROMPTS, padding="max_length", max_length=8, return_tensors="pt")
    with torch.no_grad():
        output = model(input_ids=tokens["input_ids"], **pixels)
    found = _features(siglip)
    np.testing.assert_allclose(found[CLIP_IMAGE], output.image_embeds.numpy(), rtol=1e-4, atol=1e-6)
    cosines = (output.image_embeds * output.text_embeds).sum(1).numpy()
    np.testing.assert_allclose(found[CLIP_SCORE], cosines, rtol=1e-4, atol=1e-6)
    assert ClipNetwork.locate(str(siglip)).resize == "bilinear to 28 px"


def test_reference_images_have_no_prompts(siglip: Path) -> None:
    assert set(_features(siglip, None)) == {CLIP_IMAGE}


@pytest.mark.slow
def test_any_prompt_is_read_and_a_long_one_is_cut_off(clip: Path, siglip: Path) -> None:
    odd = ["", "word " * 500, "\x1b[31m \U0001f600 <script>"]
    for path in (clip, siglip):
        assert np.isfinite(_features(path, odd)[CLIP_SCORE]).all()
    words = "word " * 500
    one, two = (_features(clip, [text, text, text])[CLIP_SCORE] for text in (words, words + " more"))
    np.testing.assert_array_equal(one, two)


@pytest.mark.slow
def test_a_clip_without_tokenizer_and_preprocessing_uses_the_usual_ones(clip: Path, tmp_path: Path) -> None:
    names = ("vocab.json", "merges.txt", "tokenizer_config.json", "preprocessor_config.json")
    bare = _without(clip, tmp_path / "bare", *names)
    one, two = _features(clip), _features(bare)
    for name in ClipNetwork.features:
        np.testing.assert_array_equal(one[name], two[name])


def test_a_siglip_without_tokenizer_is_refused(siglip: Path, tmp_path: Path) -> None:
    bare = _without(siglip, tmp_path / "bare", "tokenizer.json", "tokenizer_config.json")
    with pytest.raises(CondistillError, match=r"has no tokenizer\.json, so prompts cannot be read; .*1\.59 GiB"):
        ClipNetwork.locate(str(bare))


def test_a_damaged_tokenizer_is_reported(siglip: Path, tmp_path: Path) -> None:
    other = _without(siglip, tmp_path / "other")
    (other / "tokenizer.json").write_text("{}")
    with pytest.raises(CondistillError, match=r"the tokenizer in .* cannot be loaded .*; download it again"):
        ClipNetwork.locate(str(other)).load(CPU)


def test_code_of_a_tokenizer_does_not_run(siglip: Path, tmp_path: Path) -> None:
    other = _without(siglip, tmp_path / "other")
    config = json.loads((other / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    (other / "tokenizer_config.json").write_text(json.dumps(config))
    (other / "evil.py").write_text(
        f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\nclass Evil: ..."
    )
    try:
        ClipNetwork.locate(str(other)).load(CPU)
    except CondistillError as error:
        assert "cannot be loaded" in str(error)  # noqa: PT017 - both outcomes are right
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"vision_config": {"image_size": 56}}, r"makes inputs of 28 px, and its config\.json has image_size 56"),
        ({"vision_config": {"image_size": "x"}}, r"has image_size 'x', not a number of pixels"),
        ({"model_type": "siglip2"}, r"of the kind 'siglip2', and this network must be one of clip, siglip"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_before_loading(
    siglip: Path, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    other = _without(siglip, tmp_path / "other", "model.safetensors")
    (other / "model.safetensors").write_bytes(b"never read")
    (other / "config.json").write_text(json.dumps({**json.loads((other / "config.json").read_text()), **changes}))
    with pytest.raises(CondistillError, match=reason):
        ClipNetwork.locate(str(other))


def test_a_network_without_a_text_tower_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CondistillError, match=r"of the kind 'dinov2'"):
        ClipNetwork.locate(str(write_dinov2(tmp_path / "dinov2")))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_half_precision_gives_nearly_the_same_scores(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = request.getfixturevalue(kind)
    whole = _features(path)
    monkeypatch.setattr(text_image, "precision", lambda _: torch.float16)
    half = _features(path)
    for name in ClipNetwork.features:
        assert half[name].dtype == np.float32
        np.testing.assert_allclose(half[name], whole[name], atol=5e-3)
        assert not np.array_equal(half[name], whole[name])


def test_a_tokenizer_that_needs_packages_is_refused_with_their_names(
    siglip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = _without(siglip, tmp_path / "other")
    (other / "tokenizer_config.json").write_text('{"tokenizer_class": "SiglipTokenizer"}')
    monkeypatch.setattr(text_image, "_is_installed", lambda _: False)
    with pytest.raises(CondistillError, match=r"clip: the tokenizer in .* needs: pip install sentencepiece protobuf$"):
        ClipNetwork.locate(str(other))
    monkeypatch.undo()
    assert text_image._is_installed("torch")
    assert not text_image._is_installed("no_such_package.module")
