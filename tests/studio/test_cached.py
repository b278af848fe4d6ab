from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from condistill.cache.latents import shard_name, write_manifest, write_shard
from condistill.errors import CondistillError
from condistill.studio import cached as module
from condistill.studio.cached import CachedImages


class Decoder:
    """Counts what it decodes, and gives every image one grey."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, latents: NDArray[np.float32]) -> NDArray[np.uint8]:
        assert latents.dtype == np.float32
        self.count += 1
        return np.full((8, 8, 3), 128, np.uint8)


COLOURS = ("red", "blue", "Green", "white", "black")


@pytest.fixture
def images(tmp_path: Path) -> CachedImages:
    """20 latents in shards of 8."""
    folder = tmp_path / "cache"
    folder.mkdir()
    prompts = [f"shape {row} in {COLOURS[row % 5]}" for row in range(20)]
    for number, start in enumerate(range(0, 20, 8)):
        part = prompts[start : start + 8]
        write_shard(folder / shard_name(number), np.zeros((len(part), 4, 2, 2), np.float16), part)
    write_manifest(folder, shard_size=8, origin={"latent_shape": (4, 2, 2)})
    return CachedImages(tmp_path)


def test_only_the_images_of_the_page_are_decoded_and_only_once(images: CachedImages) -> None:
    decoder = Decoder()
    first, second = images.page(1), images.page(2)
    assert (first.pages, first.total, len(first.rows), len(second.rows)) == (2, 20, 12, 8)
    html = images.html(first, decoder)
    assert decoder.count == 12
    assert images.html(first, decoder) == html
    assert decoder.count == 12
    images.html(second, decoder)
    assert decoder.count == 20


def test_each_image_has_its_prompt(images: CachedImages) -> None:
    html = images.html(images.page(2), Decoder())
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", html)
    assert captions == [f"{row}: {images.cache[row][1]}" for row in range(12, 20)]


def test_the_images_in_memory_are_limited(images: CachedImages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_KEPT", 12)
    for number in (1, 2, 1, 2):
        images.html(images.page(number), Decoder())
        assert len(images._html) <= 12


def test_a_number_of_a_page_that_does_not_exist_is_the_nearest(images: CachedImages) -> None:
    assert [images.page(number).number for number in (-5, 0, 2.0, 99)] == [1, 1, 2, 2]
    for wrong in (None, "x", float("nan"), 1e300, []):
        with pytest.raises(CondistillError, match="the page is no number"):
            images.page(wrong)


def test_prompts_are_found_by_their_words(images: CachedImages) -> None:
    word = images.cache[13][1].split()[-1]
    expected = [row for row in range(20) if word in images.cache[row][1]]
    page = images.page(1, f" {word.upper()} ")
    assert list(page.rows) == expected[:12]
    assert page.total == len(expected)
    assert images.page(1, "no such word").total == 0
    assert images.html(images.page(1, "no such word"), Decoder()) == '<div class="gallery"></div>'


def test_a_prompt_with_markup_is_text(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    write_shard(
        tmp_path / "cache" / shard_name(0), np.zeros((1, 4, 2, 2), np.float16), ["<script>alert(1)</script>\x1b[2J"]
    )
    write_manifest(tmp_path / "cache", shard_size=1, origin={"latent_shape": (4, 2, 2)})
    images = CachedImages(tmp_path)
    html = images.html(images.page(1), Decoder())
    assert "<script" not in html
    assert "0: &lt;script&gt;alert(1)&lt;/script&gt;\\x1b[2J" in html


def test_a_run_without_a_complete_cache_has_a_message(tmp_path: Path) -> None:
    with pytest.raises(CondistillError, match="there is no complete cache"):
        CachedImages(tmp_path).page(1)
