"""Layouts of transformers against the loader of stable-diffusion.cpp; see `helpers/sdcpp.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from layouts import SD35_LARGE, config_of, on_meta, original, shape_of
from sdcpp import load_denoiser

from condistill.export.single_file import LAYOUTS

pytestmark = pytest.mark.slow
CUT = {"num_layers": 2, "num_single_layers": 3}
FLUX, SD3, QWEN = "FluxTransformer2DModel", "SD3Transformer2DModel", "QwenImageTransformer2DModel"
MEDIUM = config_of("sd35_medium")[1]
SHAPES: list[tuple[str, str, dict[str, Any]]] = [
    (FLUX, "Flux", {"guidance_embeds": True}),  # whole
    (FLUX, "Flux", CUT),
    (FLUX, "Flux Fill", {**CUT, "guidance_embeds": True, "in_channels": 384, "out_channels": 64}),
    (FLUX, "Flux", {**CUT, "num_attention_heads": 12, "joint_attention_dim": 2048}),
    (FLUX, "Flux", {**CUT, "pooled_projection_dim": 512}),
    (SD3, "SD3.x", MEDIUM),
    (SD3, "SD3.x", {**MEDIUM, "num_layers": 18}),
    (SD3, "SD3.x", {**MEDIUM, "dual_attention_layers": (0, 2)}),
    (SD3, "SD3.x", {**SD35_LARGE, "num_layers": 30}),
    (QWEN, "Qwen Image", {"num_layers": 2}),
    (QWEN, "Qwen Image", {"num_layers": 2, "num_attention_heads": 12}),
]


@pytest.mark.parametrize(("kind", "version", "config"), SHAPES)
def test_the_check_refuses_exactly_what_stable_diffusion_cpp_does_not_load(
    tmp_path: Path, kind: str, version: str, config: dict[str, Any]
) -> None:
    denoiser = on_meta(kind, config)
    found = load_denoiser(tmp_path, original(denoiser))
    assert found.version == version
    reasons = LAYOUTS[kind].check_sdcpp(shape_of(denoiser))
    assert bool(found.problems) == bool(reasons), (reasons, found.problems[:3])
