"""A run whose recipe names every network has every metric, and one of a file that was added."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from inception_weights import write_inception
from runs import tiny_recipe
from tiny_networks import write_clip, write_dinov2
from torchvision_stand_in import torchvision_stand_in

from condistill.evaluate.metrics import METRICS
from condistill.workflow.compress import compress

pytestmark = pytest.mark.slow
ADDED = '''
"""The share of the reference images' mean that the images' mean has, in DINOv2 features."""

import numpy as np

from condistill import register_metric
from condistill.evaluate.metrics import Metric, Score
from condistill.evaluate.metrics.metric import DINOV2
from condistill.evaluate.metrics.moments import Moments


class MeanShare(Metric):
    name = "mean_share"
    label = "Mean share"
    description = "size of the mean feature, as a share of the reference images'"
    direction = "higher"
    needs = (DINOV2,)
    reference = "moments"

    def __init__(self, context):
        super().__init__(context)
        self.moments = Moments()

    def update(self, samples):
        self.moments.update(samples.features[DINOV2])

    def merge(self, other):
        self.moments.merge(other.moments)

    def compute(self):
        of_reference = self.context.reference[DINOV2].moments.mean
        return Score(value=float(np.linalg.norm(self.moments.mean) / np.linalg.norm(of_reference)))


register_metric(MeanShare)
'''
OF_SETS = {"fid", "fd_dinov2", "kid", "cmmd", "precision", "recall", "density", "coverage", "mean_share"}
OF_ONE_IMAGE = {"hpsv2", "pickscore", "clip_score"}
TO_TEACHER = {"dinov2_distance", "latent_rmse"}


@pytest.fixture
def run(own_registries: None, tiny_pipeline_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run with tiny networks, 6 images of each split and two of each of three prompts."""
    (tmp_path / "mean_share.py").write_text(ADDED, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("mean_share")
    networks = {
        "dinov2": write_dinov2(tmp_path / "dinov2"),
        "inception": write_inception(tmp_path / "inception.safetensors"),
        **{name: write_clip(tmp_path / name, seed=seed) for seed, name in enumerate(("clip", "pickscore", "hpsv2"))},
    }
    settings = [f"evaluate.networks.{name}={path}" for name, path in networks.items()]
    settings += ["evaluate.prompts_per_split=6", "evaluate.diversity_prompts=3", "evaluate.diversity_seeds=2"]
    things = ("box", "ball", "cone", "star", "disc", "cube")
    prompts = "".join(f"{how} {thing}\n" for how in ("a", "two", "large", "small", "huge", "thin") for thing in things)
    for number in range(3):
        prompts += f"a star of size {number}\n"
    recipe = tiny_recipe(tmp_path, tiny_pipeline_dir, *settings, prompts=prompts)
    with torchvision_stand_in():
        return compress(recipe, tmp_path / "run")


def test_every_metric_of_the_networks_is_in_metrics_json(run: Path) -> None:
    evaluation: dict[str, Any] = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    teacher, student = (evaluation["models"][name]["scores"] for name in ("teacher", "plain"))
    everywhere = OF_ONE_IMAGE | {"inception_score", "diversity"}
    assert set(teacher["all"]) == everywhere  # none is a comparison of the teacher with itself
    assert set(student["all"]) == everywhere | OF_SETS | TO_TEACHER
    by_classifier = {name for name, metric in METRICS.items() if metric.is_detail} | {
        "all_correct",
        "frechet_classifier",
    }
    assert set(student["all"]) == set(METRICS) - by_classifier
    for name in OF_ONE_IMAGE | TO_TEACHER | {"kid", "cmmd", "precision", "density", "diversity"}:
        assert student["all"][name]["low"] <= student["all"][name]["value"] <= student["all"][name]["high"]
    compared = {(each["metric"], each["one"], each["other"]) for each in evaluation["comparisons"]}
    assert {name for name, one, other in compared if (one, other) == ("plain", "teacher")} == OF_ONE_IMAGE | {
        "diversity"
    }
    between = {name for name, one, other in compared if (one, other) == ("plain", "random_conditioning")}
    assert between == OF_ONE_IMAGE | TO_TEACHER | {"diversity"}
    assert evaluation["references"]["other_seed"]["all"].keys() == TO_TEACHER
    (table,) = run.rglob("images.parquet")
    assert set(pq.read_schema(table).names) >= OF_ONE_IMAGE | TO_TEACHER
    for page in (run / "report.html", run / "pipelines" / "plain" / "README.md"):
        assert "Mean share" in page.read_text(encoding="utf-8")
