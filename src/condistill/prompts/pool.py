"""The text pool: all prompts that distillation may use, in one memory-mapped Arrow file.

The file is Arrow IPC with one column `prompt`, in batches of `BATCH_ROWS` rows: prompt i is in batch i // BATCH_ROWS.
The metadata of the schema holds the format, the rows per batch and the source files. The metadata of a last, empty
batch holds the values that are known only after all prompts are read: the content hash and the counts.
"""

from __future__ import annotations

import hashlib
import json
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from condistill.errors import CondistillError, CorruptError
from condistill.prompts.readers import check_column, read_prompts
from condistill.prompts.text import MAX_CHARACTERS, clean_prompt, shown
from condistill.utils.atomic import atomic_file

BATCH_ROWS = 65_536
_KEY = b"condistill.prompts"
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class PoolCounts:
    """Numbers of prompts while a pool was built: read = kept + empty + duplicates."""

    read: int
    kept: int
    empty: int
    duplicates: int
    cleaned: int = 0
    """Prompts from which control characters or byte order marks were removed."""


def prompt_digest(prompt: str) -> bytes:
    """Return a hash of 16 bytes, which represents a prompt in a large set."""
    return hashlib.blake2b(prompt.encode(), digest_size=16).digest()


class PromptPool:
    """Distinct, non-empty prompts in a fixed order.

    A pool of any size opens in constant time and memory. A pool is pickled as its path.
    """

    def __init__(self, path: Path, reader: Any, head: dict[str, Any], tail: dict[str, Any]) -> None:
        self.path = path
        self.content_hash: str = tail["content_hash"]
        """SHA-256 of the kept prompts, in their order."""
        self.counts = PoolCounts(**tail["counts"])
        self.sources: tuple[str, ...] = tuple(head["sources"])
        """Names of the files from which the pool was built."""
        self._kept_per_source: list[int] | None = tail.get("kept_of")
        self._reader = reader
        self._batch_rows: int = head["rows"]
        self._columns: dict[int, Any] = {}

    @classmethod
    def build(
        cls,
        files: Sequence[Path | str],
        out: Path,
        *,
        column: str | None = None,
    ) -> PromptPool:
        """Convert prompt files to one pool, which is written completely or not at all.

        Args:
            files: see `read_prompts` for the formats.
            column: column of the prompts in csv, jsonl and parquet files.

        Raises:
            CondistillError: a file cannot be used, no file has columns although `column` is given, or all prompts
                are empty.
        """
        check_column(files, column)
        for file in files:  # report a mistake in the last file before the first is converted
            next(read_prompts(file, column=column), None)
        _write([read_prompts(file, column=column) for file in files], Path(out), [Path(file).name for file in files])
        return cls.open(out)

    @classmethod
    def from_prompts(cls, prompts: Iterable[str], out: Path) -> PromptPool:
        """Write prompts to a pool without empty prompts and duplicates.

        Raises:
            CondistillError: all prompts are empty, or a prompt is not text.
        """
        _write([prompts], Path(out), [])
        return cls.open(out)

    @classmethod
    def open(cls, path: Path) -> PromptPool:
        """Open a pool; the prompts stay on disk.

        Raises:
            CondistillError: the file does not exist.
            CorruptError: the file is not a complete pool.
        """
        path = Path(path)
        if not path.exists():
            raise CondistillError(f"there is no prompt pool at {path}; PromptPool.build creates one")
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
            head = json.loads(reader.schema.metadata[_KEY])
            if head["format"] != _FORMAT:
                raise ValueError(f"it has format {head['format']}, this version of condistill reads format {_FORMAT}")
            batches = reader.num_record_batches - 1
            tail = json.loads(reader.get_batch_with_custom_metadata(batches).custom_metadata[_KEY])
            if batches != -(-tail["counts"]["kept"] // head["rows"]):
                raise ValueError(f"it has {batches} batches for {tail['counts']['kept']} prompts")
            return cls(path, reader, head, tail)
        except (pa.ArrowException, OSError, LookupError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise CorruptError(f"{path} is not a complete prompt pool ({reason}); delete and rebuild it") from error

    def __len__(self) -> int:
        return self.counts.kept

    def __getitem__(self, index: int) -> str:
        i = operator.index(index)
        if not -len(self) <= i < len(self):
            raise IndexError(f"prompt {i} is not in a pool of {len(self)} prompts")
        batch, row = divmod(i % len(self), self._batch_rows)
        prompt: str = self._column(batch)[row].as_py()
        return prompt

    def __iter__(self) -> Iterator[str]:
        for batch in range(-(-len(self) // self._batch_rows)):
            yield from self._column(batch).to_pylist()

    def __reduce__(self) -> tuple[Callable[[Path], PromptPool], tuple[Path]]:
        return PromptPool.open, (self.path,)

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> list[str]:
        """Return the prompts at several indices, in the order of the indices."""
        return [self[i] for i in indices]

    def draw(self, n: int, generator: np.random.Generator) -> list[str]:
        """Return `n` random prompts, drawn uniformly and with replacement."""
        return self.take(generator.integers(len(self), size=n))

    def longer_than(self, size: int) -> NDArray[np.int64]:
        """Return the ascending indices of the prompts with more than `size` bytes in UTF-8."""
        batches = range(-(-len(self) // self._batch_rows))
        lengths = [pc.binary_length(self._column(batch)).to_numpy(zero_copy_only=False) for batch in batches]
        return np.flatnonzero(np.concatenate(lengths) > size)

    def source_ranges(self) -> dict[str, range]:
        """Return the indices of the prompts of each source, by file name.

        A prompt that several sources contain belongs only to the first of them.

        Raises:
            CondistillError: two sources have the same name, or an older version built the pool without this record.
        """
        if self._kept_per_source is None:
            raise CondistillError(
                f"{self.path} was built by an older version, which did not record the source of each prompt; delete "
                "the file and run the same command again to rebuild it"
            )
        ranges: dict[str, range] = {}
        counts = self._kept_per_source
        for name, end, count in zip(self.sources, accumulate(counts), counts, strict=True):
            indices = range(end - count, end)
            if indices and ranges.get(name):
                raise CondistillError(f"two files of the prompt pool are named {name!r}; rename one")
            ranges[name] = ranges.get(name) or indices
        return ranges

    def _column(self, batch: int) -> Any:
        if batch not in self._columns:
            column = self._reader.get_batch(batch).column(0)
            try:
                column.validate()
            except pa.ArrowException as error:
                raise CorruptError(f"batch {batch} of {self.path} is corrupt: {error}; build the pool again") from error
            self._columns[batch] = column
        return self._columns[batch]


def count_prompts(files: Sequence[Path | str], *, column: str | None = None, limit: int | None = None) -> PoolCounts:
    """Return the counts that a pool of several files would have; with a limit, of the first `limit` prompts.

    Raises:
        CondistillError: a file cannot be used.
    """
    prompts = chain.from_iterable(read_prompts(file, column=column) for file in files)
    distinct = _Distinct([islice(prompts, limit)], [", ".join(map(str, files))])
    for _ in distinct.batches():
        pass
    return distinct.counts


def _write(parts: Sequence[Iterable[str]], out: Path, sources: Sequence[str]) -> None:
    """Stream the distinct, non-empty prompts to `out`. Memory holds one batch, and one digest per kept prompt.

    Args:
        parts: the prompts of each source.
        sources: the file names of the sources; empty if the prompts are not from files.
    """
    content = hashlib.sha256()
    head = json.dumps({"format": _FORMAT, "rows": BATCH_ROWS, "sources": list(sources)})
    schema = pa.schema([pa.field("prompt", pa.large_string(), nullable=False)], metadata={_KEY: head})

    def record_batch(rows: list[str]) -> Any:
        return pa.record_batch([pa.array(rows, pa.large_string())], schema=schema)

    with atomic_file(out) as partial, pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        distinct = _Distinct(parts, sources)
        for rows, hashed in distinct.batches():
            content.update(hashed)
            writer.write_batch(record_batch(rows))
        counts = distinct.counts
        if not counts.kept:
            place = ", ".join(sources) or "the given list"
            raise CondistillError(f"there are no prompts in {place} ({counts.empty} empty ones); add prompts")
        kept_of = distinct.kept_per_source
        tail = json.dumps({"content_hash": content.hexdigest(), "counts": asdict(counts), "kept_of": kept_of})
        writer.write_batch(record_batch([]), custom_metadata={_KEY: tail})


class _Distinct:
    """The clean, distinct, non-empty prompts of several sources, and their counts."""

    def __init__(self, parts: Sequence[Iterable[str]], sources: Sequence[str]) -> None:
        self._parts = parts
        self._sources = sources
        self.kept_per_source = [0] * len(parts)
        self._empty = self._duplicates = self._cleaned = 0

    @property
    def counts(self) -> PoolCounts:
        """The counts, after all batches."""
        kept = sum(self.kept_per_source)
        read = kept + self._empty + self._duplicates
        return PoolCounts(read, kept, self._empty, self._duplicates, self._cleaned)

    def batches(self) -> Iterator[tuple[list[str], bytearray]]:
        """Yield batches of at most `BATCH_ROWS` prompts, with the bytes that their content hash is computed from."""
        seen: set[bytes] = set()
        rows: list[str] = []
        hashed = bytearray()
        for source, prompts in enumerate(self._parts):
            before = len(seen)
            for raw in prompts:
                if type(raw) is str and raw.isascii() and raw.isprintable() and len(raw) <= MAX_CHARACTERS:
                    prompt = raw.strip()  # there is nothing else to clean
                    encoded = prompt.encode()
                else:
                    prompt, encoded = self._clean(raw, source)
                if not encoded:
                    self._empty += 1
                    continue
                digest = hashlib.blake2b(encoded, digest_size=16).digest()
                if digest in seen:
                    self._duplicates += 1
                    continue
                seen.add(digest)
                rows.append(prompt)
                hashed += len(encoded).to_bytes(8, "little")
                hashed += encoded
                if len(rows) == BATCH_ROWS:
                    yield rows, hashed
                    rows, hashed = [], bytearray()
            self.kept_per_source[source] = len(seen) - before
        if rows:
            yield rows, hashed

    def _clean(self, raw: str, source: int) -> tuple[str, bytes]:
        """Return a prompt as it is kept, and its UTF-8 bytes."""
        place = self._sources[source] if self._sources else "the given list"
        try:
            prompt, was_cleaned = clean_prompt(raw)
            encoded = prompt.encode()
        except (AttributeError, UnicodeEncodeError) as error:
            given = shown(raw) if isinstance(raw, str) else repr(raw)
            raise CondistillError(
                f"a prompt of {place} is not valid UTF-8 text: {given}; correct or remove it"
            ) from error
        if len(prompt) > MAX_CHARACTERS:
            raise CondistillError(
                f"a prompt of {place} has {len(prompt):,} characters, and at most {MAX_CHARACTERS:,} are possible: "
                f"{shown(prompt)}; write one prompt on each line"
            )
        self._cleaned += was_cleaned
        return prompt, encoded


class PromptSequence(Protocol):
    """A list of prompts or a `PromptPool`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> str: ...
