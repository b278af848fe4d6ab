"""HPSv2's checkpoint of open_clip becomes a CLIPModel with the same embeddings; it is read without running code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_networks import write_clip
from tiny_open_clip import TinyOpenClip

from condistill.errors import CondistillError
from condistill.evaluate.metrics.metric import CLIP_SCORE, HPSV2
from condistill.evaluate.networks.clip import ClipNetwork
from condistill.evaluate.networks.hpsv2 import Hpsv2Network
from condistill.evaluate.networks.open_clip import to_transformers
from condistill.evaluate.networks.preprocess import CLIP_MEAN, CLIP_STD
from condistill.evaluate.networks.text_image import load_tokenizer

CPU = torch.device("cpu")
PROMPTS = ["a red dog", "a cat", "two dogs on the grass"]


@pytest.fixture(scope="module")
def oracle() -> TinyOpenClip:
    return TinyOpenClip().eval()


def _images(size: int = 224) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, size, size, 3), np.uint8)


def _score(path: Path, prompts: list[str] | None = PROMPTS) -> np.ndarray:
    return Hpsv2Network.locate(str(path)).load(CPU).extract(_images(), prompts)[HPSV2]


@pytest.mark.slow
def test_a_checkpoint_gives_the_scores_of_the_model_that_it_was_saved_from(
    oracle: TinyOpenClip, tmp_path: Path
) -> None:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    pixels = (torch.from_numpy(_images()).permute(0, 3, 1, 2) / 255 - mean) / std
    tokens = load_tokenizer(None, "x")(PROMPTS, padding="max_length", max_length=77, return_tensors="pt")["input_ids"]
    expected = (oracle.embed_images(pixels) * oracle.embed_tokens(tokens)).sum(1).numpy()
    assert np.ptp(expected) > 0.01, "the pairs cannot be told apart"
    file = oracle.write(tmp_path / "HPS_v2.1_compressed.pt")
    np.testing.assert_allclose(_score(file), expected, rtol=1e-4, atol=1e-6)
    assert Hpsv2Network.locate(str(tmp_path)).weights == (file,)


@pytest.mark.slow
def test_safetensors_and_half_precision_are_read_as_well(oracle: TinyOpenClip, tmp_path: Path) -> None:
    whole = _score(oracle.write(tmp_path / "whole.safetensors"))
    half = _score(oracle.write(tmp_path / "half.pt", dtype=torch.float16))
    np.testing.assert_allclose(half, whole, atol=5e-3)


@pytest.mark.parametrize(("width", "heads"), [(128, 2), (1280, 16), (1408, 16), (1664, 16)])
def test_the_heads_of_published_sizes_are_known(width: int, heads: int) -> None:
    with torch.device("meta"):
        state = TinyOpenClip(width=width).state_dict()
    config, _ = to_transformers(state, "x")
    assert config.vision_config.num_attention_heads == heads
    assert (config.vision_config.image_size, config.vision_config.patch_size) == (224, 14)
    assert (config.text_config.max_position_embeddings, config.text_config.vocab_size) == (77, 49_408)


@pytest.mark.slow
def test_a_directory_of_transformers_is_read_and_the_score_is_the_cosine(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip", tokenizer=False)
    clip = ClipNetwork.locate(str(path)).load(CPU).extract(_images(), PROMPTS)
    np.testing.assert_array_equal(_score(path), clip[CLIP_SCORE])


@pytest.mark.slow
def test_reference_images_have_no_score(oracle: TinyOpenClip, tmp_path: Path) -> None:
    network = Hpsv2Network.locate(str(oracle.write(tmp_path / "x.pt"))).load(CPU)
    assert network.extract(_images(), None) == {}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"visual.attnpool.weight": torch.zeros(2)}, r"has visual\.attnpool\.weight, which a plain CLIP has not"),
        ({"visual.conv1.weight": None}, r"is no CLIP of open_clip \('visual\.conv1\.weight'\)"),
        ({"ln_final.weight": None}, r"the weights lack text_model\.final_layer_norm\.weight"),
        ({"visual.proj": torch.zeros(3, 5)}, r"cannot be loaded as a CLIPModel"),
    ],
)
@pytest.mark.slow
def test_a_checkpoint_of_another_model_is_refused(
    oracle: TinyOpenClip, tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    state = {**oracle.state_dict(), **change}
    file = tmp_path / "x.pt"
    torch.save({"state_dict": {name: value for name, value in state.items() if value is not None}}, file)
    with pytest.raises(CondistillError, match=reason) as caught:
        Hpsv2Network.locate(str(file)).load(CPU)
    assert str(caught.value).startswith(f"evaluate.networks.hpsv2: {file}")


@pytest.mark.slow
def test_a_checkpoint_for_another_image_size_is_refused(tmp_path: Path) -> None:
    file = TinyOpenClip(size=28).write(tmp_path / "x.pt")
    with pytest.raises(CondistillError, match=r"x\.pt reads images of 28 px, and HPSv2 of 224 px"):
        Hpsv2Network.locate(str(file))


def test_a_file_with_code_is_refused_and_the_code_does_not_run(tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    file = tmp_path / "x.pt"
    torch.save({"state_dict": {"x": Code()}}, file)
    with pytest.raises(CondistillError, match=r"hpsv2: .* cannot be read as weights .*since they can run code"):
        Hpsv2Network.locate(str(file))
    assert not (tmp_path / "ran").exists()


def test_missing_files_are_reported_with_the_published_file_and_its_size(tmp_path: Path) -> None:
    usual = r"; the usual weights are HPS_v2\.1_compressed\.pt of xswu/HPSv2 on the hub, 1\.84 GiB$"
    with pytest.raises(
        CondistillError, match=rf"{tmp_path} has neither HPS_v2\.1_compressed\.pt nor a config.*{usual}"
    ):
        Hpsv2Network.locate(str(tmp_path))
    with pytest.raises(
        CondistillError, match=rf"x\.pt does not exist; give a file, a directory or a hub name.*{usual}"
    ):
        Hpsv2Network.locate(str(tmp_path / "x.pt"))
