from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import SanaTransformer2DModel
from tiny_transformers import BLOCKS, KINDS, build, inputs_of, make_identity

from condistill.config.sections import StudentSettings
from condistill.errors import CondistillError
from condistill.students.depth import layer_lists, share_of_layers
from condistill.students.derive import derive_student
from condistill.students.features import FeatureRecorder, _output_shapes
from condistill.students.scores.record import Scores
from condistill.utils.meta import parameters

KEEP = {"transformer_blocks": (0, 1, 4)}


@pytest.fixture(autouse=True, scope="module")
def _known() -> Iterator[None]:
    """Shapes are found with the inputs of these tests, for every kind of transformer, and forgotten."""

    def example_inputs(denoiser: Any, size: tuple[int, int], text_length: int) -> dict[str, Any]:
        return inputs_of(denoiser, size, device="meta")

    family = SimpleNamespace(example_inputs=example_inputs)
    _output_shapes.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("condistill.profiling.shapes.family_of", lambda _: family)
        yield
    _output_shapes.cache_clear()


@pytest.fixture(params=KINDS)
def teacher(request: pytest.FixtureRequest) -> Any:
    return build(request.param)


@torch.no_grad()
def predict(denoiser: Any) -> torch.Tensor:
    sample: torch.Tensor = denoiser.eval()(**inputs_of(denoiser, (8, 8), batch=2)).sample
    return sample


def student_of(teacher: Any, *, scores: Any = None, seed: int = 0, features: Any = "stages", **settings: Any) -> Any:
    scores = Scores(layer_scores=scores)
    return derive_student(teacher, StudentSettings(**settings), scores=scores, seed=seed, features=features)


@pytest.mark.slow
def test_a_student_computes_what_its_teacher_does_with_identities_for_the_other_layers(teacher, tmp_path):
    keep = KEEP | ({"single_transformer_blocks": (1, 2)} if "single_transformer_blocks" in layer_lists(teacher) else {})
    student = student_of(teacher, keep=keep).denoiser
    assert parameters(student) < parameters(teacher)
    whole = predict(teacher)
    for name, kept in keep.items():
        for index, layer in enumerate(getattr(teacher, name)):
            if index not in kept:
                make_identity(layer)
    assert not torch.allclose(predict(teacher), whole)
    torch.testing.assert_close(predict(student), predict(teacher))
    student.save_pretrained(tmp_path)
    torch.testing.assert_close(predict(type(teacher).from_pretrained(tmp_path)), predict(student))


def test_the_student_of_a_half_precision_teacher_is_float32_and_shares_no_memory(teacher):
    exact = {name: weight.clone() for name, weight in teacher.half().state_dict().items()}
    student = student_of(teacher, keep=KEEP).denoiser
    assert {tensor.dtype for tensor in (*student.parameters(), *student.buffers())} == {torch.float32}
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert all(torch.equal(weight, exact[name]) for name, weight in teacher.state_dict().items())


def test_a_teacher_on_meta_has_a_student_on_meta(teacher):
    shapes = student_of(teacher.to("meta"), depth=0.5)
    assert {tensor.device.type for tensor in shapes.denoiser.parameters()} == {"meta"}
    assert len(shapes.denoiser.transformer_blocks) == 2


def test_the_second_attentions_of_stable_diffusion_3_stay_with_their_layers():
    student = student_of(build("sd3"), keep={BLOCKS: (1, 2, 3, 4)}).denoiser
    assert student.config.dual_attention_layers == (0, 2)


def test_a_layer_is_compared_with_the_last_of_the_layers_that_it_replaces():
    teacher = build("flux")
    student = student_of(teacher, keep={BLOCKS: (0, 2), "single_transformer_blocks": (1,)})
    assert [(pair.teacher, pair.student) for pair in student.pairs] == [
        ("transformer_blocks.1", "transformer_blocks.0"),
        ("transformer_blocks.4", "transformer_blocks.1"),
        ("single_transformer_blocks.3", "single_transformer_blocks.0"),
    ]
    assert all(isinstance(to_teacher, torch.nn.Identity) for to_teacher in student.maps)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "features", "part"),
    [
        ("dit", "self_attention", "attn1"),
        ("pixart", "cross_attention", "attn2"),
        ("sana", "self_attention", "attn1"),
        ("sd3", "self_attention", "attn"),
    ],
)
def test_attentions_are_compared_with_their_sources(kind, features, part):
    pairs = student_of(build(kind), keep=KEEP, features=features).pairs
    assert [(pair.teacher, pair.student) for pair in pairs] == [
        (f"{BLOCKS}.{source}.{part}", f"{BLOCKS}.{i}.{part}") for i, source in enumerate(KEEP[BLOCKS])
    ]


