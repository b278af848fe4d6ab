"""The page in a real browser: type, press, and the image appears; nothing is loaded from anywhere else."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import find_chromium
from studio_runs import EVIL, train, write_run

CHROMIUM = find_chromium()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="gradio, of the extra studio, is missing"),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
]
PROMPT = "document.querySelector('textarea')"
DONE = "document.querySelector('#cs-status').innerText.includes('Finished after')"
UNLABELLED = """[...document.querySelectorAll('input, textarea, select, button, img')].filter(each =>
    each.offsetParent && !each.labels?.length && !each.closest('label') && !each.getAttribute('aria-label')
    && !each.innerText && !each.alt && !each.title).map(each => each.outerHTML.slice(0, 200))"""


@pytest.fixture(scope="module")
def studio(tiny_pipeline_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from studio_server import serve

    run = write_run(tmp_path_factory.mktemp("studio"), tiny_pipeline_dir, {"plain": tiny_pipeline_dir})
    train(run, "random_conditioning", 10)
    with serve(run) as studio:
        yield studio


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_type_press_image_appears_browse_and_follow(studio: Any, width: int, dark: bool, tmp_path: Path) -> None:
    from chromium import open_tab

    assert CHROMIUM is not None
    with open_tab(CHROMIUM) as tab:
        tab.open(studio.url, width=width, dark=dark)
        tab.wait_for(f"{PROMPT}?.offsetParent")
        tab.run(f"{PROMPT}.focus()")
        tab.type(EVIL.replace("\x1b", ""))
        tab.press("Enter", 13)
        tab.wait_for(DONE)
        assert tab.run("document.querySelectorAll('figure.model img').length") == 2
        assert tab.run("[...document.querySelectorAll('figure.model img')].every(each => each.naturalWidth == 64)")
        assert "<script>alert(1)</script>" in tab.run("document.querySelector('#cs-status').innerText")
        assert tab.run("document.querySelector('#cs-status [aria-live=polite], #cs-status[aria-live=polite]') !== null")
        assert tab.run(UNLABELLED) == []
        _save(tab, "generate", width, dark)
        tab.run("[...document.querySelectorAll('[role=tab]')].find(each => each.innerText == 'Cache').click()")
        tab.wait_for("document.querySelectorAll('.gallery img').length == 12")
        assert "0: <script>alert(1)</script>\\x1b[2J" in tab.run("document.querySelector('.gallery').innerText")
        assert tab.run(UNLABELLED) == []
        tab.run("[...document.querySelectorAll('[role=tab]')].find(each => each.innerText == 'Follow').click()")
        tab.wait_for("document.querySelector('figure.chart svg[role=img][aria-label]')")
        assert "2:05 left of this part" in tab.run("document.body.innerText")
        train(studio.desk.sources.runs[0], "random_conditioning", 12)
        tab.wait_for("document.body.innerText.includes('at step 12')")  # by itself
        train(studio.desk.sources.runs[0], "random_conditioning", 10)
        assert tab.run("document.documentElement.scrollWidth <= innerWidth")
        assert {
            address for address in tab.addresses() if not address.startswith((studio.url, "data:", "blob:"))
        } == set()
        assert tab.mistakes() == []


def _save(tab: Any, name: str, width: int, dark: bool) -> None:
    """Keep a screenshot, where a person who looks at the page has named a folder for it."""
    if folder := os.environ.get("CONDISTILL_SCREENSHOTS"):
        tab.screenshot(Path(folder) / f"{name}-{width}-{'dark' if dark else 'light'}.png")
