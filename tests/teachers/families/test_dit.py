from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contract import check_end_to_end, run_whole
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
    EulerDiscreteScheduler,
    LCMScheduler,
)

from condistill.config.sections import TeacherSettings
from condistill.errors import CondistillError
from condistill.pipelines.save import save_pipeline
from condistill.profiling.macs import macs
from condistill.teachers.families.dit import DiT
from condistill.teachers.load import load_teacher

LABELS = {
    0: "tench, Tinca tinca",
    1: "goldfish",
    2: "great white shark, white shark",
    999: "bath tissue, toilet paper",
}
TWO = ["goldfish", "white shark"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16x16 images of latents `[4, 8, 8]`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline = DiTPipeline(
            transformer=DiTTransformer2DModel(
                num_attention_heads=2, attention_head_dim=8, out_channels=8, num_layers=4, sample_size=8
            ),
            vae=AutoencoderKL(
                block_out_channels=(8, 8),
                down_block_types=("DownEncoderBlock2D",) * 2,
                up_block_types=("UpDecoderBlock2D",) * 2,
                norm_num_groups=4,
            ),
            scheduler=DDIMScheduler(clip_sample=False),
        )
    # as published pipelines have their labels; diffusers itself saves none
    pipeline.register_to_config(id2label=LABELS)
    path = tmp_path_factory.mktemp("dit") / "pipeline"
    pipeline.save_pretrained(path, safe_serialization=True)
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


def latents(seed: int, n: int = 2) -> torch.Tensor:
    return torch.randn(n, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_labels_are_their_numbers_and_nothing_is_the_null_class(family: DiT) -> None:
    given = family.encode(["tench", "Tinca tinca", "goldfish", "999", "7", ""]).tensors["class_labels"]
    assert given.tolist() == [0, 0, 1, 999, 7, 1000]
    assert family.encode(["", ""]).tensors["class_labels"].tolist() == [1000, 1000]


def test_what_is_no_label_is_refused_with_the_nearest(family: DiT) -> None:
    with pytest.raises(CondistillError, match=r"'goldfisch' is not a label .* to 999; did you mean 'goldfish'\?"):
        family.encode(["tench", "goldfisch"])
    for prompt in ("1000", "-1", "a photo of something else"):
        with pytest.raises(CondistillError, match=r"is not a label of this teacher, nor a number .* model_index\.json"):
            family.encode([prompt])


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_samples_are_those_of_the_pipelines_own_call(family: DiT, oracle: DiTPipeline, guidance_scale: float) -> None:
    """The call draws its noise from the generator, and its latents are seen where they are decoded."""
    decoded = []
    oracle.vae.decode, decode = (lambda z: decoded.append(z) or decode(z)), oracle.vae.decode
    settings = {"num_inference_steps": 2, "guidance_scale": guidance_scale}
    images = oracle(oracle.get_label_ids(TWO), generator=torch.Generator().manual_seed(3), output_type="np", **settings)
    given = family.sample(family.denoiser, TWO, latents(3), **settings)
    torch.testing.assert_close(given / family.pipeline.vae.config.scaling_factor, decoded[0], rtol=1e-5, atol=1e-5)
    # half-way values may round either way
    assert np.abs(family.decode(given) - 255.0 * images.images).max() <= 0.5 + 1e-2


def test_the_denoiser_hears_from_us_what_it_hears_from_the_pipeline(family: DiT, oracle: DiTPipeline) -> None:
    heard: list[tuple[Any, dict[str, Any]]] = []
    handle = oracle.transformer.register_forward_pre_hook(lambda _m, a, kw: heard.append((a, kw)), with_kwargs=True)
    oracle([1, 2], guidance_scale=4.0, num_inference_steps=2, output_type="np")
    family.sample(oracle.transformer, TWO, heard[0][0][0][:2], num_inference_steps=2, guidance_scale=4.0)
    handle.remove()
    for (x_t, theirs), (same, ours) in zip(heard[:2], heard[2:], strict=True):
        torch.testing.assert_close(same[0], x_t[0], rtol=1e-5, atol=1e-5)
        assert torch.equal(ours["timestep"], theirs["timestep"])
        assert torch.equal(ours["class_labels"], theirs["class_labels"])
    assert heard[2][1]["class_labels"].tolist() == [1, 2, 1000, 1000]


def test_only_the_mean_is_predicted_of_an_output_that_has_a_variance(family: DiT) -> None:
    timesteps, condition = torch.tensor([3, 977]), family.encode(TWO)
    with torch.no_grad():
        given = family.predict(family.denoiser, latents(0), timesteps, condition)
        whole = family.denoiser(latents(0), timestep=timesteps, class_labels=torch.tensor([1, 2])).sample
    assert whole.shape == (2, 8, 8, 8)
    assert torch.equal(given, whole[:, :4])


def test_a_student_in_training_hears_every_label(family: DiT, directory: Path) -> None:
    """diffusers would replace one in ten by the null class, by chance."""
    student = DiTTransformer2DModel.from_pretrained(directory / "transformer", use_safetensors=True)
    n, x_t = 64, latents(0, 1)
    condition = family.encode(["goldfish"] * n)
    with torch.no_grad():
        expected = family.predict(family.denoiser, x_t, torch.tensor([500]), condition[:1])
        given = family.predict(student.train(), x_t.repeat(n, 1, 1, 1), torch.full((n,), 500), condition)
    torch.testing.assert_close(given, expected.expand(n, -1, -1, -1), rtol=1e-4, atol=1e-4)


def test_noise_is_added_as_the_scheduler_adds_it(family: DiT) -> None:
    timesteps = torch.tensor([0, 500])
    expected = DDPMScheduler.from_config(family.pipeline.scheduler.config).add_noise(latents(0), latents(1), timesteps)
    torch.testing.assert_close(family.noise.add_noise(latents(0), latents(1), timesteps), expected, rtol=0, atol=0)


@pytest.mark.parametrize("kind", [DDPMScheduler, LCMScheduler])
def test_noise_added_on_the_way_comes_from_each_images_own_seed(family: DiT, kind: Any) -> None:
    scheduler = kind.from_config(family.pipeline.scheduler.config)

    def draw(*seeds: int) -> torch.Tensor:
        noise, prompts = latents(3, 1).expand(len(seeds), -1, -1, -1), ["tench"] * len(seeds)
        settings = {"num_inference_steps": 2, "guidance_scale": 1.0, "scheduler": scheduler}
        return family.sample(family.denoiser, prompts, noise, seeds=seeds, **settings)

    together = draw(5, 6)
    torch.testing.assert_close(together[1:], draw(6), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(together[0], together[1])


def test_labels_are_told_apart_by_what_the_denoiser_learnt_of_them(family: DiT) -> None:
    given = family.text_embedding(["goldfish", "", "tench", "Tinca tinca"])
    rows = family.denoiser.transformer_blocks[0].norm1.emb.class_embedder.embedding_table.weight.double()
    said = rows[1] - rows[1000]
    torch.testing.assert_close(given[0].double(), said / said.norm(), rtol=1e-4, atol=1e-5)
    assert not given[1].any()
    assert torch.equal(given[2], given[3])
    assert not torch.allclose(given[0], given[2])


def test_labels_are_not_blended(family: DiT) -> None:
    one, other = family.encode(["goldfish"]), family.encode(["tench"])
    with pytest.raises(CondistillError, match=r"prompt_choice\.interpolate .* class labels.*; set it to 0"):
        one.lerp(other, torch.tensor([0.5]))


@pytest.mark.parametrize(
    ("lines", "distill", "told"),
    [
        (["tench", "a dog on a bench"], {}, "'a dog on a bench' is not a label of this teacher"),
        (
            ["tench", "goldfish"],
            {"conditioning": {"prompt_choice": {"interpolate": 0.5}}},
            r"prompt_choice\.interpolate .* set it to 0",
        ),
    ],
)
def test_what_a_teacher_of_labels_cannot_be_told_is_said_before_anything_is_drawn(
    directory: Path, tmp_path: Path, lines: list[str], distill: dict[str, Any], told: str
) -> None:
    with pytest.raises(CondistillError, match=told):
        run_whole(directory, tmp_path, {"depth": 0.5}, lines=lines, distill=distill, cache={"size": 1})
    assert not list(tmp_path.rglob("shard-*"))


def test_a_saved_pipeline_keeps_its_labels(family: DiT, tmp_path: Path) -> None:
    save_pipeline(family, family.denoiser, tmp_path / "pipeline", card="A card")
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "pipeline", use_safetensors=True)
    assert type(pipeline) is DiTPipeline
    assert pipeline.get_label_ids(["Tinca tinca", "toilet paper"]) == [0, 999]
    assert pipeline.labels == family.pipeline.labels


@pytest.mark.slow
def test_a_forward_pass_is_counted_from_the_config_alone(family: DiT) -> None:
    tokens = family.text_length
    assert macs(family.denoiser, size=16, text_length=tokens) > macs(family.denoiser, text_length=tokens) > 0


def test_a_latent_has_the_shape_that_the_pipeline_draws(family: DiT) -> None:
    assert family.latent_shape == (4, 8, 8)
    assert DiT(family.pipeline, resolution=16).latent_shape == (4, 8, 8)
    with pytest.raises(
        CondistillError,
        match=r"teacher\.resolution is 32; a DiTPipeline generates only images of its default 16 pixels",
    ):
        DiT(family.pipeline, resolution=32)


def test_a_teacher_of_other_classes_than_those_of_imagenet_is_refused(oracle: DiTPipeline) -> None:
    oracle.transformer.register_to_config(num_embeds_ada_norm=10)
    with pytest.raises(CondistillError, match=r"has 10 classes; .* exactly 1000 classes"):
        DiT(oracle)


def test_a_sampler_that_the_pipeline_draws_wrongly_with_is_refused(oracle: DiTPipeline) -> None:
    oracle.scheduler = EulerDiscreteScheduler.from_config(oracle.scheduler.config)
    with pytest.raises(CondistillError, match=r"is EulerDiscreteScheduler, .* set DDIMScheduler"):
        DiT(oracle)


@pytest.mark.slow
def test_the_whole_way_ends_in_a_student_that_diffusers_draws_with(directory: Path, tmp_path: Path) -> None:
    lines = ["tench", "goldfish", "white shark", "bath tissue", "7", "8"]
    student = check_end_to_end(directory, tmp_path, {"depth": 0.5}, lines=lines)
    assert len(student.transformer.transformer_blocks) == 2
    drawn = student(student.get_label_ids(TWO), num_inference_steps=2, output_type="np")
    assert drawn.images.shape == (2, 16, 16, 3)
