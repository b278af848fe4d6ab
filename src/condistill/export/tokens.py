"""Prompts as tokens, with the package `tokenizers` alone, as programs without transformers read the exported files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from condistill.teachers.exportable import TextInput

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from condistill.teachers.family import Family

Tokens = dict[str, NDArray[np.int64]]
"""Tokens and masks `[B, L]` by name, as in `Exportable.encode_tokens`."""


def plain_tokenizer(tokenizer: Any, length: int) -> Tokenizer:
    """Return a tokenizer of transformers as one of `tokenizers`, which pads and truncates prompts to a length."""
    from tokenizers import Tokenizer

    plain = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    plain.enable_truncation(length)
    plain.enable_padding(length=length, pad_id=tokenizer.pad_token_id, pad_token=tokenizer.pad_token)
    return plain


def tokenize(family: Family, prompts: Sequence[str]) -> list[Tokens]:
    """Return the tokens `[1, L]` of each prompt."""
    if (labels := family.class_labels) is not None:
        numbers = [labels[prompt] if prompt in labels else int(prompt) for prompt in prompts]
        return [{"class_labels": np.array([number], np.int64)} for number in numbers]
    return [_tokens_of(family, prompt) for prompt in prompts]


def _tokens_of(family: Family, prompt: str) -> Tokens:
    tokens: Tokens = {}
    for text_input in family.text_inputs():
        text, length = prepared(text_input, prompt)
        encoding = plain_tokenizer(getattr(family.pipeline, text_input.tokenizer), length).encode(text)
        tokens[text_input.ids] = np.array([encoding.ids], np.int64)
        if text_input.mask:
            tokens[text_input.mask] = np.array([encoding.attention_mask], np.int64)
    return tokens


def prepared(text_input: TextInput, prompt: str) -> tuple[str, int]:
    """Return the text that the tokenizer reads, and the number of tokens that it is padded to."""
    text = prompt.lower().strip() if text_input.lowercase else prompt
    if not text:
        return text, text_input.empty_length or text_input.length
    return text_input.prefix + text, text_input.length


def described(text_input: TextInput) -> Mapping[str, Any]:
    """Return what a runner must know of a text input, for JSON."""
    return {
        "tokenizer": f"{text_input.tokenizer}/tokenizer.json",
        "ids": text_input.ids,
        "mask": text_input.mask,
        "lowercase": text_input.lowercase,
        "prefix": text_input.prefix,
        "length": text_input.length,
        "empty_length": text_input.empty_length or text_input.length,
    }
