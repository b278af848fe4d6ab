from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import TINY

from condistill.pipelines.sampling import SAMPLING_NAME
from condistill.studio.engine import Cancelled, Engine, ImageRequest, ModelImage, Watch
from condistill.studio.loading import Models
from condistill.studio.sources import find_sources

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", TINY)
def test_every_family_generates_from_the_seed_alone_and_stops_between_steps(name: str, tmp_path: Path) -> None:
    tiny = TINY[name]
    tiny.build().save_pretrained(tmp_path / name, safe_serialization=True)
    sampling = {"num_inference_steps": 3} | ({"resolution": tiny.resolution} if tiny.resolution else {})
    (tmp_path / name / SAMPLING_NAME).write_text(json.dumps(sampling), encoding="utf-8")
    sources = find_sources([str(tmp_path / name)])
    engine = Engine(Models(sources.models, torch.device("cpu")))
    request = ImageRequest(tiny.prompts[0], (name,), 3, 3, 2.0)
    steps: list[int] = []
    watch = Watch(on_step=lambda *step: steps.append(step[1]))
    first, second = (next(engine.generate(request, each)) for each in (watch, Watch()))
    assert isinstance(first, ModelImage), first
    assert isinstance(second, ModelImage)
    assert np.array_equal(first.pixels, second.pixels)
    assert steps[0] == 0
    assert max(steps) == 2
    stopping = Watch()
    stopping.on_step = lambda *step: stopping.cancelled.set() if step[1] == 1 else None
    with pytest.raises(Cancelled):
        next(engine.generate(request, stopping))
