from __future__ import annotations

import pytest
import torch
from diffusers import DiTTransformer2DModel, UNet2DConditionModel
from tiny_transformers import build
from torch import nn

from condistill.config.distill import DistillSettings
from condistill.config.sections import StudentSettings
from condistill.errors import CondistillError
from condistill.students.derive import derive_student
from condistill.students.guidance import guidance_kind, guidance_kind_of_config, guidance_learnt, with_guidance

CONSISTENCY = {"method": "consistency", "num_inference_steps": 4}
with torch.device("meta"):
    UNET = UNet2DConditionModel(
        block_out_channels=(8,), norm_num_groups=2, down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",)
    )


def settings_of(**changes) -> DistillSettings:
    return DistillSettings.model_validate(changes)


def projection_of(denoiser):
    return denoiser.time_embedding.cond_proj.weight


def distilled_student(teacher, scale, **settings):
    student = derive_student(teacher, StudentSettings(**{"width": 0.5, **settings}), may_be_as_large=True)
    return with_guidance(student, teacher, settings_of(guidance_distillation=scale))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scale", "is_trained", "line"),
    [
        (3.0, False, "guidance: distilled for a scale of 3"),
        ([2, 8], True, "guidance: distilled for scales from 2 to 8; the scale is an input"),
    ],
)
def test_guidance_distillation_changes_the_config_and_no_prediction(tiny, run, scale, is_trained, line):
    teacher = tiny()
    plain = derive_student(teacher, StudentSettings(width=0.5)).denoiser
    state = torch.get_rng_state()
    student = distilled_student(teacher, scale)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(run(student.denoiser), run(plain), rtol=0, atol=0)
    assert student.denoiser.config.time_cond_proj_dim == 256
    assert student.kept[-1] == line
    frozen = [name for name, p in student.denoiser.named_parameters() if not p.requires_grad]
    assert frozen == ([] if is_trained else ["time_embedding.cond_proj.weight"])
    assert not projection_of(student.denoiser).any()


def test_without_guidance_distillation_a_student_is_not_changed(tiny):
    student = derive_student(tiny(), StudentSettings(width=0.5))
    assert with_guidance(student, tiny(), settings_of()) is student
    assert guidance_kind(student.denoiser) == "cfg"


@pytest.mark.parametrize("weights", ["teacher", "random"])
@pytest.mark.slow
def test_the_student_of_a_teacher_with_one_scale_has_one_scale(tiny, weights):
    teacher = distilled_student(tiny(), 3.0).denoiser
    assert guidance_kind(teacher) == "fixed"
    student = distilled_student(teacher, None, width=1.0, weights=weights)
    assert guidance_kind(student.denoiser) == "fixed"
    assert not projection_of(student.denoiser).requires_grad


@pytest.mark.parametrize(("width", "weights"), [(1.0, "teacher"), (0.5, "teacher"), (0.5, "random")])
@pytest.mark.slow
def test_the_student_of_a_teacher_that_takes_the_scale_has_a_projection_to_train(tiny, width, weights):
    teacher = distilled_student(tiny(), [2, 8], width=1.0).denoiser
    nn.init.normal_(projection_of(teacher))
    assert guidance_kind(teacher) == "embedded"
    student = distilled_student(teacher, [3, 5], width=width, weights=weights)
    assert guidance_kind(student.denoiser) == "embedded"
    assert projection_of(student.denoiser).requires_grad
    if width == 1.0:
        assert torch.equal(projection_of(student.denoiser), projection_of(teacher))


def test_only_the_weights_of_a_projection_distinguish_one_scale_from_many(tiny):
    assert guidance_kind_of_config(UNET) == "cfg"
    assert guidance_kind_of_config(tiny(time_cond_proj_dim=256).to("meta")) is None
    assert guidance_kind_of_config(build("dit")) == "cfg"
    assert [guidance_kind_of_config(build("flux", guidance_embeds=g)) for g in (True, False)] == ["embedded", "cfg"]


@pytest.mark.parametrize(
    ("kind", "settings", "learnt"),
    [
        ("cfg", {}, "cfg"),
        ("cfg", {"guidance_distillation": 3}, "fixed"),
        ("cfg", {"guidance_distillation": [2, 8]}, "embedded"),
        ("fixed", {}, "fixed"),
        ("fixed", {"few_steps": CONSISTENCY}, "fixed"),
        ("embedded", {"guidance_distillation": [2, 8], "few_steps": CONSISTENCY}, "embedded"),
    ],
)
def test_a_student_is_guided_as_its_teacher_unless_guidance_is_distilled(kind, settings, learnt):
    assert guidance_learnt(kind, UNET, settings_of(**settings)) == learnt


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("fixed", {"guidance_distillation": 3.0}, "is guidance-distilled already; leave out distill.guidance_distill"),
        ("fixed", {"guidance_distillation": [2, 8]}, "the teacher is guidance-distilled already"),
        ("fixed", {"path": {"guidance_scale": 2.0}}, "distill.loss.guidance_weight and distill.path.guidance_scale"),
        ("embedded", {}, r"set distill.guidance_distillation to a range \[low, high\]"),
        ("embedded", {"guidance_distillation": 3.0}, r"set distill.guidance_distillation to a range \[low, high\]"),
        ("cfg", {"few_steps": CONSISTENCY}, "'consistency' learns the ends of guided paths; set distill.guidance_di"),
    ],
)
def test_guidance_settings_that_do_not_fit_the_teacher_are_refused(kind, settings, message):
    with pytest.raises(CondistillError, match=message):
        guidance_learnt(kind, UNET, settings_of(**settings))


def test_guidance_cannot_be_distilled_into_a_transformer_that_cannot_take_the_scale():
    with torch.device("meta"):
        transformer = DiTTransformer2DModel(
            num_layers=1, num_attention_heads=1, attention_head_dim=8, norm_num_groups=1
        )
    with pytest.raises(CondistillError, match="a DiTTransformer2DModel cannot; leave it out"):
        guidance_learnt(guidance_kind(transformer), transformer, settings_of(guidance_distillation=3.0))
