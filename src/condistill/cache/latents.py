"""`LatentCache`: memory-mapped Arrow shards of (latents, prompt) pairs, and a manifest.

The manifest records the teacher and the settings that generated the latents, and the checksum of each shard.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from condistill.errors import CondistillError, CorruptError
from condistill.utils.atomic import atomic_file
from condistill.utils.hashing import hash_file
from condistill.utils.record import Record, RecordFile
from condistill.utils.text import first_line

MANIFEST_NAME = "manifest.json"
_CHECKSUM = b"condistill.sha256"
_REMEDY = "run `condistill cache` again: only missing shards are generated"


class ShardRecord(Record):
    """One shard in the manifest."""

    name: str
    rows: int
    bytes: int
    sha256: str


class CacheManifest(RecordFile):
    """`manifest.json`: the teacher and the settings that generated the latents, and a checksum of each shard."""

    format: Literal[1] = 1
    shard_size: int
    latent_shape: tuple[int, int, int]
    """Channels, height and width of the latents of one image."""
    teacher: str = ""
    """Hash of the teacher's files and of how it computes."""
    family: str = ""
    sampler: str = ""
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    seed: int | None = None
    dtype: str = ""
    shards: tuple[ShardRecord, ...] = ()


def shard_name(index: int) -> str:
    """Return the file name of a shard."""
    return f"shard-{index:05d}.arrow"


def write_shard(path: Path, latents: NDArray[Any], prompts: Sequence[str]) -> None:
    """Write one Arrow IPC file, completely or not at all.

    Args:
        latents: float16 or float32 `[N, C, h, w]`.
        prompts: the N prompts of the latents.
    """
    latents = np.ascontiguousarray(latents)
    columns = [pa.FixedShapeTensorArray.from_numpy_ndarray(latents), pa.array(prompts, pa.large_string())]
    batch = pa.record_batch(columns, names=["latents", "prompt"])
    batch = batch.replace_schema_metadata({_CHECKSUM: _content_hash(latents, prompts)})
    with (
        atomic_file(path) as partial,
        pa.OSFile(str(partial), "wb") as sink,
        pa.ipc.new_file(sink, batch.schema) as writer,
    ):
        writer.write_batch(batch)


def _content_hash(latents: NDArray[Any], prompts: Sequence[str]) -> str:
    digest = hashlib.sha256(latents.data)
    for prompt in prompts:
        digest.update(prompt.encode() + b"\0")
    return digest.hexdigest()


def read_shard(path: Path, *, verify: bool = False) -> tuple[NDArray[Any], Any]:
    """Map one shard to memory, and return its latents `[N, C, h, w]` and its Arrow column of prompts, without a copy.

    Args:
        verify: read everything, and compare it with the checksum in the file.

    Raises:
        CorruptError: the file is not a shard, or differs from its checksum.
    """
    try:
        with pa.memory_map(str(path)) as source:
            reader = pa.ipc.open_file(source)
            batch = reader.get_batch(0)
        latents, prompts = batch.column("latents").to_numpy_ndarray(), batch.column("prompt")
        if verify:
            batch.validate(full=True)
            if (reader.schema.metadata or {}).get(_CHECKSUM, b"").decode() != _content_hash(
                latents, prompts.to_pylist()
            ):
                raise pa.ArrowInvalid("its content differs from its checksum")
    except (OSError, pa.ArrowException, ValueError, LookupError) as error:
        raise CorruptError(
            f"the cache shard {path} is corrupt ({first_line(error)}); delete it and {_REMEDY}"
        ) from error
    return latents, prompts


def is_shard(path: Path, prompts: Sequence[str]) -> bool:
    """Return whether a file is an undamaged shard of these prompts."""
    try:
        return bool(read_shard(path, verify=True)[1].to_pylist() == list(prompts))
    except CorruptError:
        return False


def write_manifest(
    directory: Path,
    *,
    shard_size: int,
    origin: Mapping[str, Any],
    hash_of: Callable[[Path], str] = hash_file,
) -> None:
    """Write the manifest of a directory with complete shards: the rows, bytes and SHA-256 of each shard.

    Args:
        origin: the teacher and the settings that generated the latents.
        hash_of: returns the SHA-256 of a file.
    """
    shards = tuple(
        ShardRecord(name=path.name, rows=len(read_shard(path)[0]), bytes=path.stat().st_size, sha256=hash_of(path))
        for path in sorted(directory.glob("shard-*.arrow"))
    )
    CacheManifest(shard_size=shard_size, shards=shards, **origin).write(directory / MANIFEST_NAME)


class LatentCache:
    """A read-only sequence of (latents, prompt) pairs; only the manifest is read when it is opened."""

    def __init__(self, directory: Path, manifest: CacheManifest) -> None:
        self.directory = directory
        self.manifest = manifest
        self._length = sum(shard.rows for shard in manifest.shards)
        self._shards: dict[int, tuple[NDArray[Any], Any]] = {}

    @classmethod
    def open(cls, directory: str | Path) -> LatentCache:
        """Open the cache in `directory`.

        Raises:
            CondistillError: the directory has no manifest, so the cache is not complete.
            CorruptError: the manifest is damaged, a shard is missing, or its size differs from the manifest.
        """
        directory = Path(directory)
        file = directory / MANIFEST_NAME
        if not file.is_file():
            raise CondistillError(f"there is no complete cache in {directory}; fill it with `condistill cache RECIPE`")
        manifest = CacheManifest.read(file, remedy=f"delete it and {_REMEDY}")
        for shard in manifest.shards:
            path = directory / shard.name
            if not path.is_file() or path.stat().st_size != shard.bytes:
                raise CorruptError(_corrupt(path))
        return cls(directory, manifest)

    def __len__(self) -> int:
        return int(self._length)

    def __getitem__(self, index: int) -> tuple[NDArray[Any], str]:
        """Return the latents of an image `[C, h, w]`, scaled like the x_0 of the denoiser, and its prompt."""
        if not -self._length <= index < self._length:
            raise IndexError(f"image {index} is not in a cache of {self._length} images")
        shard, row = divmod(index % self._length, self.manifest.shard_size)
        if shard not in self._shards:
            self._shards[shard] = read_shard(self.directory / self.manifest.shards[shard].name)
        latents, prompts = self._shards[shard]
        return latents[row], prompts[row].as_py()

    def take(self, indices: Sequence[int]) -> tuple[NDArray[np.float32], list[str]]:
        """Return the latents of several images, float32 `[B, C, h, w]`, and their B prompts."""
        rows = [self[index] for index in indices]
        return np.stack([latents for latents, _ in rows]).astype(np.float32), [prompt for _, prompt in rows]

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """The shape of the latents of one image: (C, h, w)."""
        return self.manifest.latent_shape

    def verify(self) -> None:
        """Compare every shard with its checksum.

        Raises:
            CorruptError: a shard differs; the message names the first one.
        """
        for shard in self.manifest.shards:
            path = self.directory / shard.name
            if hash_file(path) != shard.sha256:
                raise CorruptError(_corrupt(path))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": {}}


def _corrupt(path: Path) -> str:
    """Return the error message for a shard that is missing or differs from the manifest."""
    return (
        f"the cache shard {path} is corrupt: it differs from the size or checksum in the manifest; delete it and "
        f"{_REMEDY}"
    )
