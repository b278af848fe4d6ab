"""Pieces of HTML for the page. Text of any origin is shown as it is: no markup in it works."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from condistill.studio.engine import ModelFailure, ModelImage
from condistill.utils.format import byte_size, duration
from condistill.utils.text import printable

_PIXELATED_BELOW = 129
"""Images of fewer pixels along a side are enlarged without smoothing."""


def text(value: object) -> str:
    """Return text as HTML that shows it literally, control characters as escapes."""
    return html.escape(printable(str(value)), quote=True)


def data_uri(image: Image.Image, kind: str = "png") -> str:
    """Return an image as an address that contains it, so that nothing is kept on the disk."""
    buffer = io.BytesIO()
    options = {"compress_level": 3} if kind == "png" else {"quality": 90}
    image.save(buffer, format=kind.upper(), **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def picture(image: Image.Image, description: str, *, kind: str = "png") -> str:
    """Return an image with a description for those who do not see it."""
    width, height = image.size
    small = ' class="small"' if max(width, height) < _PIXELATED_BELOW else ""
    return f'<img src="{data_uri(image, kind)}" alt="{text(description)}" width="{width}" height="{height}"{small}>'


def figure(result: ModelImage | ModelFailure, prompt: str) -> str:
    """Return the image of a model above its name and its cost, or why there is none."""
    if isinstance(result, ModelFailure):
        return empty_figure(result.model, result.message, is_error=True)
    image = picture(_image(result.pixels), f"{result.model}: {prompt}")
    sampled = f"{result.steps} step{'s' * (result.steps != 1)}, guidance {result.guidance:g}"
    costs = [duration(result.seconds), f"{byte_size(result.memory_bytes)} at the peak", sampled]
    shown = "".join(f"<span>{text(cost)}</span>" for cost in costs)
    return (
        f'<figure class="model">{image}<figcaption><strong>{text(result.model)}</strong>{shown}</figcaption></figure>'
    )


def empty_figure(name: str, note: str = "no image yet", *, is_error: bool = False) -> str:
    """Return the place of a model's image."""
    kind = "error" if is_error else "empty"
    return (
        f'<figure class="model"><div class="place {kind}"><p>{text(note)}</p></div>'
        f"<figcaption><strong>{text(name)}</strong></figcaption></figure>"
    )


def status(line: str, *, progress: tuple[int, int] | None = None, note: str = "", is_error: bool = False) -> str:
    """Return a line on what happens now, and how far it is.

    Args:
        progress: finished and all steps.
        note: text that changes often, which screen readers do not read out.
    """
    bar = ""
    if progress is not None:
        done, total = progress
        bar = f'<progress value="{done}" max="{max(total, 1)}" aria-label="Progress"></progress>'
    shown = f'<span aria-hidden="true">{text(note)}</span>' if note else ""
    return f'<div class="status{" error" if is_error else ""}"><p>{text(line)} {shown}</p>{bar}</div>'


def gallery(images: Sequence[tuple[str, str]], *, wide: bool = False) -> str:
    """Return images in a grid, each above its caption.

    Args:
        images: HTML of an image, and text.
        wide: whether each place holds a pair of images.
    """
    figures = "".join(f"<figure>{image}<figcaption>{text(caption)}</figcaption></figure>" for image, caption in images)
    return f'<div class="gallery{" wide" if wide else ""}">{figures}</div>'


def _image(pixels: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(pixels)
