"""The report: one HTML file that needs nothing else, no network and no script."""

from __future__ import annotations

import base64
import math
import mimetypes
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import yaml

from condistill.config.recipe import SPLITS, TEACHER, Recipe
from condistill.evaluate.record import finite, look, models
from condistill.report import plots
from condistill.report.tables import HEADINGS, attributes, cost_charts, costs, right_charts, scores
from condistill.report.verdict import subject, verdict
from condistill.utils.atomic import write_text
from condistill.utils.format import percent


@dataclass(frozen=True, slots=True)
class Picture:
    """One image of the grid; `right` is `right`, `wrong` or empty where nobody classified; no `uri`: not found."""

    model: str
    uri: str
    alt: str
    right: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Card:
    prompt: str
    pictures: list[Picture]


@dataclass(frozen=True, slots=True)
class Curve:
    """The same plot for a light and for a dark page, as data URIs."""

    title: str
    light: str
    dark: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class About:
    """What a student is: its lines on what was kept, and its settings as text."""

    name: str
    kept: list[str]
    settings: str


def write_report(
    out: Path,
    *,
    recipe: Recipe,
    metrics: Mapping[str, Any],
    grid: Mapping[str, Any],
    grid_folder: Path,
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
    students: Mapping[str, Mapping[str, Any]],
    title: str,
) -> Path:
    """Write the report of a run to `out`, whole or not at all; what was not measured is left out.

    Args:
        grid: per split, prompts with the images of every model, as file names in `grid_folder`.
        histories: per student, what was logged in training.
        students: per student, what was `kept` and its `settings`.
    """
    from jinja2 import Environment, StrictUndefined

    headline, detail = verdict(metrics)
    colours = _colours(metrics, histories)
    groups = [*scores(metrics), *costs(metrics)]
    grids = _grids(grid, grid_folder)
    page = {
        "title": title,
        "verdict": _unbroken(headline),
        "detail": _unbroken(detail),
        "miniature": metrics.get("classifier") == "miniature",
        "models": [(name, colours[name]) for name in models(metrics)],
        "scores": groups,
        "attributes": attributes(metrics),
        "has_rmse": any(row.label == "Latent RMSE" for group in groups for row in group.rows),
        "right_charts": right_charts(metrics, colours),
        "grids": grids,
        "marked": any(picture.right for _, cards in grids for card in cards for picture in card.pictures),
        "total": _total_curve(histories, colours),
        "curves": _noise_curves(histories),
        "cost_charts": cost_charts(metrics, colours),
        "students": [about for name, s in students.items() if (about := _about(name, s)).kept or about.settings],
        "made": _made(recipe, metrics),
        "recipe": recipe.to_yaml(),
        "version": metadata.version("condistill"),
    }
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = resources.files("condistill.report").joinpath("report.html.j2").read_text(encoding="utf-8")
    write_text(out, environment.from_string(template).render(page))
    return out


def _unbroken(sentence: str) -> str:
    """Numbers stay on one line with their units."""
    return re.sub(r"(?<=\d) (?=%|s\b)", "\u00a0", sentence)


def _colours(metrics: Mapping[str, Any], histories: Iterable[str]) -> dict[str, str]:
    """A colour class per model: the teacher neutral, the verdict's student first in the palette."""
    first = subject(metrics)
    names = dict.fromkeys([*([first] if first else []), *models(metrics), *histories])
    names.pop(TEACHER, None)
    palette = {name: f"c{i % len(plots.COLOURS)}" for i, name in enumerate(names)}
    return {TEACHER: "teacher", **palette}


# --- images


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _picture(model: str, file: Path, prompt: str, right: bool | None) -> Picture:
    from PIL import Image

    mark = "" if right is None else "right" if right else "wrong"
    try:
        with Image.open(file) as image:
            width, height = image.size
        uri = _uri(mimetypes.guess_type(file.name)[0] or "image/png", file.read_bytes())
    except OSError:
        return Picture(model, "", "", mark, 0, 0)
    alt = f"{model}: {prompt}" + (f" ({mark})" if mark else "")
    return Picture(model, uri, alt, mark, width, height)


