from __future__ import annotations

import pytest
import torch

from condistill.errors import CondistillError
from condistill.students.blocks import (
    config_without_blocks,
    kept_layers,
    layer_lists,
    layer_sources,
    preset_layers,
    remove_blocks,
    source_of,
)
from condistill.utils.meta import parameters

SDXL_LIKE = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
}


def without(teacher, keep):
    """The student, and where its layers come from; `keep` is a preset or the layers of each list."""
    kept = kept_layers(teacher, preset_layers(teacher, keep) if isinstance(keep, str) else keep)
    return remove_blocks(teacher, kept), layer_sources(teacher, kept)


def assert_copied(student, sources, given):
    for name, weight in student.state_dict().items():
        assert torch.equal(weight, given[source_of(name, sources)]), name


@pytest.mark.parametrize(
    ("preset", "count"), [("b-base", 579_384_964), ("b-small", 482_346_884), ("b-tiny", 323_384_964)]
)
def test_students_of_stable_diffusion_have_the_published_size(sd14, preset, count):
    assert parameters(without(sd14, preset)[0]) == count  # BK-SDM: 579.4 M, 482.3 M, 323.4 M


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "count"), [("koala-1b", 1_161_184_324), ("koala-700m", 782_822_724)])
def test_students_of_stable_diffusion_xl_have_the_published_size(full_size, preset, count):
    teacher = full_size("SDXL")
    assert parameters(teacher) == 2_567_463_684
    assert parameters(without(teacher, preset)[0]) == count  # KOALA: 1,161 M and 782 M


@pytest.mark.parametrize("preset", ["b-base", "b-small", "b-tiny"])
def test_kept_layers_are_byte_equal_to_the_teachers(tiny, run, preset):
    teacher = tiny()
    before = {name: weight.clone() for name, weight in teacher.state_dict().items()}
    student, sources = without(teacher, preset)
    assert_copied(student, sources, before)
    assert torch.isfinite(run(student)).all()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert all(torch.equal(weight, before[name]) for name, weight in teacher.state_dict().items())


def test_the_middle_layers_of_up_blocks_are_removed_and_the_last_ones_kept(tiny):
    _, sources = without(tiny(layers_per_block=3), "b-tiny")
    assert sources["up_blocks.0.resnets.0"] == "up_blocks.1.resnets.0"
    assert sources["up_blocks.0.resnets.1"] == "up_blocks.1.resnets.3"
    assert sources["down_blocks.1.attentions.0"] == "down_blocks.1.attentions.0"
    assert source_of("up_blocks.0.upsamplers.0.conv.bias", sources) == "up_blocks.1.upsamplers.0.conv.bias"
    assert source_of("time_embedding.linear_1", sources) == "time_embedding.linear_1"


def test_b_tiny_has_no_innermost_stage_and_its_last_down_block_does_not_downsample(tiny):
    student, _ = without(tiny(attention_head_dim=[2, 4, 4]), "b-tiny")
    assert tuple(student.config.block_out_channels) == (16, 32)
    assert tuple(student.config.attention_head_dim) == (2, 4)
    assert student.config.up_block_types == ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D")
    assert student.mid_block is None
    assert student.down_blocks[-1].downsamplers is None


def test_b_tiny_keeps_some_inputs_of_its_first_up_block_where_the_innermost_stage_was_wider(tiny, run):
    teacher = tiny(block_out_channels=(16, 24, 32))
    student, _ = without(teacher, "b-tiny")
    ours, theirs = student.up_blocks[0].resnets[0].conv1.weight, teacher.up_blocks[1].resnets[0].conv1.weight
    assert (ours.shape[1], theirs.shape[1]) == (48, 56)
    assert torch.equal(ours[:, 24:], theirs[:, 32:])
    assert torch.isfinite(run(student)).all()


def test_b_tiny_is_refused_where_the_innermost_stage_is_narrower(tiny):
    with pytest.raises(CondistillError, match=r"student's up_blocks\.0\.\S+ .* teacher's up_blocks\.1\."):
        without(tiny(block_out_channels=(16, 32, 16)), "b-tiny")


