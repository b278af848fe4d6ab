"""The promises of `Metric`, for every registered metric."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from samples import Brightness, random_context, random_samples

from condistill.errors import CondistillError
from condistill.evaluate.metrics import METRICS, Metric, register_metric
from condistill.evaluate.metrics.mean import ShareMetric, score_of_values
from condistill.evaluate.metrics.metric import PERCENT, PLAIN, Notation, Samples

every_metric = pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
SEEDS = (0, 1, 2)
CONTEXT = random_context()


def result(metric: Metric) -> tuple[float, ...]:
    """Return value, spread and interval; what the metric does not have is 0."""
    score = metric.compute()
    assert score is not None
    return score.value, score.spread or 0.0, score.low or 0.0, score.high or 0.0


def computed_at_once(kind: type[Metric], samples: list[Samples]) -> tuple[float, ...]:
    metric = kind(CONTEXT)
    for part in samples:
        metric.update(part)
    return result(metric)


@every_metric
def test_pieces_and_merged_instances_give_the_result_of_one_update(metric: type[Metric]) -> None:
    samples = [random_samples(seed, 12) for seed in SEEDS]
    expected = computed_at_once(metric, samples)
    in_pieces = computed_at_once(metric, [s.part(slice(i, i + 5)) for s in samples for i in (0, 5, 10)])
    assert in_pieces == pytest.approx(expected, rel=1e-9)
    merged = metric(CONTEXT)
    for rows in (slice(0, 1), slice(1, 9), slice(9, 12)):
        other = metric(CONTEXT)
        for each in samples:
            other.update(each.part(rows))
        merged.merge(other)
    assert result(merged) == pytest.approx(expected, rel=1e-9)


@every_metric
def test_merging_leaves_the_other_instance_as_it_was(metric: type[Metric]) -> None:
    first, second = metric(CONTEXT), metric(CONTEXT)
    first.update(random_samples(0, 12))
    second.update(random_samples(1, 12))
    before = result(second)
    first.merge(second)
    first.update(random_samples(2, 12))
    assert result(second) == before


@every_metric
def test_samples_that_do_not_exist_change_nothing(metric: type[Metric]) -> None:
    filled, empty = metric(CONTEXT), metric(CONTEXT)
    filled.update(random_samples(0, 12))
    before = result(filled)
    filled.update(random_samples(1, 12).part(slice(0, 0)))
    filled.merge(empty)
    assert result(filled) == before
    empty.merge(filled)
    assert result(empty) == before


@every_metric
def test_without_a_sample_there_is_no_result(metric: type[Metric]) -> None:
    assert metric(CONTEXT).compute() is None
    assert metric(CONTEXT).values() == {}
    one = metric(CONTEXT)
    one.update(random_samples(0, 1))
    score = one.compute()
    assert score is None or math.isfinite(score.value)


@pytest.mark.parametrize("metric", [metric for metric in METRICS.values() if not issubclass(metric, ShareMetric)])
def test_features_that_are_not_finite_have_no_result(metric: type[Metric]) -> None:
    samples = random_samples(0, 12)
    for features in samples.features.values():
        if np.issubdtype(features.dtype, np.floating):
            features.flat[-1] = np.nan
    one = metric(CONTEXT)
    one.update(samples)
    assert one.compute() is None


@every_metric
def test_one_seed_has_no_spread(metric: type[Metric]) -> None:
    one = metric(CONTEXT)
    one.update(random_samples(0, 12))
    score = one.compute()
    assert score is not None
    assert score.spread is None


@every_metric
def test_samples_in_any_order_give_the_same_values_and_nearly_the_same_result(metric: type[Metric]) -> None:
    whole, other = metric(CONTEXT), metric(CONTEXT)
    samples = [random_samples(seed, 12) for seed in SEEDS]
    for each in samples:
        whole.update(each)
    order = np.random.Generator(np.random.Philox(5)).permutation(12)
    for each in reversed(samples):
        features = {name: values[order] for name, values in each.features.items()}
        other.update(Samples(each.seed, [each.prompts[row] for row in order], features, order.tolist()))
    assert other.values() == whole.values()
    assert result(other) == pytest.approx(result(whole), rel=1e-9)


@every_metric
def test_the_interval_contains_the_value_and_values_have_its_mean(metric: type[Metric]) -> None:
    one = metric(CONTEXT)
    one.update(random_samples(0, 40))
    score = one.compute()
    assert score is not None
    assert (score.low is None) == (score.high is None)
    if score.low is not None and score.high is not None:
        assert score.low < score.value < score.high
    if values := one.values():
        assert score.value == pytest.approx(np.mean(list(values.values())), rel=1e-9)
        assert score.low is not None


@every_metric
def test_values_of_all_images_have_the_score_of_the_metric(metric: type[Metric]) -> None:
    samples = [random_samples(seed, 12) for seed in SEEDS]
    one = metric(CONTEXT)
    for each in samples:
        one.update(each)
    prompts = {(each.seed, row): prompt for each in samples for row, prompt in enumerate(each.prompts)}
    if (values := one.values()) and not metric.over_seeds:
        assert values.keys() == prompts.keys()
        assert score_of_values(metric, values, prompts, seed=CONTEXT.seed) == one.compute()
    assert score_of_values(metric, {}, prompts, seed=0) is None


@every_metric
def test_a_metric_needs_only_the_features_it_names(metric: type[Metric]) -> None:
    samples = random_samples(0, 12)
    only = Samples(samples.seed, samples.prompts, {name: samples.features[name] for name in metric.needs})
    assert computed_at_once(metric, [only]) == computed_at_once(metric, [samples])


@every_metric
def test_a_metric_is_available_only_with_what_it_reads(metric: type[Metric]) -> None:
    features = random_samples(0, 1).features
    assert metric.is_available(features, CONTEXT.reference)
    assert not metric.is_available(set(features) - {metric.needs[-1]}, CONTEXT.reference)
    assert metric.is_available(features, {}) == (metric.reference == "none")
    of_file = {name: replace(images, features=None) for name, images in CONTEXT.reference.items()}
    assert metric.is_available(features, of_file) == (metric.reference != "features")


@every_metric
def test_a_metric_of_sets_of_images_is_partial_and_cautious_with_few_images(metric: type[Metric]) -> None:
    assert metric.aspect in ("text", "teacher", "images", "variety")
    if metric.aspect in ("images", "variety"):
        assert metric.is_partial
    assert metric.caution(1_000_000) == ""
    if few := metric.caution(200):
        assert few[0].isupper()
        assert few.endswith(".")
        assert "200 images" in few
    if metric.reference == "moments":
        assert "FID and other Fréchet distances of 200 images are too large" in metric.caution(200)


def test_metrics_with_the_same_caution_have_one_sentence() -> None:
    assert len({metric.caution(200) for metric in METRICS.values()} - {""}) == 3


@every_metric
def test_a_metric_says_what_it_is_in_words(metric: type[Metric]) -> None:
    assert METRICS[metric.name] is metric
    assert metric.direction in ("higher", "lower")
    assert metric.label[0].isupper()
    assert metric.description
    assert not metric.description.endswith(".")
    assert metric.notation.text(0.5) in metric.predicate(0.5, "unseen prompts")
    assert "unseen prompts" in metric.predicate(0.5, "unseen prompts")
    better, worse = (1.0, 0.0) if metric.direction == "higher" else (0.0, 1.0)
    assert metric.oriented(better) > metric.oriented(worse)
    if metric.upper_bound is not None:
        assert computed_at_once(metric, [random_samples(0, 20)])[0] <= metric.upper_bound


def test_numbers_are_written_in_the_unit_of_their_metric() -> None:
    assert (PERCENT.text(0.674), PERCENT.number(0.674), PERCENT.spread(0.013)) == ("67 %", "67.4", "± 1.3")
    assert (PLAIN.text(0.4204), PLAIN.number(0.4204, 2), PLAIN.spread(0.0134)) == ("0.420", "0.42", "± 0.013")
    assert Notation("s").text(2.0) == "2.00 s"
    assert (PERCENT.number(-0.0), PERCENT.number(-0.0004), PLAIN.number(-0.0)) == ("0.0", "0.0", "0")
    assert (PERCENT.number(-0.0006), PLAIN.number(-1234.5)) == ("-0.1", "-1,230")
    assert METRICS["kid"].notation.text(0.00344) == "3.44 × 10⁻³"
    assert METRICS["clip_score"].notation.number(0.29583) == "0.2958"  # as the paper's .2958


def test_an_incomplete_metric_and_a_taken_name_are_refused() -> None:
    class Nameless(Brightness):
        direction = "upwards"  # type: ignore[assignment]

    with pytest.raises(CondistillError, match="'brightness' has direction 'upwards'; set higher or lower"):
        register_metric(Nameless)

    class Silent(Metric):
        name = "silent"
        needs = ()

    with pytest.raises(CondistillError, match="the metric Silent has no label, description, direction; see Metric"):
        register_metric(Silent)

    class Taken(Brightness):
        name = "latent_rmse"

    with pytest.raises(CondistillError, match="the metric 'latent_rmse' is registered already"):
        register_metric(Taken)
    assert set(METRICS) >= {"all_correct", "shape", "frechet_classifier", "latent_rmse"}
