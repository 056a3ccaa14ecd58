"""Heatmaps against plain NumPy float64 and OpenCV."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from pydantic import ValidationError

from lowpose.errors import LowposeError
from lowpose.nn.heads.heatmap import Heatmap, HeatmapConfig, blur
from lowpose.skeletons import CROWDPOSE14

K = len(CROWDPOSE14)
SIZE, CELLS = (64, 48), (16, 12)


def make(size=SIZE, cells=CELLS, **settings) -> Heatmap:
    return Heatmap(HeatmapConfig(**settings), (4, cells[1], cells[0]), size, CROWDPOSE14)


def joints(seed=0, batch=16, size=SIZE, margin=0.0) -> torch.Tensor:
    u = np.random.default_rng(seed).uniform(0, 1, (batch, K, 2))
    return torch.from_numpy(margin + u * (np.array(size) - 2 * margin)).float()


def gaussian(centre, cells, sigma) -> np.ndarray:
    """(h, w) float64, peak 1 at `centre`, cells, (x, y)."""
    x, y = np.arange(cells[0]) + 0.5, np.arange(cells[1]) + 0.5
    return np.exp(-((x[None] - centre[0]) ** 2 + (y[:, None] - centre[1]) ** 2) / (2 * sigma**2))


def blobs(seed: int, count: int, cells=CELLS) -> np.ndarray:
    """(count, h, w): crooked peaks anywhere, on clutter."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(count):
        m = gaussian(rng.uniform((0, 0), cells), cells, rng.uniform(0.8, 1.6))
        m = m + 0.5 * gaussian(rng.uniform((0, 0), cells), cells, 1.2) + rng.uniform(0.01, 0.06, m.shape)
        out.append(m)
    return np.array(out)


@pytest.mark.parametrize("kind", ["rounded", "continuous"])
@pytest.mark.parametrize("size,cells,sigma", [(SIZE, CELLS, 1.0), ((60, 36), (13, 9), 1.7), ((32, 32), (8, 8), 2.0)])
def test_targets_are_those_of_numpy(kind, size, cells, sigma):
    head = make(size, cells, target=kind, sigma=sigma)
    kp = joints(1, 4, size)
    targets, weight = head.targets(kp, torch.ones(4, K))
    assert (weight == 1).all() and targets["map"].shape == (4, K, cells[1], cells[0])
    for m, point in zip(targets["map"].flatten(0, 1), kp.flatten(0, 1).double().numpy(), strict=True):
        centre = point * cells / np.array(size)
        if kind == "rounded":
            centre = np.floor(centre) + 0.5
        want = gaussian(centre, cells, sigma)
        if kind == "rounded":
            far = [abs(np.arange(n) + 0.5 - c) > 3 * sigma for n, c in zip(cells, centre, strict=True)]
            want[far[1]] = 0
            want[:, far[0]] = 0
            assert m.max() == 1
        np.testing.assert_allclose(m, want, atol=2e-6)


def test_weight_ends_where_the_three_sigma_box_leaves_the_map():
    x = torch.tensor([-12.0, -12.1, 75.9, 76.0, 5.0, 5.0, 5.0, 5.0, 1e9, -1e9, 0.0])  # cells -3, -4, 18, 19, ...
    y = torch.tensor([5.0, 5.0, 5.0, 5.0, -12.0, -12.1, 59.9, 60.0, 5.0, 5.0, 0.0])
    kp = torch.stack([x, y], -1)
    kp = torch.cat([kp, torch.full((K - len(kp), 2), 9.0)])[None]
    targets, weight = make(sigma=1.0).targets(kp, torch.full((1, K), 0.5))
    assert weight[0].tolist() == [0.5, 0, 0.5, 0, 0.5, 0, 0.5, 0, 0, 0] + [0.5] * (K - 10)
    assert torch.equal(weight[0] > 0, targets["map"][0].amax((-2, -1)) > 0)
    x = torch.tensor([-10.0, -10.1, 74.0, 74.1])  # a cell's centre is 3 sigma from -2.5 cells
    kp = torch.cat([torch.stack([x, torch.full((4,), 9.0)], -1), torch.full((K - 4, 2), 9.0)])[None]
    weight = make(sigma=1.0, target="continuous").targets(kp, torch.ones(1, K))[1]
    assert weight[0].tolist() == [1, 0, 1, 0] + [1] * (K - 4)


