"""The lines of a text file: UTF-8, with any line ends, in blocks of a megabyte."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from condistill.errors import CondistillError
from condistill.utils.format import byte_size

_BLOCK_BYTES = 2**16
_MAX_LINE_BYTES = 2**25
_BOM = "\ufeff"


def read_lines(path: Path) -> Iterator[str]:
    """Return an iterator over the lines of a file, without their ends, which are LF, CR LF or CR.

    Byte order marks at the start of a line are left out.

    Raises:
        CondistillError: the file cannot be read, or is not UTF-8 text.
    """
    return chain.from_iterable(block.removesuffix("\n").split("\n") for block in _blocks(path))


def read_ended_lines(path: Path) -> Iterator[str]:
    """Return an iterator over the lines of a file, each but the last with LF at its end; see `read_lines`."""
    blocks: Iterable[Iterable[str]] = map(io.StringIO, _blocks(path))
    return chain.from_iterable(blocks)


def _blocks(path: Path) -> Iterator[str]:
    """Yield the text of a file in blocks of whole lines, with LF as the only line end."""
    offset, line = 0, 1
    for raw in _raw_blocks(path):
        text = _decode(path, raw, offset, line)
        if "\r" in text:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        if _BOM in text:
            text = "\n".join(part.lstrip(_BOM) for part in text.split("\n"))
        yield text
        offset += len(raw)
        line += text.count("\n")


def _raw_blocks(path: Path) -> Iterator[bytes]:
    """Yield the bytes of a file in blocks that end where a line ends."""
    parts: list[bytes] = []
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                if block.endswith(b"\r"):  # it may be half of a CR LF
                    block += file.read(1)
                end = max(block.rfind(b"\n"), block.rfind(b"\r")) + 1
                if end:
                    yield b"".join([*parts, block[:end]])
                    parts = [block[end:]]
                else:
                    parts.append(block)
                if sum(map(len, parts)) > _MAX_LINE_BYTES:
                    raise CondistillError(
                        f"{path} has a line of more than {byte_size(_MAX_LINE_BYTES)}; write one prompt, or one "
                        "record, on each line"
                    )
    except OSError as error:
        raise CondistillError(f"{path} cannot be read: {error.strerror or error}") from error
    if rest := b"".join(parts):
        yield rest


def _decode(path: Path, raw: bytes, offset: int, line: int) -> str:
    """Return the text of a block.

    Args:
        offset: bytes of the file before the block.
        line: number of the first line of the block.
    """
    if offset == 0 and raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise CondistillError(f"{path} is UTF-16 or UTF-32, not UTF-8; save it as UTF-8")
    if (nul := raw.find(b"\0")) >= 0:
        raise CondistillError(
            f"{path} is not text in UTF-8: byte {offset + nul}, on line {line + _count_ends(raw[:nul])}, is NUL, as in "
            "UTF-16 and in binary files; save it as UTF-8"
        )
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line += _count_ends(raw[: error.start])
        raise CondistillError(
            f"{path} is not UTF-8: byte {offset + error.start}, on line {line}; save it as UTF-8"
        ) from error


def _count_ends(raw: bytes) -> int:
    """Return the number of line ends."""
    return raw.count(b"\n") + raw.count(b"\r") - raw.count(b"\r\n")
