from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from condistill import compress
from condistill.config.recipe import Recipe
from condistill.config.sections import StudentSettings
from condistill.distill import deriving as stage
from condistill.errors import CondistillError
from condistill.students.derive import derive_student
from condistill.students.scores.calibration import Calibration, calibration_batches
from condistill.students.scores.channels import channel_importance
from condistill.students.scores.record import Scores
from condistill.students.settle import IMPORTANCE_NAME
from condistill.students.width import channel_selections, narrow, shares


def batches(family, cache, *, batch_size=4):
    return calibration_batches(family, Calibration(cache, seed=0, batch_size=batch_size), samples=4)


@pytest.fixture(scope="module")
def scores(tiny_family, tiny_cache):
    """The scores of each kind, over the same four samples."""
    return {
        kind: channel_importance(tiny_family, kind, batches(tiny_family, tiny_cache))
        for kind in ("activation", "taylor")
    }


def test_every_output_channel_of_every_layer_has_a_score_and_the_teacher_does_not_change(
    tiny_family, tiny_cache, scores
):
    denoiser = tiny_family.denoiser

    def hooks() -> int:
        return sum(len(module._forward_hooks) for module in denoiser.modules())

    before = hooks()  # trainers of other tests may have left some
    channel_importance(tiny_family, "taylor", batches(tiny_family, tiny_cache))
    assert hooks() == before
    layers = {
        name: layer for name, layer in denoiser.named_modules() if hasattr(layer, "weight") and layer.weight.dim() > 1
    }
    for by_layer in scores.values():
        assert by_layer.keys() == layers.keys()
        for name, score in by_layer.items():
            assert score.shape == (len(layers[name].weight),)
            assert (score >= 0).all()
            assert score.dtype == torch.float32
    assert all(parameter.grad is None for parameter in denoiser.parameters())


def test_activation_is_the_root_mean_square_of_a_layers_output(tiny_family, tiny_cache, scores):
    outputs = {}
    names = ("down_blocks.0.resnets.0.conv1", "mid_block.attentions.0.transformer_blocks.0.attn2.to_k")
    handles = [
        tiny_family.denoiser.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: outputs.update({name: output.double()})
        )
        for name in names
    ]
    (batch,) = batches(tiny_family, tiny_cache)
    with torch.no_grad():
        tiny_family.predict(tiny_family.denoiser, batch.x_t, batch.timesteps, batch.condition)
    for handle in handles:
        handle.remove()
    convolution, keys = (outputs[name] for name in names)
    expected = [convolution.square().mean((0, 2, 3)).sqrt(), keys.square().mean((0, 1)).sqrt()]
    for name, values in zip(names, expected, strict=True):
        torch.testing.assert_close(scores["activation"][name].double(), values, rtol=1e-5, atol=1e-7)


def test_taylor_is_the_change_of_the_error_if_a_channel_is_scaled(tiny_family, tiny_cache, scores):
    # d/ds of the squared error with the channel's output times s, at s = 1, by a difference of both sides
    (batch,) = batches(tiny_family, tiny_cache)
    name, channel, width = "up_blocks.1.resnets.0.conv1", 3, 1e-2

    def error(factor):
        def scale(_module, _inputs, output):
            changed = output.clone()
            changed[:, channel] *= factor
            return changed

        handle = tiny_family.denoiser.get_submodule(name).register_forward_hook(scale)
        with torch.no_grad():
            prediction = tiny_family.predict(tiny_family.denoiser, batch.x_t, batch.timesteps, batch.condition)
        handle.remove()
        return (prediction - batch.target).double().square().sum() / len(prediction)

    slope = (error(1 + width) - error(1 - width)) / (2 * width)
    assert slope.abs() > 1e-6
    torch.testing.assert_close(scores["taylor"][name][channel].double(), slope.abs(), rtol=2e-2, atol=1e-6)


@pytest.mark.parametrize("kind", ["activation", "taylor"])
def test_batches_of_any_size_give_the_same_scores(tiny_family, tiny_cache, scores, kind):
    again = channel_importance(tiny_family, kind, batches(tiny_family, tiny_cache, batch_size=3))
    largest = {name: score.max() for name, score in scores[kind].items()}
    for name, score in again.items():
        torch.testing.assert_close(score, scores[kind][name], rtol=1e-3, atol=1e-4 * float(largest[name]))


