"""Turn images into the input of a network of transformers, with Pillow: the result does not depend on torchvision."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from condistill.errors import CondistillError

PREPROCESSOR_NAME, PROCESSOR_NAME = "preprocessor_config.json", "processor_config.json"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)
Fit = Literal["crop", "stretch", "pad"]
_HOW = {"crop": ", central square", "stretch": "", "pad": ", padded to a square"}


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes an input; the three ways to fit differ only for images that are not square."""

    pixels: int
    """Height and width of the input."""
    fit: Fit
    """`crop`: the shorter side gets `shortest` pixels, and the centre is kept; `stretch`: both sides get `pixels`;
    `pad`: the longer side gets `pixels`, and black fills the rest."""
    shortest: int
    resample: Image.Resampling = Image.Resampling.BICUBIC
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    def __str__(self) -> str:
        to = f"{self.shortest} px" + (f", {self.pixels} px cut out" if self.shortest != self.pixels else "")
        return f"{self.resample.name.lower()} to {to}{_HOW[self.fit]}"

    def __call__(self, images: NDArray[np.uint8]) -> Tensor:
        """Return images uint8 `[N, H, W, 3]` as float32 `[N, 3, pixels, pixels]`."""
        fitted = np.stack([self._fit(Image.fromarray(image)) for image in images])
        scaled = torch.from_numpy(fitted).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (self.mean, self.std))
        return (scaled - mean) / std

    def _fit(self, image: Image.Image) -> NDArray[np.uint8]:
        """Return an RGB image as `[pixels, pixels, 3]`."""
        width, height = image.size
        if self.fit == "stretch":
            return np.asarray(image.resize((self.pixels, self.pixels), self.resample))
        side = min(width, height) if self.fit == "crop" else max(width, height)
        size = (int(self.shortest * width / side), int(self.shortest * height / side))
        if self.fit == "pad":
            size = (round(self.shortest * width / side), round(self.shortest * height / side))
        resized = np.asarray(image.resize(size, self.resample))
        if self.fit == "crop":
            top, left = (size[1] - self.pixels) // 2, (size[0] - self.pixels) // 2
            return resized[top : top + self.pixels, left : left + self.pixels]
        padded = np.zeros((self.pixels, self.pixels, 3), np.uint8)
        top, left = (self.pixels - size[1]) // 2, (self.pixels - size[0]) // 2
        padded[top : top + size[1], left : left + size[0]] = resized
        return padded


def read_preprocessing(directory: Path, default: Preprocessing, setting: str) -> Preprocessing:
    """Return the preprocessing that the files of a model describe; without such a file, `default`.

    Raises:
        CondistillError: the file cannot be read, or describes steps that are not known.
    """
    for name in (PREPROCESSOR_NAME, PROCESSOR_NAME):
        file = directory / name
        if not file.is_file():
            continue
        config = read_json(file, setting)
        if name == PROCESSOR_NAME:
            config = config.get("image_processor") or {}
        if config:
            return _described(config, default, f"{setting}: {file}")
    return default


def read_json(file: Path, setting: str) -> dict[str, Any]:
    """Return the mapping in a JSON file.

    Raises:
        CondistillError: it holds none.
    """
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CondistillError(f"{setting}: {file} cannot be read as JSON ({error}); download it again") from error
    if not isinstance(config, dict):
        raise CondistillError(f"{setting}: {file} is not a JSON mapping; download it again")
    return config


def _described(config: Mapping[str, Any], default: Preprocessing, source: str) -> Preprocessing:
    for step in ("do_resize", "do_rescale", "do_normalize"):
        if config.get(step, True) is not True:
            raise CondistillError(f"{source} has {step}: {config[step]}, and this step cannot be left out")
    try:
        size, crop = config.get("size", default.shortest), config.get("crop_size")
        is_square = isinstance(size, Mapping) and "height" in size
        crops = config.get("do_center_crop", crop is not None or not is_square)
        stretches = is_square and not crops
        shortest = _side(size)
        pixels = _side(crop) if crops and crop is not None else shortest
        resample = Image.Resampling(config.get("resample", default.resample))
        mean, std = (
            tuple(float(value) for value in config.get(name, usual))
            for name, usual in (("image_mean", default.mean), ("image_std", default.std))
        )
        if not (0 < pixels <= shortest <= 4096 and len(mean) == len(std) == 3 and all(std)):
            raise ValueError(
                f"a size of {shortest} px with {pixels} px cut out, or a mean or deviation, is not possible"
            )
        if abs(config.get("rescale_factor", 1 / 255) - 1 / 255) > 1e-9:
            raise ValueError(f"rescale_factor is {config['rescale_factor']}, and only 1/255 is known")
    except (TypeError, ValueError, KeyError) as error:
        raise CondistillError(f"{source} describes no preprocessing that is known: {error}") from error
    return Preprocessing(pixels, "stretch" if stretches else "crop", shortest, resample, mean, std)


def _side(size: Any) -> int:
    """Return the side of a square size in any of the forms that transformers writes."""
    if isinstance(size, Mapping):
        values = {size[name] for name in ("shortest_edge", "height", "width") if name in size}
        if len(values) != 1:
            raise ValueError(f"a size of {dict(size)} is not one side of a square")
        size = values.pop()
    elif isinstance(size, Sequence) and not isinstance(size, str) and len(set(size)) == 1:
        size = size[0]
    if not isinstance(size, int):
        raise ValueError(f"a size of {size!r} is not a number of pixels")
    return size
