"""The text pool: every prompt the teacher may be asked, in one memory-mapped Arrow file.

The file is Arrow IPC: one column `prompt` in batches of `BATCH_ROWS`, so that prompt i is in batch
i // rows. Its schema says how it was made; a last, empty batch carries what is known only at the end.
"""

from __future__ import annotations

import hashlib
import json
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from condistill.errors import CondistillError, CorruptError
from condistill.prompts.readers import TABULAR, is_tabular, read_prompts
from condistill.utils.atomic import atomic_file

BATCH_ROWS = 65_536
_KEY = b"condistill.prompts"
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class PoolCounts:
    """What became of the prompts that were read: read = kept + empty + duplicates."""

    read: int
    kept: int
    empty: int
    duplicates: int


def prompt_digest(prompt: str) -> bytes:
    """16 bytes that stand for a prompt in a set of very many."""
    return hashlib.blake2b(prompt.encode(), digest_size=16).digest()


class PromptPool:
    """Distinct, non-empty prompts in a fixed order; opens in constant memory at any size. Pickles as its path."""

    def __init__(self, path: Path, reader: Any, head: dict[str, Any], tail: dict[str, Any]) -> None:
        self.path = path
        self.content_hash: str = tail["content_hash"]
        """SHA-256 over the kept prompts, in their order."""
        self.counts = PoolCounts(**tail["counts"])
        self.sources: tuple[str, ...] = tuple(head["sources"])
        """Names of the files it was built from."""
        self._kept_of: list[int] | None = tail.get("kept_of")
        self._reader = reader
        self._rows: int = head["rows"]
        self._columns: dict[int, Any] = {}

    @classmethod
    def build(
        cls,
        files: Sequence[Path | str],
        out: Path,
        *,
        column: str | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> PromptPool:
        """Convert prompt files (see `read_prompts`) to one pool, written whole or not at all.

        Args:
            column: where the prompts are in the csv, jsonl and parquet files.
            on_progress: called now and then with the number of prompts read so far.

        Raises:
            CondistillError: a file cannot be used, `column` applies to none, or no prompt is left.
        """
        names = [Path(file).name for file in files]
        if column is not None and not any(map(is_tabular, files)):
            raise CondistillError(
                f"column {column!r} applies to none of {', '.join(names)}: only {', '.join(TABULAR)} files have "
                "columns; leave it out"
            )
        for file in files:  # a mistake in the last file is told before the first is converted
            next(read_prompts(file, column=column), None)
        _write([read_prompts(file, column=column) for file in files], Path(out), names, on_progress)
        return cls.open(out)

    @classmethod
    def from_prompts(cls, prompts: Iterable[str], out: Path) -> PromptPool:
        """Write prompts from any source to a pool; blank ones and repetitions are left out.

        Raises:
            CondistillError: no prompt is left, or one is not text.
        """
        _write([prompts], Path(out), [], None)
        return cls.open(out)

    @classmethod
    def open(cls, path: Path) -> PromptPool:
        """Open a pool; the prompts stay on disk.

        Raises:
            CondistillError: there is no file.
            CorruptError: the file is no pool, or not the whole of one.
        """
        path = Path(path)
        if not path.exists():
            raise CondistillError(f"there is no prompt pool at {path}; PromptPool.build writes one")
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
            head = json.loads(reader.schema.metadata[_KEY])
            if head["format"] != _FORMAT:
                raise ValueError(f"it has format {head['format']}, this version reads format {_FORMAT}")
            batches = reader.num_record_batches - 1
            tail = json.loads(reader.get_batch_with_custom_metadata(batches).custom_metadata[_KEY])
            if batches != -(-tail["counts"]["kept"] // head["rows"]):
                raise ValueError(f"it has {batches} batches")
            return cls(path, reader, head, tail)
        except (pa.ArrowException, OSError, LookupError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise CorruptError(f"{path} is not a whole prompt pool ({reason}); delete it and build it again") from error

    def __len__(self) -> int:
        return self.counts.kept

    def __getitem__(self, index: int) -> str:
        i = operator.index(index)
        if not -len(self) <= i < len(self):
            raise IndexError(f"prompt {i} of a pool of {len(self)}")
        batch, row = divmod(i % len(self), self._rows)
        prompt: str = self._column(batch)[row].as_py()
        return prompt

    def __iter__(self) -> Iterator[str]:
        for batch in range(-(-len(self) // self._rows)):
            yield from self._column(batch).to_pylist()

    def __reduce__(self) -> tuple[Callable[[Path], PromptPool], tuple[Path]]:
        return PromptPool.open, (self.path,)

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> list[str]:
        """The prompts at several indices, in their order."""
        return [self[i] for i in indices]

    def draw(self, n: int, generator: np.random.Generator) -> list[str]:
        """`n` prompts, uniformly and with replacement."""
        return self.take(generator.integers(len(self), size=n))

    def source_ranges(self) -> dict[str, range]:
        """Where the prompts of each source lie, by the name of its file; those it shares count for the first alone.

        Raises:
            CondistillError: two sources share a name, or the pool does not know.
        """
        if self._kept_of is None:
            raise CondistillError(
                f"{self.path} is of an older version and does not say which prompts are of which file; delete it, "
                "and it is built again"
            )
        ranges: dict[str, range] = {}
        for name, end, count in zip(self.sources, accumulate(self._kept_of), self._kept_of, strict=True):
            mine = range(end - count, end)
            if mine and ranges.get(name):
                raise CondistillError(f"two files of the prompt pool are called {name!r}; rename one")
            ranges[name] = ranges.get(name) or mine
        return ranges

    def _column(self, batch: int) -> Any:
        if batch not in self._columns:
            column = self._reader.get_batch(batch).column(0)
            try:
                column.validate()
            except pa.ArrowException as error:
                raise CorruptError(f"batch {batch} of {self.path} is damaged: {error}; build the pool again") from error
            self._columns[batch] = column
        return self._columns[batch]


def _write(
    parts: Sequence[Iterable[str]], out: Path, sources: Sequence[str], on_progress: Callable[[int], None] | None
) -> None:
    """Stream the distinct, non-empty prompts to `out`; in memory: one batch and a digest per prompt kept.

    Args:
        parts: the prompts of every source.
        sources: their names; none where they come from no file.
    """
    seen: set[bytes] = set()
    content = hashlib.sha256()
    rows: list[str] = []
    read = empty = 0
    kept_of = [0] * len(parts)
    head = json.dumps({"format": _FORMAT, "rows": BATCH_ROWS, "sources": list(sources)})
    schema = pa.schema([pa.field("prompt", pa.large_string(), nullable=False)], metadata={_KEY: head})

    def record_batch() -> Any:
        return pa.record_batch([pa.array(rows, pa.large_string())], schema=schema)

    with atomic_file(out) as partial, pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        numbered = ((number, prompt) for number, prompts in enumerate(parts) for prompt in prompts)
        for read, (source, raw) in enumerate(numbered, start=1):
            if on_progress and read % BATCH_ROWS == 0:
                on_progress(read)
            prompt, encoded = _clean(raw)
            if not encoded:
                empty += 1
            elif (digest := prompt_digest(prompt)) not in seen:
                seen.add(digest)
                kept_of[source] += 1
                content.update(len(encoded).to_bytes(8, "little") + encoded)
                rows.append(prompt)
                if len(rows) == BATCH_ROWS:
                    writer.write_batch(record_batch())
                    rows.clear()
        if not seen:
            raise CondistillError(
                f"there are no prompts in {', '.join(sources) or 'what was given'}; {read} were blank"
            )
        if rows:
            writer.write_batch(record_batch())
            rows.clear()
        counts = PoolCounts(read=read, kept=len(seen), empty=empty, duplicates=read - empty - len(seen))
        tail = json.dumps({"content_hash": content.hexdigest(), "counts": asdict(counts), "kept_of": kept_of})
        writer.write_batch(record_batch(), custom_metadata={_KEY: tail})
    if on_progress:
        on_progress(read)


def _clean(raw: str) -> tuple[str, bytes]:
    try:
        prompt = raw.strip()
        return prompt, prompt.encode()
    except (AttributeError, UnicodeEncodeError) as error:
        raise CondistillError(f"a prompt is not text that UTF-8 can hold: {raw!r}; correct or remove it") from error


class Texts(Protocol):
    """Prompts by number: a list, or a pool."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> str: ...
