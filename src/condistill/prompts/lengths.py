"""How many prompts of a pool are longer than the text encoder reads."""

from __future__ import annotations

from typing import Any

import numpy as np

from condistill.prompts.pool import PromptPool

_SAMPLE = 2000
_CHARACTERS_PER_TOKEN = 20
"""More than this many characters for each token that is read are too many in any language."""
_UNLIMITED = 10**6


def long_prompts(pool: PromptPool, tokenizer: Any, limit: int) -> str | None:
    """Return a warning about the prompts that are longer than `limit` tokens, or None if there are none.

    Every token holds at least a byte, so only prompts with many bytes are tokenized; of more than `_SAMPLE` of them, an
    even sample.

    Args:
        tokenizer: of transformers.
        limit: tokens that the text encoder reads of a prompt, including special tokens.
    """
    if limit >= _UNLIMITED:  # transformers' number for a tokenizer without a limit is larger
        return None
    special = len(tokenizer("", truncation=False)["input_ids"])
    candidates = pool.longer_than(limit - special - 1)  # some tokenizers begin with a space of their own
    sample = candidates[np.linspace(0, len(candidates) - 1, min(len(candidates), _SAMPLE)).astype(np.int64)]
    if not len(sample):
        return None
    texts = [prompt[: limit * _CHARACTERS_PER_TOKEN] for prompt in pool.take(sample)]
    lengths = [len(tokens) for tokens in tokenizer(texts, truncation=False, verbose=False)["input_ids"]]
    share = sum(length > limit for length in lengths) / len(lengths)
    if not share:
        return None
    number = f"{'about ' if len(sample) < len(candidates) else ''}{round(share * len(candidates)):,}"
    return (
        f"{number} of {len(pool):,} prompts are longer than the {limit} tokens that the text encoder reads; the rest "
        "of each is ignored"
    )
