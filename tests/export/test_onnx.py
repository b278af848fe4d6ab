from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import LCMScheduler
from safetensors.torch import load_file, save_file
from tiny_parts import clip_tokenizer

from condistill.errors import CondistillError
from condistill.export import EXPORTERS, ExportOptions, Shape, Source, find_source
from condistill.export.compare import Precision, compare
from condistill.export.exporter import Comparison
from condistill.export.onnx import OPSET, keep_axes, load_family, onnx_runner, round_down, stored_dtype
from condistill.export.openvino import convert_graphs, openvino_runner
from condistill.export.write import check_export, export
from condistill.miniature import build
from condistill.teachers.family import Family

RUNNER = Path(__file__).parents[2] / "docs" / "examples" / "onnx_runner.py"
WITHOUT_TORCH = """
import runpy, sys
import numpy as np
for name in ("torch", "diffusers", "transformers", "condistill", sys.argv[5]):
    sys.modules[name] = None
generate = runpy.run_path(sys.argv[1])["generate"]
np.save(sys.argv[4], generate(sys.argv[2], "a small red star", noise=np.load(sys.argv[3])))
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """A Stable Diffusion pipeline whose U-Net has one layer in each of its blocks."""
    directory = tmp_path_factory.mktemp("smallest") / "pipeline"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = clip_tokenizer()
        denoiser = build.build_denoiser(
            in_channels=4,
            block_out_channels=(8, 16),
            norm_num_groups=4,
            attention_head_dim=2,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            mid_block_type=None,
        )
        parts = build.build_autoencoder(), build.build_text_encoder(tokenizer), tokenizer, denoiser
        build.assemble(*parts, build.build_scheduler("v_prediction")).save_pretrained(directory)
    (directory / "sampling.json").write_text('{"num_inference_steps": 5, "guidance_scale": 3.0}')
    return find_source(str(directory), student=None)


@pytest.fixture(scope="module")
def exported(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("onnx")
    EXPORTERS["onnx"].write(source, directory, ExportOptions())
    return directory


def expected_image(source: Source, noise: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the image `[H, W, 3]` in [0, 1] that the pipeline of diffusers generates."""
    family: Family = load_family(source)
    latents = family.sample(
        family.denoiser,
        ["a small red star"],
        torch.from_numpy(noise).float(),
        num_inference_steps=5,
        guidance_scale=3.0,
        scheduler=family.noise.solver,
    )
    with torch.no_grad():
        images = family.decode_to_tensor(latents)
    return (images[0].permute(1, 2, 0) / 2 + 0.5).clamp(0, 1).numpy()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_graphs_equal_torch_and_the_example_samples_without_it(
    backend: str, source: Source, exported: Path, tmp_path: Path
) -> None:
    for package in ("onnxscript", backend):
        pytest.importorskip(package)
    family, directory = load_family(source), exported
    if backend == "openvino":
        directory = tmp_path / "openvino"
        directory.mkdir()
        convert_graphs(exported, directory, ExportOptions(dtype="float32"))
        for file in exported.rglob("*.json"):
            (directory / file.relative_to(exported)).parent.mkdir(exist_ok=True)
            (directory / file.relative_to(exported)).write_bytes(file.read_bytes())
    run = openvino_runner(directory) if backend == "openvino" else onnx_runner(directory)
    comparisons = compare(family, run, Precision("float32"))
    assert [each.subject for each in comparisons] == ["text_encoder", "denoiser", "vae_decoder", "image"]
    assert all(each.holds for each in comparisons), comparisons
    assert all(0 < each.largest_difference < 1e-4 for each in comparisons), comparisons

    noise = np.random.default_rng(3).standard_normal((1, *family.latent_shape))
    np.save(tmp_path / "noise.npy", noise)
    other = "onnxruntime" if backend == "openvino" else "openvino"
    arguments = [str(each) for each in (RUNNER, directory, tmp_path / "noise.npy", tmp_path / "image.npy", other)]
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *arguments], check=True, timeout=120)
    difference = np.abs(np.load(tmp_path / "image.npy") - expected_image(source, noise)).max()
    assert difference < 1e-4


