from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import PROMPTS, build_pixart
from torch import Tensor, nn
from trained_loras import Example, noised, train_lora

from condistill.config.sections import StudentSettings
from condistill.export.lora.effect import effect_of
from condistill.export.lora.reindex import reindex
from condistill.students.derive import derive_student
from condistill.teachers.family import Family
from condistill.teachers.load import load_teacher
from condistill.teachers.lora import LoraLayer, fused

CAPTIONS = ["a small red star", "a large blue box", "two green rings", "a black cube on snow"]
COLOUR = torch.tensor([1.0, -1.0, 0.5, -0.5])[:, None, None]
"""What is added to the latents of all images that the LoRA is trained on."""
CHANGED = ("attn2.to_v", "attn1.to_out.0", "conv2", "time_emb_proj")
STUDENTS: dict[str, dict[str, Any]] = {
    "small": {"preset": "b-small"},
    "tiny": {"preset": "b-tiny"},
    "narrow": {"width": 0.75},
}


def similarity(one: Tensor, two: Tensor) -> float:
    return float(nn.functional.cosine_similarity(one.flatten(), two.flatten(), dim=0))


def images(family: Family, denoiser: nn.Module) -> Tensor:
    """Return latents of images of the captions, from the same noise every time.

    Those of an untrained student are far from what the autoencoder knows, and pixels would show its limits.
    """
    noise = torch.randn(len(CAPTIONS), *family.latent_shape, generator=torch.Generator().manual_seed(1))
    return family.sample(denoiser, CAPTIONS, noise, num_inference_steps=6, guidance_scale=1.0)


def random_like(layers: Sequence[LoraLayer], seed: int) -> list[LoraLayer]:
    """Return a LoRA of the same layers, ranks and norms with random matrices."""
    generator = torch.Generator().manual_seed(seed)

    def like(matrix: Tensor) -> Tensor:
        noise = torch.randn(matrix.shape, generator=generator)
        return noise * (matrix.norm() / noise.norm())

    return [replace(layer, down=like(layer.down), up=like(layer.up)) for layer in layers]


def changes(family: Family, denoiser: nn.Module, loras: Sequence[Sequence[LoraLayer]]) -> list[Tensor]:
    """Return what each LoRA changes in the images."""
    before, found = images(family, denoiser), []
    for layers in loras:
        with fused(layers, {family.denoiser_name: denoiser}):
            found.append(images(family, denoiser) - before)
    return found


@pytest.mark.slow
def test_a_lora_of_the_teacher_changes_images_of_its_students_in_the_same_direction() -> None:
    family = load_teacher("miniature")
    start = torch.randn(len(CAPTIONS), *family.latent_shape, generator=torch.Generator().manual_seed(0))
    own = family.sample(family.denoiser, CAPTIONS, start, num_inference_steps=6, guidance_scale=1.0)
    examples = noised(family, own.clone() + COLOUR, family.encode(CAPTIONS), batch=4, count=30)
    paths = [name for name, _ in family.denoiser.named_modules() if name.endswith(CHANGED)]
    lora = train_lora(family, paths, examples)
    (wanted,) = changes(family, family.denoiser, [lora])
    found: dict[str, float] = {}
    controls: dict[str, list[float]] = {}
    for name, settings in STUDENTS.items():
        student = derive_student(family.denoiser, StudentSettings(**settings))
        student.denoiser.eval().requires_grad_(False)
        assert student.layers is not None
        layers = reindex(lora, student.layers, "unet").layers
        loras = [layers, *(random_like(layers, seed) for seed in range(2))]
        found[name], *controls[name] = (similarity(wanted, each) for each in changes(family, student.denoiser, loras))
    assert min(found.values()) > 0.6
    # LoRAs of the same layers and norms change images too, but on the average in no direction
    assert all(max(controls[name]) < found[name] - 0.3 for name in found)
    assert abs(sum(map(sum, controls.values())) / 6) < 0.25


@pytest.mark.slow
def test_a_lora_of_a_transformer_changes_predictions_of_its_shallower_student_in_the_same_direction() -> None:
    pipeline: Any = build_pixart(num_layers=6)
    family = load_teacher(pipeline)
    latents = torch.randn(4, *family.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        examples = [
            replace(each, target=family.predict(family.denoiser, each.x_t, each.timesteps, each.condition) + COLOUR)
            for each in noised(family, latents, family.encode([*PROMPTS, *PROMPTS]), batch=4, count=60)
        ]
    paths = [name for name, _ in family.denoiser.named_modules() if name.endswith(("to_v", "to_out.0", "ff.net.2"))]
    lora = train_lora(family, paths, examples)
    student = derive_student(family.denoiser, StudentSettings(depth=0.5))
    assert student.layers is not None
    moved = reindex(lora, student.layers, "transformer")
    assert sum(moved.dropped.values()) == len(lora) / 2
    wanted, found, *controls = (
        predictions(family, denoiser, layers, examples[0])
        for denoiser, layers in (
            (family.denoiser, lora),
            (student.denoiser, moved.layers),
            *((student.denoiser, random_like(moved.layers, seed)) for seed in range(4)),
        )
    )
    assert similarity(wanted, found) > 0.5
    assert abs(sum(similarity(wanted, each) for each in controls)) / 4 < 0.25


@torch.no_grad()
def predictions(family: Family, denoiser: Any, layers: Any, example: Example) -> Tensor:
    """Return what a LoRA changes in the predictions for an example."""
    before = family.predict(denoiser, example.x_t, example.timesteps, example.condition)
    with fused(layers, {family.denoiser_name: denoiser}):
        return family.predict(denoiser, example.x_t, example.timesteps, example.condition) - before


def test_the_effect_is_the_cosine_and_the_ratio_of_the_changes_of_every_input() -> None:
    expected = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    found = torch.tensor([[1.0, 0.0], [3.0, 0.0], [1.0, 1.0]])
    effect = effect_of(expected, found, "cache")  # the last input is not changed by the teacher's
    assert effect is not None
    assert (effect.inputs, effect.origin) == (2, "cache")
    assert effect.direction.model_dump() == {"mean": 0.5, "lowest": 0.0, "highest": 1.0}
    assert effect.size.model_dump() == {"mean": 1.75, "lowest": 0.5, "highest": 3.0}
    assert effect_of(expected * 0, found, "cache") is None
