"""Integral regression against sums in plain NumPy float64 and closed forms of the paper."""

from __future__ import annotations

import io
import math

import numpy as np
import onnxruntime
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from lowpose.config import TrainConfig
from lowpose.errors import LowposeError
from lowpose.nn.heads.heatmap import Heatmap, HeatmapConfig
from lowpose.nn.heads.integral import (
    Integral,
    IntegralConfig,
    background,
    biased,
    closed_form,
    compensated,
    soft_argmax,
    unbiased,
)
from lowpose.skeletons import CROWDPOSE14
from lowpose.training import make_optimizer

K = len(CROWDPOSE14)
SIZE, CELLS = (64, 48), (16, 12)
SHAPES = [(8, 8), (16, 12), (12, 16), (9, 7), (64, 5), (13, 13), (1, 6), (64, 48)]  # width, height
every_shape = pytest.mark.parametrize("size", SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")
every_reading = pytest.mark.parametrize("read", [compensated, closed_form, soft_argmax], ids=lambda f: f.__name__)


def make(size=SIZE, cells=CELLS, **settings) -> Integral:
    return Integral(IntegralConfig(**settings), (4, cells[1], cells[0]), size, CROWDPOSE14)


def joints(seed=0, batch=8, size=SIZE, margin=0.0) -> torch.Tensor:
    u = np.random.default_rng(seed).uniform(0, 1, (batch, K, 2))
    return torch.from_numpy(margin + u * (np.array(size) - 2 * margin)).float()


def gaussian(centre, cells, sigma) -> np.ndarray:
    """(h, w) float64, peak 1 at `centre`, cells, (x, y)."""
    x, y = np.arange(cells[0]) + 0.5, np.arange(cells[1]) + 0.5
    return np.exp(-((x[None] - centre[0]) ** 2 + (y[:, None] - centre[1]) ** 2) / (2 * sigma**2))


def mean_of(weights: np.ndarray) -> np.ndarray:
    """(2,) mean of the cell centres, (x, y), summed cell by cell without rounding."""
    h, w = weights.shape
    total = math.fsum(weights.ravel())
    x = math.fsum(weights[i, j] * (j + 0.5) for i in range(h) for j in range(w))
    y = math.fsum(weights[i, j] * (i + 0.5) for i in range(h) for j in range(w))
    return np.array([x, y]) / total


def forms(size, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Maps (h, w) >= 0 of any form, each with the centre (2,), cells, of its excess for beta of any value."""
    rng, (w, h) = np.random.default_rng(seed), size
    out = []
    for n in range(4):  # point-symmetric windows somewhere on an empty map: blocks, stars, rings, noise
        width, height = rng.integers(1, w + 1), rng.integers(1, h + 1)
        left, top = rng.integers(0, w - width + 1), rng.integers(0, h - height + 1)
        window = rng.uniform(0, 1, (height, width)) if n else np.ones((height, width))
        m = np.zeros((h, w))
        m[top : top + height, left : left + width] = (window + window[::-1, ::-1]) / 2 * rng.uniform(0.05, 1.2)
        out.append((m, np.array([left + width / 2, top + height / 2])))
    return out


def tensor(m: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(m)


@every_shape
@pytest.mark.parametrize("beta", [0.3, 1.0, 4.0, 12.0])
def test_the_bias_is_eq_9_both_ways(size, beta):
    """Sums over whole maps, cell by cell, against the forward formula and its inverse: maps of any shape and content."""
    rng, (w, h) = np.random.default_rng(size), size
    maps = [m for m, _ in forms(size, 1)] + [rng.uniform(0, 1, (h, w)), np.eye(h, w)]
    for m in maps:
        e = np.exp(beta * m)
        c, true, moved = math.fsum(e.ravel()), mean_of(np.expm1(beta * m)), mean_of(e)
        share = tensor(np.array(w * h / c))
        np.testing.assert_allclose(biased(tensor(true), size, share), moved, rtol=0, atol=1e-9)
        np.testing.assert_allclose(unbiased(tensor(moved), size, share), true, rtol=0, atol=1e-9)
        np.testing.assert_allclose(soft_argmax(tensor(m), beta), moved, rtol=0, atol=1e-9)
        assert background(tensor(m), beta).item() == pytest.approx(w * h / c, rel=1e-12)


@every_shape
@pytest.mark.parametrize("beta", [0.3, 1.0, 10.0, 50.0])
@pytest.mark.parametrize("read", [compensated, closed_form], ids=lambda f: f.__name__)
def test_compensation_finds_the_centre_of_any_form(size, beta, read):
    for m, centre in forms(size, 9):
        np.testing.assert_allclose(read(tensor(m), beta), centre, rtol=0, atol=1e-9)


def test_plain_reading_does_not():
    m, centre = forms((16, 12), 3)[1]
    assert np.abs(soft_argmax(tensor(m), 1.0).numpy() - centre).max() > 0.5


def printed_eq_10(position, c: float, size) -> np.ndarray:
    """Eq. 10 as the supplement prints it: its x runs along h, its y along w."""
    (w, h), (along_w, along_h) = size, position
    n = h * w
    x = c / (c - n) * along_h - h * w**2 / (2 * (c - n))
    y = c / (c - n) * along_w - h**2 * w / (2 * (c - n))
    return np.array([y, x])


def test_printed_eq_10_is_wrong_unless_the_map_is_square():
    """Its two constants are exchanged, so only h = w hides it."""
    for size in SHAPES:
        for m, centre in forms(size, 5):
            e = np.exp(2 * m)
            got = printed_eq_10(mean_of(e), e.sum(), size)
            if size[0] == size[1]:
                np.testing.assert_allclose(got, centre, rtol=0, atol=1e-9)
            else:  # each axis is off by N |h - w| / 2 (C - N)
                off = m.size * abs(size[0] - size[1]) / (2 * (e.sum() - m.size))
                np.testing.assert_allclose(np.abs(got - centre), off, rtol=1e-6)
                assert off > 0.1
            np.testing.assert_allclose(closed_form(tensor(m), 2.0), centre, rtol=0, atol=1e-9)


@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0, 10.0, 100.0, 1000.0])
def test_float32_is_stable_for_any_beta(beta):
    rng = np.random.default_rng(2)
    for size in ((64, 64), (16, 16), (24, 17)):
        for _ in range(10):
            m = rng.uniform(0.05, 1) * gaussian(rng.uniform([3, 3], np.array(size) - 3), size, rng.uniform(1, 2))
            small = tensor(m).float()
            s = beta * small.double().numpy()
            true = mean_of(np.exp(s - s.max()) - np.exp(-s.max()))
            c_over_m = np.exp(s - s.max()).sum() / (np.exp(s - s.max()) - np.exp(-s.max())).sum()
            side = max(size)
            assert np.abs(compensated(small, beta).double().numpy() - true).max() <= 1e-6 * side
            assert np.abs(closed_form(small, beta).double().numpy() - true).max() <= (2e-7 * c_over_m + 1e-6) * side
            plain = mean_of(np.exp(s - s.max()))
            assert np.abs(soft_argmax(small, beta).double().numpy() - plain).max() <= 1e-6 * side


@every_reading
@pytest.mark.parametrize("size", [(6, 5), (4, 4)])
def test_gradients_are_those_of_differences(read, size):
    """Of maps, and of a learned beta."""
    rng = np.random.default_rng(4)
    maps = tensor(rng.uniform(0.05, 1, (3, size[1], size[0]))).requires_grad_()
    for beta in (0.2, 3.0, 30.0):
        assert torch.autograd.gradcheck(read, (maps, torch.tensor(beta, dtype=torch.float64, requires_grad=True)), eps=1e-7)


@pytest.mark.parametrize("value", [0.0, -0.3, 1e-38, 1e-12])
@pytest.mark.parametrize("settings", [{}, {"prior": 0}, {"train": "closed"}, {"train": "plain"}, {"learn_beta": True}])
def test_an_empty_map_answers_with_its_middle(value, settings):
    head = make(**settings)
    maps = torch.full((2, K, CELLS[1], CELLS[0]), value, requires_grad=True)
    got = head.decode({"map": maps})
    np.testing.assert_array_equal(got.keypoints.detach(), np.broadcast_to([32.0, 24.0], (2, K, 2)))
    assert got.scores.max() < 1e-6 and got.published.max() < 1e-6
    targets, weight = head.targets(joints(1, 2), torch.ones(2, K))
    sum(head.loss({"map": maps}, targets, weight).values()).backward()
    assert torch.isfinite(maps.grad).all()
    if settings.get("prior", 1):
        assert (maps.grad != 0).any(), "the prior teaches a map that the coordinates cannot"


def test_one_barely_positive_cell_has_finite_gradients():
    for value in (1e-45, 1e-30, 1e-9, 1e-5):
        maps = torch.zeros(1, K, CELLS[1], CELLS[0])
        maps[..., 3, 4] = value
        maps.requires_grad_()
        head = make(prior=0)
        targets, weight = head.targets(joints(1, 1), torch.ones(1, K))
        head.loss({"map": maps}, targets, weight)["integral"].backward()
        assert torch.isfinite(maps.grad).all()


def test_loss_is_that_of_numpy():
    head = make(beta=7.0, prior=3.0, sigma=1.5)
    kp, rng = joints(6, 3), np.random.default_rng(6)
    kp[0, 0], kp[1, 1] = torch.tensor([-0.1, 5.0]), torch.tensor([5.0, 48.0])  # outside
    weight = tensor(rng.uniform(0, 1, (3, K))).float()
    targets, held = head.targets(kp, weight)
    assert held[0, 0] == held[1, 1] == 0 and (held > 0).sum() == 3 * K - 2
    maps = rng.normal(0, 0.4, (3, K, CELLS[1], CELLS[0]))
    l1 = prior = 0.0
    for b, k in np.ndindex(3, K):
        m, point = maps[b, k], kp[b, k].double().numpy()
        got = mean_of(np.expm1(7 * np.maximum(m, 0))) / CELLS
        l1 += held[b, k].item() * np.abs(got - point / SIZE).mean()
        prior += held[b, k].item() * 3 * 0.5 * ((m - gaussian(point / 4, CELLS, 1.5)) ** 2).mean()
    terms = head.loss({"map": tensor(maps).float()}, targets, held)
    assert terms["integral"].item() == pytest.approx(l1, rel=1e-5)
    assert terms["prior"].item() == pytest.approx(prior, rel=1e-5)


def test_without_a_prior_coordinates_alone_teach_and_the_height_of_the_map_says_nothing():
    head = make(prior=0)
    targets, weight = head.targets(joints(7, 2), torch.ones(2, K))
    maps = torch.from_numpy(np.random.default_rng(7).uniform(0, 1, (2, K, CELLS[1], CELLS[0]))).float()
    assert set(targets) == {"xy"} and set(head.loss({"map": maps}, targets, weight)) == {"integral"}
    cell = torch.zeros_like(maps)
    cell[:, :, 5, 7] = 2.0
    got, weak = (head.decode({"map": m}) for m in (cell, 1e-3 * cell))
    for name in ("keypoints", "scores", "published"):
        torch.testing.assert_close(getattr(got, name), getattr(weak, name))
    assert torch.equal(got.published, got.scores) and head.published_threshold == 0
    taught = make().decode({"map": 1e-3 * cell})
    assert (taught.published == 2e-3).all() and (taught.scores < 0.01).all(), "with one a weak blob scores little"


def test_plain_maps_without_zero_have_scores():
    """`rectify: false`: a softmax knows no zero, so adding a number to all cells changes nothing."""
    head = make(train="plain", rectify=False, prior=0, beta=1.0)
    maps = torch.from_numpy(12 * gaussian((5.3, 6.1), CELLS, 1.0)).float().expand(1, K, *CELLS[::-1])
    got, moved = head.decode({"map": maps}), head.decode({"map": maps - 20})
    for a, b in zip(got, moved, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    e = np.exp(maps[0, 0].double().numpy())
    np.testing.assert_allclose(got.keypoints[0, 0], mean_of(e) * 4, atol=1e-4)
    assert got.scores.min() > 0.3 and got.scores.max() <= 1
    torch.testing.assert_close(moved.published, moved.scores)


def test_answers_are_read_in_pixels_of_the_crop():
    """One map, seven readings: the regression of NumPy, the detection of the heatmap head."""
    size, cells = (60, 36), (13, 9)
    m = 0.8 * gaussian((8.3, 4.6), cells, 1.2) + 0.3 * gaussian((2.0, 7.0), cells, 1.0)
    maps = tensor(m).float().expand(1, K, *m.shape)
    wanted = {"compensated": mean_of(np.expm1(10 * m)), "plain": mean_of(np.exp(10 * m))}
    wanted["closed"] = wanted["compensated"]
    for decode, cell in wanted.items():
        got = make(size, cells, decode=decode).decode({"map": maps})
        np.testing.assert_allclose(got.keypoints[0, 0], cell * np.array(size) / cells, atol=2e-4)
        np.testing.assert_allclose(got.published, m.max(), rtol=1e-6)
    for decode in ("argmax", "quarter", "dark", "udp"):
        got = make(size, cells, decode=decode).decode({"map": maps})
        config = HeatmapConfig(decode=decode, target="continuous")
        want = Heatmap(config, (4, 9, 13), size, CROWDPOSE14).decode({"map": maps})
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@every_reading
def test_the_mirror_image_is_read_in_the_mirror_place(read):
    maps = tensor(np.random.default_rng(8).uniform(0, 1, (20, 9, 14)))
    x, y = read(maps, 3.0).unbind(-1)
    mx, my = read(maps.flip(-1), 3.0).unbind(-1)
    np.testing.assert_allclose(mx, 14 - x, rtol=0, atol=1e-11)
    np.testing.assert_allclose(my, y, rtol=0, atol=1e-11)


def test_a_learned_beta_moves_and_does_not_decay():
    head = make(learn_beta=True, beta=4.0)
    assert make(beta=4.0).beta == 4.0 and head.beta.item() == pytest.approx(4.0)
    optimizer = make_optimizer(head, TrainConfig(optimizer="adamw", weight_decay=0.05, lr=0.01))
    group = next(g for g in optimizer.param_groups if any(p is head.log_beta for p in g["params"]))
    assert group["weight_decay"] == 0
    targets, weight = head.targets(joints(9), torch.ones(8, K))
    feature = torch.randn(8, 4, CELLS[1], CELLS[0], generator=torch.Generator().manual_seed(0))
    sum(head.loss(head(feature), targets, weight).values()).backward()
    assert head.log_beta.grad.item() != 0
    optimizer.step()
    assert head.beta.item() != pytest.approx(4.0, abs=1e-3)


def test_training_in_bfloat16_reads_in_float32():
    """Maps come in steps of bfloat16; their mean must not."""
    head = make()
    m = torch.from_numpy(gaussian((11.37, 7.21), CELLS, 1.5)).bfloat16().expand(1, K, *CELLS[::-1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = head.decode({"map": m})
        loss = head.loss({"map": m}, *head.targets(joints(1, 1), torch.ones(1, K)))
    want = mean_of(np.expm1(10 * m[0, 0].double().numpy())) * 4
    np.testing.assert_allclose(got.keypoints[0, 0], want, atol=1e-4)  # bfloat16 has steps of 0.25 there
    assert all(v.dtype == torch.float32 for v in [*got, *loss.values()])


class Read(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, maps):
        got = self.head.decode({"map": maps})
        return got.keypoints, got.scores


@pytest.mark.parametrize("settings", [{}, {"prior": 0, "beta": 1.0}, {"decode": "plain"}, {"learn_beta": True}], ids=str)
def test_exported_file_keeps_weak_maps(settings):
    """Weak maps too: an exported expm1 is exp - 1, and would not."""
    head = make(**settings).eval()
    maps = np.stack([p * gaussian((9.3, 5.6), CELLS, 1.3) for p in (1.0, 1e-2, 1e-4, 0.0)])[:, None].repeat(K, 1)
    example = (torch.rand(2, K, *CELLS[::-1]),)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.onnx.export(Read(head).eval(), example, dynamo=True, dynamic_shapes=({0: batch},), verbose=False)
    file = io.BytesIO()
    program.save(file)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    points, scores = session.run(None, {session.get_inputs()[0].name: maps.astype(np.float32)})
    for i, m in enumerate(maps[:, 0]):
        s = settings.get("beta", 10) * m
        want = mean_of(np.exp(s) if "decode" in settings else np.expm1(s)) if m.any() else np.array(CELLS) / 2
        np.testing.assert_allclose(points[i], np.broadcast_to(4 * want, (K, 2)), atol=2e-4)
    with torch.no_grad():
        want = head.decode({"map": tensor(maps).float()}).scores
    np.testing.assert_allclose(scores, want, atol=1e-5)
    assert (scores[-1] == 0).all()


@pytest.mark.parametrize(
    ("wrong", "settings"),
    [
        ("train: compensated", {}),
        ("train: closed", {"train": "closed"}),
        ("train: compensated", {"decode": "plain"}),
        ("decode: compensated", {"train": "plain", "decode": "compensated"}),
        ("decode: closed", {"train": "plain", "decode": "closed"}),
    ],
)
def test_compensation_needs_an_empty_background(wrong, settings):
    with pytest.raises(ValidationError, match=f"{wrong} takes out an empty background.*rectify: true"):
        IntegralConfig(rectify=False, **settings)


def test_settings():
    assert IntegralConfig().decode == "compensated" and IntegralConfig(train="plain").decode == "plain", "read as trained"
    assert IntegralConfig(train="plain", decode="dark").decode == "dark"
    IntegralConfig(train="plain", decode="argmax", rectify=False)
    for wrong in ({"beta": 0}, {"beta": -1}, {"prior": -1}, {"train": "argmax"}, {"offset": True}):
        with pytest.raises(ValidationError):
            IntegralConfig(**wrong)
    with pytest.raises(LowposeError, match="'head.decode: dark' needs maps of 5 x 5"):
        make((16, 16), (4, 4), decode="dark")