@pytest.mark.parametrize("features", ["stages", "self_attention"])
def test_features_are_those_of_the_image_and_equal_with_checkpointing(teacher, features):
    student = student_of(teacher, keep=KEEP, features=features)
    denoiser = student.denoiser.train()
    points = [denoiser.get_submodule(pair.student) for pair in student.pairs]
    recorded = []
    for checkpointed in (False, True):
        if checkpointed:
            denoiser.enable_gradient_checkpointing()
        torch.manual_seed(0)  # a label is dropped by chance in training
        recorder = FeatureRecorder(points, features)
        with recorder:
            prediction = denoiser(**inputs_of(denoiser, (8, 8), batch=2)).sample
        taken = recorder.features
        prediction.sum().backward()
        assert all(one is two for one, two in zip(taken, recorder.features, strict=True))
        recorded.append([feature.detach() for feature in taken])
        recorder.remove()
    tokens = {f.shape for pair, f in zip(student.pairs, recorded[0], strict=True) if not pair.name.startswith("single")}
    assert tokens == {(2, 16, 64 if isinstance(teacher, SanaTransformer2DModel) else 16)}
    for plain, again in zip(*recorded, strict=True):
        torch.testing.assert_close(again, plain)


@pytest.mark.parametrize(
    ("depth", "scores", "kept"),
    [
        (0.5, None, (0, 4)),
        (0.6, None, (0, 2, 4)),
        (0.6, (0, 0.1, 0.2, 0.3, 0), (0, 3, 4)),
        (0.6, (0, 0.3, 0.3, 0.1, 0), (0, 1, 4)),
        (0.8, (0, 0.1, 0.2, 0.3, 0), (0, 2, 3, 4)),
        (0.1, (9, 0.1, 0.2, 0.3, 0), (4,)),
    ],
)
def test_depth_keeps_both_ends_and_the_layers_with_the_highest_scores(depth, scores, kept):
    teacher = build("dit")
    given = None if scores is None else {BLOCKS: scores}
    assert share_of_layers(teacher, depth, given) == {BLOCKS: kept}
    assert student_of(teacher, depth=depth, scores=given).denoiser.config.num_layers == len(kept)


def test_the_model_card_lines_say_which_layers_are_kept_and_why():
    teacher = build("flux")
    scores = {BLOCKS: (0, 1, 2, 3, 0), "single_transformer_blocks": (0, 1, 2, 0)}
    assert student_of(teacher, keep=KEEP).kept == (
        "weights: inherited from the teacher",
        "transformer_blocks: layers 0, 1, 4 of 5, as listed",
        "single_transformer_blocks: all 4 layers",
    )
    by_influence = "the first, the last and those with the highest block influence"
    assert student_of(teacher, depth=0.5, scores=scores).kept[1:] == (
        f"transformer_blocks: layers 0, 4 of 5, {by_influence}",
        f"single_transformer_blocks: layers 0, 3 of 4, {by_influence}",
    )
    assert student_of(build("dit"), depth=0.2, weights="random", seed=3).kept == (
        "weights: random, seed 3",
        "transformer_blocks: layer 4 of 5, spread evenly",
    )


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("dit", {"keep": {"transformer_block": (0,)}}, r"not a list of layers; did you mean 'transformer_blocks'\?"),
        (
            "dit",
            {"keep": {"single_transformer_blocks": (0,)}},
            "names 'single_transformer_blocks', which is not",
        ),
        ("dit", {"keep": {BLOCKS: (0, 5)}}, r"is \[0, 5\]; give at least one of the layers 0 to 4"),
        ("dit", {"keep": {BLOCKS: (2, 1)}}, "each once, ascending"),
        ("dit", {"keep": {BLOCKS: (1, 1)}}, "each once, ascending"),
        ("dit", {"keep": {BLOCKS: ()}}, "at least one of the layers"),
        ("sd3", {"keep": {BLOCKS: (0, 1)}}, "the last layer, 4, must be kept"),
        (
            "dit",
            {"keep": {BLOCKS: (0, 1, 2, 3, 4)}},
            r"[\d,]+ parameters and its teacher has [\d,]+; keep fewer layers",
        ),
        ("dit", {"depth": 0.95}, "depth 0.95 of 5 transformer_blocks keeps all layers"),
        ("dit", {"width": 0.5}, "width 0.5: presets and widths are for U-Nets.* DiTTransformer2DModel; set .*depth"),
        ("dit", {"preset": "b-small"}, "preset 'b-small': presets and widths are for U-Nets"),
        ("dit", {"depth": 0.5, "features": "attention_maps"}, "attention_maps cannot be compared in a DiT"),
        ("sd3", {"depth": 0.5, "features": "cross_attention"}, "cross_attention cannot be compared in a SD3"),
    ],
)
def test_settings_that_do_not_fit_a_transformer_are_refused(kind, settings, message):
    with pytest.raises(CondistillError, match=message):
        student_of(build(kind), **settings)


def test_a_u_net_has_no_depth(tiny):
    with pytest.raises(CondistillError, match="depth is for transformers; make a U-Net smaller by preset"):
        student_of(tiny(), depth=0.5)
