"""A small world of captioned scenes: one object with a shape, colour, size, place and background.

The world is compositional, so that "unseen" is exact: a shape that no cached prompt names appears in no cached
image. No word belongs to two attributes, so a caption describes exactly one scene.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray

IMAGE_SIZE = 64
_SUPERSAMPLING = 3
_RENDER_BATCH = 64

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]
Inside = Callable[[Array, Array], Mask]


def _polygon(*vertices: tuple[float, float]) -> Inside:
    """Return the inside test of a polygon (even-odd rule); vertices in unit coordinates, y up."""

    def inside(x: Array, y: Array) -> Mask:
        result = np.zeros(x.shape, bool)
        for (x0, y0), (x1, y1) in zip(vertices, vertices[1:] + vertices[:1], strict=True):
            if y0 == y1:
                continue
            crosses = (y < y0) != (y < y1)
            result ^= crosses & (x < x0 + (y - y0) * ((x1 - x0) / (y1 - y0)))
        return result

    return inside


def _star_vertices(points: int, outer: float, inner: float) -> list[tuple[float, float]]:
    angles = np.pi / 2 + np.arange(2 * points) * np.pi / points
    radii = np.where(np.arange(2 * points) % 2 == 0, outer, inner)
    return [(float(r * np.cos(a)), float(r * np.sin(a))) for r, a in zip(radii, angles, strict=True)]


def _drop(x: Array, y: Array) -> Mask:
    body = x**2 + (y + 0.32) ** 2 <= 0.66**2
    return body | ((y > -0.1) & (y < 1.1) & (np.abs(x) <= 0.57 * (1.1 - y)))


def _heart(x: Array, y: Array) -> Mask:
    x, y = x * 1.2, y * 1.2 + 0.12
    return (x**2 + y**2 - 1) ** 3 - x**2 * y**3 <= 0


SHAPES: dict[str, Inside] = {
    "circle": lambda x, y: x**2 + y**2 <= 0.85**2,
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) <= 0.78,
    "triangle": _polygon((0.0, 1.0), (0.98, -0.75), (-0.98, -0.75)),
    "diamond": _polygon((0.0, 1.1), (0.72, 0.0), (0.0, -1.1), (-0.72, 0.0)),
    "cross": lambda x, y: (np.minimum(np.abs(x), np.abs(y)) <= 0.29) & (np.maximum(np.abs(x), np.abs(y)) <= 0.98),
    "moon": lambda x, y: (x**2 + y**2 <= 0.98**2) & ((x - 0.5) ** 2 + y**2 >= 0.78**2),
    "arrow": _polygon((1.05, 0.0), (0.15, 0.9), (0.15, 0.34), (-1.0, 0.34), (-1.0, -0.34), (0.15, -0.34), (0.15, -0.9)),
    "drop": _drop,
    "hourglass": lambda x, y: (np.abs(y) <= 0.9) & (np.abs(x) <= 0.14 + 0.8 * np.abs(y)),
    "star": _polygon(*_star_vertices(5, 1.12, 0.46)),
    "heart": _heart,
    "ring": lambda x, y: (x**2 + y**2 <= 0.98**2) & (x**2 + y**2 >= 0.52**2),
}
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 35, 40),
    "orange": (250, 140, 20),
    "yellow": (250, 225, 40),
    "green": (30, 140, 50),
    "cyan": (20, 205, 215),
    "blue": (35, 75, 220),
    "purple": (130, 45, 175),
    "pink": (252, 125, 190),
    "brown": (115, 70, 35),
    "black": (12, 12, 14),
}
SIZES: dict[str, float] = {"small": 11.0, "large": 18.0}  # circumscribed radius, pixels
PLACES: dict[str, tuple[float, float]] = {  # offset of the centre, pixels, y up
    "left": (-13.0, 0.0),
    "right": (13.0, 0.0),
    "top": (0.0, 13.0),
    "bottom": (0.0, -13.0),
    "centre": (0.0, 0.0),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "snow": (240, 242, 246),
    "sand": (226, 204, 160),
    "meadow": (165, 208, 150),
    "sky": (165, 203, 240),
    "stone": (140, 140, 146),
    "night": (62, 62, 112),
}
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "shape": tuple(SHAPES),
    "colour": tuple(COLOURS),
    "size": tuple(SIZES),
    "place": tuple(PLACES),
    "background": tuple(BACKGROUNDS),
}
UNSEEN_SHAPES = ("star", "heart", "ring")
"""A quarter of the shapes; the demo caches no prompt that names one."""

TEMPLATES = (
    "a {size} {colour} {shape} at the {place} on {background}",
    "{background} with a {size} {colour} {shape} at the {place}",
    "at the {place} , a {size} {colour} {shape} on {background}",
    "a drawing of a {colour} {shape} , {size} , {place} , {background} behind it",
    "one {shape} in {colour} , {size} and at the {place} , over {background}",
    "{size} {colour} {shape} , {place} , {background}",
)


@dataclass(frozen=True, slots=True)
class Scene:
    """A scene: one word of `ATTRIBUTES` for every attribute."""

    shape: str
    colour: str
    size: str
    place: str
    background: str

    def caption(self, template: int = 0) -> str:
        """Return the scene in words, in the template of this index."""
        words = {attribute: getattr(self, attribute) for attribute in ATTRIBUTES}
        return TEMPLATES[template].format(**words)

    def labels(self) -> tuple[int, ...]:
        """Return the index of each attribute's word, in the order of `ATTRIBUTES`."""
        return tuple(names.index(word) for names, word in zip(ATTRIBUTES.values(), astuple(self), strict=True))