def test_default_sigma_and_blur_are_the_published_ones():
    for size, cells, sigma, kernel in [
        ((32, 32), (8, 8), 1, 3),
        ((64, 64), (16, 16), 1, 3),
        ((96, 128), (24, 32), 1, 3),
        ((192, 256), (48, 64), 2, 11),
        ((256, 256), (64, 64), 2, 11),
        ((288, 384), (72, 96), 3, 17),
    ]:
        head = make(size, cells)
        assert (head.sigma, head.blur) == (sigma, kernel)
    assert [make((4 * n, 4 * n), (n, n), sigma=3.0).blur for n in (19, 18, 12, 8, 7, 5, 4, 2)] == [17, 15, 9, 5, 5, 3, 1, 1]


def test_wrong_settings_are_refused():
    with pytest.raises(LowposeError, match="5 x 5 cells or more, these are 4 x 8"):
        make((16, 32), (4, 8), decode="dark")
    with pytest.raises(LowposeError, match="3 x 3"):
        make((8, 32), (2, 8), decode="udp")
    with pytest.raises(LowposeError, match="at most 6"):
        make((32, 32), (8, 8), decode="udp", blur=7)
    with pytest.raises(LowposeError, match="has no blur"):
        make(decode="quarter", blur=3)
    for wrong in ({"blur": 4}, {"blur": 0}, {"sigma": 0.0}, {"decode": "best"}, {"target": "exact"}):
        with pytest.raises(ValidationError):
            HeatmapConfig(**wrong)


@pytest.mark.parametrize("kernel", [1, 3, 11, 17])
def test_blur_is_that_of_opencv(kernel):
    maps = np.random.default_rng(0).normal(size=(3, 12, 16))
    sigma = 0.8 if kernel <= 3 else 0  # 0: OpenCV's own, which up to 7 cells are tables instead of its formula
    want = [cv2.GaussianBlur(np.pad(m, 20), (kernel, kernel), sigma)[20:-20, 20:-20] for m in maps]
    np.testing.assert_allclose(blur(torch.tensor(maps)[None].float(), kernel)[0], want, atol=1e-6)


def dark_reference(m: np.ndarray, kernel: int) -> np.ndarray:
    """DARK as published, (x, y) in cells, without limits."""
    y, x = np.unravel_index(m.argmax(), m.shape)
    h, w = m.shape
    r = kernel // 2
    sigma = 0.3 * ((kernel - 1) * 0.5 - 1) + 0.8
    f = cv2.GaussianBlur(np.pad(m, r), (kernel, kernel), sigma, borderType=cv2.BORDER_CONSTANT)[r : r + h, r : r + w]
    f = np.log(np.maximum(f * (m.max() / f.max()), 1e-10))
    step = np.zeros(2)
    if 1 < x < w - 2 and 1 < y < h - 2:
        g = 0.5 * np.array([f[y, x + 1] - f[y, x - 1], f[y + 1, x] - f[y - 1, x]])
        xx = 0.25 * (f[y, x + 2] - 2 * f[y, x] + f[y, x - 2])
        yy = 0.25 * (f[y + 2, x] - 2 * f[y, x] + f[y - 2, x])
        xy = 0.25 * (f[y + 1, x + 1] - f[y - 1, x + 1] - f[y + 1, x - 1] + f[y - 1, x - 1])
        hessian = np.array([[xx, xy], [xy, yy]])
        if (np.linalg.eigvalsh(hessian) < 0).all():
            step = np.clip(-np.linalg.solve(hessian, g), -1, 1)
    return np.array([x, y]) + 0.5 + step