def _grids(grid: Mapping[str, Any], folder: Path) -> list[tuple[str, list[Card]]]:
    """Per split, one card per prompt."""
    found = []
    for split in [s for s in SPLITS if grid.get(s)]:
        cards = []
        for entry in grid[split]:
            prompt = str(entry.get("prompt", ""))
            right = entry.get("right") or {}
            images = sorted((entry.get("images") or {}).items(), key=lambda item: item[0] != TEACHER)
            cards.append(
                Card(prompt, [_picture(name, folder / file, prompt, right.get(name)) for name, file in images])
            )
        found.append((HEADINGS[split], cards))
    return found


# --- curves


def _curve(title: str, draw: Callable[[plots.Ink], bytes | None], note: str = "") -> list[Curve]:
    light, dark = draw(plots.LIGHT), draw(plots.DARK)
    if light is None or dark is None:
        return []
    return [Curve(title, _uri("image/svg+xml", light), _uri("image/svg+xml", dark), note)]


def _total_curve(histories: Mapping[str, plots.History], colours: Mapping[str, str]) -> list[Curve]:
    palette = {name: int(colours[name].removeprefix("c")) for name in histories if name != TEACHER}
    return _curve("Total loss", lambda ink: plots.total_loss(histories, colours=palette, ink=ink))


def _noise_curves(histories: Mapping[str, plots.History]) -> list[Curve]:
    limits = plots.limits_of(list(histories.values()))
    curves: list[Curve] = []
    for name, history in histories.items():

        def draw(ink: plots.Ink, history: plots.History = history) -> bytes | None:
            return plots.loss_by_noise(history, limits=limits, ink=ink)

        curves += _curve(name, draw, _trained(history))
    return curves


def _trained(history: plots.History) -> str:
    """How long a student was trained, and on how many samples without a true target."""
    steps = [step for entry in history if (step := finite(entry.get("step"))) is not None]
    replaced_prompt = [share for entry in history if (share := finite(entry.get("replaced_prompt"))) is not None]
    told = [f"{int(max(steps)):,} steps".replace(",", "\u202f")] if steps else []
    if replaced_prompt:
        share = math.fsum(replaced_prompt) / len(replaced_prompt)
        told.append(f"{percent(share)} of samples with another prompt than their own, none, or on a path")
    return ", ".join(told)


# --- text


def _about(name: str, student: Mapping[str, Any]) -> About:
    settings = student.get("settings") or {}
    text = yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True) if settings else ""
    return About(name, [str(line) for line in student.get("kept") or ()], text)


def _made(recipe: Recipe, metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How the figures came about, as far as it is known."""
    images = {s: n for s in SPLITS if (n := look(metrics, "images_per_split", s)) is not None}
    fewest = min((n for n in images.values() if n > 0), default=None)
    classified = metrics.get("classifier", "none") != "none"
    spread = any(model.get("spread") for model in models(metrics).values())
    lines = [
        ("Teacher", recipe.teacher.pipeline),
        ("Images per split", ", ".join(f"{split} {count:.0f}" for split, count in images.items())),
        ("Seeds", ", ".join(str(seed) for seed in metrics.get("seeds") or ())),
        ("Spread", "± is the spread over the seeds, each with its own prompts and noise" if spread else ""),
        (
            "Sampling error",
            f"a share measured on {fewest:.0f} images has a standard error of up to {50 / math.sqrt(fewest):.1f} points"
            if fewest and classified
            else "",
        ),
        ("Inference steps", _plain(metrics.get("num_inference_steps"))),
        ("Guidance scale", _plain(metrics.get("guidance_scale"))),
        ("Starting noise", "the same for every model, prompt by prompt" if models(metrics) else ""),
        ("Device", _plain(metrics.get("device"))),
        ("torch", _plain(metrics.get("torch"))),
        ("condistill", metadata.version("condistill")),
    ]
    return [(label, text) for label, text in lines if text]


def _plain(value: Any) -> str:
    return "" if value is None else str(value)
