"""The contract of networks, and their registry."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_networks import FakeClip, fake_networks

from condistill.config.evaluate import EvaluateSettings
from condistill.errors import CondistillError
from condistill.evaluate.networks import NETWORKS, LocatedNetwork, Network, features_of, register_network
from condistill.evaluate.networks.network import precision
from condistill.utils.format import byte_size


def test_a_located_network_is_described_by_the_hash_of_its_weights_and_its_resize_filter(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_text("7")
    located = LocatedNetwork("dinov2", "weights", "bicubic to 224 px", (file,))
    expected = hashlib.sha256(b"7").hexdigest()
    assert located.inputs() == {"weights": expected, "configs": "", "resize": "bicubic to 224 px"}
    record = located.record()
    assert (record.source, record.sha256, record.resize) == ("weights", expected, "bicubic to 224 px")
    settings = EvaluateSettings(resize=256, resize_filter="lanczos")
    assert located.record(settings=settings).resize == "lanczos to 256 px, then bicubic to 224 px"
    assert located.record(settings=EvaluateSettings()).resize == "bicubic to 224 px"


def test_the_hash_of_weights_in_several_files_depends_on_each(tmp_path: Path) -> None:
    files = tuple(tmp_path / name for name in ("one", "two"))
    for file in files:
        file.write_text(file.name)
    located = LocatedNetwork("clip", "x", "", files)
    before = located.sha256()
    files[1].write_text("changed")
    assert located.sha256() != before


def test_a_fake_network_is_loaded_by_its_name_and_extracts_rows(tmp_path: Path) -> None:
    file = tmp_path / "seed"
    file.write_text("7")
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    with fake_networks():
        network = NETWORKS["clip"].locate(str(file)).load(torch.device("cpu"))
        features = network.extract(images, ["a", "bb", "ccc"])
        assert {name: len(rows) for name, rows in features.items()} == dict.fromkeys(FakeClip.features, 3)
        assert set(network.extract(images, None)) == {"clip_image"}
        assert features_of(["dinov2", "clip"]) == {"dinov2": "dinov2", "clip_image": "clip", "clip_score": "clip"}


def test_a_network_without_a_part_of_the_contract_is_refused() -> None:
    with pytest.raises(CondistillError, match=r"Incomplete has no usual, serves, published, weights_bytes"):
        register_network(type("Incomplete", (Network,), {"name": "incomplete", "features": ()}))


def test_networks_compute_in_half_precision_on_a_gpu_only() -> None:
    assert precision(torch.device("cpu")) == torch.float32
    assert precision(torch.device("cuda")) == torch.float16


def test_the_page_about_recipes_lists_every_network_with_its_download() -> None:
    page = (Path(__file__).parents[3] / "docs" / "recipe.md").read_text(encoding="utf-8")
    for name, network in NETWORKS.items():
        row = f"| `{name}` | `{network.usual}` | {byte_size(network.weights_bytes)} | {network.serves} |"
        assert row in page
