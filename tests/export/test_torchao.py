from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from optional import run_with_optional
from safetensors import safe_open

from condistill.errors import CondistillError
from condistill.export import EXPORTERS, ExportOptions, Shape, find_source
from condistill.export.write import check_export, export

EXPORT_AND_LOAD = """
import json, sys
import numpy as np
import torch
from diffusers import DiffusionPipeline

from condistill import export_pipeline
from condistill.profiling.macs import macs
from condistill.profiling.timing import shapes_of

pipeline, out = sys.argv[1:]
export_pipeline(pipeline, "torchao", weights="int8", out=out)
images, plain = [], None
for directory in (pipeline, out):
    loaded = DiffusionPipeline.from_pretrained(directory, torch_dtype=torch.float32, safety_checker=None)
    loaded.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    plain = plain or loaded.unet
    images.append(loaded("a box", num_inference_steps=2, generator=generator, output_type="np").images)
macs(loaded.unet, size=(8, 8), text_length=77)
print(json.dumps({
    "is_timed_alone": shapes_of(loaded.unet) != shapes_of(plain),
    "difference": float(np.abs(images[0] - images[1]).max()),
    "kinds": sorted({type(weight).__name__ for weight in loaded.unet.parameters()}),
}))
"""


@pytest.mark.slow  # a process of its own, in which diffusers finds torchao
def test_a_quantised_pipeline_is_smaller_and_loads_in_plain_diffusers(tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "quantised"
    found = json.loads(run_with_optional("-c", EXPORT_AND_LOAD, str(tiny_pipeline_dir), str(out)).splitlines()[-1])
    assert "Int8Tensor" in found["kinds"]
    assert found["is_timed_alone"]
    assert 0 < found["difference"] < 0.1
    assert not [file for file in out.rglob("*") if file.suffix in (".bin", ".pt")]
    with safe_open(out / "unet" / "diffusion_pytorch_model.safetensors", "pt") as file:
        assert torch.int8 in {file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118 - no mapping
    record = json.loads((out / "export.json").read_text("utf-8"))
    (comparison,) = record["comparisons"]
    assert 0 < comparison["largest_difference"] < comparison["tolerance"]


def test_quantised_weights_need_torchao_and_a_known_kind(tiny_pipeline_dir: Path) -> None:
    source, exporter = find_source(str(tiny_pipeline_dir)), EXPORTERS["torchao"]
    assert exporter.check(Shape("SomePipeline", "SomeTransformer", {})) == ()
    with pytest.raises(CondistillError, match=r"--weights int2 is not possible .*choose from int8, fp8, int4"):
        check_export(source, exporter, ExportOptions(weights="int2"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_int4_without_a_gpu_is_refused_before_anything_is_written(
    tiny_pipeline_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = EXPORTERS["torchao"]
    monkeypatch.setattr(type(exporter), "packages", ())
    with pytest.raises(CondistillError, match="--weights int4 needs a GPU"):
        export(find_source(str(tiny_pipeline_dir)), exporter, tmp_path / "out", ExportOptions(weights="int4"))
    assert list(tmp_path.iterdir()) == []
