"""Browse the cache of a run: its latents as images, decoded page by page, with their prompts."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from condistill.cache.latents import LatentCache, read_shard
from condistill.errors import CondistillError
from condistill.studio.markup import gallery, picture

PAGE_SIZE = 12
_KEPT = 20 * PAGE_SIZE
"""Images that are kept after they were decoded."""
_LARGEST_SIDE = 320

Decode = Callable[[NDArray[np.float32]], NDArray[np.uint8]]
"""Returns the image `[H, W, 3]` of latents `[C, h, w]`."""


@dataclass(frozen=True)
class CachePage:
    """A part of the cache."""

    number: int
    """Of the page; the first one is 1."""
    pages: int
    total: int
    """Images on all pages."""
    rows: tuple[int, ...]
    """Their numbers in the cache."""


class CachedImages:
    """The cache of one run. One thread at a time decodes."""

    def __init__(self, run: Path) -> None:
        """Describe the cache; nothing is read."""
        self.run = run
        self._html: OrderedDict[int, str] = OrderedDict()
        self._found: tuple[str, NDArray[np.int64]] | None = None

    @cached_property
    def cache(self) -> LatentCache:
        """The cache.

        Raises:
            CondistillError: it is not complete, or damaged.
        """
        return LatentCache.open(self.run / "cache")

    def page(self, number: object, words: str = "") -> CachePage:
        """Return the images of a page; a number that does not exist is replaced by the nearest one.

        Args:
            words: only prompts that contain this text, in capital letters or not; empty: all.

        Raises:
            CondistillError: the number is none, or there is no complete cache.
        """
        if not isinstance(number, int | float) or not abs(number) <= 10**9:  # NaN is not
            raise CondistillError("the page is no number; give a whole number from 1")
        found = self._rows(words.strip())
        total = len(self.cache) if found is None else len(found)
        pages = max(-(-total // PAGE_SIZE), 1)
        number = min(max(int(number), 1), pages)
        places = range((number - 1) * PAGE_SIZE, min(number * PAGE_SIZE, total))
        rows = tuple(places) if found is None else tuple(int(found[place]) for place in places)
        return CachePage(number, pages, total, rows)

    def _rows(self, words: str) -> NDArray[np.int64] | None:
        """Return the numbers of the prompts that contain some text; None for all."""
        if not words:
            return None
        known = self._found
        if known is None or known[0] != words:
            import pyarrow.compute as pc

            compute: Any = pc
            parts, start = [], 0
            for shard in self.cache.manifest.shards:
                prompts = read_shard(self.cache.directory / shard.name)[1]
                hits = compute.match_substring(prompts, words, ignore_case=True)
                parts.append(np.flatnonzero(hits.to_numpy(zero_copy_only=False)).astype(np.int64) + start)
                start += shard.rows
            known = self._found = (words, np.concatenate([*parts, np.empty(0, np.int64)]))
        return known[1]

    def html(self, page: CachePage, decode: Decode, check: Callable[[], None] = lambda: None) -> str:
        """Return the images of a page with their prompts; those that were not shown lately are decoded.

        Args:
            check: called before each image; may raise to stop.
        """
        images = []
        for row in page.rows:
            latents, prompt = self.cache[row]
            if row not in self._html:
                check()
                image = Image.fromarray(decode(latents.astype(np.float32)))
                image.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE), Image.Resampling.LANCZOS)
                self._html[row] = picture(image, prompt, kind="webp")
            self._html.move_to_end(row)
            images.append((self._html[row], f"{row}: {prompt}"))
        while len(self._html) > _KEPT:
            self._html.popitem(last=False)
        return gallery(images)
