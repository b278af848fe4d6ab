"""`LatentCache`: memory-mapped Arrow shards of (latents, prompt) and the manifest that says where they are from."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from condistill.errors import CondistillError, CorruptError
from condistill.utils.atomic import atomic_file, write_text
from condistill.utils.hashing import hash_file

MANIFEST_NAME = "manifest.json"
FORMAT = 1


def shard_name(index: int) -> str:
    return f"shard-{index:05d}.arrow"


def write_shard(path: Path, latents: NDArray[Any], prompts: Sequence[str]) -> None:
    """Write one Arrow IPC file, whole or not at all.

    Args:
        latents: float16 or float32 `[N, C, h, w]`.
        prompts: N of them.
    """
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(latents))
    table = pa.record_batch([tensors, pa.array(prompts, pa.large_string())], names=["latents", "prompt"])
    with (
        atomic_file(path) as partial,
        pa.OSFile(str(partial), "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as writer,
    ):
        writer.write_batch(table)


def read_shard(path: Path) -> tuple[NDArray[Any], Any]:
    """Map one shard: latents `[N, C, h, w]` without a copy, and its Arrow column of prompts.

    Raises:
        CorruptError: the file is not a shard.
    """
    try:
        with pa.memory_map(str(path)) as source:
            batch = pa.ipc.open_file(source).get_batch(0)
        return batch.column("latents").to_numpy_ndarray(), batch.column("prompt")
    except (OSError, pa.ArrowInvalid, KeyError, IndexError) as error:
        raise CorruptError(
            f"the cache shard {path} is corrupt ({str(error).splitlines()[0]}); delete it and run `condistill cache` "
            "again: only what is missing is drawn"
        ) from error


def write_manifest(directory: Path, *, shard_size: int, origin: Mapping[str, Any]) -> None:
    """Describe the shards of a directory that is filled: rows, bytes and SHA-256 of each."""
    shards = []
    for path in sorted(directory.glob("shard-*.arrow")):
        latents, _ = read_shard(path)
        size = path.stat().st_size
        shards.append({"name": path.name, "rows": len(latents), "bytes": size, "sha256": hash_file(path)})
    manifest = {"format": FORMAT, "shard_size": shard_size, **origin, "shards": shards}
    write_text(directory / MANIFEST_NAME, json.dumps(manifest, indent=2) + "\n")


def verify_left(directory: Path) -> None:
    """Of a cache that was whole and lost shards, the others must be as they were written; checks those.

    Raises:
        CorruptError: names the first shard that differs.
    """
    file = directory / MANIFEST_NAME
    for shard in json.loads(file.read_text(encoding="utf-8"))["shards"] if file.is_file() else ():
        path = directory / shard["name"]
        if path.is_file() and hash_file(path) != shard["sha256"]:
            raise CorruptError(_corrupt(path))


class LatentCache:
    """A read-only sequence of (latents, prompt); opening it reads the manifest only."""

    def __init__(self, directory: Path, manifest: Mapping[str, Any]) -> None:
        self.directory = directory
        self.manifest = manifest
        self._shard_size: int = manifest["shard_size"]
        self._length = sum(shard["rows"] for shard in manifest["shards"])
        self._shards: dict[int, tuple[NDArray[Any], Any]] = {}

    @classmethod
    def open(cls, directory: str | Path) -> LatentCache:
        """Open the cache that a fill left in `directory`.

        Raises:
            CondistillError: there is no whole cache.
            CorruptError: a shard is missing or has another size than the manifest says.
        """
        directory = Path(directory)
        file = directory / MANIFEST_NAME
        if not file.is_file():
            raise CondistillError(f"there is no whole cache in {directory}; fill one with `condistill cache RECIPE`")
        manifest = json.loads(file.read_text(encoding="utf-8"))
        if manifest.get("format") != FORMAT:
            raise CorruptError(
                f"{file} has format {manifest.get('format')!r}, this condistill reads {FORMAT}; fill the cache anew"
            )
        for shard in manifest["shards"]:
            path = directory / shard["name"]
            if not path.is_file() or path.stat().st_size != shard["bytes"]:
                raise CorruptError(_corrupt(path))
        return cls(directory, manifest)

    def __len__(self) -> int:
        return int(self._length)

    def __getitem__(self, index: int) -> tuple[NDArray[Any], str]:
        """Latents `[C, h, w]`, scaled as the denoiser sees x_0, and the prompt they were drawn for."""
        if not -self._length <= index < self._length:
            raise IndexError(f"image {index} of a cache of {self._length}")
        shard, row = divmod(index % self._length, self._shard_size)
        if shard not in self._shards:
            self._shards[shard] = read_shard(self.directory / self.manifest["shards"][shard]["name"])
        latents, prompts = self._shards[shard]
        return latents[row], prompts[row].as_py()

    def take(self, indices: Sequence[int]) -> tuple[NDArray[np.float32], list[str]]:
        """Latents float32 `[B, C, h, w]` and B prompts."""
        rows = [self[index] for index in indices]
        return np.stack([latents for latents, _ in rows]).astype(np.float32), [prompt for _, prompt in rows]

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        channels, height, width = self.manifest["latent_shape"]
        return channels, height, width

    def verify(self, on_shard: Callable[[str], None] | None = None) -> None:
        """Compare every shard with its checksum.

        Raises:
            CorruptError: names the first shard that differs.
        """
        for shard in self.manifest["shards"]:
            path = self.directory / shard["name"]
            if hash_file(path) != shard["sha256"]:
                raise CorruptError(_corrupt(path))
            if on_shard is not None:
                on_shard(shard["name"])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": {}}


def _corrupt(path: Path) -> str:
    return (
        f"the cache shard {path} is corrupt: its bytes are not those the manifest names; delete it and run "
        "`condistill cache` again: only what is missing is drawn"
    )
