"""The vocabulary of CLIP's tokenizer, in the files that transformers reads.

The shipped file lists the merges of the byte-pair encoding in the order in which they were learnt. The vocabulary
follows from it: the bytes, the bytes that end a word, the results of the merges, and two marks (Radford et al., arXiv
2103.00020, section 2.4).
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

VOCABULARY_NAME = "bpe_simple_vocab_16e6.txt.gz"
TOKENS = 49_408
_END_OF_WORD = "</w>"
_MARKS = ("<|startoftext|>", "<|endoftext|>")
_PRINTABLE = (*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1))
"""Bytes that stand for themselves; the others stand for the characters from 256 on, in their order."""


def read_merges(file: Path) -> list[str]:
    """Return the merges of the shipped file that CLIP uses: those of the first 49,152 tokens."""
    with gzip.open(file, "rt", encoding="utf-8") as opened:
        lines = opened.read().split("\n")
    return lines[1 : 1 + TOKENS - 2 * 256 - len(_MARKS)]  # the first line is a heading


def vocabulary(merges: list[str]) -> dict[str, int]:
    """Return the number of every token."""
    others = (byte for byte in range(256) if byte not in _PRINTABLE)
    characters = [chr(byte) for byte in _PRINTABLE] + [chr(256 + number) for number, _ in enumerate(others)]
    tokens = [*characters, *(character + _END_OF_WORD for character in characters)]
    tokens += ["".join(merge.split()) for merge in merges]
    return {token: number for number, token in enumerate([*tokens, *_MARKS])}


def write_vocabulary(source: Path, directory: Path) -> None:
    """Write `vocab.json` and `merges.txt` of CLIP's tokenizer to a directory.

    Args:
        source: the shipped file.
    """
    merges = read_merges(source)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "vocab.json").write_text(json.dumps(vocabulary(merges), ensure_ascii=False), encoding="utf-8")
    (directory / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
