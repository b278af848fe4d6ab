from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from condistill.config.sections import StudentSettings
from condistill.errors import CondistillError
from condistill.students.derive import derive_student
from condistill.students.features import check_pairs
from condistill.utils.meta import parameters


@pytest.mark.parametrize(
    ("teacher", "preset", "width"),
    [
        ("sd1", "b-base", None),
        ("sd1", "b-tiny", 0.5),
        pytest.param("sd2", "c-micro", None, marks=pytest.mark.slow),
        ("four-stages", "b-small", (8, 12, 20, 24)),
        pytest.param("four-stages", "b-tiny", 0.5, marks=pytest.mark.slow),
    ],
    indirect=["teacher"],
)
def test_a_student_runs_fits_its_maps_and_loads_with_diffusers_alone(teacher, run, tmp_path, preset, width):
    student = derive_student(teacher, StudentSettings(preset=preset, width=width))
    assert parameters(student.denoiser) < parameters(teacher)
    assert student.denoiser.dtype == torch.float32
    assert all(parameter.requires_grad for parameter in student.denoiser.parameters())
    check_pairs(teacher, student.denoiser, student.pairs, student.maps)
    student.denoiser.save_pretrained(tmp_path)
    loaded = type(teacher).from_pretrained(tmp_path)
    given = loaded.state_dict()
    assert all(torch.equal(weight, given[name]) for name, weight in student.denoiser.state_dict().items())
    prediction = run(student.denoiser)
    assert torch.isfinite(prediction).all()
    torch.testing.assert_close(run(loaded), prediction)


@pytest.mark.slow
def test_a_student_of_stable_diffusion_on_meta_has_shapes_only(sd14):
    student = derive_student(sd14, StudentSettings(preset="c-micro"))
    assert parameters(student.denoiser) == 219_789_284
    assert {p.device.type for m in (student.denoiser, student.maps) for p in m.parameters()} == {"meta"}
    assert [pair.student for pair in student.pairs].count("mid_block") == 1


@pytest.mark.slow
def test_a_teacher_on_meta_may_need_a_shortcut_that_it_has_only_implicitly(tiny):
    student = derive_student(tiny().to("meta"), StudentSettings(width=(8, 16, 12)))
    assert {p.device.type for p in student.denoiser.parameters()} == {"meta"}


@pytest.mark.slow
def test_deriving_changes_neither_the_teacher_nor_the_global_random_state(tiny):
    teacher = tiny().half().requires_grad_(False)
    before, state = {n: w.clone() for n, w in teacher.state_dict().items()}, torch.get_rng_state()
    for weights in ("teacher", "random"):
        student = derive_student(teacher, StudentSettings(preset="b-small", width=0.5, weights=weights))
        assert student.denoiser.dtype == torch.float32
        with torch.no_grad():
            for parameter in student.denoiser.parameters():
                parameter.zero_()
    assert torch.equal(torch.get_rng_state(), state)
    assert teacher.dtype == torch.float16
    assert all(torch.equal(weight, before[name]) for name, weight in teacher.state_dict().items())


