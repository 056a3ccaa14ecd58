"""Paired bootstrap of figures that are no ratio of sums, against direct computations."""

from __future__ import annotations

import numpy as np
import pytest

from lowpose.errors import LowposeError
from lowpose.metrics.bootstrap import paired_difference, paired_stats_difference


def weighted_mean(numerator, denominator):
    return lambda w: {"mean": float((w * numerator).sum() / (w * denominator).sum())}


def test_equals_the_ratio_form_where_both_apply():
    """A ratio of sums over pictures: resampled with the same draws, both forms give the same numbers."""
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 3, 40))
    n = rng.integers(1, 5, 40).astype(float)
    stats = [[weighted_mean(x, n) for x in side] for side in (a, b)]
    ours = paired_stats_difference(*stats, images=40, resamples=300, seed=5)["mean"]
    theirs = paired_difference(a, np.tile(n, (3, 1)), b, np.tile(n, (3, 1)), resamples=300, seed=5)
    assert np.allclose(ours, theirs, atol=1e-12)


def test_value_is_the_mean_over_seeds_of_the_plain_difference():
    one = np.ones(4)
    a = [weighted_mean(np.full(4, v), one) for v in (5.0, 7.0)]
    b = [weighted_mean(np.full(4, v), one) for v in (4.0, 4.0)]
    value, low, high = paired_stats_difference(a, b, images=4, resamples=500, seed=1)["mean"]
    assert value == 2.0
    assert low == 1.0  # both draws are the first seed in a quarter of the resamples
    assert high == 3.0


def test_the_same_side_twice_has_no_width():
    a = [weighted_mean(np.arange(6.0), np.ones(6))]
    assert paired_stats_difference(a, a, images=6, resamples=50)["mean"] == (0.0, 0.0, 0.0)


def test_sides_of_different_seeds_are_refused():
    a = [weighted_mean(np.ones(3), np.ones(3))]
    with pytest.raises(LowposeError, match="1 and 2 training seeds"):
        paired_stats_difference(a, a * 2, images=3)