def udp_reference(m: np.ndarray, kernel: int) -> np.ndarray | None:
    """UDP's step for peaks whose neighbourhood the kernel does not leave; None for the others."""
    y, x = np.unravel_index(m.argmax(), m.shape)
    r = kernel // 2 + 1
    if not (r <= x <= m.shape[1] - 1 - r and r <= y <= m.shape[0] - 1 - r):
        return None
    f = np.log(cv2.GaussianBlur(m, (kernel, kernel), 0.3 * ((kernel - 1) * 0.5 - 1) + 0.8))
    f = f[y - 1 : y + 2, x - 1 : x + 2]
    g = 0.5 * np.array([f[1, 2] - f[1, 0], f[2, 1] - f[0, 1]])
    xx, yy = f[1, 2] - 2 * f[1, 1] + f[1, 0], f[2, 1] - 2 * f[1, 1] + f[0, 1]
    xy = 0.5 * (f[2, 2] - f[1, 2] - f[2, 1] + 2 * f[1, 1] - f[1, 0] - f[0, 1] + f[0, 0])
    hessian = np.array([[xx, xy], [xy, yy]])
    if not (np.linalg.eigvalsh(hessian) < 0).all():
        return np.array([x, y]) + 0.5
    return np.array([x, y]) + 0.5 + np.clip(-np.linalg.solve(hessian, g), -1, 1)


@pytest.mark.parametrize("decode,kernel", [("dark", 3), ("dark", 7), ("dark", 11), ("udp", 3), ("udp", 5)])
def test_newton_steps_are_those_of_numpy(decode, kernel):
    head = make(decode=decode, blur=kernel)
    maps = blobs(7, 20 * K).reshape(20, K, *CELLS[::-1])
    got = head.decode({"map": torch.tensor(maps).float()}).keypoints / 4
    reference = dark_reference if decode == "dark" else udp_reference
    compared = moved = 0
    for m, point in zip(maps.reshape(-1, *CELLS[::-1]), got.flatten(0, 1).numpy(), strict=True):
        want = reference(m, kernel)
        if want is not None:
            np.testing.assert_allclose(point, np.clip(want, 0, CELLS), atol=2e-3)
            compared += 1
            moved += bool((want % 1 != 0.5).any())
    assert compared > 70 and moved > 55


@pytest.mark.parametrize("sigma", [1.0, 1.5, 2.0])
def test_a_pure_gaussian_is_found_exactly(sigma):
    """The logarithm of a Gaussian is a parabola, for which one Newton step is exact."""
    for decode, margin in (("dark", 8.0), ("udp", 0.0)):
        head = make(target="continuous", sigma=sigma, decode=decode, blur=1)
        kp = joints(8, margin=margin)
        for height in (1.0, 0.3):
            maps = head.targets(kp, torch.ones(16, K))[0]["map"] * height
            got = head.decode({"map": maps})
            np.testing.assert_allclose(got.keypoints, kp, atol=2e-3)


@pytest.mark.parametrize("size,cells", [((32, 32), (8, 8)), ((64, 48), (16, 12)), ((192, 256), (48, 64)), ((60, 36), (13, 9))])
@pytest.mark.parametrize(
    "target,decode,bound,margin",  # cells
    [
        ("rounded", "argmax", 0.5, 0),
        ("rounded", "quarter", 0.5, 0),
        ("rounded", "udp", 0.5, 0),
        ("continuous", "argmax", 0.5, 0),
        ("continuous", "quarter", 0.25, 1),
        ("continuous", "dark", 0.02, None),
        ("continuous", "udp", 0.001, 0),
    ],
)
def test_round_trip(size, cells, target, decode, bound, margin):
    head = make(size, cells, target=target, decode=decode)
    stride = np.array(size) / cells
    margin = (2 + head.blur if margin is None and head.blur > 3 else 2) if margin is None else margin
    kp = joints(9, size=cells, margin=margin) * torch.tensor(stride).float()
    got = head.decode(head.targets(kp, torch.ones(16, K))[0])
    error = np.abs((got.keypoints - kp).numpy() / stride).max()
    assert error <= bound + 1e-4
    assert bound < 0.25 or error > 0.8 * bound  # the bound is not slack


def test_quarter_moves_towards_the_higher_neighbour():
    m = torch.zeros(1, K, 12, 16)
    m[:, :, 5, 7] = 1.0
    m[:, :, 5, 8], m[:, :, 4, 7] = 0.4, 0.3  # right and above
    np.testing.assert_array_equal(make().decode({"map": m}).keypoints[0, 0], [4 * 7.75, 4 * 5.25])
    m[:, :, 0, 1] = 2.0  # on the border: only along it
    m[:, :, 0, 0] = 0.1
    np.testing.assert_array_equal(make().decode({"map": m}).keypoints[0, 0], [4 * 1.25, 4 * 0.5])


