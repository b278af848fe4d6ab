"""docs/metrics.md describes every metric as the code has it."""

from __future__ import annotations

import re
from pathlib import Path

from condistill.evaluate.metrics import METRICS

PAGE = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text(encoding="utf-8")
LINES = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("|")]
ROWS = {cells[1].strip("`"): cells for cells in LINES if len(cells) == 6 and cells[1].startswith("`")}
DOCUMENTED = {name: metric for name, metric in METRICS.items() if not metric.is_detail}


def test_the_table_has_every_metric_that_is_no_detail() -> None:
    assert set(ROWS) == set(DOCUMENTED)
    for name, metric in DOCUMENTED.items():
        assert ROWS[name][:1] + ROWS[name][2:3] == [metric.label, metric.direction]


def test_the_network_of_a_metric_is_that_of_its_feature() -> None:
    networks = {"inception_logits": "inception", "clip_image": "clip", "clip_score": "clip", "latents": "none"}
    networks |= dict.fromkeys(("all_correct", "classifier_features"), "classifier")
    for name, metric in DOCUMENTED.items():
        assert ROWS[name][4].strip("`") == networks.get(metric.needs[0], metric.needs[0])


def test_a_metric_with_a_caution_has_none_from_the_documented_number_of_images_on() -> None:
    cautious = [name for name, metric in DOCUMENTED.items() if metric.caution(10)]
    assert {"fid", "fd_dinov2", "inception_score", "precision", "recall"} <= set(cautious)
    for name in cautious:
        number = int(ROWS[name][5].replace(",", ""))
        assert DOCUMENTED[name].caution(number - 1)
        assert not DOCUMENTED[name].caution(number)


def test_every_metric_has_a_paragraph_of_at_most_three_lines() -> None:
    paragraphs = [part for part in PAGE.split("\n\n") if part.startswith("**")]
    for metric in DOCUMENTED.values():
        words = re.compile(rf"\*\*{re.escape(metric.label)}\*\*", re.IGNORECASE)
        (found,) = [part for part in paragraphs if words.search(part)]
        assert len(found.splitlines()) <= 3