@pytest.mark.slow
def test_random_weights_and_maps_are_a_function_of_the_seed(tiny):
    def weights(seed):
        student = derive_student(tiny(), StudentSettings(preset="c-micro", weights="random"), seed=seed)
        return torch.cat([p.detach().flatten() for m in (student.denoiser, student.maps) for p in m.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@pytest.mark.slow
def test_random_weights_allow_shapes_that_no_slice_has(tiny):
    student = derive_student(tiny(), StudentSettings(width=(16, 16, 16), weights="random"))
    assert tuple(student.denoiser.config.block_out_channels) == (16, 16, 16)


@pytest.mark.slow
def test_the_model_card_lines_say_where_each_block_comes_from(tiny):
    teacher = tiny(block_out_channels=(16, 24, 32))
    kept = derive_student(teacher, StudentSettings(preset="b-tiny", width=0.5)).kept
    assert kept == (
        "weights: inherited from the teacher",
        "down_blocks.0: from down_blocks.0, layer 0 of 2, 16 to 8 channels",
        "down_blocks.1: from down_blocks.1, layer 0 of 2, 24 to 12 channels",
        "up_blocks.0: from up_blocks.1, layers 0 and 2 of 3, 24 to 12 channels",
        "up_blocks.1: from up_blocks.2, layers 0 and 2 of 3, 16 to 8 channels",
        "mid_block: removed",
        "stage 2 (down_blocks.2 and up_blocks.0 of the teacher): removed",
        "up_blocks.0.resnets.0: its input has 24 of the 32 channels that up_blocks.1.resnets.0 of the teacher gets "
        "from the stage below",
    )
    random = StudentSettings(preset="c-micro", weights="random")
    assert derive_student(tiny(), random, seed=7).kept[0] == "weights: random, seed 7"


@pytest.mark.slow
def test_kept_layers_can_be_narrowed_and_are_compared_with_their_sources(tiny, run):
    teacher = tiny(transformer_layers_per_block=2)
    keep = {"up_blocks.1.transformer_blocks": (1,), "mid_block": ()}
    student = derive_student(teacher, StudentSettings(width=0.5, keep=keep), features="self_attention")
    assert torch.isfinite(run(student.denoiser)).all()
    assert student.kept[1:] == (
        "down_blocks.0: from down_blocks.0, all layers, 16 to 8 channels",
        "down_blocks.1: from down_blocks.1, all layers, 32 to 16 channels",
        "down_blocks.2: from down_blocks.2, all layers, 32 to 16 channels",
        "up_blocks.0: from up_blocks.0, all layers, 32 to 16 channels",
        "up_blocks.1: from up_blocks.1, all layers, transformer block 1 of 2 in each attention, 32 to 16 channels",
        "up_blocks.2: from up_blocks.2, all layers, 16 to 8 channels",
        "mid_block: removed",
    )
    layer = "up_blocks.1.attentions.2.transformer_blocks"
    assert (f"{layer}.1.attn1", f"{layer}.0.attn1") in [(pair.teacher, pair.student) for pair in student.pairs]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "give a preset, a width, a depth, a target or the layers to keep"),
        ({"preset": "b-base", "keep": {}}, "preset and keep each choose the layers to keep"),
        ({"preset": "b-smal"}, "Input should be 'b-base', 'b-small'"),
        ({"preset": "c-tiny", "width": 0.5}, "sets the width already"),
        ({"width": 0.5, "weights": "zeros"}, "Input should be 'teacher' or 'random'"),
    ],
)
def test_settings_that_fit_no_teacher_are_refused_by_themselves(settings, message):
    with pytest.raises(ValidationError, match=message):
        StudentSettings.model_validate(settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep": {"mid_blok": ()}}, r"names 'mid_blok'.*did you mean 'mid_block'\?"),
        ({"keep": {}}, r"[\d,]+ parameters and its teacher.* or fewer layers"),
        ({"width": 0.5, "depth": 0.5}, r"student\.depth is for transformers"),
        ({"width": 1.0}, r"student would have [\d,]+ parameters .* smaller width"),
        ({"width": 0.6}, r"stage 0 9\.6 of 16 .* nearest valid fractions: 0\.5, 0\.75"),
        ({"preset": "b-tiny", "width": (8, 16, 16)}, r"3 numbers, \(8, 16, 16\), and the teacher has 2 stages"),
        ({"target": {"macs": 0.5}}, "have a target; replace it by a width or a depth first"),
        ({"width": 0.5, "importance": "taylor"}, "importance 'taylor' needs channel scores"),
    ],
)
def test_settings_that_do_not_fit_the_teacher_are_refused(tiny, settings, message):
    with pytest.raises(CondistillError, match=message):
        derive_student(tiny(), StudentSettings.model_validate(settings))


def test_importance_needs_no_scores_where_only_shapes_are_derived(tiny):
    student = derive_student(tiny().to("meta"), StudentSettings(width=0.5, importance="taylor"))
    assert tuple(student.denoiser.config.block_out_channels) == (8, 16, 16)
