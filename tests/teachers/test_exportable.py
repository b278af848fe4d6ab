from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tiny import TINY

from condistill.export.tokens import prepared, tokenize
from condistill.teachers.exportable import Exportable, TextInput
from condistill.teachers.family import Family
from condistill.teachers.registry import FAMILIES


@pytest.mark.parametrize("name", FAMILIES)
def test_tokens_of_plain_tokenizers_give_the_conditions_that_diffusers_encodes(
    name: str, tiny_teacher: Callable[[str], Family]
) -> None:
    family = tiny_teacher(name)
    for prompt in (TINY[name].prompts[0], "" if not family.zeros_for_empty_prompt else TINY[name].prompts[1]):
        (tokens,) = tokenize(family, [prompt])
        with torch.no_grad():
            found = family.encode_tokens({key: torch.from_numpy(value) for key, value in tokens.items()}).tensors
        expected = family.encode([prompt]).tensors
        assert set(expected) - set(found) <= {"time_ids", "mask", "masked_latents"}
        for key, tensor in found.items():
            assert torch.equal(tensor, expected[key]), key


def test_the_empty_prompt_has_no_prefix_and_a_length_of_its_own() -> None:
    text_input = TextInput("tokenizer", "input_ids", 20, lowercase=True, prefix="Enhance: ", empty_length=8)
    assert prepared(text_input, " A Star ") == ("Enhance: a star", 20)
    assert prepared(text_input, " ") == ("", 8)


def test_every_family_can_be_exported_as_graphs() -> None:
    for family in FAMILIES.values():
        assert family.encode_tokens is not Exportable.encode_tokens, family.name
