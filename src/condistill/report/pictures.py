"""The images of the report: which ones it shows, in which order, and how they are made small enough for the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, features

from condistill.config.recipe import SPLITS
from condistill.evaluate.metrics import METRICS
from condistill.evaluate.record import Grid, GridEntry
from condistill.report.inputs import teacher_first
from condistill.utils.text import shorten

HEADINGS = {"seen": "Seen prompts", "unseen": "Unseen prompts", "all": "All prompts"}
SMALL = 128
"""Pixels up to which an image is embedded without loss."""
LEVELS = ((1024, 85), (768, 82), (512, 82), (512, 72), (384, 72), (320, 68), (256, 62), (192, 58), (128, 50))
"""Longest side in pixels and quality; the first whose images fit into the page is used for all of them."""
_LOSSLESS_FROM = 72
"""The quality from which on small images are stored without loss."""
_MOST_PICTURES = 600
_PROBES = 12
"""Images from which the size of all is estimated."""
_LONGEST_PROMPT = 600
"""Characters of a prompt on the page."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """An image of the page."""

    uri: str
    width: int
    height: int
    """As it was generated, in pixels."""
    shown: int
    """Its longest side on the page, in pixels."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One image of a card; `uri` is empty where its file does not exist."""

    model: str
    uri: str
    alt: str
    mark: str
    """`correct`, `wrong`, or empty without a classifier."""
    note: str
    """Its distance to the teacher's image, where the prompts are ranked by it."""
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Card:
    """One prompt with the images of all models."""

    prompt: str
    note: str
    pictures: list[Picture]


@dataclass(frozen=True, slots=True)
class Shelf:
    """Cards that the page shows together."""

    name: str
    title: str
    lead: str
    cards: list[Card]


@dataclass(frozen=True, slots=True)
class Album:
    """Every image of the page, and a sentence on what was left out or made smaller; empty where nothing was."""

    shelves: list[Shelf]
    note: str = ""


