"""SVG files of matplotlib as a part of the page: one copy of each, whose colours follow the theme."""

from __future__ import annotations

import re
from collections.abc import Mapping

from condistill.report.plots import LIGHT, shades_of

_GLYPH = re.compile(r'<path id="(DejaVuSans[^"]*)"[^>]*/>')
_ROUNDED = re.compile(r'\bd="[^"]*"|translate\([^)]*\)|\b[xy]="[^"]*"')
_DECIMALS = re.compile(r"(\d\.\d\d)\d+")


def colour_variables(count: int) -> dict[str, str]:
    """Return the CSS variable of each colour of a light plot.

    Args:
        count: tenths of the noise level, or another number of shades.
    """
    named = {LIGHT.text: "--soft", LIGHT.line: "--line", LIGHT.teacher: "--teacher"}
    named |= {colour: f"--c{number}" for number, colour in enumerate(LIGHT.colours)}
    return named | {shade: f"--n{number}" for number, shade in enumerate(shades_of(LIGHT, count))}


class Inliner:
    """Turns SVG files into elements of one page, which share the outlines of their letters."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        """Begin a page.

        Args:
            variables: the CSS variable that each colour becomes.
        """
        self._variables = variables
        self._glyphs: dict[str, str] = {}

    def inline(self, svg: bytes, *, prefix: str) -> str:
        """Return an SVG file as an element of the page.

        Args:
            prefix: of every id but those of letters; no two elements of a page have the same.
        """
        text = svg.decode("utf-8")
        text = text[text.index("<svg") :]
        text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", text, flags=re.DOTALL)
        head, rest = text.split(">", 1)
        head = re.sub(r'\s(?:xmlns(?::\w+)?|version|width|height)="[^"]*"', "", head)
        text = head.replace("<svg", '<svg aria-hidden="true" focusable="false"', 1) + ">" + rest
        text = _GLYPH.sub(self._keep_glyph, re.sub(r"\s+", " ", text))
        text = _ROUNDED.sub(lambda found: _DECIMALS.sub(r"\1", found[0]), text).replace("xlink:href", "href")
        used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text))
        names = {name for pair in used for name in pair if name}
        text = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in names else "", text)
        own = names - set(self._glyphs)
        text = re.sub(
            r'(\bid="|href="#|url\(#)([^")]+)', lambda f: f[1] + (f"{prefix}-" if f[2] in own else "") + f[2], text
        )
        text = re.sub(r"<defs>\s*</defs>|<g>\s*</g>|<g/>", "", text)
        for colour, variable in self._variables.items():
            text = re.sub(re.escape(colour) + r"\b", f"var({variable})", text, flags=re.IGNORECASE)
        return re.sub(r"> <", "><", text)

    def glyphs(self) -> str:
        """Return the outlines of all letters as one element, which shows nothing by itself."""
        outlines = "".join(self._glyphs.values())
        return f'<svg aria-hidden="true" focusable="false" width="0" height="0"><defs>{outlines}</defs></svg>'

    def _keep_glyph(self, found: re.Match[str]) -> str:
        self._glyphs.setdefault(found[1], found[0])
        return ""
