from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import linalg

from condistill.evaluate.metrics.frechet import frechet_distance

Features = NDArray[np.float64]


def features(seed: int, n: int = 200, d: int = 12) -> Features:
    rng = np.random.Generator(np.random.Philox(seed))
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + rng.normal(size=d)


def by_scipy(first: Features, second: Features) -> float:
    covariances = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    return float(((first.mean(0) - second.mean(0)) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root))


@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_distance_that_a_matrix_square_root_gives(seed: int) -> None:
    first, second = features(seed), features(seed + 100, n=150)
    assert frechet_distance(first, second) == pytest.approx(by_scipy(first, second), rel=1e-9)


def test_equal_sets_are_at_no_distance() -> None:
    assert frechet_distance(features(0), features(0)) == pytest.approx(0, abs=1e-9)


def test_it_is_symmetric() -> None:
    first, second = features(0), features(1)
    assert frechet_distance(first, second) == pytest.approx(frechet_distance(second, first), rel=1e-9)


def test_a_shift_counts_with_its_square() -> None:
    shift = np.zeros(12)
    shift[:2] = 3.0, 4.0
    assert frechet_distance(features(0), features(0) + shift) == pytest.approx(25, rel=1e-9)


def test_a_scale_counts_with_the_difference_of_deviations() -> None:
    centred = features(0) - features(0).mean(0)
    expected = np.trace(np.cov(centred, rowvar=False))  # sigma to 2 sigma: (2 - 1)^2 of every variance
    assert frechet_distance(centred, 2 * centred) == pytest.approx(expected, rel=1e-9)


def test_fewer_images_than_features_are_no_trouble() -> None:
    first, second = features(0, n=5, d=40), features(1, n=7, d=40)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(first, first + 1) == pytest.approx(40, rel=1e-9)
    assert frechet_distance(first, second) > 0


def test_one_image_is_too_few() -> None:
    with pytest.raises(ValueError, match="two images or more, given 1 and 200"):
        frechet_distance(features(0, n=1), features(1))
