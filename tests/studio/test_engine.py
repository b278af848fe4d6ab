from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from condistill.errors import CondistillError
from condistill.studio.engine import (
    LARGEST_SEED,
    LONGEST_PROMPT,
    Cancelled,
    Engine,
    ImageRequest,
    ModelFailure,
    ModelImage,
    Watch,
    check_request,
)
from condistill.studio.loading import Models
from condistill.studio.sources import find_sources

PROMPT = "a large red star"


@pytest.fixture(scope="module")
def engine(tiny_pipeline_dir: Path, tiny_v_pipeline_dir: Path) -> Iterator[Engine]:
    """Two pipelines that belong to no run: equal encoders, and schedulers that differ."""
    sources = find_sources([str(tiny_pipeline_dir), str(tiny_v_pipeline_dir)])
    return Engine(Models(sources.models, torch.device("cpu")))  # type: ignore[return-value]


def images(engine: Engine, **changes: Any) -> list[ModelImage]:
    request = {"prompt": PROMPT, "models": tuple(engine.models.sources), "steps": 2, "guidance": 3.0, **changes}
    found = list(engine.generate(ImageRequest(**request), Watch()))
    assert all(isinstance(each, ModelImage) for each in found), found
    return found  # type: ignore[return-value]


def test_every_model_gets_an_image_with_its_time_and_memory(engine: Engine) -> None:
    for image in images(engine):
        assert image.pixels.shape == (64, 64, 3)
        assert image.seconds > 0
        assert image.memory_bytes > engine.models.get(image.model).weight_bytes
        assert (image.steps, image.guidance) == (2, 3.0)