def album(grid: Grid, folder: Path, *, budget: int) -> Album:
    """Return the images of a grid: worst prompts first, then the best, then the random ones of each split.

    Args:
        folder: of the images that the grid names.
        budget: bytes that all images may take on the page.
    """
    shelves = _entries(grid)
    wanted = _in_turn([entries for _, entries in shelves])[: max(1, _MOST_PICTURES // _width(shelves))]
    files = [folder / file for entry in wanted for file in teacher_first(entry.images).values()]
    found = iter(embed(files, budget))
    images = {id(entry): dict(zip(teacher_first(entry.images), found, strict=False)) for entry in wanted}
    metric = METRICS[grid.ranked_by] if grid.ranked_by is not None and grid.ranked_by in METRICS else None
    result = []
    for (name, title, lead), entries in shelves:
        cards = []
        for entry in entries:
            embedded = images.get(id(entry), {})
            if len(embedded) < len(entry.images):
                continue
            pictures = [
                _picture(entry, model, image, metric.notation.text if metric else None)
                for model, image in embedded.items()
            ]
            is_mixed = name in ("worst", "best") and entry.split in ("seen", "unseen")
            split = HEADINGS[entry.split].removesuffix("s") if is_mixed else ""
            cards.append(Card(shorten(entry.prompt, _LONGEST_PROMPT), split, pictures))
        result += [Shelf(name, title, lead, cards)] if cards else []
    shown, total = (sum(map(len, each)) for each in ([s.cards for s in result], [e for _, e in shelves]))
    return Album(result, _left_out(shown, total, [image for of_row in images.values() for image in of_row.values()]))


def _width(shelves: Iterable[tuple[object, Sequence[GridEntry]]]) -> int:
    """Return the largest number of images of a prompt."""
    return max((len(entry.images) for _, entries in shelves for entry in entries), default=1) or 1


def _entries(grid: Grid) -> list[tuple[tuple[str, str, str], Sequence[GridEntry]]]:
    """Return name, title and lead of every shelf with its prompts."""
    found: list[tuple[tuple[str, str, str], Sequence[GridEntry]]] = []
    if grid.ranked_by is not None:
        label = METRICS[grid.ranked_by].label if grid.ranked_by in METRICS else grid.ranked_by
        of_all = f"among all evaluated prompts, by {label}"
        found.append(
            (("worst", "Worst prompts", f"The largest disagreement with the teacher first, {of_all}."), grid.worst)
        )
        found.append((("best", "Best prompts", f"The smallest disagreement with the teacher {of_all}."), grid.best))
    for split in [split for split in SPLITS if grid.splits.get(split)]:
        title = f"Random {HEADINGS[split].lower()}" if split != "all" else "Random prompts"
        found.append(((split, title, "Chosen at random, before any image was generated."), grid.splits[split]))
    return [(head, entries) for head, entries in found if entries]


def _in_turn(shelves: Sequence[Sequence[GridEntry]]) -> list[GridEntry]:
    """Return the prompts of all shelves in the order in which they find a place: the first of each, and so on."""
    longest = max(map(len, shelves), default=0)
    return [entries[i] for i in range(longest) for entries in shelves if i < len(entries)]


def _picture(entry: GridEntry, model: str, image: Embedded, write: Callable[[float], str] | None) -> Picture:
    correct = entry.correct.get(model)
    mark = "" if correct is None else "correct" if correct else "wrong"
    value = entry.values.get(model)
    note = "" if value is None or write is None else write(value)
    prompt = shorten(entry.prompt, 120) or "the empty prompt"
    alt = f"{model}: {prompt}" + (f" ({mark})" if mark else "")
    return Picture(model, image.uri, alt, mark, note, image.width, image.height)


def _left_out(shown: int, total: int, images: Sequence[Embedded]) -> str:
    """Return what the page does not show, and where it is."""
    parts = [f"{shown} of {total} prompts"] if shown < total else []
    smaller = [image for image in images if image.shown < max(image.width, image.height)]
    if smaller:
        largest = max(max(image.width, image.height) for image in smaller)
        parts.append(f"images at {max(image.shown for image in smaller)} px of {largest:,} px")
    if not parts:
        return ""
    return f"To keep this page below 5 MB it shows {' and '.join(parts)}; every image is in evaluation/figures/grid."


def embed(files: Sequence[Path], budget: int) -> list[Embedded]:
    """Return the images of files, compressed alike so that they take at most `budget` bytes of a page.

    Where even the smallest do not fit, the last ones are left out. A file that is missing or damaged has no `uri`.
    """
    unique = list(dict.fromkeys(files))
    probes = unique[:: max(1, len(unique) // _PROBES)]
    for level in LEVELS:
        is_last = level == LEVELS[-1]
        sizes = [len(_embedded(file, *level).uri) for file in probes]
        if not is_last and sum(sizes) / max(len(sizes), 1) * len(files) > budget:
            continue
        known: dict[Path, Embedded] = {}
        found, used = [], 0
        for file in files:
            known[file] = known.get(file) or _embedded(file, *level)
            used += len(known[file].uri)
            if used > budget:
                break
            found.append(known[file])
        if used <= budget or is_last:
            return found
    return []


def _embedded(file: Path, side: int, quality: int) -> Embedded:
    try:
        with Image.open(file) as opened:
            return embedded(opened.convert("RGB"), side, quality)
    except (OSError, ValueError, SyntaxError):  # a SyntaxError is a damaged PNG
        return Embedded("", 0, 0, 0)


def embedded(image: Image.Image, side: int, quality: int) -> Embedded:
    """Return an image of at most `side` pixels as a data URI; one that is small by itself is stored without loss."""
    width, height = image.size
    shown = image
    if max(width, height) > side:
        scale = side / max(width, height)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        shown = image.resize(size, Image.Resampling.LANCZOS)
    content = io.BytesIO()
    if features.check("webp"):
        kind = "webp"
        lossless = max(width, height) <= min(SMALL, side) and quality >= _LOSSLESS_FROM
        shown.save(content, format="WEBP", **({"lossless": True} if lossless else {"quality": quality, "method": 4}))
    else:  # a Pillow that was built without it
        kind = "jpeg"
        shown.save(content, format="JPEG", quality=quality)
    uri = f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode('ascii')}"
    return Embedded(uri, width, height, max(shown.size))