def test_a_width_keeps_the_channels_with_the_largest_scores(tiny):
    teacher = tiny()
    layers = [name for name, layer in teacher.named_modules() if hasattr(layer, "weight") and layer.weight.dim() > 1]
    importance = {name: torch.arange(len(teacher.get_submodule(name).weight)).float() for name in layers}
    student = narrow(teacher, (8, 16, 16), importance)
    selections = channel_selections(teacher, student, importance)
    assert selections["down_blocks.1.attentions.0.proj_in.weight"][0].tolist() == list(range(16, 32))
    assert torch.equal(
        student.mid_block.resnets[0].conv1.bias, teacher.mid_block.resnets[0].conv1.bias.view(4, 8)[:, 4:].flatten()
    )
    assert channel_selections(teacher, student)["down_blocks.1.attentions.0.proj_in.weight"][0].tolist() != list(
        range(16, 32)
    )
    del importance["conv_in"]
    with pytest.raises(CondistillError, match="no scores of conv_in"):
        narrow(teacher, (8, 16, 16), importance)


def test_a_layer_with_large_activations_has_no_more_weight_in_a_stream():
    assert torch.equal(shares(torch.tensor([300.0, 100.0])), shares(torch.tensor([3.0, 1.0])))
    assert torch.equal(shares(torch.zeros(2)), torch.tensor([0.5, 0.5]))


@pytest.mark.slow
def test_scores_follow_their_layers_where_others_are_removed(tiny_family, scores):
    teacher = tiny_family.denoiser
    importance = {name: score.flip(0) if "resnets.2" in name else score for name, score in scores["taylor"].items()}
    settings = StudentSettings(preset="b-tiny", width=0.5, importance="taylor")
    student = derive_student(teacher, settings, scores=Scores(importance)).denoiser
    # the second layer of the student's first up block was the third of the teacher's second
    name, source = "up_blocks.0.resnets.1", "up_blocks.1.resnets.2"
    written = shares(importance[f"{source}.conv1"]) + shares(importance[f"{source}.time_emb_proj"])
    groups = written.view(4, -1)
    kept = groups.argsort(dim=1, descending=True, stable=True)[:, : groups.shape[1] // 2].sort(dim=1).values
    rows = (kept + torch.arange(4)[:, None] * groups.shape[1]).flatten()
    assert torch.equal(student.get_submodule(name).conv1.bias, teacher.get_submodule(source).conv1.bias[rows])


def test_activations_that_half_precision_cannot_hold_are_an_error(tiny_family, tiny_cache):
    class Overflowing:
        denoiser = tiny_family.denoiser

        def predict(self, denoiser, x_t, timesteps, condition):
            return tiny_family.predict(denoiser, x_t * torch.inf, timesteps, condition)

    with pytest.raises(CondistillError, match=r"'activation': the activations of \S+ are too large.*teacher\.dtype"):
        channel_importance(Overflowing(), "activation", batches(tiny_family, tiny_cache))


@pytest.mark.slow
def test_a_run_chooses_channels_by_the_scores_in_its_directory(tiny_pipeline_dir, tiny_prompts, tmp_path, monkeypatch):
    used = []

    def derive(*args, **options):
        used.append(options["scores"].channel_importance)
        return derive_student(*args, **options)

    monkeypatch.setattr(stage, "derive_student", derive)
    (tmp_path / "prompts.txt").write_text("\n".join(tiny_prompts), encoding="utf-8")
    data = {
        "teacher": {"pipeline": str(tiny_pipeline_dir)},
        "prompts": {"files": ["prompts.txt"]},
        "cache": {"size": 4, "num_inference_steps": 1, "batch_size": 4},
        "student": {"width": 0.5, "keep": {"mid_block": []}, "importance": "taylor"},
        "distill": {"steps": 1, "batch_size": 2, "preview_every": 0},
    }
    out = compress(Recipe.parse(json.dumps(data), folder=tmp_path), tmp_path / "run", until="distill")
    kept = load_file(out / "distill" / "random_conditioning" / IMPORTANCE_NAME)
    assert used[0].keys() == kept.keys()
    assert all(torch.equal(used[0][name], score) for name, score in kept.items())
    config = json.loads((out / "pipelines" / "random_conditioning" / "unet" / "config.json").read_text("utf-8"))
    assert (config["mid_block_type"], config["block_out_channels"]) == (None, [8, 16, 16])
