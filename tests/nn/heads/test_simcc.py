"""SimCC against plain NumPy float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.special import log_softmax, softmax

from lowpose.errors import LowposeError
from lowpose.nn.heads.simcc import SimCC, SimCCConfig
from lowpose.skeletons import CROWDPOSE14

SIZE = (64, 48)
K = len(CROWDPOSE14)


def make(size=SIZE, **settings) -> SimCC:
    return SimCC(SimCCConfig(**settings), (4, size[1] // 4, size[0] // 4), size, CROWDPOSE14)


def joints(seed=0, batch=4, size=SIZE) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).uniform(0, 1, (batch, K, 2)) * size).float()


def logits(targets: dict) -> dict:
    out = {name: value.clamp(min=1e-30).log() for name, value in targets.items()}
    return {**out, "map": torch.zeros(*out["x"].shape[:2], SIZE[1] // 4, SIZE[0] // 4)}


def reference_target(u: float, bins: int, kind: str, sigma: float, smoothing: float) -> np.ndarray:
    if kind == "gaussian":
        g = np.exp(-((np.arange(bins) + 0.5 - u) ** 2) / (2 * sigma**2))
        return g / g.sum()
    out = np.full(bins, smoothing / (bins - 1) if kind == "smooth" else 0.0)
    out[int(np.floor(u))] = 1 - smoothing if kind == "smooth" else 1.0
    return out


@pytest.mark.parametrize("kind", ["hard", "smooth", "gaussian"])
@pytest.mark.parametrize("split", [2.0, 3.0, 1.5])
def test_targets_are_those_of_numpy(kind, split):
    head = make(target=kind, split=split, **({"smoothing": 0.2} if kind == "smooth" else {}))
    kp = joints()
    targets, weight = head.targets(kp, torch.ones(4, K))
    assert (weight == 1).all()
    for axis, name in enumerate("xy"):
        bins = int(SIZE[axis] * split)
        assert targets[name].shape == (4, K, bins)
        u = kp[..., axis].double().numpy() * split
        want = [[reference_target(v, bins, kind, np.sqrt(SIZE[axis] / 8), 0.2) for v in row] for row in u]
        np.testing.assert_allclose(targets[name].numpy(), want, atol=1e-6)
        np.testing.assert_allclose(targets[name].sum(-1).numpy(), 1, atol=1e-5)


def test_gaussian_target_has_the_sigma_that_was_asked_for():
    centre = torch.full((1, K, 2), 24.0)
    for sigma, head in (
        (2.0, make((32, 32))),
        (8**0.5, make((64, 64))),
        (4.0, make((128, 128))),
        (3.0, make((64, 64), sigma=3.0)),
    ):
        p = head.targets(centre, torch.ones(1, K))[0]["x"][0, 0].double().numpy()
        x = np.arange(len(p)) + 0.5
        assert np.sqrt((p * (x - 48) ** 2).sum()) == pytest.approx(sigma, rel=1e-3)


@pytest.mark.parametrize("k,m", [(2, 2), (2, 3), (1, 4), (3, 2)])
def test_bins_merge_exactly(k, m):
    kp = joints(1, 16)
    kp[0] = kp[0].round().clamp(0, 47)  # on the edges of bins, too
    fine = make(target="hard", split=k * m).targets(kp, torch.ones(16, K))[0]
    coarse = make(target="hard", split=k).targets(kp, torch.ones(16, K))[0]
    for name in "xy":
        assert torch.equal(fine[name].unflatten(-1, (-1, m)).sum(-1), coarse[name])


@pytest.mark.parametrize("kind", ["hard", "smooth", "gaussian"])
@pytest.mark.parametrize("split", [1.0, 2.0, 3.0, 2.3])
def test_round_trip_is_within_half_a_bin(kind, split):
    head = make(target=kind, split=split)
    kp = joints(2, 32)
    got = head.decode(logits(head.targets(kp, torch.ones(32, K))[0]))
    for axis in (0, 1):
        half = 0.5 * SIZE[axis] / int(SIZE[axis] * split)
        assert (got.keypoints[..., axis] - kp[..., axis]).abs().max() <= half + 1e-4


def test_joints_outside_the_crop_have_no_weight():
    kp = torch.tensor([[-0.1, 5], [0, 0], [63.9, 47.9], [64, 5], [5, 48.5], [1e9, 5], [5, -1e9]])
    kp = torch.cat([kp, torch.full((K - len(kp), 2), 10.0)])[None]
    for kind in ("hard", "smooth", "gaussian"):
        targets, weight = make(target=kind).targets(kp, torch.full((1, K), 0.5))
        assert weight[0].tolist() == [0, 0.5, 0.5, 0, 0, 0, 0] + [0.5] * (K - 7)
        assert all(torch.isfinite(t).all() for t in targets.values())


@pytest.mark.parametrize("kind", ["hard", "smooth", "gaussian"])
def test_loss_is_the_divergence_of_both_axes(kind):
    head = make(target=kind)
    rng = np.random.default_rng(3)
    weight = torch.tensor(rng.integers(0, 2, (4, K))).float()
    targets, weight = head.targets(joints(4), weight)
    out = {n: torch.tensor(rng.normal(0, 3, targets[n].shape)).float() for n in "xy"}
    want = 0.0
    for n in "xy":
        t, log_q = targets[n].double().numpy(), log_softmax(out[n].double().numpy(), -1)
        kl = (t * (np.log(np.maximum(t, 1e-300)) - log_q)).sum(-1)
        want += (kl * weight.numpy()).sum()
    got = head.loss(out, targets, weight)
    assert list(got) == ["simcc"]
    assert float(got["simcc"]) == pytest.approx(want, rel=1e-5)
    assert abs(float(head.loss(logits(targets), targets, weight)["simcc"])) < 1e-3


def test_published_scores_and_mass_near_the_peak():
    rng = np.random.default_rng(5)
    for kind, pick in (("hard", np.maximum), ("smooth", np.maximum), ("gaussian", np.minimum)):
        head = make(target=kind)
        out = {n: torch.tensor(rng.normal(0, 2, (2, K, 2 * SIZE[a]))).float() for a, n in enumerate("xy")}
        p = {n: softmax(out[n].double().numpy(), -1) for n in "xy"}
        got = head.decode(out)
        np.testing.assert_allclose(got.published, pick(p["x"].max(-1), p["y"].max(-1)), rtol=1e-5)
        score = 1.0
        for axis, n in enumerate("xy"):
            fine = np.repeat(p[n] / 16, 16, -1)  # pieces of 1/32 pixel
            at = (np.arange(fine.shape[-1]) + 0.5) / 32
            peak = (p[n].argmax(-1) + 0.5) / 2
            mass = (fine * (abs(at - peak[..., None]) < 1)).sum(-1)
            bins = 2 * SIZE[axis]
            middle = reference_target(bins // 2 + 0.5, bins, kind, np.sqrt(SIZE[axis] / 8), 0.1)
            near = np.array([0, 0.5, 1, 1, 1, 0.5, 0])  # shares of the bins around the middle one
            score = score * np.minimum(mass / (middle[bins // 2 - 3 : bins // 2 + 4] * near).sum(), 1)
        np.testing.assert_allclose(got.scores, score, rtol=1e-4)


@pytest.mark.parametrize("kind", ["hard", "smooth", "gaussian"])
def test_perfect_answers_score_one_and_flat_ones_next_to_nothing(kind):
    head = make(target=kind)
    kp = torch.tensor([20.25, 30.75]).expand(1, K, 2)  # a bin's centre
    out = logits(head.targets(kp, torch.ones(1, K))[0])
    np.testing.assert_allclose(head.decode(out).scores, 1, atol=1e-3)
    flat = head.decode({n: torch.zeros_like(v) for n, v in out.items()})
    assert (flat.scores < 0.01).all() and torch.isfinite(flat.keypoints).all()


def test_merge_is_the_mean_of_both_distributions():
    head, rng = make(), np.random.default_rng(6)
    a, b = ({n: torch.tensor(rng.normal(0, 3, (2, K, 2 * s))).float() for n, s in zip("xy", SIZE, strict=True)} for _ in "ab")
    a["map"] = b["map"] = torch.zeros(2, K, 12, 16)
    got = head.merge(a, b)
    for n in "xy":
        want = (softmax(a[n].double().numpy(), -1) + softmax(b[n].double().numpy(), -1)) / 2
        np.testing.assert_allclose(softmax(got[n].double().numpy(), -1), want, atol=1e-7)


def test_parameters_and_settings():
    head = SimCC(SimCCConfig(split=3), (32, 16, 16), (64, 64), CROWDPOSE14)
    assert sum(p.numel() for p in head.parameters()) == 32 * K + K + 98_688  # both axes: 2 x (256 + 1) x 192
    with pytest.raises(LowposeError, match="0 bins of 48 pixels"):
        make(split=0.01)
    for wrong in ({"split": 0}, {"smoothing": 1}, {"sigma": 0}, {"target": "soft"}):
        with pytest.raises(ValidationError):
            SimCCConfig(**wrong)
