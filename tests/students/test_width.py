from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor

from condistill.errors import CondistillError
from condistill.students.width import (
    _block_sizes,
    channel_selections,
    keep_channels,
    narrow,
    narrowed_config,
    stage_widths,
)
from condistill.utils.meta import plain_config


def half(teacher):
    return narrow(teacher, stage_widths(teacher.config, 0.5))


def test_a_student_of_full_width_computes_what_its_teacher_does(teacher, run):
    assert torch.equal(run(narrow(teacher, teacher.config.block_out_channels)), run(teacher))


@pytest.mark.slow
def test_every_weight_is_a_part_of_the_same_weight_of_the_teacher(teacher, run):
    student, given = half(teacher), teacher.state_dict()
    assert student.state_dict().keys() == given.keys()
    for name, weight in student.state_dict().items():
        assert torch.isin(weight, given[name]).all()
    assert student.dtype == torch.float32
    assert torch.isfinite(run(student)).all()


def without_statistics(denoiser):
    """Norms only scale and shift, and attention has the scale of the teacher: channels do not mix by counting."""
    denoiser.set_attn_processor(AttnProcessor())
    for module in denoiser.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.forward = lambda x, m=module: x * m.weight[:, None, None] + m.bias[:, None, None]
        if isinstance(module, torch.nn.LayerNorm):
            module.forward = lambda x, m=module: x * m.weight + m.bias
        if isinstance(module, Attention):
            module.scale = 0.25
    return denoiser.double()


@pytest.mark.slow
def test_a_student_computes_what_its_teacher_does_with_zeros_for_the_dropped_channels(teacher, run):
    # skips, shortcuts, heads and halves all line up, or the two would differ
    with torch.no_grad():
        for name, parameter in teacher.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))) * 0.2)
    student = half(teacher)
    selections = channel_selections(teacher, student)
    with torch.no_grad():
        for name, parameter in teacher.named_parameters():
            for dimension, kept in enumerate(selections[name]):
                if kept is not None:
                    dropped = sorted(set(range(parameter.shape[dimension])) - set(kept.tolist()))
                    parameter.index_fill_(dimension, torch.tensor(dropped), 0.0)
    # at timestep 0 a wave of any frequency is 0 or 1
    expected = run(without_statistics(teacher), 0)
    assert expected.std() > 1e-3
    torch.testing.assert_close(run(without_statistics(student), 0), expected)


def test_a_sliced_student_is_closer_to_its_teacher_than_a_random_one(tiny, run):
    teacher = tiny(block_out_channels=(32, 64, 64))
    target = run(teacher).flatten()
    torch.manual_seed(0)
    student = narrow(teacher, (24, 48, 48))
    other = type(teacher).from_config(student.config)

    def likeness(denoiser):
        return torch.corrcoef(torch.stack([run(denoiser).flatten(), target]))[0, 1]

    assert likeness(student) > likeness(other)


def test_stages_of_equal_width_share_their_channels_unless_their_widths_differ_in_the_student(tiny, run):
    student = narrow(tiny(), (8, 16, 12))
    shortcut = student.down_blocks[2].resnets[0].conv_shortcut.weight
    assert shortcut.shape == (12, 16, 1, 1)
    assert torch.equal(shortcut.sum(dim=(1, 2, 3)), torch.ones(12))
    assert torch.isfinite(run(student)).all()


def test_stages_whose_widths_are_equal_in_the_student_only_are_refused(tiny):
    with pytest.raises(CondistillError, match=r"down_blocks\.1\.resnets\.0 changes the width.*random weights"):
        narrow(tiny(), (16, 16, 16))


def test_time_embedding_inputs_follow_their_frequencies(tiny):
    teacher = tiny()
    waves = channel_selections(teacher, half(teacher))["time_embedding.linear_1.weight"][1]
    assert waves.tolist() == [0, 2, 4, 6, 8, 10, 12, 14]


def test_channels_are_kept_evenly_over_blocks_in_ascending_order():
    importance = torch.tensor([9.0, 8.0, 7.0, 6.0, 1.0, 3.0, 2.0, 4.0])
    assert keep_channels(importance, 4, blocks=2).tolist() == [0, 1, 5, 7]
    assert keep_channels(importance, 8, blocks=2).tolist() == list(range(8))
    with torch.device("meta"):  # a default device does not change where channels are counted
        assert keep_channels(importance, 4, blocks=2).tolist() == [0, 1, 5, 7]


def test_no_group_of_the_up_path_cuts_a_block_of_channels():
    # 1280 + 640 channels in 32 groups of 60 cut the 40 channels of a group of 1280 in halves.
    assert _block_sizes([320, 640, 1280, 1280], 32) == [10, 10, 20, 40]


def test_heads_keep_their_number_where_it_divides_the_width(sd14):
    config = plain_config(sd14)
    assert narrowed_config(config, (160, 320, 640, 640))["attention_head_dim"] == 8
    config["attention_head_dim"] = [5, 10, 20, 20]
    assert narrowed_config(config, (160, 320, 640, 640))["attention_head_dim"] == (5, 10, 20, 20)
    assert narrowed_config(config, (224, 448, 896, 896))["attention_head_dim"] == (4, 8, 16, 16)


def test_heads_cannot_grow(tiny):
    with pytest.raises(CondistillError, match=r"3 heads of 12 in the teacher and 2 of 16"):
        narrow(tiny(block_out_channels=(36, 36, 36), attention_head_dim=3), (32, 32, 32))


@pytest.mark.parametrize(
    ("fraction", "widths"),
    [
        (0.8, (256, 512, 1024, 1024)),
        (0.7, (224, 448, 896, 896)),
        (0.6, (192, 384, 768, 768)),
        (0.5, (160, 320, 640, 640)),
    ],
)
def test_fractions_give_the_published_widths(sd14, fraction, widths):
    assert stage_widths(sd14.config, fraction) == widths


@pytest.mark.parametrize(
    ("width", "message"),
    [
        (0.55, r"width 0\.55 gives stage 0 176 of 320 .* nearest valid fractions: 0\.5, 0\.6"),
        (1.5, r"width 1\.5 is not a fraction"),
        ((160, 320, 640), r"3 numbers, \(160, 320, 640\), and the teacher has 4 stages"),
        ((160, 330, 640, 640), r"stage 1 .* 330 channels: its teacher has 640.*=32; nearest: 320, 352"),
        ((160, 320, 640, 1312), r"stage 3 .* nearest: 1280"),
    ],
)
def test_a_width_that_does_not_fit_is_refused_with_the_nearest_that_do(sd14, width, message):
    with pytest.raises(CondistillError, match=message):
        stage_widths(sd14.config, width)


def test_layers_outside_the_known_streams_are_refused(tiny):
    teacher = tiny(num_class_embeds=3)
    with pytest.raises(CondistillError, match=r"class_embedding\.weight is not in any known stream"):
        half(teacher)
