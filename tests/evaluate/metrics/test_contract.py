"""The promises of `Metric`, for every registered metric."""

from __future__ import annotations

import math

import pytest
from samples import Brightness, random_samples

from condistill.errors import CondistillError
from condistill.evaluate.metrics import METRICS, Metric, register_metric
from condistill.evaluate.metrics.metric import PERCENT, PLAIN, Notation, Samples

every_metric = pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
SEEDS = (0, 1, 2)


def result(metric: Metric) -> tuple[float, ...]:
    """Return value, spread and interval; what the metric does not have is 0."""
    score = metric.compute()
    assert score is not None
    return score.value, score.spread or 0.0, score.low or 0.0, score.high or 0.0


def computed_at_once(kind: type[Metric], samples: list[Samples]) -> tuple[float, ...]:
    metric = kind()
    for part in samples:
        metric.update(part)
    return result(metric)


@every_metric
def test_pieces_and_merged_instances_give_the_result_of_one_update(metric: type[Metric]) -> None:
    samples = [random_samples(seed, 12) for seed in SEEDS]
    expected = computed_at_once(metric, samples)
    in_pieces = computed_at_once(metric, [s.part(slice(i, i + 5)) for s in samples for i in (0, 5, 10)])
    assert in_pieces == pytest.approx(expected, rel=1e-9)
    merged = metric()
    for rows in (slice(0, 1), slice(1, 9), slice(9, 12)):
        other = metric()
        for each in samples:
            other.update(each.part(rows))
        merged.merge(other)
    assert result(merged) == pytest.approx(expected, rel=1e-9)


@every_metric
def test_merging_leaves_the_other_instance_as_it_was(metric: type[Metric]) -> None:
    first, second = metric(), metric()
    first.update(random_samples(0, 8))
    second.update(random_samples(1, 8))
    before = result(second)
    first.merge(second)
    first.update(random_samples(2, 8))
    assert result(second) == before


@every_metric
def test_samples_that_do_not_exist_change_nothing(metric: type[Metric]) -> None:
    filled, empty = metric(), metric()
    filled.update(random_samples(0, 8))
    before = result(filled)
    filled.update(random_samples(1, 8).part(slice(0, 0)))
    filled.merge(empty)
    assert result(filled) == before
    empty.merge(filled)
    assert result(empty) == before


@every_metric
def test_without_a_sample_there_is_no_result(metric: type[Metric]) -> None:
    assert metric().compute() is None
    one = metric()
    one.update(random_samples(0, 1))
    score = one.compute()
    assert score is None or math.isfinite(score.value)


@every_metric
def test_one_seed_has_no_spread(metric: type[Metric]) -> None:
    one = metric()
    one.update(random_samples(0, 8))
    score = one.compute()
    assert score is not None
    assert score.spread is None


@every_metric
def test_a_metric_needs_only_the_features_it_names(metric: type[Metric]) -> None:
    samples = random_samples(0, 8)
    only = Samples(samples.seed, samples.prompts, {name: samples.features[name] for name in metric.needs})
    assert computed_at_once(metric, [only]) == computed_at_once(metric, [samples])


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
