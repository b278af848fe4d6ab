from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_processor import Attention

from condistill.config.sections import StudentSettings
from condistill.errors import CondistillError
from condistill.students.blocks import kept_layers, layer_sources, preset_layers, remove_blocks
from condistill.students.derive import derive_student
from condistill.students.features import (
    FeaturePair,
    FeatureRecorder,
    check_pairs,
    feature_pairs,
    layer_weights,
    make_maps,
)
from condistill.students.width import narrow


def without_blocks(teacher, preset, **features):
    """A student with blocks removed, and the pairs of layers that are compared."""
    kept = kept_layers(teacher, preset_layers(teacher, preset))
    student = remove_blocks(teacher, kept)
    return student, feature_pairs(teacher, student, sources=layer_sources(teacher, kept), **features)


def places(teacher, preset):
    return [(pair.teacher, pair.student) for pair in without_blocks(teacher, preset)[1]]


def test_students_with_blocks_removed_are_compared_at_every_down_and_up_block(tiny):
    teacher = tiny()
    both = [f"{way}_blocks.{i}" for way in ("down", "up") for i in range(3)]
    assert places(teacher, "b-base") == list(zip(both, both, strict=True))


def test_students_without_the_innermost_stage_are_compared_with_the_outer_ones(tiny):
    teacher = tiny()
    assert places(teacher, "b-tiny") == [
        ("down_blocks.0", "down_blocks.0"),
        ("down_blocks.1.attentions.1", "down_blocks.1.attentions.0"),
        ("up_blocks.1", "up_blocks.0"),
        ("up_blocks.2", "up_blocks.1"),
    ]
    plain = tiny(
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"),
    )
    assert places(plain, "b-tiny")[1] == (
        "down_blocks.1.resnets.1",
        "down_blocks.1.resnets.0",
    )


@pytest.mark.slow
def test_narrow_students_are_compared_at_every_stage(tiny):
    teacher = tiny()
    student = narrow(teacher, (8, 16, 16))
    pairs = feature_pairs(teacher, student)
    assert [pair.name for pair in pairs][3] == "mid_block"
    assert check_pairs(teacher, student, pairs) == [(16, 8), (32, 16), (32, 16), (32, 16), (32, 16), (32, 16), (16, 8)]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "module"), [("cross_attention", "attn2"), ("self_attention", "attn1")])
def test_every_attention_is_compared_with_its_source(tiny, kind, module):
    teacher = tiny()
    narrowed = narrow(teacher, (8, 16, 16))
    shorter, removed = without_blocks(teacher, "b-tiny", features=kind)
    pairs = feature_pairs(teacher, narrowed, features=kind)
    assert all(pair.teacher == pair.student and pair.student.endswith(f".{module}") for pair in pairs)
    assert len(pairs) == sum(name.endswith(f".{module}") for name, _ in narrowed.named_modules())
    channels = check_pairs(teacher, narrowed, pairs)
    assert set(channels) == {(16, 8), (32, 16)}
    maps = make_maps([t for t, _ in channels], [s for _, s in channels], features=kind)
    check_pairs(teacher, narrowed, pairs, maps)
    tail = f"transformer_blocks.0.{module}"
    assert ("up_blocks.1.attentions.2." + tail, "up_blocks.0.attentions.1." + tail) in [
        (pair.teacher, pair.student) for pair in removed
    ]
    check_pairs(teacher, shorter, removed)


def test_a_student_without_attention_has_no_attention_features(tiny):
    plain = tiny(down_block_types=("DownBlock2D",) * 3, up_block_types=("UpBlock2D",) * 3, mid_block_type=None)
    with pytest.raises(CondistillError, match=r"no attn2; set distill\.loss\.features to stages"):
        feature_pairs(plain, plain, features="cross_attention")


def test_layers_of_different_resolution_are_refused(tiny):
    teacher = tiny()
    with pytest.raises(CondistillError, match=r"teacher's down_blocks\.0 is 4x4 .* student's down_blocks\.1 is 2x2"):
        check_pairs(teacher, teacher, [FeaturePair("down_blocks.0", "down_blocks.1", "x")])


def test_a_layer_that_does_not_exist_is_named(tiny):
    teacher = tiny()
    with pytest.raises(CondistillError, match=r"no layer 'down_blocks\.9'"):
        check_pairs(teacher, teacher, [FeaturePair("down_blocks.9", "down_blocks.1", "x")])


