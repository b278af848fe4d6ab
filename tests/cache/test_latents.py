from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from condistill.cache.latents import (
    MANIFEST_NAME,
    LatentCache,
    is_shard,
    read_shard,
    shard_name,
    write_manifest,
    write_shard,
)
from condistill.errors import CondistillError, CorruptError

SHAPE = (4, 8, 8)
PROMPTS = ["a red circle", "", "ein größerer Kreis", "圆", "a \U0001f600", "f", "g", "h", "i", "j"]


def some_latents(dtype: str = "float16") -> np.ndarray:
    return np.random.Generator(np.random.Philox(0)).standard_normal((10, *SHAPE)).astype(dtype)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A complete cache of 10 images in shards of 4."""
    latents = some_latents()
    for index, start in enumerate(range(0, 10, 4)):
        write_shard(tmp_path / shard_name(index), latents[start : start + 4], PROMPTS[start : start + 4])
    write_manifest(tmp_path, shard_size=4, origin={"latent_shape": SHAPE, "seed": 7})
    return tmp_path


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_shard_reads_as_it_was_written(tmp_path: Path, dtype: str) -> None:
    write_shard(tmp_path / "a.arrow", some_latents(dtype), PROMPTS)
    latents, prompts = read_shard(tmp_path / "a.arrow")
    assert latents.dtype == dtype
    np.testing.assert_array_equal(latents, some_latents(dtype))
    assert prompts.to_pylist() == PROMPTS


def test_latents_are_read_without_a_copy(directory: Path) -> None:
    cache = LatentCache.open(directory)
    first, again, other = cache[1][0], cache[1][0], cache[2][0]
    assert not first.flags.owndata
    assert not first.flags.writeable
    assert np.shares_memory(first, again)
    assert not np.shares_memory(first, other)
    assert first.__array_interface__["data"][0] + first.nbytes == other.__array_interface__["data"][0]


def test_a_cache_is_a_sequence_of_the_images_of_its_shards(directory: Path) -> None:
    cache = LatentCache.open(directory)
    assert len(cache) == 10
    assert cache.latent_shape == SHAPE
    assert cache.manifest.seed == 7
    for i, expected in enumerate(some_latents()):
        latents, prompt = cache[i]
        np.testing.assert_array_equal(latents, expected)
        assert prompt == PROMPTS[i]
    assert cache[-1][1] == PROMPTS[-1]
    assert cache[-10][1] == PROMPTS[0]


@pytest.mark.parametrize("index", [10, -11, 1000])
def test_an_index_outside_of_the_cache_is_an_error(directory: Path, index: int) -> None:
    with pytest.raises(IndexError, match=f"image {index} is not in a cache of 10 images"):
        LatentCache.open(directory)[index]


def test_take_returns_float32_latents_in_the_order_of_the_indices(directory: Path) -> None:
    latents, prompts = LatentCache.open(directory).take([9, 0, 9, 5])
    assert latents.dtype == np.float32
    np.testing.assert_array_equal(latents, some_latents()[[9, 0, 9, 5]].astype(np.float32))
    assert prompts == ["j", PROMPTS[0], "j", "f"]
    latents += 1  # the caller may write to them


def test_a_pickled_cache_opens_its_shards_again(directory: Path) -> None:
    cache = LatentCache.open(directory)
    before = cache[3]
    pickled = pickle.dumps(cache)
    assert len(pickled) < 4000
    np.testing.assert_array_equal(pickle.loads(pickled)[3][0], before[0])


def test_opening_a_cache_reads_no_shard(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("condistill.cache.latents.read_shard", None)
    assert len(LatentCache.open(directory)) == 10


def test_a_directory_without_a_manifest_is_not_a_cache(tmp_path: Path) -> None:
    write_shard(tmp_path / shard_name(0), some_latents(), PROMPTS)
    with pytest.raises(CondistillError, match=r"no complete cache in .*; fill it with `condistill cache RECIPE`"):
        LatentCache.open(tmp_path)


def test_a_cache_with_another_format_is_refused(directory: Path) -> None:
    manifest = json.loads((directory / MANIFEST_NAME).read_text())
    (directory / MANIFEST_NAME).write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(
        CondistillError, match="has format 99, and this version of condistill reads format 1; delete it"
    ):
        LatentCache.open(directory)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"format": 1}', b'{"format": 1, "shards": 3}'])
def test_a_damaged_manifest_is_named_with_the_remedy(directory: Path, content: bytes) -> None:
    (directory / MANIFEST_NAME).write_bytes(content)
    with pytest.raises(CorruptError, match=r"manifest\.json .* damaged.*; delete it and run `condistill cache` again"):
        LatentCache.open(directory)


@pytest.mark.parametrize("fraction", [0.02, 0.3, 0.5, 0.7, 0.9, 0.98])
def test_a_changed_byte_anywhere_in_a_shard_is_noticed_or_changes_nothing(directory: Path, fraction: float) -> None:
    path = directory / shard_name(0)
    content = bytearray(path.read_bytes())
    content[int(len(content) * fraction)] ^= 0x10
    path.write_bytes(content)
    if is_shard(path, PROMPTS[:4]):  # the byte was padding
        np.testing.assert_array_equal(read_shard(path)[0], some_latents()[:4])


def test_a_shard_of_other_prompts_is_not_taken_for_these(directory: Path) -> None:
    assert is_shard(directory / shard_name(0), PROMPTS[:4])
    assert not is_shard(directory / shard_name(0), PROMPTS[4:8])
    assert not is_shard(directory / shard_name(9), PROMPTS[:4])


def test_verify_names_the_shard_with_a_changed_byte(directory: Path) -> None:
    LatentCache.open(directory).verify()
    path = directory / shard_name(1)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(CorruptError, match=r"shard-00001\.arrow is corrupt.*delete it and run `condistill cache`"):
        LatentCache.open(directory).verify()


def test_a_truncated_shard_is_found_when_the_cache_is_opened(directory: Path) -> None:
    path = directory / shard_name(2)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptError, match=r"shard-00002\.arrow is corrupt"):
        LatentCache.open(directory)


def test_a_missing_shard_is_found_when_the_cache_is_opened(directory: Path) -> None:
    (directory / shard_name(0)).unlink()
    with pytest.raises(CorruptError, match=r"shard-00000\.arrow is corrupt"):
        LatentCache.open(directory)


@pytest.mark.parametrize("content", [b"", b"not arrow at all", b"ARROW1\0\0" + b"\xff" * 64])
def test_a_file_that_is_not_a_shard_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.arrow"
    path.write_bytes(content)
    with pytest.raises(CorruptError, match=r"a\.arrow is corrupt"):
        read_shard(path)


def test_a_partial_file_of_a_killed_run_is_ignored(directory: Path) -> None:
    (directory / f".{shard_name(3)}.partial").write_bytes(b"half")
    write_manifest(directory, shard_size=4, origin={"latent_shape": SHAPE})
    assert len(LatentCache.open(directory)) == 10
