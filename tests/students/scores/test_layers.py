from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_transformers import BLOCKS, KINDS, build, inputs_of, make_identity

from condistill.students.depth import layer_lists
from condistill.students.scores.layers import layer_scores


def family_of(denoiser: Any) -> Any:
    """As much of a teacher as `layer_scores` uses; it predicts from the inputs of these tests."""

    def predict(denoiser: Any, x_t: Any, timesteps: Any, condition: Any) -> None:
        denoiser(**inputs_of(denoiser, (8, 8), batch=len(x_t)))

    return SimpleNamespace(denoiser=denoiser, predict=predict)


def batches(*sizes: int) -> list[Any]:
    return [SimpleNamespace(x_t=torch.zeros(size), timesteps=None, condition=None) for size in sizes]


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_scores_by_how_much_it_turns_the_image(kind):
    teacher = build(kind)
    blocks = teacher.transformer_blocks
    make_identity(blocks[1])
    plain = blocks[2].forward

    def turned(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        output = plain(hidden_states, *args, **kwargs)
        return (output[0], -hidden_states) if isinstance(output, tuple) else -hidden_states

    blocks[2].forward = turned
    scores = layer_scores(family_of(teacher), batches(2))
    assert {name: len(of_list) for name, of_list in scores.items()} == layer_lists(teacher)
    assert scores[BLOCKS][1] == pytest.approx(0, abs=1e-5)
    assert scores[BLOCKS][2] == pytest.approx(2, abs=1e-5)
    assert 1e-4 < scores[BLOCKS][3] < 2
    assert not any(layer._forward_hooks for layer in blocks)


def test_the_mean_is_over_samples_and_not_over_batches():
    teacher = build("dit")
    angles = iter((0.0, 1.0))  # similarity of each batch's output and input: 1 - 0 and 1 - 1

    def forward(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        across = torch.cat([hidden_states[..., 8:], -hidden_states[..., :8]], dim=-1)
        return across if next(angles) else hidden_states

    teacher.transformer_blocks[0].forward = forward
    assert layer_scores(family_of(teacher), batches(1, 3))[BLOCKS][0] == pytest.approx(3 / 4, abs=1e-5)
