"""A family that is defined outside the package and registered with one line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ConfigMixin, DDIMScheduler, DiffusionPipeline, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from condistill.config.sections import TeacherSettings
from condistill.errors import CondistillError
from condistill.teachers import Condition, Family, load_teacher, register_family
from condistill.teachers.family import dtype_of
from condistill.teachers.load import family_class, read_index
from condistill.teachers.noise.diffusion import DiffusionSchedule
from condistill.teachers.noise.schedule import NoiseSchedule
from condistill.teachers.registry import family_of
from condistill.teachers.skeleton import teacher_skeleton
from condistill.teachers.traits import LayerList

PROMPTS = ["a red star", "a blue box"]

pytestmark = pytest.mark.usefixtures("own_registries")


class ToyDenoiser(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Adds the length of the prompt to x_t."""

    @register_to_config
    def __init__(
        self,
        in_channels: int = 4,
        sample_size: int = 8,  # noqa: ARG002 - read from the config
        num_layers: int = 2,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Conv2d(in_channels, in_channels, 1) for _ in range(num_layers))

    def forward(self, x_t: Tensor, timesteps: Tensor, lengths: Tensor) -> Tensor:  # noqa: ARG002
        for block in self.blocks:
            x_t = block(x_t)
        return x_t + lengths.view(-1, 1, 1, 1)


class ToyPipeline(DiffusionPipeline):  # type: ignore[misc]
    """A pipeline that diffusers does not have."""

    vae_scale_factor = 1

    def __init__(self, transformer: ToyDenoiser, scheduler: DDIMScheduler) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)


class Toy(Family):
    name = "toy"
    pipeline_classes = ("ToyPipeline",)
    denoiser_name = "transformer"
    denoiser_class = "ToyDenoiser"
    layer_lists = (LayerList("blocks", "num_layers"),)
    text_length = 1

    @classmethod
    def pipeline_type(cls, pipeline_class: str) -> Any:  # noqa: ARG003
        return ToyPipeline

    def build_noise(self) -> NoiseSchedule:
        return DiffusionSchedule(self.pipeline.scheduler, family=self.name)

    @classmethod
    def example_inputs(cls, denoiser: Any, size: tuple[int, int], text_length: int) -> dict[str, Any]:  # noqa: ARG003
        meta = {"device": "meta"}
        x_t = torch.empty(1, denoiser.config.in_channels, *size, **meta)
        return {"x_t": x_t, "timesteps": torch.empty(1, **meta), "lengths": torch.empty(1, **meta)}

    def encode(self, prompts: Sequence[str]) -> Condition:
        return Condition({"lengths": torch.tensor([float(len(prompt)) for prompt in prompts])})

    def predict(self, denoiser: Any, x_t: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        prediction: Tensor = denoiser(x_t.to(dtype_of(denoiser)), timesteps, condition.tensors["lengths"])
        return prediction.float()


@pytest.fixture
def settings(tmp_path: Path) -> TeacherSettings:
    """The directory of a `ToyPipeline`, as `save_pretrained` writes it."""
    ToyPipeline(ToyDenoiser(), DDIMScheduler()).save_pretrained(tmp_path / "toy")
    return TeacherSettings(pipeline=str(tmp_path / "toy"))


def test_a_registered_family_is_found_by_its_pipeline_class(settings: TeacherSettings) -> None:
    _, index = read_index(settings)
    assert index["_class_name"] == "ToyPipeline"
    with pytest.raises(CondistillError, match="a ToyPipeline, which no teacher family supports"):
        family_class(settings, index)
    register_family(Toy)
    assert family_class(settings, index) is Toy
    assert family_class(settings.model_copy(update={"family": "toy"}), index) is Toy
    assert family_of(ToyDenoiser()) is Toy


def test_a_registered_family_loads_and_predicts_through_the_contract(settings: TeacherSettings) -> None:
    register_family(Toy)
    family = load_teacher(settings)
    assert isinstance(family, Toy)
    assert family.latent_shape == (4, 8, 8)
    condition, x_t = family.encode(PROMPTS), torch.randn(2, 4, 8, 8)
    timesteps = family.noise.timesteps(torch.tensor([0.2, 0.9]))
    with torch.no_grad():
        difference = family.predict(family.denoiser, x_t, timesteps, condition) - family.predict(
            family.denoiser, x_t, timesteps, family.unconditional(condition)
        )
    lengths = torch.tensor([len(prompt) for prompt in PROMPTS]).float().view(2, 1, 1, 1)
    torch.testing.assert_close(difference, lengths.expand_as(x_t))


def test_a_plugin_is_loaded_before_a_family_is_looked_up(
    settings: TeacherSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("condistill.teachers.registry.load_plugins", lambda: register_family(Toy))
    _, index = read_index(settings)
    assert family_class(settings, index) is Toy


def test_an_unknown_family_is_reported_with_the_nearest_name(settings: TeacherSettings) -> None:
    for given, suggested in (("stable_difusion_xl", "stable_diffusion_xl"), ("sanna", "sana"), ("Auto", "auto")):
        with pytest.raises(CondistillError, match=f"teacher.family '{given}' .* did you mean '{suggested}'"):
            family_class(settings.model_copy(update={"family": given}), {"_class_name": "FluxPipeline"})


def test_a_family_that_does_not_support_the_pipeline_is_refused(settings: TeacherSettings) -> None:
    index = {"_class_name": "FluxPipeline"}
    with pytest.raises(CondistillError, match=r"teacher.family 'sana' does not support; .* flux \(FluxPipeline\)"):
        family_class(settings.model_copy(update={"family": "sana"}), index)


def test_two_families_cannot_have_one_name() -> None:
    register_family(Toy)
    with pytest.raises(CondistillError, match="'toy' is registered already"):
        register_family(type("Other", (Toy,), {}))


def test_a_registered_family_is_built_on_the_meta_device(settings: TeacherSettings) -> None:
    register_family(Toy)
    skeleton = teacher_skeleton(settings)
    assert type(skeleton.denoiser) is ToyDenoiser
    assert skeleton.denoiser.device.type == "meta"
    assert skeleton.family.latent_shape == (4, 8, 8)
