"""Bootstrap intervals against closed forms and direct resampling."""

import math

import numpy as np
import pytest

from lowpose.errors import LowposeError
from lowpose.metrics.bootstrap import counts, interval, paired_difference, ratio_intervals, stats_intervals


def test_counts_draw_as_many_as_there_are():
    blocks = list(counts(3_000_000, 3, 0))
    assert [len(b) for b in blocks] == [1, 1, 1]
    assert all((b.sum(1) == 3_000_000).all() for b in blocks)
    small = np.concatenate(list(counts(5, 4000, 1)))
    assert (small.sum(1) == 5).all()
    # each count is binomial(5, 1/5): mean 1, variance 0.8
    np.testing.assert_allclose(small.mean(0), 1, atol=0.06)
    np.testing.assert_allclose(small.var(0), 0.8, atol=0.08)


@pytest.mark.parametrize(("p", "n"), [(0.5, 400), (0.2, 1000)])
def test_interval_of_a_proportion_is_near_the_normal_one(p, n):
    hits = np.zeros(n)
    hits[: round(p * n)] = 1
    low, high = ratio_intervals(hits, np.ones(n), 4000, seed=2)
    half = 1.959964 * math.sqrt(p * (1 - p) / n)
    assert low[0] == pytest.approx(p - half, abs=0.12 * half)
    assert high[0] == pytest.approx(p + half, abs=0.12 * half)


def test_interval_of_a_ratio_follows_the_delta_method():
    rng = np.random.default_rng(0)
    den = rng.integers(1, 15, 800).astype(float)
    num = rng.binomial(den.astype(int), 0.4).astype(float)
    r = num.sum() / den.sum()
    half = 1.959964 * np.std(num - r * den) / den.mean() / math.sqrt(len(den))
    low, high = ratio_intervals(num, den, 4000, seed=1)
    assert low[0] == pytest.approx(r - half, abs=0.12 * half)
    assert high[0] == pytest.approx(r + half, abs=0.12 * half)


def test_equal_persons_and_a_single_person_have_no_width():
    low, high = ratio_intervals(np.full((2, 50), 1400.0), np.full((2, 50), 14.0), 200, seed=0)
    assert low.tolist() == high.tolist() == [100.0, 100.0]
    low, high = ratio_intervals([3.0], [4.0], 50, seed=0)
    assert low[0] == high[0] == 0.75


def test_same_seed_same_interval_other_seed_another():
    x = np.random.default_rng(3).normal(size=300)
    a = ratio_intervals(x, np.ones(300), 500, seed=4)
    assert np.array_equal(a, ratio_intervals(x, np.ones(300), 500, seed=4))
    assert not np.array_equal(a, ratio_intervals(x, np.ones(300), 500, seed=5))


def test_metrics_share_their_draws():
    x = np.random.default_rng(3).normal(size=100)
    low, high = ratio_intervals(np.array([x, 2 * x, -x]), np.ones((3, 100)), 500, seed=4)
    np.testing.assert_allclose([low[1], high[1], low[2], high[2]], [2 * low[0], 2 * high[0], -high[0], -low[0]], atol=1e-12)


def test_no_persons_no_joints_or_no_resamples_give_nan():
    assert all(np.isnan(v).all() for v in ratio_intervals(np.zeros((2, 0)), np.zeros((2, 0)), 10))
    assert all(np.isnan(v).all() for v in ratio_intervals(np.zeros(4), np.zeros(4), 10))
    assert all(np.isnan(v).all() for v in ratio_intervals(np.ones(4), np.ones(4), 0))
    assert math.isnan(stats_intervals(lambda w: {"AP": 1.0}, 3, 0)["AP"][0])
    # one person of ten counts: resamples without it do not
    low, high = ratio_intervals(np.eye(10)[0] * 7, np.eye(10)[0], 200)
    assert low[0] == high[0] == 7


