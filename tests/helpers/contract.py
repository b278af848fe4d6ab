"""The tests that every family must pass.

To run them on a family, subclass `FamilyContract` and give it a fixture `family` and a fixture `prompts`.
"""

from __future__ import annotations

import ast
import copy
import inspect
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from condistill.config.distill import ProgressiveSettings
from condistill.config.sections import TeacherSettings
from condistill.pipelines.save import save_pipeline
from condistill.teachers.condition import Condition
from condistill.teachers.family import Family
from condistill.teachers.load import load_teacher
from condistill.teachers.noise.grid import END
from condistill.teachers.skeleton import teacher_skeleton
from condistill.utils.meta import build_on_meta, plain_config

Prompts = tuple[str, str]
"""Two different prompts that the family can encode."""


def latents(family: Family, seed: int, n: int = 2) -> Tensor:
    """Return standard normal latents `[n, C, h, w]`."""
    return torch.randn(n, *family.latent_shape, generator=torch.Generator().manual_seed(seed))


def assert_equal(one: Condition, other: Condition) -> None:
    assert one.tensors.keys() == other.tensors.keys()
    for name, tensor in one.tensors.items():
        torch.testing.assert_close(tensor, other.tensors[name], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def predict(family: Family, condition: Condition, *, denoiser: Any = None, seed: int = 0) -> Tensor:
    """Return the predictions for two fixed latents at two noise levels."""
    timesteps = family.noise.timesteps(torch.tensor([0.2, 0.9]))
    return family.predict(denoiser or family.denoiser, latents(family, seed), timesteps, condition)


class FamilyContract:
    """Promises of a family that other packages rely on."""

    # declarations

    def test_the_declarations_describe_the_pipeline(self, family: Family) -> None:
        assert type(family.pipeline).__name__ in family.pipeline_classes
        assert type(family.denoiser).__name__ == family.denoiser_class
        assert type(family.pipeline).__name__ == family.pipeline_type(type(family.pipeline).__name__).__name__

    def test_no_model_of_the_pipeline_is_trained(self, family: Family) -> None:
        models = [model for model in family.pipeline.components.values() if isinstance(model, nn.Module)]
        assert models
        assert not any(parameter.requires_grad for model in models for parameter in model.parameters())
        assert not any(model.training for model in models)

    def test_either_widths_can_be_cut_or_layers_are_in_lists(self, family: Family) -> None:
        assert family.can_cut_width != bool(family.layer_lists)

    def test_the_config_counts_the_layers_of_each_list(self, family: Family) -> None:
        config = family.denoiser.config
        for layers in family.layer_lists:
            modules = getattr(family.denoiser, layers.name)
            assert len(modules) == config[layers.count_key] > 0
            assert layers.joint_class in (None, type(modules[0]).__name__)
            assert all(max(config[key], default=0) < len(modules) for key in layers.index_keys)

    def test_guidance_is_declared_by_a_key_of_the_config(self, family: Family) -> None:
        spec = family.guidance
        assert spec.config_key is None or spec.config_key in family.denoiser.config
        assert spec.projection is None or spec.config_key is not None

    def test_the_example_call_is_one_that_the_pipeline_takes(self, family: Family) -> None:
        example = family.call_example
        ast.parse(example.imports)
        call = ast.parse(f"pipeline({example.arguments.format(prompt=repr('a prompt'))})", mode="eval").body
        assert isinstance(call, ast.Call)
        keywords = {keyword.arg for keyword in call.keywords} | {"num_inference_steps", "guidance_scale"}
        keywords |= {"height", "width"} if example.takes_size else set()
        assert keywords <= set(inspect.signature(family.pipeline.__call__).parameters)

    # conditions

    def test_a_condition_has_one_row_per_prompt(self, family: Family, prompts: Prompts) -> None:
        family.check_prompts(prompts)
        condition = family.encode([*prompts, ""])
        assert len(condition) == 3
        assert {len(tensor) for tensor in condition.tensors.values()} == {3}
        assert {tensor.device for tensor in condition.tensors.values()} == {family.device}

    def test_conditions_are_indexed_joined_and_converted_row_by_row(self, family: Family, prompts: Prompts) -> None:
        condition = family.encode(prompts)
        assert_equal(condition[[1, 0]], family.encode(prompts[::-1]))
        assert_equal(condition[torch.tensor([False, True])], family.encode(prompts[1:]))
        assert_equal(Condition.cat([family.encode([prompt]) for prompt in prompts]), condition)
        halved = condition.to(torch.bfloat16)
        assert {tensor.dtype for tensor in halved.tensors.values()} == {torch.bfloat16}

    def test_the_unconditional_condition_is_that_of_the_empty_prompt(self, family: Family, prompts: Prompts) -> None:
        assert_equal(family.unconditional(family.encode(prompts)), family.encode(["", ""]))

    def test_a_training_condition_differs_only_if_there_is_an_image_condition(
        self, family: Family, prompts: Prompts
    ) -> None:
        condition, uniform = family.encode(prompts), torch.tensor([0.4, 0.9], dtype=torch.float64)
        training = family.training_condition(condition, latents(family, 0), uniform)
        assert len(training) == 2
        if not family.has_image_condition:
            assert training is condition
        else:
            image = {name: training.tensors[name] for name in training.tensors}
            unconditional = family.unconditional(training)
            assert any(not torch.equal(image[name], condition.tensors[name]) for name in image)
            assert any(torch.equal(image[name], unconditional.tensors[name]) for name in image)

    def test_prompts_are_embedded_with_unit_length_and_the_empty_prompt_as_zeros(
        self, family: Family, prompts: Prompts
    ) -> None:
        embedding = family.text_embedding([prompts[0], "", prompts[1]])
        assert embedding.dtype == torch.float32
        assert not embedding[1].any()
        torch.testing.assert_close(embedding[[0, 2]].norm(dim=1), torch.ones(2))
        assert embedding[0] @ embedding[2] < 1 - 1e-3

    # predictions

    def test_a_prediction_is_float32_of_the_latents_shape(self, family: Family, prompts: Prompts) -> None:
        prediction = predict(family, family.encode(prompts))
        assert prediction.dtype == torch.float32
        assert prediction.shape == (2, *family.latent_shape)
        assert prediction.isfinite().all()
        half = copy.deepcopy(family.denoiser).to(torch.bfloat16)
        halved = predict(family, family.encode(prompts), denoiser=half)
        assert halved.dtype == torch.float32
        assert (halved - prediction).norm() < 0.5 * prediction.norm()

    def test_a_prediction_depends_on_the_timestep(self, family: Family, prompts: Prompts) -> None:
        condition, x_t = family.encode([prompts[0]] * 2), latents(family, 0, 1).repeat(2, 1, 1, 1)
        with torch.no_grad():
            early, late = family.predict(family.denoiser, x_t, family.noise.solver_timesteps(2), condition)
        assert not torch.allclose(early, late, rtol=1e-4, atol=1e-5)

    def test_a_prediction_depends_on_the_prompt_and_not_on_the_rest_of_the_batch(
        self, family: Family, prompts: Prompts
    ) -> None:
        both = predict(family, family.encode(prompts))
        twice = predict(family, family.encode([prompts[0]] * 2))
        torch.testing.assert_close(both[0], twice[0], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(both[1], twice[1], rtol=1e-4, atol=1e-5)

    def test_the_example_inputs_are_those_of_one_sample(self, family: Family) -> None:
        denoiser = build_on_meta(type(family.denoiser), plain_config(family.denoiser))
        inputs = family.example_inputs(denoiser, family.latent_shape[1:], family.text_length)
        output = denoiser(**inputs)
        prediction = output if isinstance(output, Tensor) else output.sample
        assert prediction.device.type == "meta"
        assert len(prediction) == 1
        assert prediction.numel() % latents(family, 0, 1).numel() == 0

    # noise

    def test_noise_levels_rise_from_nearly_none_to_pure_noise(self, family: Family) -> None:
        noise = family.noise
        timesteps = noise.timesteps(torch.linspace(0, 1 - 1e-6, 50, dtype=torch.float64))
        levels, shares = noise.noise_level(timesteps), noise.alpha_bar(timesteps)
        assert (levels.diff() > 0).all()
        assert (shares.diff() < 0).all()
        assert 0 <= levels[0] < 0.01
        assert 0.99 < levels[-1] <= 1
        assert shares[0] > 0.99
        assert shares[-1] < 0.01

    def test_noised_latents_go_from_the_image_to_the_noise(self, family: Family) -> None:
        x_0, epsilon = latents(family, 0), latents(family, 1)
        first, last = (family.noise.timesteps(torch.full((2,), u)) for u in (0.0, 1 - 1e-6))
        torch.testing.assert_close(family.noise.add_noise(x_0, epsilon, first), x_0, rtol=0, atol=0.2)
        torch.testing.assert_close(family.noise.add_noise(x_0, epsilon, last), epsilon, rtol=0, atol=0.4)

    def test_solver_steps_with_the_exact_prediction_stay_on_the_path(self, family: Family) -> None:
        noise, x_0, epsilon = family.noise, latents(family, 0), latents(family, 1)
        timesteps = [*noise.solver_timesteps(4)]
        for timestep, next_timestep in pairwise(t.expand(2) for t in timesteps):
            x_t, target = noise.add_noise(x_0, epsilon, timestep), noise.target(x_0, epsilon, timestep)
            x_next = noise.add_noise(x_0, epsilon, next_timestep)
            torch.testing.assert_close(noise.step(target, x_t, timestep, next_timestep), x_next, rtol=1e-4, atol=1e-4)
            implied = noise.implied_prediction(x_next, x_t, timestep, next_timestep)
            torch.testing.assert_close(implied, target, rtol=1e-3, atol=1e-3)
        end = torch.full_like(timestep, END)
        x_t, target = noise.add_noise(x_0, epsilon, next_timestep), noise.target(x_0, epsilon, next_timestep)
        torch.testing.assert_close(noise.step(target, x_t, next_timestep, end), x_0, rtol=0, atol=0.2)

    def test_the_solver_visits_falling_timesteps_from_pure_noise(self, family: Family) -> None:
        for steps in (1, 4, 25):
            timesteps = family.noise.solver_timesteps(steps)
            assert len(timesteps) == steps
            assert (timesteps.diff() < 0).all()
            assert family.noise.noise_level(timesteps[:1]) > 0.99

    def test_the_parts_of_a_step_fall_to_its_end(self, family: Family) -> None:
        here, end = family.noise.solver_timesteps(2)[:, None]
        parts = torch.cat([family.noise.between(here, end, part, 4) for part in range(5)])
        assert parts[0] == here
        torch.testing.assert_close(parts[-1:], end, rtol=1e-5, atol=0)
        assert (parts.diff() < 0).all()

    def test_few_steps_can_be_learnt(self, family: Family) -> None:
        family.noise.check_few_steps(ProgressiveSettings(num_inference_steps=4, teacher_steps=2))

    # images

    def test_samples_are_latents_that_depend_on_noise_alone(self, family: Family, prompts: Prompts) -> None:
        settings: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 2.0, "seeds": [1, 2]}
        samples = family.sample(family.denoiser, prompts, latents(family, 0), **settings)
        assert samples.dtype == torch.float32
        assert samples.shape == (2, *family.latent_shape)
        assert samples.isfinite().all()
        assert torch.equal(family.sample(family.denoiser, prompts, latents(family, 0), **settings), samples)
        assert not torch.allclose(family.sample(family.denoiser, prompts, latents(family, 1), **settings), samples)

    def test_decoded_latents_are_images(self, family: Family) -> None:
        images = family.decode(latents(family, 0))
        assert images.dtype == np.uint8
        assert images.shape == (2, *family.image_size, 3)

    def test_a_saved_pipeline_is_loaded_as_the_same_teacher(
        self, family: Family, prompts: Prompts, tmp_path: Path
    ) -> None:
        save_pipeline(family, family.denoiser, tmp_path / "saved", card="")
        settings = TeacherSettings(pipeline=str(tmp_path / "saved"), resolution=family.resolution)
        loaded = load_teacher(settings)
        assert type(loaded) is type(family)
        assert loaded.latent_shape == family.latent_shape
        torch.testing.assert_close(predict(loaded, loaded.encode(prompts)), predict(family, family.encode(prompts)))
        skeleton = teacher_skeleton(settings).family
        assert skeleton.latent_shape == family.latent_shape
        assert skeleton.text_length == family.text_length