@pytest.mark.parametrize("decode", ["argmax", "quarter", "dark", "udp"])
def test_maps_without_a_peak_have_a_place_and_no_score(decode):
    head = make(decode=decode)
    for value in (0.0, -1.0):
        got = head.decode({"map": torch.full((1, K, 12, 16), value)})
        assert (got.scores == 0).all() and (got.published == value).all()
        assert (got.keypoints == 2).all()  # the first cell's centre
    saddle = torch.ones(1, K, 12, 16)
    saddle[..., 6, :] += 0.5
    saddle[..., 6, 5] += 1e-3
    got = head.decode({"map": saddle})
    assert torch.isfinite(got.keypoints).all() and (got.keypoints - torch.tensor([22.0, 26.0])).abs().max() <= 4


def test_newton_steps_stay_within_a_cell_and_the_crop():
    rng = np.random.default_rng(10)
    maps = torch.tensor(rng.normal(size=(64, K, 12, 16))).float()
    cell = make(decode="argmax").decode({"map": maps}).keypoints
    for decode in ("dark", "udp"):
        for scale in (1.0, 1e-3, 100.0):
            got = make(decode=decode).decode({"map": maps * scale})
            assert (got.keypoints - cell).abs().max() <= 4 + 1e-4
            assert (got.keypoints >= 0).all() and (got.keypoints <= torch.tensor(SIZE)).all()
            assert ((got.scores >= 0) & (got.scores <= 1)).all()


def test_loss_is_that_of_numpy_and_zero_for_the_target():
    head, rng = make(), np.random.default_rng(11)
    targets, weight = head.targets(joints(11, 4), torch.tensor(rng.integers(0, 2, (4, K))).float())
    out = torch.tensor(rng.normal(size=targets["map"].shape)).float()
    want = sum(
        0.5 * ((out[b, k].double().numpy() - targets["map"][b, k].double().numpy()) ** 2).mean() * float(weight[b, k])
        for b in range(4)
        for k in range(K)
    )
    got = head.loss({"map": out}, targets, weight)
    assert list(got) == ["heatmap"] and float(got["heatmap"]) == pytest.approx(want, rel=1e-5)
    assert float(head.loss(targets, targets, weight)["heatmap"]) == 0


@pytest.mark.parametrize("settings", [{"decode": "argmax"}, {"target": "continuous", "decode": "udp", "blur": 1}])
def test_scores_of_perfect_weak_and_cluttered_maps(settings):
    head = make(**settings)
    kp = joints(12)
    target = head.targets(kp, torch.ones(16, K))[0]["map"]
    for height, want in ((1.0, 1.0), (2.0, 1.0), (0.5, 0.5), (0.1, 0.1)):
        got = head.decode({"map": target * height})
        np.testing.assert_allclose(got.scores, want, atol=1e-3)
        np.testing.assert_allclose(got.published, height * target.amax((-2, -1)))
    doubled = target + torch.roll(target, (5, 7), (-2, -1)) * 0.9
    inside = ((kp > 12) & (kp < torch.tensor(SIZE) - 12)).all(-1)
    scores = head.decode({"map": doubled}).scores[inside]
    assert len(scores) > 20 and (abs(scores - 1 / 1.9) < 0.02).all()


def test_score_is_the_mass_within_one_pixel_by_brute_force():
    head = make(decode="argmax", sigma=1.3)
    maps = blobs(13, K)[None] - 0.05
    got = head.decode({"map": torch.tensor(maps).float()})
    for k in range(K):
        y, x = np.unravel_index(maps[0, k].argmax(), CELLS[::-1])
        perfect = gaussian((x + 0.5, y + 0.5), CELLS, 1.3)
        perfect[abs(np.arange(12) - y) > 3.9] = 0
        perfect[:, abs(np.arange(16) - x) > 3.9] = 0

        def near(m, x=x, y=y):  # every cell as 16 x 16 pieces of a quarter pixel
            fine = np.kron(m, np.ones((16, 16))) / 256
            py, px = (np.arange(16 * n) / 4 + 0.125 for n in m.shape)
            return fine[abs(py - 4 * y - 2) < 1][:, abs(px - 4 * x - 2) < 1].sum()

        m = np.maximum(maps[0, k], 0)
        want = near(m) / max(m.sum(), perfect.sum()) / (near(perfect) / perfect.sum())
        assert float(got.scores[0, k]) == pytest.approx(min(want, 1), rel=1e-4)
