from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from loras import attention_layers, matrices
from optional import run_with_optional
from safetensors.torch import load_file

from condistill.config.sections import LoraSettings, StudentSettings
from condistill.errors import CondistillError
from condistill.export.lora.file import check_layout, write_lora
from condistill.export.lora.reindex import reindex
from condistill.students.derive import derive_student
from condistill.teachers.lora import LoraLayer, fuse, read_lora

CONV = "down_blocks.0.resnets.0.conv1"


@pytest.fixture(scope="module")
def pipeline(tiny_pipeline_dir: Path) -> Any:
    return StableDiffusionPipeline.from_pretrained(tiny_pipeline_dir, use_safetensors=True)


def lora_of(pipeline: Any, *, factor: float = 0.5, dtype: torch.dtype = torch.float32) -> list[LoraLayer]:
    """Return a LoRA of two ranks: of all attention layers, a convolution and the text encoder."""
    layers = []
    for component, paths in (
        ("unet", [*attention_layers(pipeline.unet), CONV]),
        (
            "text_encoder",
            [f"text_model.{path.removeprefix('text_model.')}" for path in attention_layers(pipeline.text_encoder)],
        ),
    ):
        model = getattr(pipeline, component)
        known = {path: path if component == "unet" else path_in(model, path) for path in paths}
        found = matrices(model, known.values())
        for path, own in known.items():
            down, up = (matrix.to(dtype) for matrix in found[own])
            layers.append(LoraLayer(component, path, down, up, factor))
    first = layers[0]
    layers[0] = LoraLayer(first.component, first.module, first.down[:1], first.up[:, :1], factor)
    return layers


def path_in(model: Any, path: str) -> str:
    return path if hasattr(model, "text_model") else path.removeprefix("text_model.")


def added(layers: list[LoraLayer]) -> dict[tuple[str, str], torch.Tensor]:
    """Return what a LoRA adds, by component and layer."""
    return {
        (layer.component, layer.module): layer.delta(torch.Size([layer.up.shape[0], *layer.down.shape[1:]]))
        for layer in layers
    }


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
def test_diffusers_reads_what_was_written(layout: str, pipeline: Any, tmp_path: Path) -> None:
    layers = lora_of(pipeline)
    write_lora(tmp_path / "a.safetensors", layers, layout, components=list(pipeline.components))
    settings = LoraSettings(path=str(tmp_path / "a.safetensors"))
    found = added(read_lora(type(pipeline), settings, pipeline.components))
    expected = added(layers)
    assert found.keys() == expected.keys()
    for place, tensor in expected.items():
        torch.testing.assert_close(found[place], tensor, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("factor", "dtype"), [(0.5, torch.float16), (0.3, torch.float32)])
def test_a_matrix_stays_narrow_where_its_dtype_holds_it_with_the_factor(
    factor: float, dtype: torch.dtype, tmp_path: Path
) -> None:
    layer = LoraLayer("unet", "a", torch.ones(1, 2).half(), torch.tensor([[1.0], [3.0]]).half(), factor)
    write_lora(tmp_path / "a.safetensors", [layer], "diffusers", components=["unet"])
    up = load_file(tmp_path / "a.safetensors")["unet.a.lora_B.weight"]
    assert up.dtype == dtype
    assert torch.equal(up.float(), layer.up.float() * factor)


@pytest.mark.slow
def test_plain_diffusers_with_peft_loads_the_file() -> None:
    """Run the next test, which is skipped here, where there is peft."""
    if importlib.util.find_spec("peft") is None:
        test = "test_plain_diffusers_loads_it_into_a_student_that_generates_as_with_the_sum_of_the_weights"
        printed = run_with_optional("-m", "pytest", "-n", "0", "-m", "", f"{__file__}::{test}")
        assert "2 passed" in printed


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
def test_plain_diffusers_loads_it_into_a_student_that_generates_as_with_the_sum_of_the_weights(
    layout: str, tiny_pipeline_dir: Path, tmp_path: Path
) -> None:
    pytest.importorskip("peft", reason="diffusers loads LoRAs through peft")
    loaded, summed = (StableDiffusionPipeline.from_pretrained(tiny_pipeline_dir) for _ in range(2))
    student = derive_student(loaded.unet, StudentSettings(preset="b-small", width=0.5))
    assert student.layers is not None
    layers = reindex(lora_of(loaded), student.layers, "unet").layers
    loaded.unet, summed.unet = student.denoiser.eval(), copy.deepcopy(student.denoiser.eval())
    write_lora(tmp_path / "a.safetensors", layers, layout, components=list(loaded.components))
    loaded.load_lora_weights(tmp_path / "a.safetensors")
    fuse(layers, summed.components)
    images = [
        each("a star", num_inference_steps=2, output_type="np", generator=torch.Generator().manual_seed(0)).images
        for each in (loaded, summed)
    ]
    torch.testing.assert_close(*map(torch.from_numpy, images), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("layout", "components", "message"),
    [
        ("kohya", ["transformer"], "--lora-layout kohya is for pipelines with a U-Net; use --lora-layout diffusers"),
        ("comfy", ["unet"], "--lora-layout comfy is not known; choose from diffusers, kohya"),
    ],
)
def test_a_layout_that_cannot_be_written_is_refused(layout: str, components: list[str], message: str) -> None:
    with pytest.raises(CondistillError, match=message):
        check_layout(layout, components)
