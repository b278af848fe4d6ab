from __future__ import annotations

import base64
import copy
import io
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from condistill.config.recipe import Recipe
from condistill.report import write_report

HOSTILE = '<script>alert("x")</script><img src=x onerror=y>'
MODELS = ("teacher", "plain", "random_conditioning")
COLOUR = (30, 60, 90)
RECIPE = Recipe.parse(
    "teacher: {pipeline: miniature}\n"
    "prompts: {files: [miniature], unseen_words: ['</pre><b>star']}\n"
    "student: {preset: b-small}\n"
    "variants: {plain: {distill: {conditioning: {probability: {schedule: none}}}}, random_conditioning: {}}\n"
)


def _split(right: float, rmse: float | None) -> dict[str, float]:
    scores = {"all_correct": right, "shape": right, "colour": 0.95, "frechet_classifier": 30 * (1 - right)}
    return scores if rmse is None else {**scores, "latent_rmse": rmse}


def _metrics() -> dict[str, Any]:
    rights = {"teacher": (0.93, 0.88), "plain": (0.91, 0.23), "random_conditioning": (0.9, 0.67)}
    models: dict[str, Any] = {}
    for name, (seen, unseen) in rights.items():
        share = 1.0 if name == "teacher" else 0.27
        models[name] = {
            "seen": _split(seen, None if name == "teacher" else 0.3),
            "unseen": _split(unseen, None if name == "teacher" else 1 - unseen),
            "all": _split((seen + unseen) / 2, None if name == "teacher" else 0.5),
            "spread": {"seen": {"all_correct": 0.013}},
            "size": {"parameters": int(6978372 * share), "macs": int(123e6 * share), "bytes": int(27e6 * share)},
            "speed": {"sec_per_image": 0.14 * share, "relative_time": share, "peak_memory_gb": 0.5},
        }
    return {
        "format": 1,
        "classifier": "miniature",
        "seeds": [3, 7],
        "images_per_split": {"seen": 100, "unseen": 100, "all": 200},
        "num_inference_steps": 25,
        "guidance_scale": 3.0,
        "device": "a CPU, 2 threads",
        "torch": "2.13.0",
        "models": models,
    }


def _history() -> list[dict[str, Any]]:
    return [
        {"step": 50 * i, "loss": 1 / i, "replaced_prompt": 0.19, "bins": [None, math.nan, *[0.5 / i] * 8]}
        for i in range(1, 6)
    ]


HISTORIES = {"plain": _history(), "random_conditioning": _history()}


def _grid(folder: Path) -> dict[str, Any]:
    grid: dict[str, Any] = {}
    for split in ("seen", "unseen"):
        files = {name: f"{split}-00-{name}.png" for name in MODELS}
        for file in files.values():
            Image.new("RGB", (64, 64), COLOUR).save(folder / file)
        prompt = f"{split} prompt {HOSTILE}"
        grid[split] = [{"prompt": prompt, "images": files, "right": {"teacher": True, "plain": False}}]
    return grid


def _arguments(folder: Path) -> dict[str, Any]:
    return {
        "recipe": RECIPE,
        "metrics": _metrics(),
        "grid": _grid(folder),
        "grid_folder": folder,
        "histories": {},  # curves take most of the time; the tests that look at them pass some
        "students": {"plain": {"kept": [f"all of it {HOSTILE}"], "settings": {"width": (320, 640), "note": HOSTILE}}},
        "title": f"A title {HOSTILE}",
    }


class _Page(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def _render(folder: Path, **changes: Any) -> tuple[str, _Page]:
    html = write_report(folder / "report.html", **{**_arguments(folder), **changes}).read_text(encoding="utf-8")
    return html, _Page(html)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, _Page]:
    """A page with everything on it."""
    return _render(tmp_path_factory.mktemp("whole"), histories=HISTORIES)