@pytest.mark.slow
def test_int8_weights_are_smaller_and_close_and_nothing_is_sent(
    source: Source, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("nncf")
    (tmp_path / "int8").mkdir()
    convert_graphs(exported, tmp_path / "int8", ExportOptions(weights="int8"))
    (tmp_path / "half").mkdir()
    convert_graphs(exported, tmp_path / "half", ExportOptions())
    sizes = [(tmp_path / kind / "denoiser.bin").stat().st_size for kind in ("int8", "half")]
    assert sizes[0] < 0.75 * sizes[1]
    assert sizes[1] < 0.6 * (exported / "denoiser.onnx").stat().st_size
    comparisons = compare(load_family(source), openvino_runner(tmp_path / "int8"), Precision("float16", 0.1, 0.25))
    assert all(each.holds for each in comparisons), comparisons
    import nncf.telemetry

    assert type(nncf.telemetry.telemetry).__name__ == "MagicMock"  # the stand-in that NNCF uses without the package


def damage_a_weight(graph: Path) -> None:
    """Change one number of one weight of a graph by a tenth of the largest one."""
    import onnx

    model = onnx.load(graph)
    weight = max(model.graph.initializer, key=lambda each: len(each.dims) * 10**9 + len(each.raw_data))
    values = onnx.numpy_helper.to_array(weight).copy()
    values.flat[0] += 0.1 * np.abs(values).max()
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, graph)


