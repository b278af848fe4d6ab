"""The images that `evaluate.reference` names: a folder of images, or a file with their statistics.

Images of a folder are read in batches, in the order of their names, and resized as generated images are. A statistics
file has the mean and the covariance of the Inception features of some images, so it serves FID only.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from condistill.config.evaluate import EvaluateSettings, ResizeFilter
from condistill.errors import CondistillError
from condistill.evaluate.metrics.metric import INCEPTION
from condistill.evaluate.metrics.moments import Moments
from condistill.evaluate.networks.network import HashOf
from condistill.evaluate.networks.resize import resize_image
from condistill.evaluate.record import ReferenceImagesRecord
from condistill.evaluate.statistics_file import ENDINGS, read_statistics
from condistill.utils.format import significant
from condistill.utils.hashing import hash_file
from condistill.utils.home import expand_home
from condistill.utils.text import first_line

SETTING = "evaluate.reference"
_IMAGES = (".png", ".jpg", ".jpeg", ".webp")
FEWEST = 2
"""Images that a covariance needs."""


class ReferenceImages(ABC):
    """A folder of images or a statistics file."""

    def __init__(self, source: Path) -> None:
        self.source = source

    @staticmethod
    def open(source: str, settings: EvaluateSettings) -> ReferenceImages:
        """Return the reference images of a recipe, after a look at every file; no image is decoded.

        Args:
            settings: with the size and the filter of images.

        Raises:
            CondistillError: there is no such folder or file, or it cannot be used.
        """
        path = expand_home(source)
        if path.is_dir():
            return ReferenceFolder(path, settings.resize, settings.resize_filter)
        if not path.exists():
            raise CondistillError(
                f"{SETTING}: {path} does not exist; give a folder of images, a statistics file (.npz, or .pt of "
                "torch-fidelity's cache), or null for the teacher's images"
            )
        if path.suffix.lower() not in ENDINGS:
            raise CondistillError(
                f"{SETTING}: {path} is neither a folder nor a statistics file ({', '.join(ENDINGS)}); give one of these"
            )
        return ReferenceStatistics(path)

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of images; 0 where it is not known."""

    @abstractmethod
    def sha256(self, hash_of: HashOf = hash_file) -> str:
        """Return the hash of the file, or of the names and contents of the images."""

    @abstractmethod
    def inputs(self, hash_of: HashOf = hash_file) -> dict[str, Any]:
        """Return everything that the features of the images depend on besides the networks, by name."""

    def record(self, hash_of: HashOf = hash_file) -> ReferenceImagesRecord:
        """Return what `metrics.json` says about them."""
        return ReferenceImagesRecord(source=str(self.source), images=len(self), sha256=self.sha256(hash_of))

    def moments(self, feature: str) -> Moments | None:  # noqa: ARG002
        """Return mean and covariance of a feature, where a statistics file has them."""
        return None


class ReferenceStatistics(ReferenceImages):
    """The mean and the covariance of the Inception features of some images, in a file."""

    def __init__(self, file: Path) -> None:
        """Read the file.

        Raises:
            CondistillError: it cannot be read, or holds something else.
        """
        super().__init__(file)
        self._moments, self._images = read_statistics(file, SETTING)

    def __len__(self) -> int:
        return self._images

    def sha256(self, hash_of: HashOf = hash_file) -> str:
        return hash_of(self.source)

    def inputs(self, hash_of: HashOf = hash_file) -> dict[str, Any]:
        return {"statistics": self.sha256(hash_of)}

    def moments(self, feature: str) -> Moments | None:
        return self._moments if feature == INCEPTION else None


