"""PickScore is the logit of a CLIPModel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_networks import image_processor, write_clip, write_siglip

from condistill.errors import CondistillError
from condistill.evaluate.metrics.metric import PICKSCORE
from condistill.evaluate.networks.pickscore import PickScoreNetwork


@pytest.mark.slow
def test_the_score_is_the_logit_of_the_image_and_its_prompt(tmp_path: Path) -> None:
    from transformers import CLIPModel, CLIPTokenizer

    path = write_clip(tmp_path / "model")
    images = np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), np.uint8)
    prompts = ["a red dog", "a cat on the grass"]
    tokens = CLIPTokenizer.from_pretrained(path)(prompts, padding=True, return_tensors="pt")
    pixels = image_processor("clip").from_pretrained(path)(list(images), return_tensors="pt")
    with torch.no_grad():
        expected = CLIPModel.from_pretrained(path).eval()(**tokens, **pixels).logits_per_image.diagonal().numpy()
    network = PickScoreNetwork.locate(str(path)).load(torch.device("cpu"))
    features = network.extract(images, prompts)
    np.testing.assert_allclose(features[PICKSCORE], expected, rtol=1e-4)
    assert features[PICKSCORE].dtype == np.float32
    assert network.extract(images, None) == {}


def test_another_kind_of_model_is_refused_with_the_published_one(tmp_path: Path) -> None:
    with pytest.raises(CondistillError, match=r"one of clip; .*yuvalkirstain/PickScore_v1 on the hub, 3\.67 GiB"):
        PickScoreNetwork.locate(str(write_siglip(tmp_path / "model")))