@pytest.mark.slow
def test_graphs_of_which_one_number_is_wrong_are_not_kept(
    source: Source, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(_: Source, directory: Path, __: ExportOptions) -> None:
        shutil.copytree(exported, directory, dirs_exist_ok=True)
        damage_a_weight(directory / "denoiser.onnx")

    monkeypatch.setattr(EXPORTERS["onnx"], "write", write)
    with pytest.raises(CondistillError, match=r"differs from the pipeline, so it was not kept: denoiser by") as caught:
        export(source, EXPORTERS["onnx"], tmp_path / "graphs", ExportOptions())
    assert "text_encoder" not in str(caught.value)
    assert "vae_decoder" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_graphs_of_other_sampling_settings_are_another_export(
    source: Source, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = tmp_path / "pipeline"
    shutil.copytree(source.directory, pipeline)
    exporter = EXPORTERS["onnx"]

    def write(_: Source, directory: Path, __: ExportOptions) -> None:
        shutil.copytree(exported, directory, dirs_exist_ok=True)

    monkeypatch.setattr(exporter, "write", write)
    monkeypatch.setattr(exporter, "verify", lambda *_: ())
    export(find_source(str(pipeline), student=None), exporter, tmp_path / "graphs", ExportOptions())
    (pipeline / "sampling.json").write_text('{"num_inference_steps": 8, "guidance_scale": 1.0}')
    with pytest.raises(CondistillError, match="holds an export of other files or options"):
        export(find_source(str(pipeline), student=None), exporter, tmp_path / "graphs", ExportOptions())


@pytest.mark.slow
def test_graphs_hold_no_paths_of_the_machine(exported: Path) -> None:
    for file in exported.glob("*.onnx"):
        assert b"site-packages" not in file.read_bytes(), file.name
    about = json.loads((exported / "pipeline.json").read_text())
    assert about["guidance_scale"] == 3.0
    assert about["num_inference_steps"] == 5


@pytest.mark.parametrize(("pipeline", "reason"), [("SanaPipeline", "dividing by 0"), ("DiTPipeline", "square")])
def test_families_that_the_exporter_cannot_export_are_refused_before_weights_are_read(
    pipeline: str, reason: str
) -> None:
    for name in ("onnx", "openvino"):
        assert reason in EXPORTERS[name].check(Shape(pipeline, "Transformer", {}))[0]


def test_a_difference_that_is_no_number_does_not_hold() -> None:
    assert not Comparison("image", float("nan"), 1.0).holds


def test_the_default_dtype_is_that_of_the_denoiser_if_it_is_float16_and_else_float32(
    source: Source, tmp_path: Path
) -> None:
    assert stored_dtype(source) == "float32"
    for dtype, expected in ((torch.float16, "float16"), (torch.bfloat16, "float32")):
        directory = tmp_path / expected
        shutil.copytree(source.directory, directory)
        file = directory / "unet" / "diffusion_pytorch_model.safetensors"
        save_file({name: tensor.to(dtype) for name, tensor in load_file(file).items()}, file)
        assert stored_dtype(find_source(str(directory), student=None)) == expected


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_options_that_a_graph_cannot_have_are_refused(name: str, source: Source) -> None:
    with pytest.raises(CondistillError, match="--dtype bfloat16 is not possible"):
        check_export(source, EXPORTERS[name], ExportOptions(dtype="bfloat16"))
    with pytest.raises(CondistillError, match="--weights int3 is not possible"):
        check_export(source, EXPORTERS[name], ExportOptions(weights="int3"))


def test_a_family_without_functions_of_tensors_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from condistill.teachers.exportable import Exportable
    from condistill.teachers.families.stable_diffusion import StableDiffusion

    monkeypatch.setattr(StableDiffusion, "encode_tokens", Exportable.encode_tokens)
    (reason,) = EXPORTERS["onnx"].check(Shape("StableDiffusionPipeline", "UNet2DConditionModel", {}))
    assert "stable_diffusion" in reason


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_a_package_that_is_missing_is_named_with_what_installs_it(
    name: str, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(EXPORTERS[name]), "packages", ("onnx_that_is_absent",))
    with pytest.raises(CondistillError, match=r'onnx_that_is_absent.*pip install "condistill\[export\]"'):
        check_export(source, EXPORTERS[name], ExportOptions())


def test_a_model_that_cannot_be_traced_is_named_with_the_reason_and_nothing_is_kept(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("advice") from ValueError("Mod(s24, 512) is inconsistent")

    monkeypatch.setattr(torch.onnx, "export", fail)
    monkeypatch.setattr(EXPORTERS["onnx"], "packages", (), raising=False)
    lines: list[str] = []
    with pytest.raises(CondistillError, match=r"text_encoder \(CLIPTextModel\).*Mod\(s24, 512\)"):
        export(source, EXPORTERS["onnx"], tmp_path / "graphs", ExportOptions(), say=lines.append)
    assert lines == ["onnx: writing text_encoder"]
    assert not list(tmp_path.iterdir())


def test_a_consistency_model_is_refused(source: Source, tmp_path: Path) -> None:
    directory = tmp_path / "pipeline"
    shutil.copytree(source.directory, directory)
    scheduler = LCMScheduler.from_config(json.loads((directory / "scheduler/scheduler_config.json").read_text()))
    scheduler.save_pretrained(directory / "scheduler")
    index = json.loads((directory / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "LCMScheduler"]
    (directory / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(CondistillError, match="sampled by a LCMScheduler"):
        EXPORTERS["onnx"].write(find_source(str(directory), student=None), tmp_path, ExportOptions())


def test_divisions_of_sizes_round_down(tmp_path: Path) -> None:
    ir = pytest.importorskip("onnx_ir")
    onnxruntime = pytest.importorskip("onnxruntime")
    kind = ir.TensorType(ir.DataType.INT64)
    inputs = [ir.Value(name=name, type=kind, shape=ir.Shape(["n"])) for name in ("a", "b")]
    division = ir.Node("", "Div", inputs, num_outputs=1, name="division")
    division.outputs[0].name = "floordiv_3"
    division.outputs[0].type, division.outputs[0].shape = kind, ir.Shape(["n"])
    graph = ir.Graph(inputs, division.outputs, nodes=[division], opset_imports={"": OPSET}, name="graph")
    round_down(graph)
    file = str(tmp_path / "graph.onnx")
    ir.save(ir.Model(graph, ir_version=10), file)
    a, b = np.array([-7, -6, 7, 0, -1]), np.array([2, 2, 2, 3, 8])
    (found,) = onnxruntime.InferenceSession(file).run(None, {"a": a, "b": b})
    assert found.tolist() == (a // b).tolist()


def test_a_squeeze_that_removes_no_axis_is_removed(tmp_path: Path) -> None:
    ir = pytest.importorskip("onnx_ir")
    onnxruntime = pytest.importorskip("onnxruntime")
    kind, shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["n", 3])
    x = ir.Value(name="x", type=kind, shape=shape)
    axis = ir.Value(name="axis", const_value=ir.tensor(np.array([1]), name="axis"))
    squeeze = ir.Node("", "Squeeze", [x, axis], num_outputs=1, name="squeeze")
    squeeze.outputs[0].shape = shape
    double = ir.Node("", "Add", [squeeze.outputs[0], x], num_outputs=1, name="double")
    double.outputs[0].name, double.outputs[0].type, double.outputs[0].shape = "y", kind, shape
    graph = ir.Graph(
        [x], double.outputs, nodes=[squeeze, double], initializers=[axis], opset_imports={"": OPSET}, name="graph"
    )
    keep_axes(graph)
    file = str(tmp_path / "graph.onnx")
    ir.save(ir.Model(graph, ir_version=10), file)
    (found,) = onnxruntime.InferenceSession(file).run(None, {"x": np.ones((2, 3), np.float32)})
    assert found.tolist() == [[2.0] * 3] * 2
