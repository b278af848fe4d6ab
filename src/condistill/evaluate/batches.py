"""The rows of an evaluation in files of one batch each, so that an interrupted evaluation resumes after the last one.

Which rows a file has depends on their number per file alone, which is as the directory was begun, and not on
processes and restarts. A file is a safetensors file. Its metadata has the key of its stage, a hash of its prompts and a
checksum, so that a damaged file, or one of other inputs, is made again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from condistill.cache.latents import is_shard, read_shard
from condistill.errors import CorruptError
from condistill.evaluate.rounds import Round
from condistill.run.stage_directory import StageDir
from condistill.utils.atomic import atomic_file, remove
from condistill.utils.hashing import key_of
from condistill.utils.tensor_file import TensorFile, write_tensors

LATENTS_NAME = "latents"
"""The array of a file of latents, float32 `[N, C, h, w]`."""
_PER_FILE = "rows_per_file"
Arrays = dict[str, NDArray[Any]]
"""By name, each with one row per image."""


def begin_batches(directory: StageDir, batch_size: int) -> None:
    """Begin or continue a directory, on the main process. Results of other inputs that need no consent are deleted.

    Args:
        batch_size: rows per file, if the directory was not begun before.

    Raises:
        CondistillError: see `StageDir.begin`.
    """
    directory.default_layout = {_PER_FILE: batch_size}
    record = directory.record()
    if record is not None and record.key != directory.key and not directory.is_costly:
        for path in (*directory.path.glob("seed-*/batch-*"), *directory.path.glob("seed-*.arrow")):
            remove(path)
        directory.begin_again()
    directory.begin()


def finish_batches(directory: StageDir, rounds: Iterable[Round]) -> None:
    """Mark a directory as finished, on the main process."""
    files = BatchFiles.of(directory)
    directory.finish(path for each in rounds for path in files.paths(each))


@dataclass(frozen=True)
class BatchFiles:
    """The files of the latents of a model, or of its features of one network."""

    folder: Path
    rows_per_file: int
    key: str
    """Of what the rows were made from."""

    @classmethod
    def of(cls, directory: StageDir) -> BatchFiles:
        """Return the files of a directory that was begun; every process may call this."""
        record = directory.record()
        assert record is not None, directory.path
        return cls(directory.path, int(record.layout.get(_PER_FILE, 1)), record.key)

    def batches(self, round_: Round) -> list[range]:
        """Return the rows of every file of a round, in order."""
        count = len(round_.prompts)
        return [range(start, min(start + self.rows_per_file, count)) for start in range(0, count, self.rows_per_file)]

    def part(self, rounds: Sequence[Round], part: tuple[int, int]) -> list[tuple[int, range]]:
        """Return the number of the round and the rows of the files that a process owns.

        Args:
            part: (process index, number of processes P); a process owns every P-th file of all rounds in a row.
        """
        every = [(number, rows) for number, each in enumerate(rounds) for rows in self.batches(each)]
        return every[part[0] :: part[1]]

    def paths(self, round_: Round) -> list[Path]:
        """Return the files of a round."""
        if self._whole(round_).is_file():
            return [self._whole(round_)]
        return [self.path(round_, rows) for rows in self.batches(round_)]

    def path(self, round_: Round, rows: range) -> Path:
        """Return the file of one batch."""
        return self.folder / f"seed-{round_.seed}" / f"batch-{rows.start // self.rows_per_file:05d}.safetensors"

    def _whole(self, round_: Round) -> Path:
        """Return the file in which earlier versions kept the latents of a whole round."""
        return self.folder / f"seed-{round_.seed}.arrow"

    def has_whole(self, round_: Round) -> bool:
        """Return whether an earlier version left the latents of the round; a damaged file is deleted."""
        path = self._whole(round_)
        if path.exists() and not is_shard(path, round_.prompts):
            remove(path)
        return path.is_file()

    def has(self, round_: Round, rows: range) -> bool:
        """Return whether the file of a batch is there, undamaged, and made from the inputs of now."""
        try:
            file = TensorFile(self.path(round_, rows))
            arrays = {name: tensor.numpy() for name, tensor in file.items()}
        except (OSError, CorruptError):
            return False
        return file.metadata == self._metadata(round_, rows, arrays)

    def write(self, round_: Round, rows: range, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write the file of a batch, whole or not at all."""
        arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        with atomic_file(self.path(round_, rows)) as partial:
            write_tensors(
                partial,
                {name: torch.from_numpy(array) for name, array in arrays.items()},
                metadata=self._metadata(round_, rows, arrays),
            )

    def read(self, round_: Round, rows: range) -> Arrays:
        """Return the arrays of some rows of a round, read from as many files as they lie in.

        Raises:
            CorruptError: a file is damaged.
        """
        if self._whole(round_).is_file():
            return {LATENTS_NAME: read_shard(self._whole(round_))[0][rows.start : rows.stop].copy()}
        parts: list[Arrays] = []
        first = rows.start // self.rows_per_file * self.rows_per_file
        for start in range(first, rows.stop, self.rows_per_file):
            of_file = range(start, min(start + self.rows_per_file, len(round_.prompts)))
            inside = slice(max(rows.start - start, 0), min(rows.stop, of_file.stop) - start)
            file = TensorFile(self.path(round_, of_file))
            parts.append({name: tensor.numpy()[inside] for name, tensor in file.items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}

    def walk(self, round_: Round) -> Iterator[tuple[range, Arrays]]:
        """Yield rows and arrays of every file of a round."""
        for rows in self.batches(round_):
            yield rows, self.read(round_, rows)

    def _metadata(self, round_: Round, rows: range, arrays: Mapping[str, NDArray[Any]]) -> dict[str, str]:
        digest = hashlib.sha256()
        for name in sorted(arrays):
            digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
            digest.update(np.ascontiguousarray(arrays[name]).data)
        of_rows = [(round_.number(row), round_.prompts[row]) for row in rows]
        return {"stage": self.key, "rows": key_of(round_.seed, of_rows), "sha256": digest.hexdigest()}