def _headings(html: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", html)


def test_the_page_loads_nothing_from_anywhere(whole: tuple[str, _Page]) -> None:
    html, page = whole
    for tag, attributes in page.tags:
        assert tag not in {"script", "link", "iframe", "object", "base"}
        for name in ("src", "srcset", "href"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert "url(" not in html
    assert "@import" not in html
    assert "http://" not in html
    assert "https://" not in html
    policy = [a["content"] for a in page.attributes("meta") if "http-equiv" in a]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_prompts_names_and_recipe_are_shown_as_text(whole: tuple[str, _Page]) -> None:
    html, page = whole
    assert "<script" not in html
    assert not [a for a in page.attributes("img") if "onerror" in a]
    assert "<b>star" not in html
    assert page.text.count(HOSTILE) >= 5  # title twice, two prompts, kept, settings
    assert "</pre><b>star" in page.text


def test_names_of_models_are_escaped_too(tmp_path: Path) -> None:
    metrics = _metrics()
    metrics["models"]["<i>x_y</i>"] = metrics["models"].pop("plain")
    html, page = _render(tmp_path, metrics=metrics)
    assert "<i>x" not in html
    assert "<i>x_y</i>" in page.text


def test_every_model_and_split_is_there_with_its_images(whole: tuple[str, _Page]) -> None:
    html, page = whole
    for word in (*MODELS, "Seen prompts", "Unseen prompts", "All prompts", "67 %", "6.98 M", "27 %", "± 1.3"):
        assert word in page.text
    pictures = [a for a in page.attributes("img") if (a["src"] or "").startswith("data:image/png")]
    assert len(pictures) == 6
    curves = [a for a in page.attributes("img") if (a["src"] or "").startswith("data:image/svg+xml")]
    assert [a["alt"] for a in curves] == [
        f"{name}: loss over training steps, on a logarithmic scale" for name in (*MODELS[1:], "Total loss")
    ]
    assert all((a["alt"] or "").startswith(MODELS) for a in pictures)
    content = base64.b64decode((pictures[0]["src"] or "").partition(",")[2])
    assert Image.open(io.BytesIO(content)).getpixel((0, 0)) == COLOUR
    assert _headings(html) == [
        "Teacher and students",
        "Side by side",
        "Loss in training",
        "Size and speed",
        "How the figures were made",
    ]


def test_only_the_best_student_of_a_row_is_marked(whole: tuple[str, _Page]) -> None:
    html, _ = whole
    best = re.findall(r'<td class="best"><b>(.*?)</b>', html)
    assert "67 %" in best
    assert "91 %" in best
    assert "93 %" not in best  # the teacher's
    assert not {"1.88 M", "0.038 s"} & set(best)  # the students do not differ


def test_right_and_wrong_are_said_in_words(whole: tuple[str, _Page]) -> None:
    html, page = whole
    assert html.count('aria-label="wrong:">✗') == 2
    assert html.count('aria-label="right:">✓') == 2
    assert [a for a in page.attributes("img") if (a["alt"] or "").endswith("(wrong)")]


def test_miniature_figures_are_labelled(tmp_path: Path) -> None:
    assert "not FID on MS-COCO" in _render(tmp_path)[0]
    assert "MS-COCO" not in _render(tmp_path, metrics={**_metrics(), "classifier": "none"})[0]


def test_how_the_figures_were_made_is_said(whole: tuple[str, _Page]) -> None:
    _, page = whole
    for word in ("3, 7", "seen 100, unseen 100, all 200", "a CPU, 2 threads", "2.13.0", "up to 5.0 points"):
        assert word in page.text


def test_renders_without_a_classifier_and_without_unseen_prompts(tmp_path: Path) -> None:
    metrics = _metrics()
    metrics |= {"classifier": "none", "images_per_split": {"all": 8}}
    for name, model in metrics["models"].items():
        for key in ("seen", "unseen", "spread"):
            del model[key]
        model["all"] = {} if name == "teacher" else {"latent_rmse": 0.4}
    entry = _grid(tmp_path)["seen"][0]
    del entry["right"]
    html, page = _render(tmp_path, metrics=metrics, grid={"all": [entry]})
    assert "Latent RMSE" in page.text
    for word in ("Unseen prompts", "All right", "Attribute by attribute", "✓", "Sampling error", "Spread", "nan"):
        assert word not in page.text
    assert "<tbody>\n</tbody>" not in html


def test_what_is_missing_leaves_no_empty_section(whole: tuple[str, _Page], tmp_path: Path) -> None:
    headings = [heading for heading in _headings(whole[0]) if heading != "Loss in training"]
    assert _headings(_render(tmp_path, histories={})[0]) == headings
    assert _headings(_render(tmp_path, students={})[0]) == headings
    assert _headings(_render(tmp_path, grid={})[0]) == [heading for heading in headings if heading != "Side by side"]


def test_a_run_with_nothing_but_a_recipe_still_renders(tmp_path: Path) -> None:
    html, page = _render(tmp_path, metrics={}, grid={}, histories={"plain": []}, students={"plain": {}})
    assert _headings(html) == ["How the figures were made"]
    assert "No student has been measured yet." in page.text


def test_nan_and_null_figures_become_dashes(tmp_path: Path) -> None:
    metrics = _metrics()
    metrics["models"]["plain"]["unseen"] |= {"all_correct": math.nan, "frechet_classifier": None}
    metrics["models"]["plain"]["speed"] = None
    _, page = _render(tmp_path, metrics=metrics)
    assert "–" in page.text
    assert not re.search(r"\bnan\b|\bNone\b", page.text)


def test_an_image_that_is_gone_is_said_so(tmp_path: Path) -> None:
    grid = {"seen": [{"prompt": "", "images": {"teacher": "gone.png"}}]}
    _, page = _render(tmp_path, grid=grid)
    assert "no image" in page.text
    assert "the empty prompt" in page.text


@pytest.mark.slow
def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    given = {**_arguments(tmp_path), "histories": {"plain": _history()}}
    first, second = (write_report(tmp_path / name, **given) for name in ("a.html", "b.html"))
    assert first.read_bytes() == second.read_bytes()


def test_input_is_left_as_it_was(tmp_path: Path) -> None:
    arguments = _arguments(tmp_path)
    before = copy.deepcopy({key: arguments[key] for key in ("grid", "students")})
    write_report(tmp_path / "report.html", **arguments)
    assert {key: arguments[key] for key in before} == before
