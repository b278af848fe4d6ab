"""A metric in one file of the user's, registered by one line, is everywhere after the next command."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from runs import Run

from condistill.evaluate.record import Evaluation
from condistill.workflow.sweep_table import measured, table

FILE = """
from condistill.evaluate.metrics.mean import MeanMetric
from condistill.evaluate.metrics.metric import IMAGES, register_metric


@register_metric
class Redness(MeanMetric):
    name = "redness"
    label = "Redness"
    description = "mean of the red pixels"
    direction = "higher"
    needs = (IMAGES,)

    def per_image(self, samples):
        return samples.features[IMAGES][..., 0].mean((1, 2))
"""


@pytest.mark.slow
def test_a_metric_of_one_file_is_in_every_result_of_a_run(
    run: Run, own_registries: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "redness.py").write_text(FILE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "redness", raising=False)
    __import__("redness")
    run.again()  # only the figures are made again, from the latents that are there
    models = json.loads((run.out / "metrics.json").read_text(encoding="utf-8"))["models"]
    assert all("redness" in models[name]["scores"]["unseen"] for name in ("teacher", "plain", "random_conditioning"))
    evaluation = Evaluation.load(run.out)
    assert any(each.metric == "redness" for each in evaluation.comparisons)
    page = (run.out / "report.html").read_text(encoding="utf-8")
    assert "Redness&nbsp;" in page
    assert "Redness: mean of the red pixels." in page
    assert 'aria-label="Redness on unseen prompts against parameters: teacher ' in page
    for cost in ("parameters", "macs", "evaluations", "latency"):
        assert (run.out / "plots" / f"redness-{cost}.svg").is_file()
    assert "has a Redness of" in run.printed  # the verdict, which has no other metric of quality
    for name in ("plain", "random_conditioning"):
        card = (run.out / "pipelines" / name / "README.md").read_text(encoding="utf-8")
        assert "Redness, unseen prompts" in card
    case: Any = SimpleNamespace(group="", seed=0, cases=[SimpleNamespace(label="half", name="plain")])
    assert "Redness, all" in table(measured([(case, evaluation)]))[0]
