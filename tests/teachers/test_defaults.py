from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from diffusers import EulerAncestralDiscreteScheduler

from condistill.errors import CondistillError
from condistill.teachers.defaults import NO_GUIDANCE, DefaultSampling, Origin, recorded_resolution
from condistill.teachers.family import Family

OF_CALLS = {
    "stable_diffusion": (50, 7.5),
    "stable_diffusion_inpaint": (50, 7.5),
    "stable_diffusion_xl": (50, 5.0),
    "stable_diffusion_3": (28, 7.0),
    "flux": (28, 3.5),
    "pixart": (20, 4.5),
    "sana": (20, 4.5),
    "dit": (50, 4.0),
}
"""Steps and guidance scale in the signatures of diffusers' pipelines."""


@contextmanager
def coming_from(family: Family, *names: str, file: Path | None = None) -> Iterator[DefaultSampling]:
    """Give a shared family another origin for a while."""
    family.origin = Origin(names, file)
    try:
        yield family.default_sampling()
    finally:
        del family.origin


def numbers(sampling: DefaultSampling) -> tuple[int, float]:
    return sampling.num_inference_steps, sampling.guidance_scale


@pytest.mark.parametrize("name", OF_CALLS)
def test_a_teacher_is_sampled_as_its_pipeline_samples_by_default(
    name: str, tiny_teacher: Callable[[str], Family]
) -> None:
    sampling = tiny_teacher(name).default_sampling()
    assert numbers(sampling) == OF_CALLS[name]
    assert not sampling.is_distilled
    assert sampling.reason.endswith("Pipeline's call")


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("sdxl-turbo", 4),
        ("SDXL-Lightning-8step", 8),
        ("hyper-sd15 2 steps", 2),
        ("flux1-schnell", 4),
        ("LCM_Dreamshaper_v7", 4),
        ("sana-sprint", 4),
    ],
)
def test_a_distilled_teacher_is_recognised_by_its_name(name: str, steps: int, tiny_family: Family) -> None:
    with coming_from(tiny_family, "base", name) as sampling:
        assert numbers(sampling) == (steps, NO_GUIDANCE)
        assert sampling.is_distilled
        assert name in sampling.reason


@pytest.mark.parametrize(
    "name", ["hyperrealism", "turbocharged", "hyper-realistic-v3", "my-model", "two-step-guide", "0steps"]
)
def test_other_names_are_no_sign_of_a_distilled_teacher(name: str, tiny_family: Family) -> None:
    with coming_from(tiny_family, name) as sampling:
        assert numbers(sampling) == (50, 7.5)


def test_a_turbo_scheduler_is_recognised(tiny_family: Family) -> None:
    pipeline = tiny_family.pipeline
    turbo = EulerAncestralDiscreteScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    with tiny_family.using(tiny_family.denoiser, turbo):
        sampling = tiny_family.default_sampling()
    assert numbers(sampling) == (4, NO_GUIDANCE)
    assert "EulerAncestralDiscreteScheduler with trailing timesteps" in sampling.reason


def test_a_flow_teacher_without_guidance_is_distilled() -> None:
    from tiny import build_flux

    from condistill.teachers.registry import FAMILIES

    schnell = FAMILIES["flux"](build_flux(guidance_embeds=False), resolution=64)
    assert numbers(schnell.default_sampling()) == (4, NO_GUIDANCE)


def test_a_scale_that_is_an_input_of_the_denoiser_stays(tiny_teacher: Callable[[str], Family]) -> None:
    with coming_from(tiny_teacher("flux"), "flux-dev-turbo-8steps") as sampling:
        assert numbers(sampling) == (8, 3.5)


def test_the_file_of_the_teacher_comes_first(tiny_family: Family, tmp_path: Path) -> None:
    file = tmp_path / "sampling.json"
    file.write_text('{"num_inference_steps": 6, "resolution": 32}')
    with coming_from(tiny_family, "sd-turbo", file=file) as sampling:
        assert numbers(sampling) == (6, NO_GUIDANCE)
        assert sampling.resolution == recorded_resolution(tiny_family.origin) == 32
        assert sampling.reason == "sampling.json of the teacher"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"sampling\.json cannot be read"),
        ("[]", r"sampling\.json must hold a JSON object"),
        ('{"num_inference_steps": 0}', r"num_inference_steps is 0, and must be a whole number above 0"),
        ('{"num_inference_steps": 2.5}', r"num_inference_steps is 2\.5, and must be a whole number above 0"),
        ('{"guidance_scale": "no"}', r"guidance_scale is 'no', and must be a number of 0 or more"),
        ('{"guidance_scale": NaN}', r"guidance_scale is nan, and must be a number of 0 or more"),
        ('{"resolution": true}', r"resolution is True, and must be a whole number above 0"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(content: str, message: str, tiny_family: Family, tmp_path: Path) -> None:
    file = tmp_path / "sampling.json"
    file.write_text(content)
    with pytest.raises(CondistillError, match=message), coming_from(tiny_family, "x", file=file):
        pass


def test_the_default_of_a_call_without_numbers_is_that_of_stable_diffusion(
    tiny_family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    def call(_self: Any, prompt: str, num_inference_steps: int | None = None) -> None: ...

    monkeypatch.setattr(type(tiny_family.pipeline), "__call__", call)
    assert numbers(tiny_family.default_sampling()) == (50, 7.5)
