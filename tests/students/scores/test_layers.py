from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_transformers import BLOCKS, KINDS, build, inputs_of, pass_on

from condistill.errors import CorruptError
from condistill.students.depth import layer_lists
from condistill.students.scores import layers as influence
from condistill.students.scores.calibration import cached_states
from condistill.students.scores.layers import SCORES_NAME, block_influence, kept_influence
from condistill.teachers.family import Condition

ONE = SimpleNamespace(is_main_process=True, wait_for_everyone=lambda: None)


def family_of(denoiser: Any) -> Any:
    """As much of a teacher as is asked for: every state is answered as `inputs_of` asks."""

    def predict(denoiser: Any, x_t: Any, timesteps: Any, condition: Any) -> None:
        denoiser(**inputs_of(denoiser, (8, 8), batch=len(x_t)))

    return SimpleNamespace(denoiser=denoiser, predict=predict)


def states(*sizes: int) -> list[Any]:
    return [SimpleNamespace(x_t=torch.zeros(size), timesteps=None, condition=None) for size in sizes]


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_counts_by_how_much_it_turns_the_image(kind):
    teacher = build(kind)
    blocks = teacher.transformer_blocks
    pass_on(blocks[1])
    plain = blocks[2].forward

    def turned(hidden_states: torch.Tensor, *given: Any, **named: Any) -> Any:
        output = plain(hidden_states, *given, **named)
        return (output[0], -hidden_states) if isinstance(output, tuple) else -hidden_states

    blocks[2].forward = turned
    scores = block_influence(family_of(teacher), states(2))
    assert {name: len(of_list) for name, of_list in scores.items()} == layer_lists(teacher)
    assert scores[BLOCKS][1] == pytest.approx(0, abs=1e-5)
    assert scores[BLOCKS][2] == pytest.approx(2, abs=1e-5)
    assert 1e-4 < scores[BLOCKS][3] < 2
    assert not any(layer._forward_hooks for layer in blocks)


def test_the_mean_is_over_samples_and_not_over_batches():
    teacher = build("dit")
    angles = iter((0.0, 1.0))  # similarity of each batch's output and input: 1 - 0 and 1 - 1

    def forward(hidden_states: torch.Tensor, *given: Any, **named: Any) -> torch.Tensor:
        across = torch.cat([hidden_states[..., 8:], -hidden_states[..., :8]], dim=-1)
        return across if next(angles) else hidden_states

    teacher.transformer_blocks[0].forward = forward
    assert block_influence(family_of(teacher), states(1, 3))[BLOCKS][0] == pytest.approx(3 / 4, abs=1e-5)


def test_states_are_of_all_levels_and_the_same_however_they_are_cut(tiny_family, tiny_cache):
    def drawn(batch_size: int, seed: int = 0) -> Any:
        made = list(cached_states(tiny_family, tiny_cache, seed=seed, batch_size=batch_size, samples=10))
        return torch.cat([s.x_t for s in made]), torch.cat([s.timesteps for s in made])

    x_t, timesteps = drawn(10)
    assert (timesteps // 100).tolist() == list(range(10))
    assert torch.equal(drawn(4)[0], x_t)
    assert not torch.equal(drawn(10, seed=1)[0], x_t)


def test_a_teacher_that_is_told_its_guidance_hears_scales_of_the_range(tiny_family, tiny_cache):
    told = [
        s.condition.tensors["guidance_scale"]
        for s in cached_states(tiny_family, tiny_cache, seed=0, batch_size=4, samples=8, guidance_range=(2.0, 3.0))
    ]
    scales = torch.cat(told)
    assert len(set(scales.tolist())) == 8
    assert ((scales >= 2) & (scales <= 3)).all()


def test_a_teacher_that_sees_a_context_sees_what_it_is_trained_with(tiny_family, tiny_cache, monkeypatch):
    def training_condition(condition, x_0, uniform):
        return Condition({**condition.tensors, "context": x_0[:, 0, 0, 0] + uniform})

    monkeypatch.setattr(tiny_family, "has_image_condition", True, raising=False)
    monkeypatch.setattr(tiny_family, "training_condition", training_condition)
    seen = [
        torch.cat(
            [s.condition.tensors["context"] for s in cached_states(tiny_family, tiny_cache, seed=0, batch_size=n)]
        )
        for n in (8, 64)
    ]
    assert torch.equal(*seen)
    assert len(set(seen[0].tolist())) == 64


def test_a_run_that_goes_on_chooses_by_what_was_measured_before(tiny_family, tiny_cache, tmp_path, monkeypatch):
    measured = {BLOCKS: [0.25, 0.5]}
    monkeypatch.setattr(influence, "block_influence", lambda *_: measured)
    given: dict[str, Any] = {"seed": 0, "batch_size": 4}
    assert kept_influence(tiny_family, tiny_cache, tmp_path, ONE, **given) == measured
    monkeypatch.setattr(influence, "block_influence", lambda *_: {BLOCKS: [0.0, 9.0]})
    assert kept_influence(tiny_family, tiny_cache, tmp_path, ONE, **given) == measured
    assert json.loads((tmp_path / SCORES_NAME).read_text()) == measured
    (tmp_path / SCORES_NAME).write_text("{")
    with pytest.raises(CorruptError, match="delete it and run again"):
        kept_influence(tiny_family, tiny_cache, tmp_path, ONE, **given)


def test_without_a_cache_nothing_is_measured(tiny_family, tmp_path):
    assert kept_influence(tiny_family, [], tmp_path, ONE, seed=0, batch_size=4) is None  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