@pytest.mark.slow
def test_an_image_equals_that_of_the_command_sample(engine: Engine, tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    from PIL import Image

    from condistill.config.sections import TeacherSettings
    from condistill.pipelines.generate import generate_image

    settings = TeacherSettings(pipeline=str(tiny_pipeline_dir))
    file = generate_image(settings, PROMPT, tmp_path / "image.png", seed=5, steps=2, guidance=3.0)
    assert np.array_equal(np.asarray(Image.open(file)), images(engine, seed=5)[0].pixels)


def test_the_seeds_of_two_users_do_not_mix_and_the_random_states_of_the_process_are_left_alone(engine: Engine) -> None:
    alone = {seed: images(engine, seed=seed, steps=1) for seed in (1, 2)}
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first, second = (
        engine.generate(ImageRequest(PROMPT, tuple(alone[1][i].model for i in (0, 1)), seed, 1, 3.0), Watch())
        for seed in (1, 2)
    )
    mixed = [(next(first), next(second)) for _ in range(2)]
    assert torch.equal(before, torch.get_rng_state())
    for row, (one, two) in enumerate(mixed):
        assert isinstance(one, ModelImage)
        assert isinstance(two, ModelImage)
        assert np.array_equal(one.pixels, alone[1][row].pixels)
        assert np.array_equal(two.pixels, alone[2][row].pixels)
        assert not np.array_equal(one.pixels, two.pixels)


def test_pipelines_share_the_models_whose_files_are_equal(engine: Engine) -> None:
    first, second = (engine.models.get(name).family.pipeline for name in engine.models.sources)
    assert first.vae is second.vae
    assert first.text_encoder is second.text_encoder
    assert first.unet is not second.unet


@pytest.mark.slow
def test_a_part_with_other_weights_is_not_shared(tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    other = shutil.copytree(tiny_pipeline_dir, tmp_path / "other")
    file = other / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights[next(iter(weights))] += 1
    save_file(weights, file, metadata={"format": "pt"})
    models = Models(find_sources([str(tiny_pipeline_dir), str(other)]).models, torch.device("cpu"))
    first, second = (models.get(name).family.pipeline for name in models.sources)
    assert first.vae is not second.vae
    assert first.text_encoder is second.text_encoder


def test_a_generation_stops_between_two_steps(engine: Engine) -> None:
    steps: list[tuple[str, int, int]] = []
    watch = Watch()

    def on_step(model: str, done: int, total: int) -> None:
        steps.append((model, done, total))
        if done == 3:
            watch.cancelled.set()

    watch.on_step = on_step
    names = tuple(engine.models.sources)
    with pytest.raises(Cancelled):
        list(engine.generate(ImageRequest(PROMPT, names, 0, 10, 3.0), watch))
    assert steps[-1] == (names[0], 3, 10)
    assert not engine.models.get(names[0]).family.denoiser._forward_pre_hooks


def test_a_generation_that_was_stopped_before_it_began_does_nothing(engine: Engine) -> None:
    stopped = threading.Event()
    stopped.set()
    with pytest.raises(Cancelled):
        list(engine.generate(ImageRequest(PROMPT, ("no model",)), Watch(cancelled=stopped)))


def test_what_fails_for_one_model_is_said_and_the_others_go_on(engine: Engine) -> None:
    name = next(iter(engine.models.sources))
    failed, image = engine.generate(ImageRequest(PROMPT, ("gone", name), 0, 1, 3.0), Watch())
    assert isinstance(failed, ModelFailure)
    assert failed.message.startswith("there is no model 'gone'; the models are")
    assert isinstance(image, ModelImage)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
            "the device is out of memory; start the studio with",
        ),
        (MemoryError(), "the device is out of memory"),
        (KeyError("inner"), "the image cannot be generated: 'inner'"),
        (CondistillError("a message"), "a message"),
    ],
)
def test_an_error_of_a_model_is_its_message(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def fail(*_: Any) -> ModelImage:
        raise error

    monkeypatch.setattr(engine, "_image", fail)
    names = tuple(engine.models.sources)
    failures = list(engine.generate(ImageRequest(PROMPT, names), Watch()))
    assert [failure.model for failure in failures] == list(names)
    assert all(isinstance(each, ModelFailure) and each.message.startswith(message) for each in failures)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "  \n"}, "the prompt is empty"),
        ({"prompt": None}, "the prompt is empty"),
        ({"prompt": "x" * (LONGEST_PROMPT + 1)}, "the prompt has 2,001 characters; write at most 2,000"),
        ({"models": []}, "no model is chosen"),
        ({"models": "teacher"}, "no model is chosen"),
        ({"seed": None}, "the seed is empty; give a whole number from 0 to"),
        ({"seed": -1}, "the seed is -1; give a whole number from 0 to"),
        ({"seed": 1.5}, "the seed is 1.5; give a whole number"),
        ({"seed": LARGEST_SEED + 1}, "the seed is 9007199254740992"),
        ({"seed": True}, "the seed is True"),
        ({"seed": 10**400}, "the seed is 1000"),
        ({"steps": 0}, "the number of steps is 0; give a whole number from 1 to 1,000"),
        ({"steps": "many"}, "the number of steps is many"),
        ({"steps": {}}, "the number of steps is {}"),
        ({"guidance": float("nan")}, "the guidance scale is nan; give a number from 0 to 100"),
        ({"guidance": float("inf")}, "the guidance scale is inf"),
        ({"guidance": -0.5}, "the guidance scale is -0.5"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_with_the_values_that_can(changes: dict[str, Any], message: str) -> None:
    values = {"prompt": PROMPT, "models": ["teacher"], "seed": 0, **changes}
    with pytest.raises(CondistillError) as refused:
        check_request(values.pop("prompt"), values.pop("models"), **values)
    assert str(refused.value).startswith(message)
    assert len(str(refused.value)) < 200


def test_a_request_keeps_what_was_typed() -> None:
    request = check_request(f" {PROMPT} ", ["a", "b", "a"], seed=3.0, steps=4.0, guidance=2)
    assert request == ImageRequest(PROMPT, ("a", "b"), 3, 4, 2.0)
    assert check_request(PROMPT, ["a"], seed="7").steps is None
