from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from condistill.cache.latents import write_shard
from condistill.errors import CondistillError
from condistill.evaluate.batches import LATENTS_NAME, BatchFiles, begin_batches, finish_batches
from condistill.evaluate.generate import Watch, generate_latents
from condistill.evaluate.models import EvaluatedModel
from condistill.evaluate.rounds import Round
from condistill.pipelines.sampling import Sampling
from condistill.run.stage_directory import StageDir
from condistill.teachers.family import Family
from condistill.utils.randomness import Stream, image_noise

PROMPTS = ["a red circle", "a blue square", "a green moon"]
ROUND = Round(4, PROMPTS, {"seen": slice(0, 2), "unseen": slice(2, 3), "all": slice(0, 3)})


def model_of(folder: Path, family: Family, name: str = "student", inputs: int = 0) -> EvaluatedModel:
    directory = StageDir(folder, f"latents/{name}", lambda: {"inputs": inputs})
    return EvaluatedModel(name, lambda: family, Sampling(1, 2.0), directory)


def generated(folder: Path, family: Family, batch_size: int = 2, **options: Any) -> NDArray[np.float32]:
    watch = options.pop("watch", Watch())
    model = model_of(folder, family, **options)
    begin_batches(model.latents, batch_size)
    generate_latents(model, [ROUND], batch_size=batch_size, watch=watch)
    finish_batches(model.latents, [ROUND])
    return BatchFiles.of(model.latents).read(ROUND, range(3))[LATENTS_NAME]


def test_every_model_starts_from_the_noise_of_the_row(
    tiny_family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sample(_denoiser: Any, _prompts: Any, noise: torch.Tensor, **_: Any) -> torch.Tensor:
        return noise

    monkeypatch.setattr(tiny_family, "sample", sample)
    for batch_size in (1, 2, 3):
        latents = generated(tmp_path / str(batch_size), tiny_family, batch_size)
        for i, noise in enumerate(latents):
            np.testing.assert_array_equal(noise, image_noise(4, Stream.EVALUATION_NOISE, i, (4, 8, 8)))


def test_the_latents_are_those_of_the_pipeline(tiny_family: Family, tmp_path: Path) -> None:
    noise = np.stack([image_noise(4, Stream.EVALUATION_NOISE, i, (4, 8, 8)) for i in range(3)])
    expected = tiny_family.sample(
        tiny_family.denoiser, PROMPTS, torch.from_numpy(noise), num_inference_steps=1, guidance_scale=2.0
    )
    np.testing.assert_allclose(generated(tmp_path, tiny_family), expected, rtol=1e-4, atol=1e-4)


def counting(monkeypatch: pytest.MonkeyPatch, family: Family, counts: list[int], fail_at: int = -1) -> None:
    """Let a family return noise, note the size of each batch, and be interrupted at the batch of a number."""

    def sample(_denoiser: Any, prompts: Any, noise: torch.Tensor, **_: Any) -> torch.Tensor:
        if len(counts) == fail_at:
            raise KeyboardInterrupt
        counts.append(len(prompts))
        return noise

    monkeypatch.setattr(family, "sample", sample)


def test_an_interrupted_round_loses_one_batch_at_most_and_keeps_the_size_of_its_files(
    tiny_family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    counting(monkeypatch, tiny_family, counts, fail_at=1)
    with pytest.raises(KeyboardInterrupt):
        generated(tmp_path, tiny_family)
    counting(monkeypatch, tiny_family, counts)
    found: list[int] = []
    watch = Watch(on_found=lambda count, _model: found.append(count))
    resumed = generated(tmp_path, tiny_family, 1, watch=watch)
    assert (counts, found) == ([2, 1], [2])
    np.testing.assert_array_equal(resumed, generated(tmp_path / "at once", tiny_family, 3))


def test_a_damaged_file_is_named_and_made_again_and_no_other(
    tiny_family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    counting(monkeypatch, tiny_family, counts)
    before = generated(tmp_path, tiny_family)
    first = tmp_path / "latents" / "student" / "seed-4" / "batch-00000.safetensors"
    data = bytearray(first.read_bytes())
    data[-1] ^= 1
    first.write_bytes(data)
    damaged: list[Path] = []
    again = generated(tmp_path, tiny_family, watch=Watch(on_damaged=damaged.append))
    assert (counts, damaged) == ([2, 1, 2], [first])
    np.testing.assert_array_equal(again, before)


def test_latents_that_an_earlier_version_left_are_used(
    tiny_family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny_family, "sample", None)
    latents = np.random.Generator(np.random.Philox(0)).standard_normal((3, 4, 8, 8), dtype=np.float32)
    model = model_of(tmp_path, tiny_family)
    folder = model.latents.begin()
    write_shard(folder / "seed-4.arrow", latents, PROMPTS)
    np.testing.assert_array_equal(generated(tmp_path, tiny_family), latents)
    assert model.latents.is_done()


def test_results_of_other_inputs_that_cost_little_are_replaced(
    tiny_family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    counting(monkeypatch, tiny_family, counts)
    generated(tmp_path, tiny_family)
    with pytest.raises(CondistillError, match="has files that this run did not make"):
        generated(tmp_path, tiny_family, inputs=1)
    model = model_of(tmp_path, tiny_family, inputs=1)
    model.latents.is_costly = False
    begin_batches(model.latents, 2)
    assert not list(model.latents.path.rglob("batch-*"))
    generated(tmp_path, tiny_family, inputs=1)
    assert counts == [2, 1, 2, 1]


@pytest.mark.parametrize(("model", "remedy"), [("teacher", "teacher.dtype"), ("mine", "a lower .*learning_rate")])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_latents_that_are_not_finite_are_refused_with_the_name_of_the_model_and_are_not_kept(
    *, tiny_family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, remedy: str, bad: float
) -> None:
    def sample(_denoiser: Any, prompts: Any, noise: torch.Tensor, **_: Any) -> torch.Tensor:
        noise[-1, 0, 0, 0] = bad
        return noise

    monkeypatch.setattr(tiny_family, "sample", sample)
    with pytest.raises(CondistillError, match=rf"^{model} generated .*not finite for 1 of 2 prompt.*{remedy}"):
        generated(tmp_path, tiny_family, name=model)
    assert not list(tmp_path.rglob("batch-*"))
