from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import linalg

from condistill.evaluate.metrics.frechet import Moments, frechet_distance

Features = NDArray[np.float64]


def features(seed: int, n: int = 200, d: int = 12) -> Features:
    rng = np.random.Generator(np.random.Philox(seed))
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + rng.normal(size=d)


def moments(values: Features) -> Moments:
    result = Moments()
    result.update(values)
    return result


def distance(first: Features, second: Features) -> float:
    return frechet_distance(moments(first), moments(second))


def by_scipy(first: Features, second: Features) -> float:
    covariances = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    return float(((first.mean(0) - second.mean(0)) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root))


@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_distance_that_a_matrix_square_root_gives(seed: int) -> None:
    first, second = features(seed), features(seed + 100, n=150)
    assert distance(first, second) == pytest.approx(by_scipy(first, second), rel=1e-9)


def test_moments_of_pieces_are_those_of_all_features() -> None:
    whole = features(0) + 1e4  # far from zero, where sums of squares would lose digits
    pieces, rest = moments(whole[:1]), moments(whole[50:])
    pieces.update(whole[1:50])
    pieces.merge(rest)
    assert pieces.count == 200
    np.testing.assert_allclose(pieces.mean, whole.mean(0), rtol=1e-12)
    np.testing.assert_allclose(pieces.covariance, np.cov(whole, rowvar=False), rtol=1e-9, atol=1e-9)


def test_equal_sets_are_at_distance_zero() -> None:
    assert distance(features(0), features(0)) == pytest.approx(0, abs=1e-9)


def test_it_is_symmetric() -> None:
    first, second = features(0), features(1)
    assert distance(first, second) == pytest.approx(distance(second, first), rel=1e-9)


def test_a_shift_counts_with_its_square() -> None:
    shift = np.zeros(12)
    shift[:2] = 3.0, 4.0
    assert distance(features(0), features(0) + shift) == pytest.approx(25, rel=1e-9)


def test_a_scale_counts_with_the_difference_of_deviations() -> None:
    centred = features(0) - features(0).mean(0)
    expected = np.trace(np.cov(centred, rowvar=False))  # sigma to 2 sigma: (2 - 1)^2 of every variance
    assert distance(centred, 2 * centred) == pytest.approx(expected, rel=1e-9)


def test_there_may_be_fewer_images_than_features() -> None:
    first, second = features(0, n=5, d=40), features(1, n=7, d=40)
    assert distance(first, first) == pytest.approx(0, abs=1e-9)
    assert distance(first, first + 1) == pytest.approx(40, rel=1e-9)
    assert distance(first, second) > 0


def test_one_image_is_too_few() -> None:
    with pytest.raises(ValueError, match="two images or more; got 1 and 200"):
        distance(features(0, n=1), features(1))


def test_features_in_float32_are_added_in_float64() -> None:
    narrow = (1e3 + features(0)).astype(np.float32)
    found, expected = Moments(), Moments()
    found.update(narrow)
    expected.update(narrow.astype(np.float64))
    np.testing.assert_array_equal(found.mean, expected.mean)
    np.testing.assert_array_equal(found.covariance, expected.covariance)
