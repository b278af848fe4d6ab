from __future__ import annotations

import pytest
import torch

from condistill.errors import CondistillError
from condistill.students.blocks import config_without_blocks, layer_sources, remove_blocks
from condistill.students.costs import parameters


@pytest.mark.parametrize(
    ("preset", "count"), [("b-base", 579_384_964), ("b-small", 482_346_884), ("b-tiny", 323_384_964)]
)
def test_students_of_stable_diffusion_have_the_published_size(sd14, preset, count):
    assert parameters(remove_blocks(sd14, preset)) == count  # BK-SDM: 579.4 M, 482.3 M, 323.4 M


@pytest.mark.parametrize("preset", ["b-base", "b-small", "b-tiny"])
def test_kept_layers_are_byte_equal_to_the_teachers(tiny, run, preset):
    teacher = tiny()
    before = {name: weight.clone() for name, weight in teacher.state_dict().items()}
    student = remove_blocks(teacher, preset)
    sources = layer_sources(teacher, student)
    compared = 0
    for layer, source in sources.items():
        for name, weight in student.get_submodule(layer).state_dict().items():
            assert torch.equal(weight, before[f"{source}.{name}"])
            compared += 1
    assert compared == len(student.state_dict())
    assert torch.isfinite(run(student)).all()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert all(torch.equal(weight, before[name]) for name, weight in teacher.state_dict().items())


def test_the_middle_of_the_up_path_is_removed_and_the_reader_of_the_skip_above_kept(tiny):
    teacher = tiny(layers_per_block=3)
    sources = layer_sources(teacher, remove_blocks(teacher, "b-tiny"))
    assert sources["up_blocks.0.resnets.0"] == "up_blocks.1.resnets.0"
    assert sources["up_blocks.0.resnets.1"] == "up_blocks.1.resnets.3"
    assert sources["down_blocks.1.attentions.0"] == "down_blocks.1.attentions.0"


def test_tiny_loses_the_innermost_stage_and_its_new_last_block_does_not_downsample(tiny):
    student = remove_blocks(tiny(attention_head_dim=[2, 4, 4]), "b-tiny")
    assert tuple(student.config.block_out_channels) == (16, 32)
    assert tuple(student.config.attention_head_dim) == (2, 4)
    assert student.config.up_block_types == ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D")
    assert student.mid_block is None
    assert student.down_blocks[-1].downsamplers is None


def test_tiny_of_a_teacher_with_a_wider_innermost_stage_keeps_inputs_of_its_first_up_block(tiny, run):
    teacher = tiny(block_out_channels=(16, 24, 32))
    student = remove_blocks(teacher, "b-tiny")
    ours, theirs = student.up_blocks[0].resnets[0].conv1.weight, teacher.up_blocks[1].resnets[0].conv1.weight
    assert (ours.shape[1], theirs.shape[1]) == (48, 56)
    assert torch.equal(ours[:, 24:], theirs[:, 32:])
    assert torch.isfinite(run(student)).all()


def test_tiny_of_a_teacher_with_a_narrower_innermost_stage_names_both_layers(tiny):
    with pytest.raises(CondistillError, match=r"student's up_blocks\.0\.\S+ .* teacher's up_blocks\.1\."):
        remove_blocks(tiny(block_out_channels=(16, 32, 16)), "b-tiny")


def test_a_teacher_without_a_mid_block_is_taken_as_it_is(tiny, run):
    teacher = tiny(mid_block_type=None)
    base, small = remove_blocks(teacher, "b-base"), remove_blocks(teacher, "b-small")
    assert torch.equal(run(base), run(small))


def test_layers_may_differ_between_stages(tiny, run):
    teacher = tiny(layers_per_block=(1, 2, 3), transformer_layers_per_block=(1, 2, 1))
    student = remove_blocks(teacher, "b-base")
    assert [len(block.resnets) for block in student.down_blocks] == [1, 1, 1]
    assert torch.isfinite(run(student)).all()


def test_transformer_depths_per_layer_follow_their_layers():
    config = {
        "layers_per_block": 2,
        "block_out_channels": (16, 32),
        "down_block_types": ("CrossAttnDownBlock2D",) * 2,
        "up_block_types": ("CrossAttnUpBlock2D",) * 2,
        "transformer_layers_per_block": ((1, 2), (3, 4)),
        "reverse_transformer_layers_per_block": ((5, 6, 7), (8, 9, 10)),
    }
    smaller = config_without_blocks(config, "b-tiny")
    assert smaller["transformer_layers_per_block"] == ((1,),)
    assert smaller["reverse_transformer_layers_per_block"] == ((8, 10),)


def test_a_teacher_with_one_layer_per_block_is_refused(tiny):
    with pytest.raises(CondistillError, match="layers_per_block=1; choose a width"):
        remove_blocks(tiny(layers_per_block=1), "b-base")