def test_without_a_mid_block_b_base_and_b_small_are_the_same(tiny, run):
    teacher = tiny(mid_block_type=None)
    base, small = without(teacher, "b-base")[0], without(teacher, "b-small")[0]
    assert torch.equal(run(base), run(small))


def test_the_numbers_of_layers_may_differ_between_stages(tiny, run):
    teacher = tiny(layers_per_block=(1, 2, 3), transformer_layers_per_block=(1, 2, 1))
    student, _ = without(teacher, "b-base")
    assert [len(block.resnets) for block in student.down_blocks] == [1, 1, 1]
    assert torch.isfinite(run(student)).all()


def test_transformer_depths_per_layer_follow_their_layers(tiny):
    teacher = tiny(
        mid_block_type=None,
        block_out_channels=(16, 16),
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        transformer_layers_per_block=((1, 2), (3, 4)),
        reverse_transformer_layers_per_block=((5, 6, 7), (8, 9, 10)),
    )
    kept = kept_layers(teacher, preset_layers(teacher, "b-tiny"))
    smaller = config_without_blocks(teacher, kept)
    assert smaller["transformer_layers_per_block"] == 1
    assert smaller["reverse_transformer_layers_per_block"] == ((8, 10),)
    assert_copied(*without(teacher, "b-tiny"), teacher.state_dict())


def test_a_teacher_with_one_layer_per_block_is_refused(tiny):
    with pytest.raises(CondistillError, match="layers_per_block=1; choose a width"):
        without(tiny(layers_per_block=1), "b-base")


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "depth"), [("koala-1b", 6), ("koala-700m", 5)])
def test_koala_keeps_one_layer_of_each_stage_and_the_first_transformer_blocks_of_the_innermost(
    tiny, run, preset, depth
):
    teacher = tiny(**SDXL_LIKE)
    student, sources = without(teacher, preset)
    assert (student.mid_block is None) == (preset == "koala-700m")
    assert student.config.layers_per_block == 1
    assert student.config.transformer_layers_per_block == (1, 2, depth)
    last = f"attentions.1.transformer_blocks.{depth - 1}"
    assert source_of(f"up_blocks.0.{last}", sources) == f"up_blocks.0.attentions.2.transformer_blocks.{depth - 1}"
    assert_copied(student, sources, teacher.state_dict())
    assert torch.isfinite(run(student)).all()


def test_koala_needs_a_teacher_with_the_shape_of_stable_diffusion_xl(tiny):
    for teacher in (tiny(), tiny(**SDXL_LIKE | {"transformer_layers_per_block": (1, 2, 4)})):
        with pytest.raises(CondistillError, match=r"'koala-1b' is for Stable Diffusion XL.*student\.keep"):
            preset_layers(teacher, "koala-1b")


@pytest.mark.parametrize(
    "keep",
    [
        {"down_blocks.1": (0,), "up_blocks.1": (1, 2), "down_blocks.2": (1,), "up_blocks.0": (1, 2), "mid_block": ()},
        {"down_blocks.2": (), "up_blocks.0": (), "mid_block": (), "up_blocks.1.transformer_blocks": (1,)},
        pytest.param({"down_blocks.0.transformer_blocks": ()}, marks=pytest.mark.slow),
        pytest.param({"mid_block.transformer_blocks": (1,)}, marks=pytest.mark.slow),
    ],
    ids=min,
)
def test_any_layers_can_be_kept_and_are_copies_of_the_teachers(tiny, run, tmp_path, keep):
    teacher = tiny(transformer_layers_per_block=2)
    student, sources = without(teacher, keep)
    assert parameters(student) < parameters(teacher)
    assert_copied(student, sources, teacher.state_dict())
    student.save_pretrained(tmp_path)  # JSON has lists only, which diffusers reads in another way
    assert torch.equal(run(type(teacher).from_pretrained(tmp_path)), run(student))


