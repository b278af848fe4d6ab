"""Images of an evaluation as files with their prompts, in the layout that other tools read.

`DIR/MODEL/000000000012.png` is image 12 of a model, as MS-COCO names its files, and `DIR/MODEL/metadata.jsonl` has one
line per image, as the image folders of Hugging Face datasets do. Images of the same name have the same prompt and the
same noise. An interrupted export continues; files of anything else are never replaced.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from condistill.errors import CondistillError
from condistill.utils.atomic import atomic_file, is_temporary, remove, write_text
from condistill.utils.record import RecordFile

MARK_NAME = "condistill-images.json"
METADATA_NAME = "metadata.jsonl"
_FILE_NAME = re.compile(r"(\d{12})\.png")

Decode = Callable[[Sequence[int]], NDArray[np.uint8]]
"""Images uint8 `[N, H, W, 3]` of the positions of some images among all."""


@dataclass(frozen=True)
class Image:
    """One image of each model: a position among all images, and what it shows."""

    index: int
    """Position among all images, seed by seed."""
    seed: int
    number: int
    """The number in its seed, on which its noise depends."""
    split: str
    prompt: str

    @property
    def file_name(self) -> str:
        """`000000000012.png` for the index 12."""
        return f"{self.index:012d}.png"


class ImagesMark(RecordFile):
    """`condistill-images.json`, which marks a folder of images and says of which evaluation they are."""

    format: Literal[1] = 1
    key: str
    """The hash of what the images depend on."""
    images: int


def image_number(name: object) -> int | None:
    """Return the index of an image from its file name, perhaps with a folder before it; None for any other value."""
    found = _FILE_NAME.fullmatch(name.replace("\\", "/").rpartition("/")[2]) if isinstance(name, str) else None
    return int(found[1]) if found else None


def check_folder(out: Path, model: str, key: str | None) -> None:
    """Check that images of a model can be written to `out/model`.

    Args:
        key: the hash of what the images depend on; None: any images of condistill may be there.

    Raises:
        CondistillError: it has other files, or images of another evaluation.
    """
    folder = out / model
    if out.exists() and not out.is_dir():
        raise CondistillError(f"--images: {out} is a file; choose a folder")
    if folder.exists() and not folder.is_dir():
        raise CondistillError(f"--images: {folder} is a file; choose another folder")
    nearest = next((path for path in (folder, *folder.absolute().parents) if path.exists()), folder)
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise CondistillError(
            f"--images: {nearest} cannot be written to; change its permissions, or choose another folder"
        )
    if not folder.is_dir() or not any(not is_temporary(path) for path in folder.iterdir()):
        return
    mark = folder / MARK_NAME
    if not mark.is_file():
        raise CondistillError(f"--images: {folder} has files that condistill did not write; choose another folder")
    known = ImagesMark.read(mark, remedy=f"delete {folder}, or choose another folder").key
    if key is not None and known != key:
        raise CondistillError(
            f"--images: {folder} has images of another evaluation; delete it, or choose another folder"
        )


def export_images(
    out: Path,
    model: str,
    images: Sequence[Image],
    decode: Decode,
    *,
    key: str,
    batch_size: int,
    on_images: Callable[[int], object] = lambda _: None,
    on_found: Callable[[int], object] = lambda _: None,
) -> Path:
    """Write the images of a model and their prompts, and return their folder; images that are there are kept.

    At most `batch_size` images are in memory at a time. The file of the prompts is written last.

    Raises:
        CondistillError: see `check_folder`.
    """
    check_folder(out, model, key)
    folder = out / model
    if not (folder / MARK_NAME).is_file():
        ImagesMark(key=key, images=len(images)).write(folder / MARK_NAME)
    for path in folder.iterdir():
        if is_temporary(path):
            remove(path)
    missing = [image for image in images if not (folder / image.file_name).is_file()]
    on_found(len(images) - len(missing))
    for start in range(0, len(missing), batch_size):
        batch = missing[start : start + batch_size]
        for image, pixels in zip(batch, decode([image.index for image in batch]), strict=True):
            with atomic_file(folder / image.file_name) as partial:
                PIL.Image.fromarray(pixels).save(partial, format="PNG")
        on_images(len(batch))
    lines = (
        {
            "file_name": image.file_name,
            "prompt": image.prompt,
            "seed": image.seed,
            "split": image.split,
            "number": image.number,
        }
        for image in images
    )
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    metadata = folder / METADATA_NAME
    if not metadata.is_file() or metadata.read_bytes() != text.encode():  # splits may have changed
        write_text(metadata, text)
    return folder
