"""Marginals of heatmaps as classes, against plain NumPy float64: cells that are coarser than bins, finer, or neither."""

from __future__ import annotations

from math import lcm

import numpy as np
import pytest
import torch

from lowpose.errors import LowposeError
from lowpose.nn.distill.base import Side, build_distillers

K = 3
WEIGHT = torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1]])
SEEN = list(zip(*np.nonzero(WEIGHT.numpy()), strict=True))
NAME = "heatmap_marginals"


def build(bins=(24, 16), cells=(12, 8), **settings):
    """bins: x, y. cells: columns, rows."""
    student = Side({"x": (K, bins[0]), "y": (K, bins[1])}, (48, 32))
    return build_distillers({NAME: settings}, student, Side({"map": (K, cells[1], cells[0])}, (96, 64)))[0][NAME]


def logits(bins, seed: int) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(seed)
    return {n: torch.from_numpy(rng.normal(0, 2, (3, K, count))).float() for n, count in zip("xy", bins, strict=True)}


def heatmaps(cells, seed: int) -> torch.Tensor:
    """Two blobs per joint on clutter, part of which is negative: (3, K, rows, columns)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: cells[1], : cells[0]] + 0.5
    out = rng.normal(0, 0.05, (3, K, cells[1], cells[0]))
    for i, k in np.ndindex(3, K):
        for height in (1.0, 0.4):
            u, v = rng.uniform(0, 1, 2) * cells
            out[i, k] += height * np.exp(-0.5 * ((x - u) ** 2 + (y - v) ** 2))
    assert (out < 0).any()
    return torch.from_numpy(out).float()


def marginals(maps: torch.Tensor, i: int, k: int) -> dict[str, np.ndarray]:
    """Probabilities of columns and rows; a cell has a millionth at least."""
    m = np.maximum(maps[i, k].double().numpy(), 0)
    out = {"x": m.sum(0) / m.sum(), "y": m.sum(1) / m.sum()}
    return {n: np.maximum(p, 1e-6) / np.maximum(p, 1e-6).sum() for n, p in out.items()}


def counted(p: np.ndarray, bins: int) -> np.ndarray:
    """Each class cut into equal pieces that fit both sides, and the pieces of each new class counted together."""
    pieces = np.repeat(p, lcm(len(p), bins) // len(p)) * (len(p) / lcm(len(p), bins))
    return pieces.reshape(bins, -1).sum(1)


def softmax(z: np.ndarray) -> np.ndarray:
    return np.exp(z - z.max()) / np.exp(z - z.max()).sum()


def tempered(p: np.ndarray, tau: float) -> np.ndarray:
    return p ** (1 / tau) / (p ** (1 / tau)).sum()


CASES = [
    ((24, 16), (12, 8)),  # bins twice as many as cells
    ((36, 32), (12, 8)),  # three times, four times
    ((12, 8), (12, 8)),
    ((6, 4), (12, 8)),  # cells finer than bins
    ((4, 2), (12, 8)),
    ((6, 32), (12, 8)),  # finer along x, coarser along y
    ((15, 10), (12, 8)),  # no whole ratio
    ((9, 7), (12, 8)),
]


@pytest.mark.parametrize("bins,cells", CASES)
@pytest.mark.parametrize("tau", [1.0, 3.0])
def test_divergence_of_both_axes(bins, cells, tau):
    """Merged to the coarser side, both at the temperature, tau^2 KL(teacher || student) of x and y, over labelled joints."""
    ours, maps = logits(bins, 0), heatmaps(cells, 1)
    total, n = build(bins, cells, temperature=tau)(ours, {"map": maps}, WEIGHT)[NAME]
    want = 0.0
    for i, k in SEEN:
        p = marginals(maps, i, k)
        for axis, a, b in zip("xy", bins, cells, strict=True):
            target, answer = (tempered(counted(v, min(a, b)), tau) for v in (p[axis], softmax(ours[axis][i, k].double().numpy())))
            want += tau**2 * (target * np.log(target / answer)).sum()
    assert n == 5 and total.item() == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize("bins,cells", CASES)
def test_a_student_that_is_the_marginal_has_no_loss(bins, cells):
    """And one that is it upside down has: columns are x, from left to right, and rows y, from above."""
    maps, ours, mirrored = heatmaps(cells, 2), logits(bins, 0), logits(bins, 0)
    whole = all(max(a, b) % min(a, b) == 0 for a, b in zip(bins, cells, strict=True))
    for i, k in np.ndindex(3, K):
        p = marginals(maps, i, k)
        for axis, count in zip("xy", bins, strict=True):
            z = torch.from_numpy(np.log(counted(p[axis], count))).float()
            ours[axis][i, k], mirrored[axis][i, k] = z, z.flip(0)
    module, one = build(bins, cells), torch.ones(3, K)
    same = (module(ours, {"map": maps}, one)[NAME].total / (3 * K)).item()
    other = (module(mirrored, {"map": maps}, one)[NAME].total / (3 * K)).item()
    # where a cell and a bin straddle each other, cutting a cell and merging it back spreads it: not the same again
    assert abs(same) < 1e-6 if whole or all(a < b for a, b in zip(bins, cells, strict=True)) else same < 0.2
    assert other > 0.3


def test_the_gradient_is_the_difference_of_probabilities():
    """Where there are as many bins as cells: softmax minus marginal, in x and in y; exactly none without a label."""
    bins = cells = (12, 8)
    ours, maps = logits(bins, 3), heatmaps(cells, 4)
    for v in ours.values():
        v.requires_grad_()
    build(bins, cells)(ours, {"map": maps}, WEIGHT)[NAME].total.backward()
    for axis in "xy":
        assert (ours[axis].grad[WEIGHT == 0] == 0).all()
        for i, k in SEEN:
            want = softmax(ours[axis][i, k].detach().double().numpy()) - marginals(maps, i, k)[axis]
            np.testing.assert_allclose(ours[axis].grad[i, k], want, atol=2e-6)


@pytest.mark.parametrize("bins", [(24, 16), (6, 4), (15, 10)])
@pytest.mark.parametrize("value", [0.0, -1.0, 1e-9])
def test_maps_without_mass_teach_nothing(bins, value):
    """Of a joint that the teacher does not see at all: not counted, and no gradient, in which nothing is infinite."""
    ours, maps = logits(bins, 5), heatmaps((12, 8), 6)
    maps[0, 0], maps[2, 1] = value, value
    for v in ours.values():
        v.requires_grad_()
    total, n = build(bins)(ours, {"map": maps}, WEIGHT)[NAME]
    total.backward()
    kept = WEIGHT.clone()
    kept[0, 0] = kept[2, 1] = 0
    alone = build(bins)({a: v.detach() for a, v in ours.items()}, {"map": heatmaps((12, 8), 6)}, kept)[NAME]
    assert n == alone.count == 3 and total.item() == pytest.approx(alone.total.item(), rel=1e-6)
    for v in ours.values():
        assert torch.isfinite(v.grad).all() and (v.grad[kept == 0] == 0).all() and (v.grad[kept == 1] != 0).any(-1).all()


def test_a_map_of_one_cell_is_finite():
    """All mass in one cell, as a trained teacher may give: nothing is infinite, however sure the student is of another."""
    maps = torch.zeros(3, K, 8, 12)
    maps[..., 2, 7] = 1
    ours = {n: torch.full((3, K, count), -40.0) for n, count in (("x", 24), ("y", 16))}
    for n in ours:
        ours[n][..., 0] = 40
        ours[n].requires_grad_()
    total, n = build()(ours, {"map": maps}, torch.ones(3, K))[NAME]
    total.backward()
    assert torch.isfinite(total) and total > 100 and n == 9
    assert all(torch.isfinite(v.grad).all() and (v.grad != 0).any() for v in ours.values())


def test_height_means_nothing():
    """A teacher that is half as sure everywhere, or whose map rests on negative ground, says the same."""
    ours, maps = logits((24, 16), 7), heatmaps((12, 8), 8)
    first = build()(ours, {"map": maps}, WEIGHT)[NAME].total.item()
    for other in (0.5 * maps, 1e-3 * maps, torch.where(maps < 0, 10 * maps, maps)):
        assert build()(ours, {"map": other}, WEIGHT)[NAME].total.item() == pytest.approx(first, rel=1e-5)


def test_refusals():
    simcc, regression = Side({"x": (K, 24), "y": (K, 16)}, (48, 32)), Side({"xy": (K, 2), "score": (K,)}, (48, 32))
    heatmap, mapped = Side({"map": (K, 8, 12)}, (96, 64)), Side({"map": (K, 8, 12), "x": (K, 8), "y": (K, 8)}, (96, 64))
    for student, teacher, line in (
        (regression, heatmap, "distill.heatmap_marginals needs the output 'x', and the student gives only xy, score"),
        (simcc, simcc, "distill.heatmap_marginals needs the output 'map', and the teacher gives only x, y"),
        (simcc, mapped, "distill.heatmap_marginals needs a teacher of head.name=heatmap; this one classifies coordinates"),
    ):
        with pytest.raises(LowposeError) as error:
            build_distillers({NAME: {}}, student, teacher)
        assert str(error.value) == line
    with pytest.raises(LowposeError, match="^distill.heatmap_marginals: 'temperature' = 0: input should be greater than 0$"):
        build_distillers({NAME: {"temperature": 0}}, simcc, heatmap)
