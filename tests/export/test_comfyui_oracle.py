from __future__ import annotations

import pytest
import torch
from comfyui import CHECKOUT, PYTHON, ComfyUIError, comfyui

FLUX = {
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": 768,
    "context_in_dim": 4096,
    "hidden_size": 3072,
    "mlp_ratio": 4.0,
    "num_heads": 24,
    "depth": 2,
    "depth_single_blocks": 3,
    "axes_dim": [16, 56, 56],
    "theta": 10_000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": True,
}


def test_without_a_checkout_of_comfyui_its_tests_are_skipped_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    for missing, other in ((CHECKOUT, PYTHON), (PYTHON, CHECKOUT)):
        monkeypatch.delenv(missing, raising=False)
        monkeypatch.setenv(other, "there")
        with pytest.raises(pytest.skip.Exception, match=f"set {CHECKOUT} to a checkout of ComfyUI and {PYTHON}"):
            comfyui()


@pytest.mark.slow
def test_comfyui_detects_its_own_model_and_what_differs_from_it() -> None:
    program = comfyui()
    shapes = program.names("comfy.ldm.flux.model.Flux", FLUX)
    weights = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    found = program.detect(weights)
    assert found is not None
    assert found["model_class"] == "Flux"
    assert {name: found["unet_config"][name] for name in FLUX} == FLUX
    assert (found["missing"], found["unexpected"], found["wrong_shapes"]) == ([], [], {})
    wrong = weights | {"other": weights["img_in.bias"], "img_in.bias": weights["guidance_in.in_layer.bias"][:7]}
    del wrong["double_blocks.1.img_mod.lin.bias"]
    found = program.detect(wrong)
    assert found is not None
    assert found["missing"] == ["double_blocks.1.img_mod.lin.bias"]
    assert found["unexpected"] == ["other"]
    assert found["wrong_shapes"] == {"img_in.bias": [[7], [3072]]}
    assert program.detect({"some.weight": torch.empty(2)}) is None
    with pytest.raises(ComfyUIError, match="NoModule"):
        program.names("comfy.ldm.flux.model.NoModule", {})
