"""UDP's offset form against plain NumPy float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from lowpose.nn.heads.udp import UDP, UDPConfig
from lowpose.skeletons import CROWDPOSE14

K = len(CROWDPOSE14)
SHAPES = [((32, 32), (8, 8)), ((64, 48), (16, 12)), ((192, 256), (48, 64)), ((60, 36), (13, 9))]


def make(size=(64, 48), cells=(16, 12), **settings) -> UDP:
    return UDP(UDPConfig(**settings), (4, cells[1], cells[0]), size, CROWDPOSE14)


def joints(seed, batch, size) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).uniform(0, 1, (batch, K, 2)) * size).float()


def test_default_radius_and_blur():
    table = {8: (0.75, 3), 16: (0.875, 3), 32: (1.75, 7), 64: (3.5, 15)}
    for n, want in table.items():
        head = make((4 * n, 4 * n), (n, n))
        assert (head.radius, head.blur) == want
    assert make((192, 256), (48, 64)).radius == 3.5
    assert make(radius=2.5).blur == 11
    with pytest.raises(ValidationError):
        UDPConfig(radius=0.5)


@pytest.mark.parametrize("size,cells", SHAPES)
def test_targets_are_those_of_numpy(size, cells):
    head = make(size, cells)
    kp = joints(0, 8, size)
    targets, weight = head.targets(kp, torch.ones(8, K))
    assert (weight == 1).all()
    x, y = np.meshgrid(np.arange(cells[0]) + 0.5, np.arange(cells[1]) + 0.5)
    u = kp.double().numpy() * cells / np.array(size)
    dx = (u[..., 0, None, None] - x) / head.radius
    dy = (u[..., 1, None, None] - y) / head.radius
    disc = dx**2 + dy**2 <= 1
    assert (np.abs(dx**2 + dy**2 - 1) > 1e-6).all()  # no cell is on the edge by chance
    np.testing.assert_array_equal(targets["map"].numpy(), disc)
    np.testing.assert_allclose(targets["dx"], dx * disc, atol=1e-5)
    np.testing.assert_allclose(targets["dy"], dy * disc, atol=1e-5)
    assert disc.any((-2, -1)).all()  # every joint has a cell


@pytest.mark.parametrize("size,cells", SHAPES)
def test_round_trip_is_exact_and_scores_one(size, cells):
    head = make(size, cells)
    kp = joints(1, 32, size)
    got = head.decode(head.targets(kp, torch.ones(32, K))[0])
    np.testing.assert_allclose(got.keypoints, kp, atol=1e-3)
    np.testing.assert_allclose(got.scores, 1, atol=1e-3)


def test_joints_without_a_cell_have_no_weight():
    kp = torch.tensor([[-1.0, 10], [-1.6, 10], [65.0, 10], [65.6, 10], [10, -1.6], [10, 49.6], [1e9, 10]])
    kp = torch.cat([kp, torch.full((K - 7, 2), 10.0)])[None]
    weight = make().targets(kp, torch.full((1, K), 0.5))[1]  # radius 3.5 pixels; the nearest centre is at 2
    assert weight[0].tolist() == [0.5, 0, 0.5, 0, 0, 0, 0] + [0.5] * (K - 7)


def test_loss_is_that_of_numpy():
    head, rng = make(), np.random.default_rng(2)
    targets, weight = head.targets(joints(2, 4, (64, 48)), torch.tensor(rng.integers(0, 2, (4, K))).float())
    out = {n: torch.tensor(rng.normal(size=t.shape)).float() for n, t in targets.items()}
    o = {n: v.double().numpy() for n, v in out.items()}
    t = {n: v.double().numpy() for n, v in targets.items()}
    w = weight.double().numpy()[..., None, None]
    cells = 16 * 12
    disc = 0.5 * (w * (o["map"] - t["map"]) ** 2).sum() / cells
    offset = sum(0.5 * (w * (t["map"] * o[n] - t["map"] * t[n]) ** 2).sum() / cells for n in ("dx", "dy"))
    got = head.loss(out, targets, weight)
    assert set(got) == {"udp_disc", "udp_offset"}
    assert float(got["udp_disc"]) == pytest.approx(disc, rel=1e-5)
    assert float(got["udp_offset"]) == pytest.approx(offset, rel=1e-5)
    assert all(float(v) == 0 for v in head.loss(targets, targets, weight).values())
    outside = {n: torch.where(targets["map"] > 0, targets[n], out[n]) for n in ("dx", "dy")}
    assert float(head.loss({**targets, **outside}, targets, weight)["udp_offset"]) == 0


def test_weak_and_empty_discs():
    head = make()
    targets = head.targets(joints(3, 16, (64, 48)), torch.ones(16, K))[0]
    for height in (0.5, 0.1):
        got = head.decode({**targets, "map": targets["map"] * height})
        np.testing.assert_allclose(got.scores, height, atol=1e-3)
    empty = head.decode({n: torch.zeros_like(t) for n, t in targets.items()})
    assert (empty.scores == 0).all() and (empty.keypoints == 2).all()


def test_channels_are_disc_then_x_then_y():
    head = make()
    feature = torch.randn(2, 4, 12, 16, generator=torch.Generator().manual_seed(0))
    out, flat = head(feature), head.final(feature)
    for i, name in enumerate(("map", "dx", "dy")):
        assert torch.equal(out[name], flat[:, i * K : (i + 1) * K])
