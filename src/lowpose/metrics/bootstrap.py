"""Bootstrap intervals: how far a figure would move with other persons of the same kind.

Percentile bootstrap (B. Efron and R. Tibshirani, "An Introduction to the Bootstrap", 1993, ch. 13), 95%.
Ratios of sums over persons (PCK, EPE) are resampled person by person. Average precision is resampled by
picture, each with all its persons and predictions, since matches do not cross pictures.
Every draw is a function of the seed and of the number of units alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from lowpose.errors import LowposeError

LEVELS = (2.5, 97.5)
_BLOCK = 4_000_000  # counts held at once


def counts(units: int, resamples: int, seed: int | tuple[int, ...]) -> Iterator[np.ndarray]:
    """Blocks (r, units) float64, `resamples` rows in all: how often each unit is drawn, with replacement."""
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK // max(units, 1))
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = rng.integers(0, units, (rows, units)) + units * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * units).reshape(rows, units).astype(np.float64)


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Elementwise quotient; NaN where the denominator is 0."""
    denominator = np.asarray(denominator, np.float64)
    return np.divide(numerator, denominator, out=np.full(denominator.shape, np.nan), where=denominator > 0)


def interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Low and high of resampled values (R, ...); resamples without a value (NaN) do not count; NaN if none has one."""
    values = np.asarray(values, np.float64)
    flat = values.reshape(len(values), math.prod(values.shape[1:]))
    ends = np.full((2, flat.shape[1]), np.nan)
    some = np.isfinite(flat).any(axis=0)
    if some.any():
        ends[:, some] = np.nanpercentile(flat[:, some], LEVELS, axis=0)
    low, high = ends.reshape(2, *values.shape[1:])
    return low, high


def ratio_intervals(
    numerator: np.ndarray, denominator: np.ndarray, resamples: int = 1000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Low and high, (M,) each, of sum(numerator) / sum(denominator) over resampled persons.

    Args:
        numerator, denominator: (M, N), per metric and person. The same draw serves all metrics.
    """
    numerator, denominator = np.atleast_2d(numerator).astype(np.float64), np.atleast_2d(denominator).astype(np.float64)
    empty = np.zeros((0, len(numerator)))
    if numerator.shape[1] == 0:
        return interval(empty)
    blocks = counts(numerator.shape[1], resamples, seed)
    return interval(np.concatenate([empty, *(ratio(c @ numerator.T, c @ denominator.T) for c in blocks)]))


def stats_intervals(
    stats: Callable[[np.ndarray], dict[str, float]], images: int, resamples: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Low and high of each figure of `stats(weights (I,))` over resampled pictures; NaN without resamples."""
    names = list(stats(np.ones(images)))
    rows = [list(stats(weights).values()) for block in counts(images, resamples, seed) for weights in block] if images else []
    low, high = interval(np.array(rows, np.float64).reshape(-1, len(names)))
    return {name: (float(low[i]), float(high[i])) for i, name in enumerate(names)}


def paired_difference(
    numerator_a: np.ndarray,
    denominator_a: np.ndarray,
    numerator_b: np.ndarray,
    denominator_b: np.ndarray,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """A minus B: difference, low, high, of the mean over seeds of sum(numerator) / sum(denominator).

    Persons and seeds are resampled together: both sides get the same persons and the same seeds, so what
    they have in common cancels out.

    Args: (S, N) each, training seeds and persons in the same order on both sides; (N,) is one seed.

    Raises: LowposeError if the four shapes differ or there is no person.
    """
    arrays = [np.atleast_2d(np.asarray(x, np.float64)) for x in (numerator_a, denominator_a, numerator_b, denominator_b)]
    shape = arrays[0].shape
    if any(x.shape != shape for x in arrays) or 0 in shape:
        found = ", ".join(str(x.shape) for x in arrays)
        raise LowposeError(f"paired difference: all arrays must be (seeds, persons) of one shape, with persons; found {found}")

    def difference(persons: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        num_a, den_a, num_b, den_b = (persons @ x.T for x in arrays)
        per_seed = ratio(num_a, den_a) - ratio(num_b, den_b)
        return np.where(seeds > 0, seeds * per_seed, 0.0).sum(1) / seeds.sum(1)

    runs, people = shape
    value = difference(np.ones((1, people)), np.ones((1, runs)))[0]
    by_seed = np.concatenate([np.zeros((0, runs)), *counts(runs, resamples, (seed, 1))])
    drawn, start = [np.zeros(0)], 0
    for block in counts(people, resamples, seed):
        drawn.append(difference(block, by_seed[start : start + len(block)]))
        start += len(block)
    low, high = interval(np.concatenate(drawn))
    return float(value), float(low), float(high)


def paired_stats_difference(
    stats_a: list[Callable[[np.ndarray], dict[str, float]]],
    stats_b: list[Callable[[np.ndarray], dict[str, float]]],
    images: int,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, tuple[float, float, float]]:
    """A minus B for figures that are no ratio of sums (average precision): name -> difference, low, high.

    Args:
        stats_a, stats_b: one function per training seed, weights (I,) of the pictures -> figures. Pictures and seeds
            are resampled together, the same for both sides; the figures are means over seeds.

    Raises: LowposeError if the sides have different numbers of seeds, or there is no picture.
    """
    if len(stats_a) != len(stats_b) or not stats_a or not images:
        raise LowposeError(f"paired difference: {len(stats_a)} and {len(stats_b)} training seeds, {images} pictures")

    def differences(weights: np.ndarray) -> np.ndarray:
        pairs = [(a(weights), b(weights)) for a, b in zip(stats_a, stats_b, strict=True)]
        return np.array([[x[name] - y[name] for name in x] for x, y in pairs])

    names = list(stats_a[0](np.ones(images)))
    value = differences(np.ones(images)).mean(0)
    by_seed = np.concatenate([np.zeros((0, len(stats_a))), *counts(len(stats_a), resamples, (seed, 1))])
    rows = [differences(weights) for block in counts(images, resamples, seed) for weights in block]
    drawn = [w @ row / w.sum() for w, row in zip(by_seed, rows, strict=True)]
    low, high = interval(np.array(drawn, np.float64).reshape(-1, len(names)))
    return {name: (float(value[i]), float(low[i]), float(high[i])) for i, name in enumerate(names)}
