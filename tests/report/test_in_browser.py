"""The report in a real browser: light and dark, phone and desktop, keyboard, print, and without its script."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import Tab, find_chromium, open_tab
from evaluations import build_comparison, build_evaluation, build_references
from grids import write_previews
from histories import build_history
from PIL import Image

from condistill.config.recipe import Recipe
from condistill.evaluate.metrics import Score
from condistill.evaluate.record import Grid, GridEntry
from condistill.report import ReportInputs, write_report

CHROMIUM = find_chromium()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine"),
]
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> \x1b[31mred " + "long" * 30
MODELS = ("teacher", "plain", "small")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    for number, model in enumerate(MODELS):
        Image.new("RGB", (64, 64), (80 * number, 100, 50)).save(folder / f"{model}.png")
    images = {model: f"{model}.png" for model in MODELS}
    rows = tuple(
        GridEntry(prompt=f"{n} {HOSTILE}", images=images, correct={"plain": False}, values={"plain": 0.5, "small": 0.2})
        for n in range(3)
    )
    correct = {"teacher": 0.9, "plain": 0.5, "small": 0.8}
    scores = {name: {split: {"all_correct": v} for split in ("seen", "unseen", "all")} for name, v in correct.items()}
    for name, distance in (("plain", 0.6), ("small", 0.4)):
        scores[name]["unseen"]["latent_rmse"] = distance
    group = {name: {"all_correct": Score(value=value, low=value - 0.1, high=value)} for name, value in correct.items()}
    inputs = ReportInputs(
        title=f"run {HOSTILE}",
        recipe=Recipe.parse(
            "teacher: {pipeline: miniature}\nprompts: {files: [miniature]}\nstudent: {preset: b-small}\n"
            "variants: {plain: {}, small: {}}\n"
        ),
        evaluation=build_evaluation(
            scores,
            references=build_references(other_seed=1.0, plain=2.0, small=2.0),
            comparisons=(build_comparison("all_correct", "small", "plain", difference=0.3, half=0.1, split="unseen"),),
            groups={"concept": {HOSTILE: group, "star": group}},
        ),
        grid=Grid(splits={"seen": rows, "unseen": rows}, ranked_by="latent_rmse", worst=rows, best=rows[:1]),
        grid_folder=folder,
        histories={name: build_history(20) for name in MODELS[1:]},
        previews={name: write_previews(folder / f"previews-{name}", [0, 50, 100]) for name in MODELS[1:]},
    )
    return write_report(folder / "report.html", inputs)


@pytest.fixture
def tab() -> Iterator[Tab]:
    assert CHROMIUM is not None
    with open_tab(CHROMIUM) as opened:
        yield opened


def load(tab: Tab, page: Path, *, width: int = 1280, dark: bool = False) -> None:
    tab.open(page.as_uri(), width=width, dark=dark)
    tab.wait_for("document.readyState === 'complete' && document.querySelector('footer')")


@pytest.mark.parametrize(("width", "dark"), [(390, False), (1280, True)])
def test_it_fits_the_window_shows_every_image_and_asks_nothing_of_the_network(
    tab: Tab, page: Path, width: int, dark: bool
) -> None:
    load(tab, page, width=width, dark=dark)
    assert tab.run("document.documentElement.scrollWidth <= innerWidth")
    assert (
        tab.run("[...document.images].filter((i) => !i.closest('dialog') && !i.naturalWidth).map((i) => i.alt)") == []
    )
    assert {address for address in tab.addresses() if not address.startswith(("file:", "data:"))} == set()
    assert tab.mistakes() == []  # no script of a prompt ran, and the policy of the page stopped none of its own
    assert tab.run("document.querySelectorAll('script').length") == 1
    text = tab.run("document.body.innerText")
    assert "<script>alert(1)</script>" in text
    assert r"\x1b[31mred" in text
    assert "\x1b" not in text
    background = tab.run("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(18, 20, 23)" if dark else "rgb(251, 251, 250)")


def test_the_slider_and_the_enlarged_images_work_with_the_keyboard(tab: Tab, page: Path) -> None:
    load(tab, page)
    at = "document.querySelector('{} [data-part=stage]').style.getPropertyValue('--at')"
    tab.run("document.querySelector('#compare input[type=range]').focus()")
    assert tab.run(at.format("#compare")) == "50%"
    for _ in range(10):
        tab.press("ArrowRight", 39)
    assert tab.run(at.format("#compare")) == "60%"
    spoken = tab.run("document.activeElement.getAttribute('aria-valuetext')")
    assert spoken == "teacher on 60 % of the width, small on the rest"  # the student of the verdict
    tab.run("document.querySelectorAll('#shelf-worst .pictures button')[2].focus()")
    tab.press("Enter", 13)
    tab.wait_for("document.querySelector('dialog').open")
    chosen = "[...document.querySelectorAll('dialog select')].map((each) => each.selectedOptions[0].text)"
    assert tab.run(chosen) == ["teacher", "small"]
    assert tab.run("document.querySelector('dialog').contains(document.activeElement)")
    before = tab.run("document.querySelector('dialog .now').textContent")
    tab.run("document.querySelector('dialog [data-part=next]').click()")
    assert tab.run("document.querySelector('dialog .now').textContent") != before
    assert tab.run(chosen) == ["teacher", "small"]
    tab.press("Escape", 27)
    tab.wait_for("!document.querySelector('dialog').open")


def test_without_the_script_the_choices_work_and_every_image_is_there(tab: Tab, page: Path) -> None:
    tab._call("Emulation.setScriptExecutionDisabled", value=True)
    load(tab, page)
    assert tab.run("document.querySelector('#compare').hidden")
    assert tab.run("document.querySelectorAll('.pictures button').length") == 0
    shown = "[...document.querySelectorAll('.shelf')].filter((e) => e.offsetHeight).map((e) => e.id)"
    assert tab.run(shown) == ["shelf-worst"]
    width = "document.querySelector('#shelf-worst img').clientWidth"
    medium = tab.run(width)
    tab.run("document.querySelector('[value=large]').checked = true")
    assert tab.run(width) > 2 * medium
    tab.run("document.querySelector('#show-unseen').checked = true")
    assert tab.run(shown) == ["shelf-unseen"]


def test_it_prints_on_few_pages_with_every_prompt_and_without_controls(tab: Tab, page: Path) -> None:
    load(tab, page)
    pdf = base64.b64decode(tab._call("Page.printToPDF", paperWidth=8.27, paperHeight=11.69)["data"])
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 6
    tab._call("Emulation.setEmulatedMedia", media="print")
    assert tab.run("[...document.querySelectorAll('.shelf')].every((each) => each.offsetHeight)")
    hidden = "[...document.querySelectorAll('nav, .choices, #compare, details')].filter((e) => e.offsetHeight).length"
    assert tab.run(hidden) == 0
