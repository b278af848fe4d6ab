"""`LatentCache`: memory-mapped Arrow shards of (latents, prompt) pairs, and a manifest.

The manifest records the teacher and the settings that generated the latents, and the checksum of each shard.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
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
    """Return the file name of a shard."""
    return f"shard-{index:05d}.arrow"


def write_shard(path: Path, latents: NDArray[Any], prompts: Sequence[str]) -> None:
    """Write one Arrow IPC file, completely or not at all.

    Args:
        latents: float16 or float32 `[N, C, h, w]`.
        prompts: the N prompts of the latents.
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
    """Map one shard to memory, and return its latents `[N, C, h, w]` and its Arrow column of prompts, without a copy.

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
            "again: only missing shards are generated"
        ) from error


def write_manifest(directory: Path, *, shard_size: int, origin: Mapping[str, Any]) -> None:
    """Write the manifest of a directory with complete shards: the rows, bytes and SHA-256 of each shard.

    Args:
        origin: the teacher and the settings that generated the latents.
    """
    shards = []
    for path in sorted(directory.glob("shard-*.arrow")):
        latents, _ = read_shard(path)
        size = path.stat().st_size
        shards.append({"name": path.name, "rows": len(latents), "bytes": size, "sha256": hash_file(path)})
    manifest = {"format": FORMAT, "shard_size": shard_size, **origin, "shards": shards}
    write_text(directory / MANIFEST_NAME, json.dumps(manifest, indent=2) + "\n")


def verify_remaining_shards(directory: Path) -> None:
    """Compare the shards that exist with their checksums, in a cache whose other shards were deleted.

    Without a manifest, nothing is compared.

    Raises:
        CorruptError: a shard differs; the message names the first one.
    """
    file = directory / MANIFEST_NAME
    for shard in json.loads(file.read_text(encoding="utf-8"))["shards"] if file.is_file() else ():
        path = directory / shard["name"]
        if path.is_file() and hash_file(path) != shard["sha256"]:
            raise CorruptError(_corrupt(path))


class LatentCache:
    """A read-only sequence of (latents, prompt) pairs; only the manifest is read when it is opened."""

    def __init__(self, directory: Path, manifest: Mapping[str, Any]) -> None:
        self.directory = directory
        self.manifest = manifest
        self._shard_size: int = manifest["shard_size"]
        self._length = sum(shard["rows"] for shard in manifest["shards"])
        self._shards: dict[int, tuple[NDArray[Any], Any]] = {}

    @classmethod
    def open(cls, directory: str | Path) -> LatentCache:
        """Open the cache in `directory`.

        Raises:
            CondistillError: the directory has no manifest, so the cache is not complete.
            CorruptError: a shard is missing, or its size differs from the manifest.
        """
        directory = Path(directory)
        file = directory / MANIFEST_NAME
        if not file.is_file():
            raise CondistillError(f"there is no complete cache in {directory}; fill it with `condistill cache RECIPE`")
        manifest = json.loads(file.read_text(encoding="utf-8"))
        if manifest.get("format") != FORMAT:
            raise CorruptError(
                f"{file} has format {manifest.get('format')!r}, this version reads format {FORMAT}; delete the "
                "directory and fill the cache again"
            )
        for shard in manifest["shards"]:
            path = directory / shard["name"]
            if not path.is_file() or path.stat().st_size != shard["bytes"]:
                raise CorruptError(_corrupt(path))
        return cls(directory, manifest)

    def __len__(self) -> int:
        return int(self._length)

    def __getitem__(self, index: int) -> tuple[NDArray[Any], str]:
        """Return the latents of an image `[C, h, w]`, scaled like the x_0 of the denoiser, and its prompt."""
        if not -self._length <= index < self._length:
            raise IndexError(f"image {index} is not in a cache of {self._length} images")
        shard, row = divmod(index % self._length, self._shard_size)
        if shard not in self._shards:
            self._shards[shard] = read_shard(self.directory / self.manifest["shards"][shard]["name"])
        latents, prompts = self._shards[shard]
        return latents[row], prompts[row].as_py()

    def take(self, indices: Sequence[int]) -> tuple[NDArray[np.float32], list[str]]:
        """Return the latents of several images, float32 `[B, C, h, w]`, and their B prompts."""
        rows = [self[index] for index in indices]
        return np.stack([latents for latents, _ in rows]).astype(np.float32), [prompt for _, prompt in rows]

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """The shape of the latents of one image: (C, h, w)."""
        channels, height, width = self.manifest["latent_shape"]
        return channels, height, width

    def verify(self) -> None:
        """Compare every shard with its checksum.

        Raises:
            CorruptError: a shard differs; the message names the first one.
        """
        for shard in self.manifest["shards"]:
            path = self.directory / shard["name"]
            if hash_file(path) != shard["sha256"]:
                raise CorruptError(_corrupt(path))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": {}}


def _corrupt(path: Path) -> str:
    """Return the error message for a shard that is missing or differs from the manifest."""
    return (
        f"the cache shard {path} is corrupt: it differs from the size or checksum in the manifest; delete it and run "
        "`condistill cache` again: only missing shards are generated"
    )
