from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from condistill.cache.latents import LatentCache
from condistill.config.conditioning import PromptChoiceSettings
from condistill.distill.batches import Batch, BatchSource
from condistill.distill.random_conditioning import RandomConditioning
from condistill.distill.states import noised_latents
from condistill.prompts.pool import PromptPool
from condistill.teachers.family import Family

CONDITIONING = RandomConditioning(empty_prompt_probability=0.3)


@pytest.fixture
def batch(tiny_cache: LatentCache, tiny_pool: PromptPool) -> Batch:
    """All random prompts are to be blended."""
    return BatchSource(tiny_cache, tiny_pool, 5, 64, 64, prompt_choice=PromptChoiceSettings(interpolate=1.0))(0)[0]


def test_re_pairing_is_decided_at_the_effective_noise_level(tiny_family: Family, batch: Batch) -> None:
    stretch = torch.linspace(0, 3, 64)
    plain = noised_latents(tiny_family, CONDITIONING, batch)
    stretched = noised_latents(tiny_family, CONDITIONING, replace(batch, stretch=stretch))
    u = tiny_family.noise.noise_level(plain.timesteps).double()
    level = (1 - (1 - u) * stretch).clamp(0, 1)
    expected = (batch.draws.coin < torch.exp(-5 * (1 - level))) | (batch.draws.empty_coin < 0.3)
    assert torch.equal(stretched.replaced, expected)
    assert not torch.equal(stretched.replaced, plain.replaced)
    assert torch.equal(stretched.x_t, plain.x_t)
    ones = noised_latents(tiny_family, CONDITIONING, replace(batch, stretch=torch.ones(64)))
    assert ones.prompts == plain.prompts


def test_only_random_prompts_are_blended(tiny_family: Family, batch: Batch) -> None:
    sample = noised_latents(tiny_family, CONDITIONING, batch)
    assert sample.blend is not None
    assert batch.blend is not None
    empty = torch.tensor([prompt == "" for prompt in sample.prompts])
    replaced_prompt = sample.replaced & ~empty
    assert empty.any()
    assert replaced_prompt.any()
    assert torch.equal(sample.has_random_prompt, torch.zeros(64, dtype=torch.bool))
    assert torch.equal(sample.blend.weight > 0, replaced_prompt)
    assert torch.equal(sample.blend.weight[replaced_prompt], batch.blend.weight[replaced_prompt])
    assert sample.blend.prompts == batch.blend.prompts
