from __future__ import annotations

import base64
import hashlib
import io
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from evaluations import build_evaluation, build_references
from grids import write_previews
from histories import build_record
from PIL import Image

from condistill.config.recipe import Recipe
from condistill.distill.history import HistoryRecord
from condistill.evaluate.record import Evaluation, Grid, GridEntry
from condistill.pipelines.record import DenoiserSize, StudentRecord
from condistill.report import ReportInputs, write_report

HOSTILE = '<script>alert("x")</script><img src=x onerror=y>'
MODELS = ("teacher", "plain", "random_conditioning")
COLOUR = (30, 60, 90)
RECIPE = Recipe.parse(
    "teacher: {pipeline: miniature}\n"
    "prompts: {files: [miniature], unseen_words: ['</pre><b>star']}\n"
    "student: {preset: b-small}\n"
    "variants: {plain: {distill: {conditioning: {probability: {schedule: none}}}}, random_conditioning: {}}\n"
)


def _split(correct: float, rmse: float | None) -> dict[str, float | tuple[float, float]]:
    scores = {
        "all_correct": (correct, 0.013),
        "shape": correct,
        "colour": 0.95,
        "frechet_classifier": 30 * (1 - correct),
    }
    return scores if rmse is None else {**scores, "latent_rmse": rmse}


def _evaluation() -> Evaluation:
    correct = {"teacher": (0.93, 0.88), "plain": (0.91, 0.23), "random_conditioning": (0.9, 0.67)}
    scores = {
        name: {
            "seen": _split(seen, None if name == "teacher" else 0.3),
            "unseen": _split(unseen, None if name == "teacher" else 1 - unseen),
            "all": _split((seen + unseen) / 2, None if name == "teacher" else 0.5),
        }
        for name, (seen, unseen) in correct.items()
    }
    return build_evaluation(scores, seeds=(3, 7))


def _history() -> list[HistoryRecord]:
    return [build_record(50 * i, bins=(None, math.nan, *[0.5 / i] * 8)) for i in range(1, 6)]


HISTORIES = {"plain": _history(), "random_conditioning": _history()}


def _grid(folder: Path) -> Grid:
    splits = {}
    for split in ("seen", "unseen"):
        files = {name: f"{split}-00-{name}.png" for name in MODELS}
        for file in files.values():
            Image.new("RGB", (64, 64), COLOUR).save(folder / file)
        correct = {"teacher": True, "plain": False}
        splits[split] = (GridEntry(prompt=f"{split} prompt {HOSTILE}", images=files, correct=correct),)
    return Grid(splits=splits)


def _inputs(folder: Path) -> ReportInputs:
    size = DenoiserSize(parameters=1, macs=1)
    student = StudentRecord(kept=(f"all of it {HOSTILE}",), teacher_size=size, student_size=size)
    return ReportInputs(
        title=f"A title {HOSTILE}",
        recipe=RECIPE,
        evaluation=_evaluation(),
        grid=_grid(folder),
        grid_folder=folder,
        students={"plain": student},
        histories={},  # curves take most of the time; the tests that look at them pass some
    )


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
    html = write_report(folder / "report.html", replace(_inputs(folder), **changes)).read_text(encoding="utf-8")
    return html, _Page(html)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, _Page]:
    """A page with everything on it."""
    return _render(tmp_path_factory.mktemp("whole"), histories=HISTORIES)