def test_percentiles_are_those_of_the_values():
    values = np.arange(1001.0)[:, None] * [1, -1]
    low, high = interval(np.random.default_rng(0).permutation(values))
    assert low.tolist() == [25.0, -975.0] and high.tolist() == [975.0, -25.0]


def test_stats_intervals_resample_pictures():
    values = np.random.default_rng(5).normal(size=200)
    out = stats_intervals(lambda w: {"mean": float(w @ values / w.sum()), "one": 1.0}, 200, 3000, seed=6)
    half = 1.959964 * values.std() / math.sqrt(200)
    assert out["mean"] == (
        pytest.approx(values.mean() - half, abs=0.15 * half),
        pytest.approx(values.mean() + half, abs=0.15 * half),
    )
    assert out["one"] == (1.0, 1.0)


def test_paired_difference_cancels_what_both_share():
    rng = np.random.default_rng(7)
    hard = rng.normal(50, 20, (3, 400))
    ones = np.ones((3, 400))
    value, low, high = paired_difference(hard + 2, ones, hard, ones, 500)
    assert (value, low, high) == pytest.approx((2, 2, 2), abs=1e-9)
    assert paired_difference(hard, ones, hard, ones, 100) == (0, 0, 0)
    gain = rng.normal(1, 5, 400)
    value, low, high = paired_difference(hard[0] + gain, ones[0], hard[0], ones[0], 4000)
    half = 1.959964 * gain.std() / 20  # of the differences, not of the persons
    assert value == pytest.approx(gain.mean(), abs=1e-9)
    assert low == pytest.approx(value - half, abs=0.15 * half) and high == pytest.approx(value + half, abs=0.15 * half)
    back = paired_difference(hard[0], ones[0], hard[0] + gain, ones[0], 4000)
    assert back == pytest.approx((-value, -high, -low), abs=1e-9)


def test_paired_difference_resamples_seeds_too():
    """Where only the seeds differ, the interval is that of the mean of S draws of the seeds' differences."""
    ones = np.ones((4, 30))
    per_seed = np.array([0.0, 1.0, 2.0, 7.0])
    value, low, high = paired_difference(ones * per_seed[:, None], ones, ones * 0, ones, 4000, seed=3)
    means = np.array([per_seed[list(i)].mean() for i in np.ndindex(4, 4, 4, 4)])  # all 256 equally likely draws
    assert value == 2.5
    assert low == pytest.approx(np.percentile(means, 2.5), abs=0.26)
    assert high == pytest.approx(np.percentile(means, 97.5), abs=0.26)
    alone = paired_difference(ones[:1] * 3, ones[:1], ones[:1], ones[:1], 100)
    assert alone == (2, 2, 2)


def test_paired_difference_against_direct_resampling():
    rng = np.random.default_rng(11)
    den = rng.integers(0, 14, (2, 60)).astype(float)
    num_a, num_b = rng.uniform(0, 100, (2, 2, 60)) * den
    got = paired_difference(num_a, den, num_b, den, 3000, seed=1)
    direct = []
    for _ in range(3000):
        people, seeds = rng.integers(0, 60, 60), rng.integers(0, 2, 2)
        direct.append(np.mean([(num_a[s, people].sum() - num_b[s, people].sum()) / den[s, people].sum() for s in seeds]))
    assert got[0] == pytest.approx(np.mean([(num_a[s].sum() - num_b[s].sum()) / den[s].sum() for s in range(2)]), abs=1e-9)
    width = np.percentile(direct, 97.5) - np.percentile(direct, 2.5)
    assert got[1:] == pytest.approx(tuple(np.percentile(direct, [2.5, 97.5])), abs=0.12 * width)


def test_paired_difference_needs_equal_shapes_and_persons():
    a = np.ones((2, 5))
    with pytest.raises(LowposeError, match=r"one shape, with persons; found \(2, 5\), \(2, 5\), \(1, 5\), \(2, 5\)"):
        paired_difference(a, a, a[:1], a)
    with pytest.raises(LowposeError, match="with persons"):
        paired_difference(*[np.ones((2, 0))] * 4)
