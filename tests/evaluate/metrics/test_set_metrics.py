"""Metrics of sets of images equal independent implementations on the same features."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from samples import reference_set
from scipy import linalg
from torchvision_stand_in import torchvision_stand_in

from condistill.evaluate.metrics import METRICS, Metric, Score, pairwise
from condistill.evaluate.metrics.intervals import t_quantile
from condistill.evaluate.metrics.manifold import squared_radii
from condistill.evaluate.metrics.metric import Context, Samples

Features = NDArray[np.float32]
REL = 1e-4
SIZE = 24


@pytest.fixture(scope="module")
def fidelity() -> SimpleNamespace:
    """The functions of torch-fidelity that turn features into metrics."""
    with torchvision_stand_in():
        from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc
    return SimpleNamespace(fid=metric_fid, isc=metric_isc, kid=metric_kid, prc=metric_prc)


@pytest.fixture(
    params=[(120, 90), (40, 60), (200, 200), (15, 90), (20, 10)], ids=lambda counts: f"{counts[0]} against {counts[1]}"
)
def sets(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[Features, Features]:
    """Features of generated and of reference images; blocks are small, so that there are several."""
    monkeypatch.setattr(pairwise, "BLOCK", 32)
    count, other = request.param
    return features(count, seed=1), features(other, seed=2)


def features(count: int, *, seed: int, size: int = SIZE) -> Features:
    """Return correlated features that are not negative, as those of Inception; they depend on the seed a little."""
    common = np.random.Generator(np.random.Philox(0)).normal(size=(size, size))
    rng = np.random.Generator(np.random.Philox(seed))
    values = rng.normal(size=(count, size)) @ common / 4 + 0.1 * rng.normal(size=size)
    return np.maximum(values, -0.2).astype(np.float32) + np.float32(0.4)


def samples(values: Features, feature: str, first: int = 0, seed: int = 0) -> Samples:
    numbers = range(first, first + len(values))
    return Samples(seed, [f"prompt {number}" for number in numbers], {feature: values}, numbers)


def computed(name: str, generated: Features, reference: Features | None = None) -> Score:
    score = measured(name, generated, reference).compute()
    assert score is not None
    return score


def measured(name: str, generated: Features, reference: Features | None = None) -> Metric:
    """Return a metric that got its images in two batches that do not arrive in order."""
    kind = METRICS[name]
    feature = kind.needs[0]
    context = Context({} if reference is None else {feature: reference_set(reference)})
    metric, half = kind(context), len(generated) // 3
    metric.update(samples(generated[half:], feature, first=half))
    metric.update(samples(generated[:half], feature))
    return metric


@pytest.mark.parametrize("name", ["fid", "fd_dinov2"])
def test_frechet_distances_are_those_of_torch_fidelity_and_of_a_matrix_root(
    name: str, sets: tuple[Features, Features], fidelity: SimpleNamespace
) -> None:
    statistics = [fidelity.fid.fid_features_to_statistics(torch.from_numpy(each)) for each in sets]
    expected = fidelity.fid.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    value = computed(name, *sets).value
    assert value == pytest.approx(expected, rel=REL)
    means = [each.astype(np.float64).mean(0) for each in sets]
    covariances = [np.cov(each.astype(np.float64), rowvar=False) for each in sets]
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    by_root = ((means[0] - means[1]) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert value == pytest.approx(by_root, rel=REL)


def test_kid_is_that_of_torch_fidelity_for_one_subset_of_all_images(fidelity: SimpleNamespace) -> None:
    generated, reference = features(80, seed=1), features(80, seed=2)
    found = fidelity.kid.kid_features_to_metric(
        torch.from_numpy(generated).double(),
        torch.from_numpy(reference).double(),
        kid_subsets=1,
        kid_subset_size=80,
        kid_kernel="poly",
        kid_kernel_poly_degree=3,
        kid_kernel_poly_gamma=None,
        kid_kernel_poly_coef0=1,
        rng_seed=0,
        verbose=False,
    )
    value = computed("kid", generated, reference).value
    assert value == pytest.approx(found["kernel_inception_distance_mean"], rel=REL)


def naive_mmd(first: Features, second: Features, kernel: Any) -> float:
    """Return the unbiased estimate by loops over all pairs."""
    x, y = first.astype(np.float64), second.astype(np.float64)

    def mean(one: Any, other: Any, *, skip: bool) -> float:
        pairs = [kernel(a, b) for i, a in enumerate(one) for j, b in enumerate(other) if not (skip and i == j)]
        return float(np.mean(pairs))

    return mean(x, x, skip=True) + mean(y, y, skip=True) - 2 * mean(x, y, skip=False)


def test_kid_and_cmmd_are_their_formulas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairwise, "BLOCK", 8)
    generated, reference = features(30, seed=1), features(21, seed=2)
    by_formula = naive_mmd(generated, reference, lambda a, b: (a @ b / SIZE + 1) ** 3)
    assert computed("kid", generated, reference).value == pytest.approx(by_formula, rel=1e-9)
    units = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in (generated, reference)]
    by_formula = 1000 * naive_mmd(*units, lambda a, b: np.exp(-((a - b) ** 2).sum() / (2 * 10**2)))
    assert computed("cmmd", *units).value == pytest.approx(by_formula, rel=1e-6)


@pytest.mark.parametrize("name", ["kid", "cmmd"])
def test_pairs_of_one_prompt_are_left_out(name: str) -> None:
    kind, (generated, of_teacher) = METRICS[name], (features(30, seed=seed) for seed in (1, 2))
    prompts = [str(number // 2) for number in range(30)]
    reference = replace(reference_set(of_teacher), prompts=prompts)
    metric = kind(Context({kind.needs[0]: reference}))
    metric.update(Samples(0, prompts, {kind.needs[0]: generated}, range(30)))
    apart = np.array(prompts)[:, None] != np.array(prompts)

    def mean(one: Features, other: Features) -> float:
        return float(kind.kernel(one.astype(float), other.astype(float))[apart].mean())  # type: ignore[attr-defined]

    expected = mean(generated, generated) + mean(of_teacher, of_teacher) - 2 * mean(generated, of_teacher)
    score = metric.compute()
    assert score is not None
    assert score.value == pytest.approx(kind.scale * expected, rel=1e-6)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["kid", "cmmd"])
def test_a_student_with_the_images_of_its_teacher_has_no_distance(name: str) -> None:
    kind, images = METRICS[name], features(30, seed=1)
    prompts = [f"prompt {number}" for number in range(30)]
    metric = kind(Context({kind.needs[0]: replace(reference_set(images), prompts=prompts)}))
    metric.update(samples(images, kind.needs[0]))
    score = metric.compute()
    assert score is not None
    assert [score.value, score.low, score.high] == pytest.approx([0, 0, 0], abs=1e-9)


def test_the_interval_of_kid_leaves_out_every_prompt_and_every_reference_image() -> None:
    generated, reference = features(9, seed=1), features(7, seed=2)
    prompts = ["a", "a", "b", "c", "d", "e", "e", "e", "f"]

    def kid(images: Features, of_images: list[str], others: Features) -> float:
        metric = METRICS["kid"](Context({"inception": reference_set(others)}))
        metric.update(Samples(0, of_images, {"inception": images}, range(len(images))))
        score = metric.compute()
        assert score is not None
        return score.value

    kept = [np.array([prompt != left for prompt in prompts]) for left in "abcdef"]
    by_prompt = [kid(generated[rows], [p for p, k in zip(prompts, rows, strict=True) if k], reference) for rows in kept]
    by_image = [kid(generated, prompts, np.delete(reference, row, 0)) for row in range(7)]
    variance = sum((len(v) - 1) * np.var(v) for v in (by_prompt, by_image))
    metric = METRICS["kid"](Context({"inception": reference_set(reference)}))
    metric.update(Samples(0, prompts, {"inception": generated}, range(9)))
    score = metric.compute()
    assert score is not None
    assert score.high == pytest.approx(score.value + t_quantile(5) * np.sqrt(variance), rel=1e-6)
    assert score.low == pytest.approx(score.value - t_quantile(5) * np.sqrt(variance), rel=1e-6)


def test_an_image_on_the_surface_of_a_ball_counts_for_precision_and_not_for_density() -> None:
    reference = np.arange(0, 20, 2, dtype=np.float32)[:, None]  # the last ball reaches 6 (k = 3) or 10 (k = 5) far
    assert computed("precision", np.full((6, 1), 24.0, np.float32), reference).value == 1.0
    assert computed("precision", np.full((6, 1), 24.1, np.float32), reference).value == 0.0
    assert computed("density", np.full((6, 1), 28.0, np.float32), reference).value == 0.0
    assert computed("density", np.full((6, 1), 27.9, np.float32), reference).value == pytest.approx(1 / 5)


def test_images_of_a_single_prompt_have_no_kernel_distance() -> None:
    metric = METRICS["kid"](Context({"inception": reference_set(features(9, seed=1))}))
    metric.update(Samples(0, ["a"] * 5, {"inception": features(5, seed=2)}, range(5)))
    assert metric.compute() is None


def test_cmmd_differs_from_the_code_of_its_authors_by_the_documented_bias() -> None:
    x, y = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (features(50, seed=1), features(40, seed=2)))

    def mean_kernel(one: Features, other: Features) -> Any:
        distances = ((one[:, None].astype(np.float64) - other[None]) ** 2).sum(2)
        return np.exp(-distances / 200)

    k_xx, k_yy, k_xy = mean_kernel(x, x), mean_kernel(y, y), mean_kernel(x, y)
    of_authors = 1000 * (k_xx.mean() + k_yy.mean() - 2 * k_xy.mean())
    others = [(kernel.sum() - len(kernel)) / (len(kernel) * (len(kernel) - 1)) for kernel in (k_xx, k_yy)]
    bias = 1000 * ((1 - others[0]) / 50 + (1 - others[1]) / 40)
    assert computed("cmmd", x, y).value == pytest.approx(of_authors - bias, rel=1e-6)


def test_the_inception_score_is_that_of_torch_fidelity(fidelity: SimpleNamespace) -> None:
    logits = 3 * features(137, seed=1, size=40)
    found = fidelity.isc.isc_features_to_metric(torch.from_numpy(logits))
    value = computed("inception_score", logits).value
    assert value == pytest.approx(found["inception_score_mean"], rel=REL)
    certain = 1000 * np.eye(10, dtype=np.float32)[np.arange(100) % 10]
    assert 1 < computed("inception_score", certain).value <= 10
    assert computed("inception_score", np.zeros((100, 10), np.float32)).value == pytest.approx(1)


def test_precision_and_recall_are_those_of_torch_fidelity(
    sets: tuple[Features, Features], fidelity: SimpleNamespace
) -> None:
    tensors = [torch.from_numpy(each).double() for each in sets]
    options = {"prc_neighborhood": 3, "prc_batch_size": 1000, "save_cpu_ram": False, "verbose": False}
    found = fidelity.prc.prc_features_to_metric(*tensors, **options)
    assert 0 < found["precision"] < 1
    assert computed("precision", *sets).value == pytest.approx(found["precision"], rel=REL)
    assert computed("recall", *sets).value == pytest.approx(found["recall"], rel=REL)


def test_density_and_coverage_are_their_formulas(sets: tuple[Features, Features]) -> None:
    generated, reference = (each.astype(np.float64) for each in sets)
    radii = [sorted(np.linalg.norm(reference - image, axis=1))[5] for image in reference]
    distances = np.linalg.norm(reference[:, None] - generated[None], axis=2)
    inside = distances < np.array(radii)[:, None]
    density = inside.sum() / (5 * len(generated))
    assert 0.1 < density < 2
    assert computed("density", *sets).value == pytest.approx(density, rel=REL)
    assert computed("coverage", *sets).value == pytest.approx(inside.any(1).mean(), rel=REL)


def test_diversity_is_the_mean_over_the_pairs_of_every_prompt() -> None:
    generated = features(20, seed=1)
    metric = METRICS["diversity"]()
    for seed in range(4):
        of_seed = generated[5 * seed : 5 * seed + 5]
        metric.update(Samples(seed, list("abcde"), {"dinov2": of_seed}, range(5)))
    units = generated.astype(np.float64) / np.linalg.norm(generated, axis=1, keepdims=True).astype(np.float64)
    pairs = [(i, j) for i in range(4) for j in range(i)]
    means = [np.mean([1 - units[5 * i + p] @ units[5 * j + p] for i, j in pairs]) for p in range(5)]
    score = metric.compute()
    assert score is not None
    assert score.value == pytest.approx(np.mean(means), rel=1e-6)
    assert list(metric.values().values()) == pytest.approx(means, rel=1e-6)


def test_the_distance_to_the_teacher_is_one_minus_the_cosine() -> None:
    one, other = features(30, seed=1), features(30, seed=2)
    metric = METRICS["dinov2_distance"]()
    metric.update(Samples(0, [str(n) for n in range(30)], {"dinov2": one, "teacher_dinov2": other}, range(30)))
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(one, other, strict=True)]
    score = metric.compute()
    assert score is not None
    assert score.value == pytest.approx(1 - np.mean(cosines), rel=REL)


@pytest.mark.parametrize("name", ["fid", "kid", "cmmd", "precision", "recall", "density", "coverage"])
def test_equal_sets_are_as_close_as_sets_can_be(name: str) -> None:
    one = features(60, seed=1)
    value = computed(name, one, one).value
    if METRICS[name].direction == "higher":
        assert value == pytest.approx(1, rel=1e-12)
    else:
        assert value <= 1e-9
        assert value < 0.1 * computed(name, one, features(60, seed=2)).value


@pytest.mark.parametrize("name", ["fid", "kid", "cmmd", "precision", "density", "coverage"])
def test_a_set_that_is_farther_away_is_worse(name: str) -> None:
    reference, kind = features(80, seed=1), METRICS[name]
    near, far = (computed(name, features(80, seed=3) + shift, reference).value for shift in (0.0, 1.5))
    assert kind.oriented(near) > kind.oriented(far)


@pytest.mark.parametrize("name", ["precision", "recall", "density", "coverage"])
def test_balls_need_six_images_of_both_sets(name: str) -> None:
    assert measured(name, features(5, seed=1), features(60, seed=2)).compute() is None
    assert measured(name, features(60, seed=1), features(5, seed=2)).compute() is None
    assert measured(name, features(6, seed=1), features(6, seed=2)).compute() is not None


def test_images_that_are_alike_do_not_break_the_balls() -> None:
    alike = np.ones((20, SIZE), np.float32)
    assert squared_radii(alike)[1] == pytest.approx(0)
    assert computed("precision", alike, alike).value == 1.0
    assert computed("precision", alike, alike + 1).value == 0.0


def test_the_reference_may_be_a_mapped_file(tmp_path: Any) -> None:
    generated, reference = features(40, seed=1), features(50, seed=2)
    np.save(tmp_path / "reference.npy", reference)
    mapped = np.load(tmp_path / "reference.npy", mmap_mode="r")
    for name in ("kid", "recall"):
        assert computed(name, generated, mapped) == computed(name, generated, reference)


def test_a_result_is_computed_once_for_equal_arrays() -> None:
    memo, calls = pairwise.Memo(size=2), []

    def length(array: Features) -> int:
        calls.append(len(array))
        return len(array)

    one, other = np.zeros((3, 2), np.float32), np.ones((3, 2), np.float32)
    assert [memo.get("n", length, each) for each in (one, one.copy(), other)] == [3, 3, 3]
    assert len(calls) == 2
    memo.get("m", length, one)
    memo.get("n", length, one)  # it is gone: only two results are kept
    assert len(calls) == 4