def all_scenes() -> list[Scene]:
    """Return every combination of attributes: 7,200 scenes."""
    return [Scene(*words) for words in itertools.product(*ATTRIBUTES.values())]


def all_captions() -> list[str]:
    """Return every scene in every template: 43,200 distinct captions, in a fixed order."""
    return [scene.caption(i) for scene in all_scenes() for i in range(len(TEMPLATES))]


def parse(caption: str) -> Scene:
    """Return the scene that a caption describes.

    Raises:
        ValueError: the caption has no word of an attribute, or several.
    """
    words = set(caption.lower().replace(",", " ").split())
    found = []
    for attribute, names in ATTRIBUTES.items():
        named = [name for name in names if name in words]
        if len(named) != 1:
            raise ValueError(
                f"the caption {caption!r} has {' and '.join(named) or 'no word'} for {attribute}; "
                f"a caption of the miniature has exactly one of {', '.join(names)}"
            )
        found.append(named[0])
    return Scene(*found)


def render(scenes: Sequence[Scene], *, seed: int) -> NDArray[np.uint8]:
    """Return anti-aliased, slightly varied renders of scenes, uint8 `[N, 64, 64, 3]`.

    The variation of image i is a function of (seed, i): rotated by up to 10 degrees, scaled by up to 6 %, moved by
    up to 1.5 pixels, colours shifted by up to 10, and a slight gradient over the background.
    """
    images = np.empty((len(scenes), IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    variation = np.random.Generator(np.random.Philox(key=seed)).uniform(-1, 1, (len(scenes), 12))
    for start in range(0, len(scenes), _RENDER_BATCH):
        part = slice(start, start + _RENDER_BATCH)
        images[part] = _render_batch(scenes[part], variation[part].astype(np.float32))
    return images


def _render_batch(scenes: Sequence[Scene], variation: Array) -> NDArray[np.uint8]:
    side = IMAGE_SIZE * _SUPERSAMPLING
    axis = ((np.arange(side, dtype=np.float32) + 0.5) / _SUPERSAMPLING) - IMAGE_SIZE / 2
    grid_x, grid_y = np.meshgrid(axis, -axis)
    pixel_x, pixel_y = (
        g.reshape(IMAGE_SIZE, _SUPERSAMPLING, IMAGE_SIZE, _SUPERSAMPLING).mean((1, 3)) / (IMAGE_SIZE / 2)
        for g in (grid_x, grid_y)
    )
    out = np.empty((len(scenes), IMAGE_SIZE, IMAGE_SIZE, 3), np.float32)
    for i, (scene, jitter) in enumerate(zip(scenes, variation, strict=True)):
        radius = SIZES[scene.size] * (1 + 0.06 * jitter[0])
        x = (grid_x - PLACES[scene.place][0] - 1.5 * jitter[1]) / radius
        y = (grid_y - PLACES[scene.place][1] - 1.5 * jitter[2]) / radius
        angle = np.deg2rad(10 * jitter[3])
        cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        inside = SHAPES[scene.shape](cos * x + sin * y, cos * y - sin * x)
        coverage = inside.reshape(IMAGE_SIZE, _SUPERSAMPLING, IMAGE_SIZE, _SUPERSAMPLING).mean((1, 3))
        gradient = 8 * (jitter[4] * pixel_x + jitter[5] * pixel_y)
        behind = np.asarray(BACKGROUNDS[scene.background], np.float32) + 8 * jitter[6:9]
        colour = np.asarray(COLOURS[scene.colour], np.float32) + 10 * jitter[9:12]
        coverage = coverage[..., None].astype(np.float32)
        out[i] = (1 - coverage) * (behind + gradient[..., None]) + coverage * colour
    return np.clip(np.rint(out), 0, 255).astype(np.uint8)
