from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from contract import check_end_to_end
from diffusers import StableDiffusionInpaintPipeline, StableDiffusionPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image

from condistill.config.distill import DistillSettings
from condistill.config.sections import StudentSettings, TeacherSettings
from condistill.config.yaml_tree import merge
from condistill.distill.batches import BatchSource
from condistill.distill.objective import Objective
from condistill.distill.random_conditioning import RandomConditioning
from condistill.distill.states import Sample, noised_latents
from condistill.errors import CondistillError
from condistill.miniature import build
from condistill.profiling.macs import macs
from condistill.students.derive import derive_student
from condistill.students.variants import check_steps
from condistill.teachers.condition import Condition
from condistill.teachers.families.stable_diffusion import StableDiffusion
from condistill.teachers.families.stable_diffusion_inpaint import WHOLE_IMAGE, StableDiffusionInpaint, random_masks
from condistill.teachers.family import Family
from condistill.teachers.load import load_teacher

PROMPTS = ["a large red star at the top on snow", "a small blue box"]


@pytest.fixture(scope="module")
def directory(tiny_pipeline_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline with a U-Net of 9 channels."""
    path = tmp_path_factory.mktemp("tiny_inpaint") / "pipeline"
    parts = StableDiffusionPipeline.from_pretrained(tiny_pipeline_dir, use_safetensors=True).components
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        sizes = {"block_out_channels": (16, 32, 32), "norm_num_groups": 4, "attention_head_dim": 2}
        parts["unet"] = build.build_denoiser(in_channels=9, **sizes)
    pipeline = StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)
    pipeline.save_pretrained(path, safe_serialization=True)
    return path


@pytest.fixture(scope="module")
def oracle(directory: Path) -> StableDiffusionInpaintPipeline:
    """The pipeline, loaded by diffusers alone."""
    pipeline = StableDiffusionInpaintPipeline.from_pretrained(directory, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def family(directory: Path) -> StableDiffusionInpaint:
    """Leave it as it is."""
    loaded = load_teacher(TeacherSettings(pipeline=str(directory)))
    assert isinstance(loaded, StableDiffusionInpaint)
    return loaded


@pytest.fixture
def likeliest(monkeypatch: pytest.MonkeyPatch) -> None:
    """The autoencoder says what is most likely, where the pipeline draws from what it says."""
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, *_, **__: self.mode())


def latents(seed: int, n: int = 2) -> torch.Tensor:
    return torch.randn(n, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))


def uniforms(n: int) -> torch.Tensor:
    return torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


# the whole image


@pytest.mark.usefixtures("likeliest")
@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_samples_are_those_of_the_pipelines_own_call_on_a_whole_image(
    family: StableDiffusionInpaint, oracle: StableDiffusionInpaintPipeline, guidance_scale: float
) -> None:
    settings = {"num_inference_steps": 2, "guidance_scale": guidance_scale}
    expected = oracle(
        prompt=PROMPTS,
        image=picture(),
        mask_image=Image.new("L", (64, 64), 255),
        latents=latents(2),
        output_type="latent",
        **settings,
    ).images
    given = family.sample(family.denoiser, PROMPTS, latents(2), **settings)
    assert given.dtype == torch.float32
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("likeliest")
def test_predictions_are_those_of_the_pipelines_own_guided_call(
    family: StableDiffusionInpaint, oracle: StableDiffusionInpaintPipeline
) -> None:
    heard: list[tuple[Any, ...]] = []
    handle = oracle.unet.register_forward_hook(lambda _module, args, output: heard.append((*args, output[0])))
    white = Image.new("L", (64, 64), 255)
    drawn = oracle(PROMPTS, picture(), white, latents=latents(1), num_inference_steps=1, output_type="latent").images
    handle.remove()
    seen, timestep, said = heard[0]
    assert seen.shape == (4, 9, 8, 8)
    condition = Condition.cat([family.encode(["", ""]), family.encode(PROMPTS)])
    torch.testing.assert_close(family.denoiser_input(seen[:, :4], condition), seen, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        given = family.predict(family.denoiser, seen[:, :4], timestep.expand(4), condition)
    torch.testing.assert_close(given, said, rtol=1e-4, atol=1e-4)
    null, with_prompt = given.chunk(2)
    end = family.noise.step(null + 7.5 * (with_prompt - null), latents(1), timestep.expand(2), torch.tensor([-1, -1]))
    torch.testing.assert_close(drawn, end, rtol=1e-3, atol=1e-3)


def test_noise_is_added_to_the_latents_alone(family: StableDiffusionInpaint) -> None:
    timesteps = torch.tensor([20, 800])
    expected = family.pipeline.scheduler.add_noise(latents(0), latents(1), timesteps)
    assert torch.equal(family.noise.add_noise(latents(0), latents(1), timesteps), expected)
    assert family.latent_shape == (4, 8, 8)
    assert family.decode(latents(0)).shape == (2, 64, 64, 3)


def test_another_resolution_has_a_blank_of_its_own(directory: Path) -> None:
    family = load_teacher(TeacherSettings(pipeline=str(directory), resolution=96))
    noise = torch.randn(1, 4, 12, 12, generator=torch.Generator().manual_seed(0))
    drawn = family.sample(family.denoiser, PROMPTS[:1], noise, num_inference_steps=1, guidance_scale=1.0)
    assert drawn.shape == noise.shape
    assert family.encode(PROMPTS).tensors["masked_latents"].shape == (2, 4, 12, 12)


@pytest.mark.slow
def test_the_cost_counts_all_channels(family: StableDiffusionInpaint, tiny_family: Family) -> None:
    more = macs(family.denoiser, text_length=family.text_length) - macs(tiny_family.denoiser, text_length=20)
    assert more == 5 * 16 * 3 * 3 * 8 * 8


# masks


def test_masks_are_rectangles_of_every_side_and_place_or_the_whole() -> None:
    masks = random_masks(uniforms(4000), (8, 6))
    assert masks.shape == (4000, 1, 8, 6)
    rows, columns = masks[:, 0].amax(2), masks[:, 0].amax(1)
    assert torch.equal(masks[:, 0], rows[:, :, None] * columns[:, None, :])
    for sides in (rows, columns):
        starts = (sides.diff(dim=1) == 1).sum(1) + sides[:, 0]
        assert (starts == 1).all()  # one run of ones
    whole = masks.mean((1, 2, 3)) == 1
    assert whole.float().mean() == pytest.approx(WHOLE_IMAGE + (1 - WHOLE_IMAGE) / 48, abs=0.02)
    part = ~whole
    for sides, length in ((rows, 8), (columns, 6)):
        assert sides[part].sum(1).unique().tolist() == list(range(1, length + 1))
        assert sides[part].mean(0).min() > 0.3
    correlated = torch.corrcoef(torch.stack([rows[part].sum(1), columns[part].sum(1), rows[part][:, 0]]))
    assert correlated[0, 1].abs() < 0.05


def test_a_mask_is_a_function_of_its_own_number() -> None:
    numbers = uniforms(16)
    together = random_masks(numbers, (8, 8))
    assert torch.equal(together[5:6], random_masks(numbers[5:6], (8, 8)))
    assert len({mask.numpy().tobytes() for mask in together}) > 8
    assert random_masks(torch.zeros(1, dtype=torch.float64), (8, 8)).all()


def test_in_training_the_mask_leaves_the_latents_around_it(family: StableDiffusionInpaint) -> None:
    numbers, x_0 = uniforms(12), latents(3, 12)
    plain = family.encode([PROMPTS[0]] * 12)
    told = family.training_condition(plain, x_0, numbers).tensors
    mask = random_masks(numbers, (8, 8))
    blank = plain.tensors["masked_latents"]
    assert torch.equal(told["mask"], mask)
    assert torch.equal(told["masked_latents"], mask * blank + (1 - mask) * x_0)
    assert torch.equal(told["prompt_embeds"], plain.tensors["prompt_embeds"])
    assert plain.tensors["mask"].all()


@pytest.fixture
def sample(family: StableDiffusionInpaint, tiny_cache: Any, tiny_pool: Any) -> Sample:
    batch = BatchSource(tiny_cache, tiny_pool, 5, 8, 8)(0)[0]
    made = noised_latents(family, RandomConditioning(), batch)
    assert made.image_uniform is not None
    return made


def test_a_samples_mask_does_not_depend_on_how_a_batch_is_cut(
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
def test_both_models_see_the_samples_mask_with_and_without_the_prompt(
    family: StableDiffusionInpaint, sample: Sample, settings: dict[str, float]
) -> None:
    objective = Objective(
        family,
        DistillSettings.model_validate(merge({"batch_size": 8, "loss": {"feature_weight": 0.0}}, settings)),
        Accelerator(cpu=True),
        [],
    )
    told: list[Condition] = []

    def student(x_t: torch.Tensor, timesteps: torch.Tensor, condition: Condition) -> tuple[torch.Tensor, list[Any]]:
        told.append(condition)
        return x_t, []

    predictions = objective.compare(student, sample)
    expected = family.training_condition(family.encode(sample.prompts), sample.x_0, sample.image_uniform)
    for name, tensor in expected.tensors.items():
        assert torch.equal(told[0].tensors[name][:8], tensor), name
    null = {**family.encode([""] * 8).tensors, **{k: expected.tensors[k] for k in ("mask", "masked_latents")}}
    with torch.no_grad():
        with_prompt, without = (
            family.predict(family.denoiser, sample.x_t, sample.timesteps, c) for c in (expected, Condition(null))
        )
    if predictions.teacher_unconditional is not None:
        torch.testing.assert_close(predictions.teacher_unconditional, without)
        torch.testing.assert_close(predictions.teacher, with_prompt)
    else:
        torch.testing.assert_close(predictions.teacher, without + 3.0 * (with_prompt - without), rtol=1e-4, atol=1e-4)
    elsewhere = replace(sample, image_uniform=(sample.image_uniform + 0.5) % 1)
    assert not torch.equal(objective.compare(student, elsewhere).teacher, predictions.teacher)
    objective.close()


@pytest.mark.slow
def test_gradients_flow_after_the_first_latents_were_drawn(directory: Path) -> None:
    family = load_teacher(TeacherSettings(pipeline=str(directory)))
    family.sample(family.denoiser, PROMPTS, latents(0), num_inference_steps=1, guidance_scale=1.0)
    student = derive_student(family.denoiser, StudentSettings(width=0.5)).denoiser
    family.predict(student, latents(1), torch.tensor([500, 500]), family.encode(PROMPTS)).square().mean().backward()
    assert student.conv_in.weight.grad is not None
    assert student.conv_in.weight.grad[:, 5:].any()


# what cannot be


def test_a_path_is_refused(family: StableDiffusionInpaint) -> None:
    with pytest.raises(CondistillError, match=r"not for a teacher of family stable_diffusion_inpaint: .* leave out"):
        check_steps(family, DistillSettings.model_validate({"path": {"num_inference_steps": 10}}))
    check_steps(family, DistillSettings(few_steps={"num_inference_steps": 2}))


def test_a_pipeline_and_its_channels_must_agree(oracle: StableDiffusionInpaintPipeline, tiny_family: Family) -> None:
    def of(denoiser: Any) -> StableDiffusionInpaintPipeline:
        return StableDiffusionInpaintPipeline(**{**oracle.components, "unet": denoiser})

    with pytest.raises(
        CondistillError, match=r"takes 4 channels .* stable_diffusion_inpaint needs a U-Net that takes 9\."
    ):
        StableDiffusionInpaint(of(tiny_family.denoiser))
    with pytest.raises(CondistillError, match=r"takes 9 channels .* needs a U-Net that takes 4\. An in-painting"):
        StableDiffusion(of(oracle.unet))


@pytest.mark.slow
def test_the_whole_way_ends_in_a_student_that_diffusers_fills_holes_with(directory: Path, tmp_path: Path) -> None:
    student = check_end_to_end(directory, tmp_path, {"width": 0.5}, distill={"loss": {"guidance_weight": 0.5}})
    assert type(student) is StableDiffusionInpaintPipeline
    assert student.unet.config.in_channels == 9
    hole = Image.new("L", (64, 64))
    hole.paste(255, (8, 8, 40, 40))
    image = student(PROMPTS[0], picture(), hole, num_inference_steps=2, output_type="np").images[0]
    assert image.shape == (64, 64, 3)
    assert np.isfinite(image).all()
