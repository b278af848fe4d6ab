from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from condistill.cache.fill import fill_cache, finish_cache
from condistill.cache.latents import LatentCache, read_shard, shard_name
from condistill.config.sections import CacheSettings
from condistill.errors import CondistillError
from condistill.teachers.family import Family
from condistill.utils.randomness import Stream, image_noise

PROMPTS = [f"a {size} {colour} circle at the {place} on snow" for size in ("small", "large")
           for colour in ("red", "blue") for place in ("top", "left", "right")][:10]  # fmt: skip
SETTINGS = CacheSettings(size=10, num_inference_steps=1, guidance_scale=3.0, batch_size=2, shard_size=4)
Shards = dict[str, bytes]


def fill(
    directory: Path, family: Family, settings: CacheSettings = SETTINGS, *, seed: int = 3, **options: Any
) -> Shards:
    """Fill a cache, and return the bytes of each shard."""
    fill_cache(directory, family, PROMPTS, settings, seed=seed, **options)
    return {path.name: path.read_bytes() for path in directory.glob("*.arrow")}


def all_latents(directory: Path, shards: int) -> np.ndarray:
    return np.concatenate([read_shard(directory / shard_name(i))[0] for i in range(shards)])


@pytest.fixture(scope="module")
def uninterrupted(tiny_family: Family, tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """The shards that one process writes without interruption."""
    return fill(tmp_path_factory.mktemp("uninterrupted"), tiny_family)


@pytest.fixture
def noises(tiny_family: Family, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The starting noises that the teacher receives; its sampler is replaced by a function that takes no time."""
    received: list[torch.Tensor] = []

    def sample(_denoiser: Any, _prompts: Any, noise: torch.Tensor, **_: Any) -> torch.Tensor:
        received.append(noise)
        return noise * 0.5

    monkeypatch.setattr(tiny_family, "sample", sample)
    return received


@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_the_noise_of_an_image_depends_only_on_the_seed_and_its_index(
    tiny_family: Family, tmp_path: Path, noises: list[torch.Tensor], batch_size: int
) -> None:
    fill(tmp_path, tiny_family, SETTINGS.model_copy(update={"batch_size": batch_size}))
    received = torch.cat(noises)
    assert len(received) == 10
    for index, noise in enumerate(received):
        expected = image_noise(3, Stream.CACHE_NOISE, index, (4, 8, 8))
        np.testing.assert_array_equal(noise.numpy(), expected)
    assert len(torch.unique(received.flatten(1), dim=0)) == 10


def test_another_seed_gives_different_noise(tiny_family: Family, tmp_path: Path, noises: list[torch.Tensor]) -> None:
    fill(tmp_path / "a", tiny_family, seed=3)
    fill(tmp_path / "b", tiny_family, seed=4)
    first, second = noises[:5], noises[5:]
    assert all(not torch.isclose(a, b).all(dim=(1, 2, 3)).any() for a, b in zip(first, second, strict=True))


@pytest.mark.slow
def test_an_image_does_not_depend_on_the_batch_size(tiny_family: Family, tmp_path: Path) -> None:
    settings = {"num_inference_steps": 2, "dtype": "float32"}
    for batch_size in (1, 4):
        fill(
            tmp_path / str(batch_size), tiny_family, SETTINGS.model_copy(update={**settings, "batch_size": batch_size})
        )
    one, four = all_latents(tmp_path / "1", 3), all_latents(tmp_path / "4", 3)
    np.testing.assert_allclose(one, four, rtol=1e-4, atol=1e-4)
    assert np.abs(one[0] - one[1]).max() > 0.1


def test_latents_equal_those_of_the_teacher_pipeline(tiny_family: Family, tmp_path: Path) -> None:
    fill(tmp_path, tiny_family, SETTINGS.model_copy(update={"dtype": "float32", "num_inference_steps": 2}))
    noise = torch.from_numpy(image_noise(3, Stream.CACHE_NOISE, 9, (4, 8, 8)))[None]
    expected = tiny_family.pipeline(
        prompt=PROMPTS[9], latents=noise, num_inference_steps=2, guidance_scale=3.0, output_type="latent"
    ).images
    latents, prompts = read_shard(tmp_path / shard_name(2))
    np.testing.assert_allclose(latents[1], expected[0].numpy(), rtol=1e-4, atol=1e-4)
    assert prompts.to_pylist() == PROMPTS[8:]


def test_an_interrupted_fill_resumes_after_the_last_complete_shard(
    tiny_family: Family, tmp_path: Path, uninterrupted: Shards
) -> None:
    generated: list[int] = []

    def interrupt(images: int) -> None:
        generated.append(images)
        if sum(generated) == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path, tiny_family, on_images=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == [shard_name(0)]
    before = (tmp_path / shard_name(0)).stat().st_mtime_ns
    (tmp_path / f".{shard_name(1)}.partial").write_bytes(b"from a killed run")
    reported: list[int] = []
    assert fill(tmp_path, tiny_family, on_images=reported.append) == uninterrupted
    assert reported == [4, 2, 2, 2]
    assert (tmp_path / shard_name(0)).stat().st_mtime_ns == before
    assert len(list(tmp_path.iterdir())) == 3


def test_two_processes_write_the_same_shards_as_one(tiny_family: Family, tmp_path: Path, uninterrupted: Shards) -> None:
    second = fill(tmp_path, tiny_family, part=(1, 2))
    assert list(second) == [shard_name(1)]
    assert fill(tmp_path, tiny_family, part=(0, 2)) == uninterrupted


@pytest.mark.parametrize("fault", ["replaced", "flipped", "truncated"])
def test_a_damaged_shard_is_named_and_generated_again(
    tiny_family: Family, tmp_path: Path, uninterrupted: Shards, fault: str
) -> None:
    fill(tmp_path, tiny_family)
    path = tmp_path / shard_name(0)
    content = path.read_bytes()
    half = len(content) // 2
    flipped = content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :]
    path.write_bytes({"replaced": b"not arrow", "flipped": flipped, "truncated": content[:-9]}[fault])
    damaged: list[Path] = []
    assert fill(tmp_path, tiny_family, on_damaged=damaged.append) == uninterrupted
    assert damaged == [path]


@pytest.mark.parametrize(("value", "section"), [(float("nan"), "teacher"), (float("inf"), "teacher"), (1e6, "cache")])
def test_latents_that_are_not_finite_are_refused_and_not_written(
    tiny_family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float, section: str
) -> None:
    def sample(_denoiser: Any, prompts: list[str], noise: torch.Tensor, **_: Any) -> torch.Tensor:
        return torch.where(torch.tensor([prompt == PROMPTS[5] for prompt in prompts]).view(-1, 1, 1, 1), value, noise)

    monkeypatch.setattr(tiny_family, "sample", sample)
    with pytest.raises(CondistillError, match=rf"not finite for images 4 to 5, .* try {section}\.dtype: float32"):
        fill(tmp_path, tiny_family)
    assert [path.name for path in tmp_path.iterdir()] == [shard_name(0)]


def test_the_manifest_records_the_teacher_and_the_settings(tiny_family: Family, tmp_path: Path) -> None:
    fill(tmp_path, tiny_family)
    with pytest.raises(CondistillError, match="no complete cache"):
        LatentCache.open(tmp_path)
    cache = finish_cache(tmp_path, tiny_family, SETTINGS, seed=3, teacher="abc")
    cache.verify()
    assert len(cache) == 10
    assert cache.latent_shape == (4, 8, 8)
    origin = cache.manifest.model_dump(
        include={*("teacher", "sampler", "guidance_scale", "num_inference_steps", "seed")}
    )
    assert origin == {
        "teacher": "abc",
        "sampler": "DDIMScheduler",
        "guidance_scale": 3.0,
        "num_inference_steps": 1,
        "seed": 3,
    }


def test_images_that_were_found_are_reported_apart_from_generated_ones(
    tiny_family: Family, tiny_prompts: list[str], tmp_path: Path
) -> None:
    settings = CacheSettings(size=4, num_inference_steps=1, guidance_scale=1.0, batch_size=2, shard_size=2)
    counts: dict[str, list[int]] = {"made": [], "found": []}

    def fill() -> None:
        made, found = counts["made"].append, counts["found"].append
        fill_cache(tmp_path, tiny_family, tiny_prompts[:4], settings, seed=0, on_images=made, on_found=found)

    fill()
    (tmp_path / shard_name(1)).unlink()
    fill()
    assert counts == {"made": [2, 2, 2], "found": [2]}
