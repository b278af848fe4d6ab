from __future__ import annotations

import pytest
import torch

from condistill.errors import CondistillError
from condistill.teachers.condition import Condition, mean_token_embedding


def test_conditions_are_indexed_joined_and_converted_as_one() -> None:
    condition = Condition({"embeds": torch.arange(6.0).view(3, 2), "pooled": torch.arange(3.0)})
    assert len(condition) == 3
    part = condition[torch.tensor([True, False, True])]
    assert part.tensors["embeds"].tolist() == [[0, 1], [4, 5]]
    assert part.tensors["pooled"].tolist() == [0, 2]
    joined = Condition.cat([part, condition[1:2]])
    assert joined.tensors["pooled"].tolist() == [0, 2, 1]
    assert {t.dtype for t in joined.to(torch.float64).tensors.values()} == {torch.float64}


def test_an_interpolated_condition_is_the_weighted_mean_of_two() -> None:
    one, other = (Condition({"a": torch.full((3, 2, 2), v), "b": torch.full((3,), -v)}) for v in (1.0, 5.0))
    between = one.lerp(other, torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64))
    assert between.tensors["a"][:, 0, 0].tolist() == [1, 2, 5]
    assert between.tensors["b"].tolist() == [-1, -2, -5]
    assert between.tensors["a"].shape == (3, 2, 2)
    half = one.to(torch.bfloat16).lerp(other.to(torch.bfloat16), torch.tensor([0.5] * 3))
    assert half.tensors["a"].dtype == torch.bfloat16


def test_only_interpolated_samples_attend_to_the_tokens_of_both_prompts() -> None:
    short, long = (Condition({"mask": torch.tensor([row] * 3)}) for row in ([1, 0, 0], [0, 1, 1]))
    mask = short.lerp(long, torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)).tensors["mask"]
    assert mask.dtype == torch.int64
    assert mask.tolist() == [[1, 0, 0], [1, 1, 1], [0, 1, 1]]


def test_class_labels_cannot_be_interpolated() -> None:
    labels = Condition({"class_labels": torch.tensor([1, 2])})
    with pytest.raises(CondistillError, match=r"prompt_choice\.interpolate .* class labels, .* set it to 0"):
        labels.lerp(labels, torch.tensor([0.5, 0.5]))


def test_the_mean_token_embedding_leaves_out_masked_tokens_and_the_empty_prompt() -> None:
    embeds = torch.tensor([[[3.0, 1.0], [1.0, 5.0], [9.0, 9.0]], [[0.0, 1.0]] * 3, [[0.0, 1.0]] * 3])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 0, 0]])
    condition = Condition({"prompt_embeds": embeds, "prompt_attention_mask": mask})
    embedding = mean_token_embedding(condition, ["a star", ""])
    torch.testing.assert_close(embedding, torch.tensor([[2.0, 2.0], [0.0, 0.0]]) / 8**0.5)