def _headings(html: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", html)


def test_the_page_loads_nothing_from_the_network(whole: tuple[str, _Page]) -> None:
    html, page = whole
    for tag, attributes in page.tags:
        assert tag not in {"link", "iframe", "object", "base"}
        for name in ("src", "srcset", "href"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#"))
    assert not re.search(r"url\((?!#)", html)
    assert "@import" not in html
    assert "http://" not in html
    assert "https://" not in html
    policy = [a["content"] for a in page.attributes("meta") if "http-equiv" in a]
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == [
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    ]  # so no other script can run


def test_prompts_names_and_recipe_are_shown_as_text(whole: tuple[str, _Page]) -> None:
    html, page = whole
    assert [attributes for tag, attributes in page.tags if tag == "script"] == [{}]  # the page's own
    assert "<script>alert" not in html
    assert not [a for a in page.attributes("img") if "onerror" in a]
    assert "<b>star" not in html
    assert page.text.count(HOSTILE) >= 4  # title twice, two prompts, a line on what was kept
    assert "</pre><b>star" in page.text


@pytest.mark.usefixtures("no_score_plots")
def test_names_of_models_are_escaped_too(tmp_path: Path) -> None:
    evaluation = build_evaluation({"<i>x_y</i>": {"all": {"all_correct": 0.5}}})
    html, page = _render(tmp_path, evaluation=evaluation)
    assert "<i>x" not in html
    assert "<i>x_y</i>" in page.text


def test_every_model_and_split_is_shown_with_its_images(whole: tuple[str, _Page]) -> None:
    html, page = whole
    for word in (*MODELS, "Seen prompts", "Unseen prompts", "All prompts", "67 %", "6.98 M", "27 %", "± 1.3"):
        assert word in page.text
    pictures = [a for a in page.attributes("img") if (a["src"] or "").startswith("data:image/webp")]
    assert len(pictures) == 6
    assert all((a["alt"] or "").startswith(MODELS) for a in pictures)
    content = base64.b64decode((pictures[0]["src"] or "").partition(",")[2])
    assert Image.open(io.BytesIO(content)).getpixel((0, 0)) == COLOUR
    assert _headings(html) == [
        "Side by side",
        "Scores",
        "Score against cost",
        "Training",
        "What to do next",
        "How the figures were made",
    ]


def test_a_plot_says_its_result_in_words(whole: tuple[str, _Page]) -> None:
    _, page = whole
    plots = [str(a["aria-label"]) for a in page.attributes("div") if a.get("role") == "img"]
    assert (
        "Correct on unseen prompts against parameters: teacher 88 % at 6.98 M; plain 23 % at 1.88 M; "
        "random_conditioning 67 % at 1.88 M."
    ) in plots
    assert (
        "Total loss: plain 0.0200 at step 50, 0.00400 at step 250; random_conditioning 0.0200 at step 50" in plots[-3]
    )
    assert "noisiest tenth 0.500 at step 50, 0.100 at step 250" in plots[-1]
    ids = [str(a["id"]) for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))


def test_only_the_best_student_of_a_row_is_marked(whole: tuple[str, _Page]) -> None:
    html, _ = whole
    best = re.findall(r'<td class="best"><b>(.*?)</b>', html)
    assert "67 %" in best
    assert not {"91 %", "90 %"} & set(best)  # the students differ by less than the error
    assert "93 %" not in best  # the teacher's
    assert not {"1.88 M", "54 ms", "12 s"} & set(best)  # the students do not differ


def test_details_are_folded_and_every_other_metric_is_explained(whole: tuple[str, _Page]) -> None:
    html, page = whole
    folded = re.findall(r"<details>(.*?)</details>", html, re.DOTALL)[0]
    assert "Shape" in folded
    assert "Fréchet distance" not in folded
    assert "Latent RMSE: distance to the teacher's latents from the same noise." in page.text


def test_correct_and_wrong_images_are_marked_in_words(whole: tuple[str, _Page]) -> None:
    html, page = whole
    assert html.count('aria-label="wrong:">✗') == 2
    assert html.count('aria-label="correct:">✓') == 2
    assert [a for a in page.attributes("img") if (a["alt"] or "").endswith("(wrong)")]


@pytest.mark.usefixtures("no_score_plots")
def test_miniature_figures_are_labelled(tmp_path: Path) -> None:
    assert "not FID on MS-COCO" in _render(tmp_path)[0]
    unclassified = build_evaluation({"small": {"all": {"latent_rmse": 0.5}}}, classifier="none")
    assert "MS-COCO" not in _render(tmp_path, evaluation=unclassified)[0]


def test_the_page_says_how_the_figures_were_made(whole: tuple[str, _Page]) -> None:
    _, page = whole
    for word in ("3, 7", "seen 100, unseen 100, all 200", "a CPU, 2 threads", "2.13.0", "up to 5.0 points"):
        assert word in page.text


@pytest.mark.usefixtures("no_score_plots")
def test_a_run_without_classifier_and_unseen_prompts_leaves_their_parts_out(tmp_path: Path) -> None:
    evaluation = build_evaluation(
        {"plain": {"all": {"latent_rmse": 0.4}}, "random_conditioning": {"all": {"latent_rmse": 0.5}}},
        classifier="none",
        images_per_split={"all": 8},
    )
    entry = _grid(tmp_path).splits["seen"][0].model_copy(update={"correct": {}})
    html, page = _render(tmp_path, evaluation=evaluation, grid=Grid(splits={"all": (entry,)}))
    assert "Latent RMSE" in page.text
    for word in ("Unseen prompts", "Correct", "More metrics", "✓", "standard deviation", "of up to", "nan"):
        assert word not in page.text
    assert "<tbody>\n</tbody>" not in html


@pytest.mark.slow
def test_a_run_without_images_or_curves_has_no_empty_section(whole: tuple[str, _Page], tmp_path: Path) -> None:
    headings = [heading for heading in _headings(whole[0]) if heading != "Training"]
    assert _headings(_render(tmp_path, histories={"plain": []})[0]) == headings
    empty = Grid(splits={})
    assert _headings(_render(tmp_path, grid=empty)[0]) == [name for name in headings if name != "Side by side"]


@pytest.mark.usefixtures("no_score_plots")
def test_missing_scores_become_dashes(tmp_path: Path) -> None:
    evaluation = build_evaluation(
        {"teacher": _evaluation_scores("teacher"), "plain": {}, "random_conditioning": {"all": {"all_correct": 0.5}}}
    )
    _, page = _render(tmp_path, evaluation=evaluation)
    assert "–" in page.text
    assert not re.search(r"\bnan\b|\bNone\b", page.text)


def _evaluation_scores(name: str) -> dict[str, dict[str, float]]:
    return {
        split: {metric: score.value for metric, score in scores.items()}
        for split, scores in _evaluation().models[name].scores.items()
    }


def test_an_image_without_a_file_leaves_a_placeholder(tmp_path: Path) -> None:
    entry = GridEntry(prompt="", images={"teacher": "gone.png"}, correct={})
    _, page = _render(tmp_path, grid=Grid(splits={"seen": (entry,)}))
    assert "no image" in page.text
    assert "the empty prompt" in page.text


@pytest.mark.slow
def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    inputs = replace(_inputs(tmp_path), histories={"plain": _history()})
    first, second = (write_report(tmp_path / name, inputs) for name in ("a.html", "b.html"))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.usefixtures("no_score_plots")
def test_control_characters_and_reversed_text_are_shown_as_escapes(tmp_path: Path) -> None:
    hostile = "a\x1b[2J\x00\x9b\u202etxt"
    entry = GridEntry(prompt=hostile, images={"teacher": "gone.png"}, correct={})
    html, page = _render(tmp_path, title=hostile, grid=Grid(splits={"seen": (entry,)}))
    assert page.text.count(r"a\x1b[2J\x00\x9b\u202etxt") >= 3
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", html)


@pytest.mark.slow
def test_previews_of_a_training_are_a_table_with_escaped_prompts(tmp_path: Path) -> None:
    html, page = _render(tmp_path, previews={"plain": write_previews(tmp_path / "previews", [0, 500])})
    assert "Training" in _headings(html)
    assert "<b>a seen prompt</b>" in page.text
    assert "<b>a seen prompt" not in html
    alts = [str(image.get("alt")) for image in page.attributes("img")]
    rows = ("teacher", "step 0", "step 500")
    assert [alt for alt in alts if "seen prompt</b>" in alt] == [
        f"{row}: <b>a {split} prompt</b>" for row in rows for split in ("seen", "unseen")
    ]
    assert "Previews</h3>" not in _render(tmp_path, previews={})[0]


@pytest.mark.usefixtures("no_score_plots")
def test_a_quick_run_is_labelled_and_a_training_of_the_usual_length_is_not_called_short(tmp_path: Path) -> None:
    recipe = RECIPE.model_copy(update={"quick": True})
    _, page = _render(tmp_path, recipe=recipe)
    assert "Quick run: a test of the set-up, not a student to use." in page.text
    assert "Short training:" not in page.text
    assert "Quick run" not in _render(tmp_path)[1].text


def test_distances_are_shown_with_their_references(tmp_path: Path) -> None:
    references = build_references(other_seed=1.5, plain=1.25)
    evaluation = _evaluation().model_copy(update={"references": references})
    _, page = _render(tmp_path, evaluation=evaluation)
    assert "1.25 before training" in page.text
    assert "another seed" in page.text
    assert "Both are measured on 16 prompts." in page.text
