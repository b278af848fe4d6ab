from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import StableDiffusionInpaintPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from end_to_end import check_end_to_end
from PIL import Image
from tiny import build_sd_inpaint, record_calls
from torch import Tensor

from condistill.config.distill import DistillSettings
from condistill.config.sections import StudentSettings, TeacherSettings
from condistill.config.yaml_tree import merge
from condistill.distill.batches import BatchSource
from condistill.distill.objective import Objective
from condistill.distill.random_conditioning import RandomConditioning
from condistill.distill.states import Sample, noised_latents
from condistill.errors import CondistillError
from condistill.profiling.macs import macs
from condistill.students.derive import derive_student
from condistill.students.variants import check_steps
from condistill.teachers.condition import Condition
from condistill.teachers.families.stable_diffusion import StableDiffusion
from condistill.teachers.families.stable_diffusion_inpaint import WHOLE_IMAGE, StableDiffusionInpaint, random_masks
from condistill.teachers.family import Family
from condistill.teachers.load import load_teacher
from condistill.teachers.noise.grid import END

PROMPTS = ["a large red star at the top on snow", "a small blue box"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny_inpaint") / "pipeline"
    build_sd_inpaint().save_pretrained(path, safe_serialization=True)
    return path


@pytest.fixture(scope="module")
def oracle(directory: Path) -> StableDiffusionInpaintPipeline:
    """The pipeline, loaded by diffusers alone."""
    pipeline = StableDiffusionInpaintPipeline.from_pretrained(directory, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def family(directory: Path) -> StableDiffusionInpaint:
    """Shared: do not change it."""
    loaded = load_teacher(TeacherSettings(pipeline=str(directory)))
    assert isinstance(loaded, StableDiffusionInpaint)
    return loaded


@pytest.fixture
def without_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the autoencoder return the mode of its distribution, of which the pipeline draws a sample."""
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, *_, **__: self.mode())


def latents(seed: int, n: int = 2) -> Tensor:
    return torch.randn(n, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def random_image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))


def uniforms(n: int) -> Tensor:
    return torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


# generating the whole image


@pytest.mark.usefixtures("without_sampling")
@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_samples_are_those_of_the_pipelines_call_with_a_mask_everywhere(
    family: StableDiffusionInpaint, oracle: StableDiffusionInpaintPipeline, guidance_scale: float
) -> None:
    settings = {"num_inference_steps": 2, "guidance_scale": guidance_scale}
    expected = oracle(
        prompt=PROMPTS,
        image=random_image(),
        mask_image=Image.new("L", (64, 64), 255),
        latents=latents(2),
        output_type="latent",
        **settings,
    ).images
    samples = family.sample(family.denoiser, PROMPTS, latents(2), **settings)
    torch.testing.assert_close(samples, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("without_sampling")
def test_predictions_are_those_of_the_pipelines_guided_call(
    family: StableDiffusionInpaint, oracle: StableDiffusionInpaintPipeline
) -> None:
    everywhere = Image.new("L", (64, 64), 255)
    with record_calls(oracle.unet) as calls:
        samples = oracle(
            PROMPTS, random_image(), everywhere, latents=latents(1), num_inference_steps=1, output_type="latent"
        ).images
    inputs, timestep = calls[0].inputs["sample"], calls[0].inputs["timestep"]
    assert inputs.shape == (4, 9, 8, 8)
    condition = Condition.cat([family.encode(["", ""]), family.encode(PROMPTS)])
    torch.testing.assert_close(family.denoiser_input(inputs[:, :4], condition), inputs, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        prediction = family.predict(family.denoiser, inputs[:, :4], timestep.expand(4), condition)
    torch.testing.assert_close(prediction, calls[0].output, rtol=1e-4, atol=1e-4)
    unconditional, conditional = prediction.chunk(2)
    guided = unconditional + 7.5 * (conditional - unconditional)
    end = family.noise.step(guided, latents(1), timestep.expand(2), torch.tensor([END, END]))
    torch.testing.assert_close(samples, end, rtol=1e-3, atol=1e-3)


def test_noise_is_added_to_the_latents_alone(family: StableDiffusionInpaint) -> None:
    timesteps = torch.tensor([20, 800])
    expected = family.pipeline.scheduler.add_noise(latents(0), latents(1), timesteps)
    assert torch.equal(family.noise.add_noise(latents(0), latents(1), timesteps), expected)
    assert family.latent_shape == (4, 8, 8)


def test_another_resolution_has_masked_latents_of_its_size(directory: Path) -> None:
    family = load_teacher(TeacherSettings(pipeline=str(directory), resolution=96))
    noise = torch.randn(1, 4, 12, 12, generator=torch.Generator().manual_seed(0))
    samples = family.sample(family.denoiser, PROMPTS[:1], noise, num_inference_steps=1, guidance_scale=1.0)
    assert samples.shape == noise.shape
    assert family.encode(PROMPTS).tensors["masked_latents"].shape == (2, 4, 12, 12)


@pytest.mark.slow
def test_the_cost_counts_all_channels(family: StableDiffusionInpaint, tiny_family: Family) -> None:
    more = macs(family.denoiser, text_length=family.text_length) - macs(tiny_family.denoiser, text_length=20)
    assert more == 5 * 16 * 3 * 3 * 8 * 8


# masks


def test_masks_are_rectangles_of_every_size_and_position_or_the_whole_image() -> None:
    masks = random_masks(uniforms(4000), (8, 6))
    assert masks.shape == (4000, 1, 8, 6)
    rows, columns = masks[:, 0].amax(2), masks[:, 0].amax(1)
    assert torch.equal(masks[:, 0], rows[:, :, None] * columns[:, None, :])
    for sides in (rows, columns):
        starts = (sides.diff(dim=1) == 1).sum(1) + sides[:, 0]
        assert (starts == 1).all()  # one run of ones in each
    whole = masks.mean((1, 2, 3)) == 1
    assert whole.float().mean() == pytest.approx(WHOLE_IMAGE + (1 - WHOLE_IMAGE) / 48, abs=0.02)
    part = ~whole
    for sides, length in ((rows, 8), (columns, 6)):
        assert sides[part].sum(1).unique().tolist() == list(range(1, length + 1))
        assert sides[part].mean(0).min() > 0.3
    correlated = torch.corrcoef(torch.stack([rows[part].sum(1), columns[part].sum(1), rows[part][:, 0]]))
    assert correlated[0, 1].abs() < 0.05


def test_a_mask_depends_on_its_own_number_alone() -> None:
    numbers = uniforms(16)
    together = random_masks(numbers, (8, 8))
    assert torch.equal(together[5:6], random_masks(numbers[5:6], (8, 8)))
    assert len({mask.numpy().tobytes() for mask in together}) > 8
    assert random_masks(torch.zeros(1, dtype=torch.float64), (8, 8)).all()


def test_in_training_the_latents_around_the_mask_are_kept(family: StableDiffusionInpaint) -> None:
    numbers, x_0 = uniforms(12), latents(3, 12)
    plain = family.encode([PROMPTS[0]] * 12)
    tensors = family.training_condition(plain, x_0, numbers).tensors
    mask = random_masks(numbers, (8, 8))
    grey = plain.tensors["masked_latents"]
    assert torch.equal(tensors["mask"], mask)
    assert torch.equal(tensors["masked_latents"], mask * grey + (1 - mask) * x_0)
    assert torch.equal(tensors["prompt_embeds"], plain.tensors["prompt_embeds"])
    assert plain.tensors["mask"].all()


@pytest.fixture
def sample(family: StableDiffusionInpaint, tiny_cache: Any, tiny_pool: Any) -> Sample:
    batch = BatchSource(tiny_cache, tiny_pool, 5, 8, 8)(0)[0]
    sample = noised_latents(family, RandomConditioning(), batch)
    assert sample.image_uniform is not None
    return sample


def test_the_mask_of_a_sample_does_not_depend_on_micro_batches(
    family: StableDiffusionInpaint, sample: Sample, tiny_cache: Any, tiny_pool: Any, tiny_family: Family
) -> None:
    parts = [noised_latents(family, RandomConditioning(), b) for b in BatchSource(tiny_cache, tiny_pool, 5, 8, 2)(0)]
    assert sample.image_uniform is not None
    assert torch.equal(
        torch.cat([part.image_uniform for part in parts if part.image_uniform is not None]), sample.image_uniform
    )
    batch = BatchSource(tiny_cache, tiny_pool, 5, 8, 8)(0)[0]
    assert noised_latents(tiny_family, RandomConditioning(), batch).image_uniform is None


@pytest.mark.parametrize("settings", [{"loss": {"guidance_weight": 0.5}}, {"guidance_distillation": 3.0}])
def test_teacher_and_student_take_the_mask_of_the_sample_with_and_without_the_prompt(
    family: StableDiffusionInpaint, sample: Sample, settings: dict[str, float]
) -> None:
    objective = Objective(
        family,
        DistillSettings.model_validate(merge({"batch_size": 8, "loss": {"feature_weight": 0.0}}, settings)),
        Accelerator(cpu=True),
        [],
    )
    conditions: list[Condition] = []

    def student(x_t: Tensor, timesteps: Tensor, condition: Condition) -> tuple[Tensor, list[Any]]:
        conditions.append(condition)
        return x_t, []

    predictions = objective.compare(student, sample)
    expected = family.training_condition(family.encode(sample.prompts), sample.x_0, sample.image_uniform)
    for name, tensor in expected.tensors.items():
        assert torch.equal(conditions[0].tensors[name][:8], tensor), name
    with torch.no_grad():
        conditional, unconditional = (
            family.predict(family.denoiser, sample.x_t, sample.timesteps, condition)
            for condition in (expected, family.unconditional(expected))
        )
    if predictions.teacher_unconditional is not None:
        torch.testing.assert_close(predictions.teacher_unconditional, unconditional)
        torch.testing.assert_close(predictions.teacher, conditional)
    else:
        guided = unconditional + 3.0 * (conditional - unconditional)
        torch.testing.assert_close(predictions.teacher, guided, rtol=1e-4, atol=1e-4)
    other_masks = replace(sample, image_uniform=(sample.image_uniform + 0.5) % 1)
    assert not torch.equal(objective.compare(student, other_masks).teacher, predictions.teacher)
    objective.close()


@pytest.mark.slow
def test_gradients_flow_after_latents_were_sampled(directory: Path) -> None:
    family = load_teacher(TeacherSettings(pipeline=str(directory)))
    family.sample(family.denoiser, PROMPTS, latents(0), num_inference_steps=1, guidance_scale=1.0)
    student = derive_student(family.denoiser, StudentSettings(width=0.5)).denoiser
    family.predict(student, latents(1), torch.tensor([500, 500]), family.encode(PROMPTS)).square().mean().backward()
    assert student.conv_in.weight.grad is not None
    assert student.conv_in.weight.grad[:, 5:].any()


# refusals


def test_denoising_paths_are_refused(family: StableDiffusionInpaint) -> None:
    with pytest.raises(CondistillError, match=r"not for a teacher of family stable_diffusion_inpaint: .* leave out"):
        check_steps(family, DistillSettings.model_validate({"path": {"num_inference_steps": 10}}))
    check_steps(family, DistillSettings(few_steps={"num_inference_steps": 2}))


def test_the_channels_of_the_u_net_must_be_those_of_the_pipeline(
    oracle: StableDiffusionInpaintPipeline, tiny_family: Family
) -> None:
    def with_denoiser(denoiser: Any) -> StableDiffusionInpaintPipeline:
        return StableDiffusionInpaintPipeline(**{**oracle.components, "unet": denoiser})

    with pytest.raises(
        CondistillError, match=r"takes 4 channels .* stable_diffusion_inpaint needs a U-Net that takes 9\."
    ):
        StableDiffusionInpaint(with_denoiser(tiny_family.denoiser))
    with pytest.raises(CondistillError, match=r"takes 9 channels .* needs a U-Net that takes 4\. An in-painting"):
        StableDiffusion(with_denoiser(oracle.unet))


@pytest.mark.slow
def test_a_whole_run_gives_a_student_that_plain_diffusers_in_paints_with(directory: Path, tmp_path: Path) -> None:
    student = check_end_to_end(directory, tmp_path, {"width": 0.5}, distill={"loss": {"guidance_weight": 0.5}})
    assert type(student) is StableDiffusionInpaintPipeline
    assert student.unet.config.in_channels == 9
    mask = Image.new("L", (64, 64))
    mask.paste(255, (8, 8, 40, 40))
    image = student(PROMPTS[0], random_image(), mask, num_inference_steps=2, output_type="np").images[0]
    assert image.shape == (64, 64, 3)
    assert np.isfinite(image).all()