class ReferenceFolder(ReferenceImages):
    """PNG, JPEG and WebP files of one folder, in the order of their names; other files are ignored."""

    def __init__(self, folder: Path, pixels: int | None, filter_name: ResizeFilter) -> None:
        """List the files and read their sizes; no image is decoded.

        Args:
            pixels: height and width of the images that `take` returns; None: all images have one size, and keep it.

        Raises:
            CondistillError: there are too few images, one cannot be read, or their sizes differ.
        """
        super().__init__(folder)
        self._pixels, self._filter = pixels, filter_name
        try:
            files = [file for file in folder.iterdir() if file.suffix.lower() in _IMAGES and file.is_file()]
        except OSError as error:
            raise CondistillError(f"{SETTING}: {folder} cannot be read: {error.strerror}") from error
        self.files = sorted(files, key=lambda file: file.name)
        if len(self.files) < FEWEST:
            raise CondistillError(
                f"{SETTING}: {folder} has {len(self.files)} images (png, jpg, webp), and {FEWEST} are the fewest; "
                "published figures use thousands"
            )
        self.size = self._common_size()

    def _common_size(self) -> tuple[int, int]:
        """Return height and width of the images that `take` returns."""
        first: tuple[int, int] | None = None
        for file in self.files:
            width, height = _read(file, lambda image: image.size)
            if first is None:
                first = (height, width)
            elif self._pixels is None and (height, width) != first:
                raise CondistillError(
                    f"{SETTING}: images of {self.source} have different sizes ({self.files[0].name} {first[1]}x"
                    f"{first[0]}, {file.name} {width}x{height}); set evaluate.resize to the pixels that all get"
                )
        assert first is not None
        return first if self._pixels is None else (self._pixels, self._pixels)

    def __len__(self) -> int:
        return len(self.files)

    def sha256(self, hash_of: HashOf = hash_file) -> str:
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(f"{hash_of(file)}  {file.name}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def inputs(self, hash_of: HashOf = hash_file) -> dict[str, Any]:
        resized = {} if self._pixels is None else {"resize": self._pixels, "resize_filter": self._filter}
        return {"images": self.sha256(hash_of), **resized}

    def take(self, rows: range) -> NDArray[np.uint8]:
        """Return some images, `[N, H, W, 3]`: the central square of each in the size of `evaluate.resize`.

        Raises:
            CondistillError: an image cannot be read; the message names it.
        """
        return np.stack([self._image(self.files[row]) for row in rows])

    def batches(self, size: int) -> Iterator[NDArray[np.uint8]]:
        """Yield all images in batches of at most `size`; see `take`."""
        for start in range(0, len(self), size):
            yield self.take(range(start, min(start + size, len(self))))

    def _image(self, file: Path) -> NDArray[np.uint8]:
        def pixels(image: Image.Image) -> NDArray[np.uint8]:
            colours = _rgb(image)
            if self._pixels is None:
                return np.asarray(colours, np.uint8)
            return resize_image(colours, self._pixels, self._filter)

        found: NDArray[np.uint8] = _read(file, pixels)
        if found.shape[:2] != self.size:
            raise CondistillError(f"{SETTING}: {file} has changed while it was used; run the command again")
        return found


def _rgb(image: Image.Image) -> Image.Image:
    """Return an image in RGB; transparent parts become white, as pages and viewers show them."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layers = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), layers).convert("RGB")
    if image.mode.startswith("I"):  # 16 bits a pixel, which a conversion would cut off at 255
        return Image.fromarray((np.asarray(image, np.float64) / 257).round().clip(0, 255).astype(np.uint8)).convert(
            "RGB"
        )
    return image.convert("RGB")


def _read(file: Path, use: Callable[[Image.Image], Any]) -> Any:
    """Return the result of a function of an image.

    Raises:
        CondistillError: the image cannot be read.
    """
    try:
        with Image.open(file, formats=("PNG", "JPEG", "WEBP")) as image:
            return use(image)
    except UnidentifiedImageError as error:
        raise CondistillError(
            f"{SETTING}: {file} is no PNG, JPEG or WebP image; remove it from the folder, or save it again"
        ) from error
    except Image.DecompressionBombError as error:
        raise CondistillError(
            f"{SETTING}: {file} is larger than {significant((2 * (Image.MAX_IMAGE_PIXELS or 0)) / 1e6)} million "
            "pixels; make it smaller, or remove it"
        ) from error
    except (OSError, SyntaxError, ValueError) as error:  # Pillow raises these for damaged files
        raise CondistillError(
            f"{SETTING}: {file} cannot be read as an image ({first_line(error)}); save it again, or remove it"
        ) from error
