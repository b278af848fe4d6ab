from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDPMScheduler,
    DiffusionPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
    EulerDiscreteScheduler,
    LCMScheduler,
)
from end_to_end import check_end_to_end, run_recipe
from tiny import build_dit, record_calls
from torch import Tensor

from condistill.config.sections import TeacherSettings
from condistill.errors import CondistillError
from condistill.pipelines.save import save_pipeline
from condistill.profiling.macs import macs
from condistill.teachers.families.dit import DiT
from condistill.teachers.load import load_teacher

LABELS = ["goldfish", "white shark"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16x16 images of latents `[4, 8, 8]`."""
    path = tmp_path_factory.mktemp("dit") / "pipeline"
    build_dit().save_pretrained(path, safe_serialization=True)
    return path


@pytest.fixture(scope="module")
def family(directory: Path) -> DiT:
    loaded = load_teacher(TeacherSettings(pipeline=str(directory)))
    assert isinstance(loaded, DiT)
    return loaded


@pytest.fixture
def oracle(directory: Path) -> DiTPipeline:
    """The same pipeline, loaded by diffusers alone."""
    pipeline = DiTPipeline.from_pretrained(directory, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def latents(seed: int, n: int = 2) -> Tensor:
    return torch.randn(n, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_labels_are_encoded_as_numbers_and_the_empty_prompt_as_the_null_class(family: DiT) -> None:
    labels = family.encode(["tench", "Tinca tinca", "goldfish", "999", "7", ""]).tensors["class_labels"]
    assert labels.tolist() == [0, 0, 1, 999, 7, 1000]


def test_a_prompt_that_is_not_a_label_is_refused_with_the_nearest_label(family: DiT) -> None:
    with pytest.raises(CondistillError, match=r"'goldfisch' is not a label .* to 999; did you mean 'goldfish'\?"):
        family.encode(["tench", "goldfisch"])
    for prompt in ("1000", "-1", "a photo of something else"):
        with pytest.raises(CondistillError, match=r"is not a label of this teacher, nor a number .* model_index\.json"):
            family.encode([prompt])


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_samples_are_those_of_the_pipelines_call(family: DiT, oracle: DiTPipeline, guidance_scale: float) -> None:
    """The call takes its noise from the generator, and its latents are recorded where they are decoded."""
    decoded = []
    oracle.vae.decode, decode = (lambda z: decoded.append(z) or decode(z)), oracle.vae.decode
    settings = {"num_inference_steps": 2, "guidance_scale": guidance_scale}
    images = oracle(
        oracle.get_label_ids(LABELS), generator=torch.Generator().manual_seed(3), output_type="np", **settings
    )
    samples = family.sample(family.denoiser, LABELS, latents(3), **settings)
    torch.testing.assert_close(samples / family.pipeline.vae.config.scaling_factor, decoded[0], rtol=1e-5, atol=1e-5)
    # half-way values may round either way
    assert np.abs(family.decode(samples) - 255.0 * images.images).max() <= 0.5 + 1e-2


def test_the_denoiser_gets_the_inputs_of_the_pipelines_call(family: DiT, oracle: DiTPipeline) -> None:
    settings = {"guidance_scale": 4.0, "num_inference_steps": 2}
    with record_calls(oracle.transformer) as calls:
        oracle([1, 2], output_type="np", **settings)
        family.sample(oracle.transformer, LABELS, calls[0].inputs["hidden_states"][:2], **settings)
    for expected, call in zip(calls[:2], calls[2:], strict=True):
        torch.testing.assert_close(call.inputs["hidden_states"], expected.inputs["hidden_states"], rtol=1e-5, atol=1e-5)
        assert torch.equal(call.inputs["timestep"], expected.inputs["timestep"])
        assert torch.equal(call.inputs["class_labels"], expected.inputs["class_labels"])
    assert calls[2].inputs["class_labels"].tolist() == [1, 2, 1000, 1000]


def test_the_prediction_is_the_output_without_its_variance(family: DiT) -> None:
    timesteps, condition = torch.tensor([3, 977]), family.encode(LABELS)
    with torch.no_grad():
        prediction = family.predict(family.denoiser, latents(0), timesteps, condition)
        output = family.denoiser(latents(0), timestep=timesteps, class_labels=torch.tensor([1, 2])).sample
    assert output.shape == (2, 8, 8, 8)
    assert torch.equal(prediction, output[:, :4])


def test_a_student_in_training_gets_every_label(family: DiT, directory: Path) -> None:
    """In training mode diffusers would replace a random tenth of the labels by the null class."""
    student = DiTTransformer2DModel.from_pretrained(directory / "transformer", use_safetensors=True)
    n, x_t = 64, latents(0, 1)
    condition = family.encode(["goldfish"] * n)
    with torch.no_grad():
        expected = family.predict(family.denoiser, x_t, torch.tensor([500]), condition[:1])
        predictions = family.predict(student.train(), x_t.repeat(n, 1, 1, 1), torch.full((n,), 500), condition)
    torch.testing.assert_close(predictions, expected.expand(n, -1, -1, -1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [DDPMScheduler, LCMScheduler])
def test_noise_that_a_scheduler_adds_depends_on_the_seed_of_the_image_alone(family: DiT, kind: Any) -> None:
    scheduler = kind.from_config(family.pipeline.scheduler.config)

    def sample(*seeds: int) -> Tensor:
        noise, prompts = latents(3, 1).expand(len(seeds), -1, -1, -1), ["tench"] * len(seeds)
        settings = {"num_inference_steps": 2, "guidance_scale": 1.0, "scheduler": scheduler}
        return family.sample(family.denoiser, prompts, noise, seeds=seeds, **settings)

    together = sample(5, 6)
    torch.testing.assert_close(together[1:], sample(6), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(together[0], together[1])


def test_labels_are_embedded_by_the_denoisers_own_embedding(family: DiT) -> None:
    embedding = family.text_embedding(["goldfish", "tench", "Tinca tinca"])
    rows = family.denoiser.transformer_blocks[0].norm1.emb.class_embedder.embedding_table.weight.double()
    difference = rows[1] - rows[1000]
    torch.testing.assert_close(embedding[0].double(), difference / difference.norm(), rtol=1e-4, atol=1e-5)
    assert torch.equal(embedding[1], embedding[2])


@pytest.mark.parametrize(
    ("lines", "distill", "message"),
    [
        (["tench", "a dog on a bench"], {}, "'a dog on a bench' is not a label of this teacher"),
        (
            ["tench", "goldfish"],
            {"conditioning": {"prompt_choice": {"interpolate": 0.5}}},
            r"prompt_choice\.interpolate .* set it to 0",
        ),
    ],
)
def test_prompts_that_cannot_be_encoded_or_blended_are_refused_before_anything_is_generated(
    directory: Path, tmp_path: Path, lines: list[str], distill: dict[str, Any], message: str
) -> None:
    with pytest.raises(CondistillError, match=message):
        run_recipe(directory, tmp_path, {"depth": 0.5}, lines=lines, distill=distill, cache={"size": 1})
    assert not list(tmp_path.rglob("shard-*"))


def test_a_saved_pipeline_keeps_its_labels(family: DiT, tmp_path: Path) -> None:
    save_pipeline(family, family.denoiser, tmp_path / "pipeline", card="A card")
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "pipeline", use_safetensors=True)
    assert type(pipeline) is DiTPipeline
    assert pipeline.get_label_ids(["Tinca tinca", "toilet paper"]) == [0, 999]
    assert pipeline.labels == family.pipeline.labels


@pytest.mark.slow
def test_macs_are_counted_from_the_config_alone(family: DiT) -> None:
    tokens = family.text_length
    assert macs(family.denoiser, size=16, text_length=tokens) > macs(family.denoiser, text_length=tokens) > 0


def test_only_the_default_resolution_is_supported(family: DiT) -> None:
    assert DiT(family.pipeline, resolution=16).latent_shape == (4, 8, 8)
    with pytest.raises(
        CondistillError,
        match=r"teacher\.resolution is 32; a DiTPipeline generates only images of its default 16 pixels",
    ):
        DiT(family.pipeline, resolution=32)


def test_another_number_of_classes_is_refused(oracle: DiTPipeline) -> None:
    oracle.transformer.register_to_config(num_embeds_ada_norm=10)
    with pytest.raises(CondistillError, match=r"has 10 classes; .* exactly 1000 classes"):
        DiT(oracle)


def test_a_scheduler_that_scales_its_starting_noise_is_refused(oracle: DiTPipeline) -> None:
    oracle.scheduler = EulerDiscreteScheduler.from_config(oracle.scheduler.config)
    with pytest.raises(CondistillError, match=r"is EulerDiscreteScheduler, .* set DDIMScheduler"):
        DiT(oracle)


@pytest.mark.slow
def test_a_whole_run_gives_a_student_that_plain_diffusers_samples(directory: Path, tmp_path: Path) -> None:
    lines = ["tench", "goldfish", "white shark", "bath tissue", "7", "8"]
    student = check_end_to_end(directory, tmp_path, {"depth": 0.5}, lines=lines)
    assert len(student.transformer.transformer_blocks) == 2
    images = student(student.get_label_ids(LABELS), num_inference_steps=2, output_type="np").images
    assert images.shape == (2, 16, 16, 3)