def test_lists_that_are_not_named_are_kept_whole(tiny, run):
    teacher = tiny(
        mid_block_type=None,
        transformer_layers_per_block=((1, 2), (2, 1), (1, 1)),
        reverse_transformer_layers_per_block=((1, 1, 1), (2, 1, 1), (1, 2, 1)),
    )
    assert torch.equal(run(without(teacher, {})[0]), run(teacher))


def test_a_removed_layer_has_no_effect(tiny, run):
    teacher = tiny()
    keep = {"down_blocks.1": (1,), "up_blocks.1": (1, 2)}  # of equal width with the stage below
    with pytest.raises(CondistillError, match=r"student\.keep\.down_blocks\.1 is \[1\]; add layer 0.* 16 channels"):
        without(teacher, keep)
    keep["down_blocks.1"] = (0,)
    expected = run(without(teacher, keep)[0])
    with torch.no_grad():
        for layer in (teacher.down_blocks[1].resnets[1], teacher.up_blocks[1].resnets[0]):
            for parameter in layer.parameters():
                parameter.fill_(torch.nan)
    assert torch.equal(run(without(teacher, keep)[0]), expected)


def test_the_lists_of_layers_are_those_that_can_be_shortened(tiny):
    lists = layer_lists(tiny(transformer_layers_per_block=(1, 2, 1)))
    assert lists["up_blocks.1"] == (0, 1, 2)
    assert lists["up_blocks.1.transformer_blocks"] == (0, 1)
    assert lists["mid_block"] == (0,)
    assert "down_blocks.2.transformer_blocks" not in lists


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ({"down_block.1": (0,)}, r"names 'down_block\.1', and there is no such list; did you mean 'down_blocks\.1'\?"),
        ({"down_blocks.2.transformer_blocks": (0,)}, r"names 'down_blocks\.2\.transformer_blocks', and there is no"),
        ({"up_blocks.1": (0, 3)}, r"up_blocks\.1 is \[0, 3\]; up_blocks\.1 has layers 0 to 2"),
        ({"mid_block": (1,)}, r"mid_block is \[1\]; mid_block has layer 0 only"),
        ({"up_blocks.1": (2, 0)}, "each once, ascending"),
        (
            {"down_blocks.1": (0,)},
            r"1 of the layers of down_blocks\.1 and 3 of up_blocks\.1, .* keep 2 layers of up_blocks\.1",
        ),
        (
            {"down_blocks.1": (0,), "up_blocks.1": (0, 1)},
            r"add its last layer, 2, the only one that fits the skip",
        ),
        (
            {"down_blocks.0": (0,), "up_blocks.2": (1, 2)},
            r"up_blocks\.2 is \[1, 2\]; add layer 0.* takes 32 channels to 16",
        ),
        ({"down_blocks.1": (), "up_blocks.1": ()}, r"leaves down_blocks\.1 without layers; only whole stages"),
        ({"up_blocks.0": (), "mid_block": ()}, r"leaves up_blocks\.0 without layers; .* no layer of down_blocks\.2"),
        ({"down_blocks.2": (), "up_blocks.0": ()}, r"mid block without its stage, .* add mid_block: \[\]"),
        ({f"{way}_blocks.{i}": () for way in ("up", "down") for i in range(3)}, "leaves no stage"),
        ({"mid_block": (), "mid_block.transformer_blocks": (0,)}, r"of a block of which none is kept; leave it out"),
    ],
)
def test_layers_that_make_no_denoiser_are_refused_with_advice(tiny, keep, message):
    with pytest.raises(CondistillError, match=message):
        kept_layers(tiny(), keep)


def test_the_mid_block_is_as_deep_as_the_first_attention_before_it(tiny):
    teacher = tiny(**SDXL_LIKE)
    keep = {"down_blocks.2.transformer_blocks": (0, 1)}
    with pytest.raises(CondistillError, match=r"10 transformer blocks in mid_block and 2 in .* down_blocks\.2; .* one"):
        kept_layers(teacher, keep)
    student, sources = without(teacher, keep | {"mid_block.transformer_blocks": (3, 7)})
    assert student.config.reverse_transformer_layers_per_block == (10, 2, 1)
    assert_copied(student, sources, teacher.state_dict())
