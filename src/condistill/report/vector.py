"""SVG files of matplotlib as a part of the page: one copy of each, whose colours follow the theme."""

from __future__ import annotations

import re

from condistill.report.plots import LIGHT, shades_of

_PREFIXED = re.compile(r'(\bid="|href="#|url\(#)')


def colour_variables(count: int) -> dict[str, str]:
    """Return the CSS variable of each colour of a light plot.

    Args:
        count: tenths of the noise level, or another number of shades.
    """
    named = {LIGHT.text: "--soft", LIGHT.line: "--line", LIGHT.teacher: "--teacher"}
    named |= {colour: f"--c{number}" for number, colour in enumerate(LIGHT.colours)}
    return named | {shade: f"--n{number}" for number, shade in enumerate(shades_of(LIGHT, count))}


def inline(svg: bytes, variables: dict[str, str], *, prefix: str) -> str:
    """Return an SVG file as an element of an HTML page.

    Args:
        variables: the CSS variable that each colour becomes.
        prefix: of every id; no two elements of a page have the same.
    """
    text = svg.decode("utf-8")
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = (
        re.sub(r'\s(?:xmlns(?::\w+)?|version|width|height)="[^"]*"', "", text[: text.index(">")], count=0)
        + text[text.index(">") :]
    )
    text = text.replace("xlink:href", "href").replace(' type="text/css"', "")
    text = _PREFIXED.sub(rf"\g<1>{prefix}-", text)
    text = re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)  # it would be that of the whole page
    text = re.sub(r"<defs>\s*</defs>", "", text)
    for colour, variable in variables.items():
        text = re.sub(re.escape(colour) + r"\b", f"var({variable})", text, flags=re.IGNORECASE)
    text = text.replace("<svg", '<svg aria-hidden="true" focusable="false"', 1)
    return re.sub(r"\s+", " ", text)