def test_maps_that_do_not_fit_are_named_with_both_layers(tiny):
    teacher = tiny()
    student = narrow(teacher, (8, 16, 16))
    pairs = [FeaturePair("down_blocks.0", "down_blocks.0", "first")]
    assert check_pairs(teacher, student, pairs, make_maps([16], [8])) == [(16, 8)]
    with pytest.raises(CondistillError, match=r"map of first is from 4 to 16 channels.*down_blocks\.0 has 8.* has 16"):
        check_pairs(teacher, student, pairs, make_maps([16], [4]))
    with pytest.raises(CondistillError, match="map of first is an identity"):
        check_pairs(teacher, student, pairs, make_maps([16], [16]))
    with pytest.raises(CondistillError, match="2 maps for 1 pairs"):
        check_pairs(teacher, student, pairs, make_maps([16, 16], [8, 8]))


def test_maps_are_identities_where_widths_are_equal():
    maps = make_maps([16, 32], [16, 8])
    assert isinstance(maps[0], torch.nn.Identity)
    assert maps[1](torch.zeros(1, 8, 2, 2)).shape == (1, 32, 2, 2)


def inputs():
    return torch.ones(1, 4, 8, 8), torch.tensor([3]), torch.ones(1, 5, 16)


def test_features_are_recorded_only_inside_the_with(tiny):
    denoiser = tiny()
    recorder = FeatureRecorder([denoiser.up_blocks[0], denoiser.down_blocks[0], denoiser.conv_in])
    with torch.no_grad():
        with recorder:
            denoiser(*inputs())
        kept = recorder.features
        denoiser(*(2 * x for x in inputs()))
    assert [feature.shape[1] for feature in kept] == [32, 16, 16]
    assert all(a is b for a, b in zip(kept, recorder.features, strict=True))
    recorder.clear()
    with pytest.raises(CondistillError, match=r"layer 0 of the recorder \(UpBlock2D\) has no output"):
        _ = recorder.features
    recorder.remove()
    with pytest.raises(CondistillError, match="hooks were removed"), recorder:
        pass


@pytest.mark.parametrize("heads", [1, 4])
def test_attention_maps_are_what_the_softmax_gives(heads):
    torch.manual_seed(0)
    attention = Attention(query_dim=8, cross_attention_dim=6, heads=heads, dim_head=8 // heads)
    places, text = torch.randn(2, 9, 8), torch.randn(2, 5, 6)
    recorder = FeatureRecorder([attention], "attention_maps")
    with recorder:
        attention(places, encoder_hidden_states=text)
    query = attention.to_q(places).double().view(2, 9, heads, -1)
    key = attention.to_k(text).double().view(2, 5, heads, -1)
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / (8 // heads) ** 0.5
    (given,) = recorder.features
    torch.testing.assert_close(given.double(), scores.softmax(-1).mean(1).transpose(1, 2), rtol=1e-5, atol=1e-7)
    assert given.shape == (2, 5, 9)
    assert given.requires_grad


def test_attention_maps_of_every_cross_attention_are_compared_without_learnt_maps(tiny):
    student = derive_student(tiny(), StudentSettings(width=0.5), features="attention_maps")
    assert all(pair.student.endswith(".attn2") for pair in student.pairs)
    assert not [*student.maps.parameters()]


def test_a_layer_weight_applies_to_a_layer_and_those_inside_it_unless_a_longer_name_has_one():
    pairs = [FeaturePair(name, name, name) for name in ("down_blocks.1.attn2", "down_blocks.10", "mid_block")]
    assert layer_weights({}, pairs) == [1, 1, 1]
    assert layer_weights({"down_blocks.1": 0.5}, pairs) == [0.5, 1, 1]
    assert layer_weights({"down_blocks": 0.0, "down_blocks.10": 3.0, "mid_block": 2.0}, pairs) == [0, 3, 2]
    with pytest.raises(CondistillError, match=r"names 'midblock', and no such layer.*did you mean 'mid_block'"):
        layer_weights({"midblock": 2.0}, pairs)


def test_features_under_gradient_checkpointing_give_the_same_gradients(tiny):
    gradients = []
    for checkpointing in (False, True):
        denoiser = tiny().train()
        if checkpointing:
            denoiser.enable_gradient_checkpointing()
        # one layer inside a checkpointed region and one around several
        recorder = FeatureRecorder([denoiser.down_blocks[0].resnets[1].conv2, denoiser.up_blocks[1]])
        with recorder:
            output = denoiser(*inputs()).sample
        before = recorder.features
        (output.square().mean() + sum(f.square().mean() for f in before)).backward()
        assert all(a is b for a, b in zip(before, recorder.features, strict=True))
        gradients.append({name: p.grad for name, p in denoiser.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)
    assert all(gradient is not None for gradient in gradients[0].values())
