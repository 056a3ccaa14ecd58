"""Regression of coordinates, scores and spreads against plain NumPy float64, from feature maps and from tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.special import expit
from tiny import tiny

from lowpose.checkpoint import initialise, save_weights
from lowpose.errors import LowposeError
from lowpose.nn.heads.regression import Regression, RegressionConfig
from lowpose.nn.model import build_model
from lowpose.skeletons import COCO17, CROWDPOSE14, LSP14, MPII16

K = len(CROWDPOSE14)
SIZE = (64, 48)
WIDTH = 6  # of a token
HALF_ULP = 2.0**-25  # what 1 - x is rounded by, at most


def make(feature=(WIDTH,), size=SIZE, skeleton=CROWDPOSE14, **settings) -> Regression:
    torch.manual_seed(0)
    head = Regression(RegressionConfig(**settings), feature, size, skeleton)
    with torch.no_grad():
        for p in head.parameters():
            p.add_(0.2 * torch.randn(p.shape))
    return head


def noise(*shape, seed=0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 1, shape)).float()


def joints(seed=0, batch=4, size=SIZE) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).uniform(0, 1, (batch, K, 2)) * size).float()


def answer(seed=0, batch=4) -> dict[str, torch.Tensor]:
    """What a head may give, whatever its layers."""
    rng = np.random.default_rng(seed)
    draws = {"xy": rng.uniform(0, 1, (batch, K, 2)), "score": rng.normal(0, 1, (batch, K))}
    draws["sigma"] = rng.uniform(0, 0.2, (batch, K, 2))
    return {n: torch.from_numpy(v).float() for n, v in draws.items()}


def float64(head) -> dict[str, np.ndarray]:
    return {n: v.detach().double().numpy() for n, v in head.state_dict().items()}


def layer_norm(x: np.ndarray, p: dict, name: str) -> np.ndarray:
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * p[f"{name}.weight"] + p[f"{name}.bias"]


def check_outputs(found: dict, values: np.ndarray, size, stride: int) -> None:
    """`values` (B, K, 5): x, y, score, spread in x and y, before any activation."""
    assert list(found) == ["xy", "score", "sigma"]
    np.testing.assert_allclose(found["xy"].detach(), expit(values[..., :2]), atol=1e-6)
    np.testing.assert_allclose(found["score"].detach(), values[..., 2], rtol=1e-5, atol=1e-5)
    cells = np.log1p(np.exp(values[..., 3:]))  # of `stride` pixels
    np.testing.assert_allclose(found["sigma"].detach(), cells * stride / np.array(size), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("size,stride", [(SIZE, 4), ((60, 36), 3)])
def test_a_map_is_averaged_and_goes_through_one_linear_layer(size, stride):
    head = make((3, 5, 7), size, stride=stride)
    feature = noise(2, 3, 5, 7)
    p = float64(head)
    assert p["final.weight"].shape == (5 * K, 3)
    flat = feature.double().numpy().mean((2, 3)) @ p["final.weight"].T + p["final.bias"]
    values = np.stack([[[row[n * K + k] for n in range(5)] for k in range(K)] for row in flat])
    check_outputs(head(feature), values, size, stride)


def test_tokens_go_through_the_layers_of_tokenpose():
    """Of at most half the hidden width: norm, linear, norm, linear; else norm, linear. The same for every keypoint."""
    tokens = noise(2, K, WIDTH)
    x = tokens.double().numpy()
    for hidden in (None, 16, 2 * WIDTH):
        head = make(hidden=hidden, stride=2)
        p = float64(head)
        assert p["final.1.weight"].shape == (hidden or 384, WIDTH)
        y = layer_norm(x, p, "final.0") @ p["final.1.weight"].T + p["final.1.bias"]
        y = layer_norm(y, p, "final.2") @ p["final.3.weight"].T + p["final.3.bias"]
        check_outputs(head(tokens), y, SIZE, 2)
    for hidden in (0, 5, 2 * WIDTH - 1):
        head = make(hidden=hidden)
        p = float64(head)
        check_outputs(head(tokens), layer_norm(x, p, "final.0") @ p["final.1.weight"].T + p["final.1.bias"], SIZE, 4)


def test_parameters():
    def count(*args, **settings) -> int:
        return sum(p.numel() for p in make(*args, **settings).parameters())

    norm, middle = 2 * 192, 192 * 384 + 384
    assert count((192,)) == norm + middle + 2 * 384 + 384 * 5 + 5  # KDGF: five outputs, hidden 384
    assert count((192,), hidden=64) == norm + 192 * 5 + 5  # the published settings of DistilPose: one layer
    assert count((192,), skeleton=MPII16) == count((192,)) and make((192,)).per_keypoint == {}
    assert count((32, 8, 8)) == (32 + 1) * 5 * K


@pytest.mark.parametrize("beta", [1, 0.25, 0])
def test_loss_by_hand(beta):
    """Smooth L1, mean over x and y; the score's error, times its weight. Answers beyond a share of 1, too."""
    out, kp = answer(1), joints(2)
    out["xy"] = out["xy"] * 6 - 3
    weight = torch.from_numpy(np.random.default_rng(3).uniform(0, 1, (4, K)).round(2)).float()
    for score in (0.01, 0.5, 0.0):
        head = make(score=score, beta=beta)
        targets, weight = head.targets(kp, weight)
        got = head.loss(out, targets, weight)
        want = {"regression": 0.0, "score": 0.0}
        sizes = set()
        for b in range(4):
            for k in range(K):
                d = out["xy"][b, k].double().numpy() - kp[b, k].double().numpy() / SIZE
                sizes |= {bool(abs(v) < beta) for v in d}
                smooth = sum(0.5 * v * v / beta if abs(v) < beta else abs(v) - 0.5 * beta for v in d) / 2
                cells = d * SIZE / 4
                value = np.exp(-(cells[0] ** 2 + cells[1] ** 2) / (2 * 2.0**2))
                want["regression"] += float(weight[b, k]) * smooth
                want["score"] += score * float(weight[b, k]) * abs(float(out["score"][b, k]) - value)
        assert sizes == ({True, False} if beta else {False})
        assert list(got) == (["regression", "score"] if score else ["regression"])
        for n, v in got.items():
            assert float(v) == pytest.approx(want[n], rel=1e-5)


@pytest.mark.parametrize(
    "stride,off,value", [(4, (8.0, 0.0), np.exp(-0.5)), (4, (0.0, 16.0), np.exp(-2)), (8, (8.0, 0.0), np.exp(-1 / 8))]
)
def test_the_score_learns_the_value_of_a_gaussian_of_two_cells(stride, off, value):
    """Two cells from the joint it is exp(-1/2), whatever the axis; a score that says so has no loss, and x and y get nothing."""
    head, kp = make(stride=stride), torch.full((1, K, 2), 20.0)
    out = answer(4, 1)
    out["xy"] = ((kp + torch.tensor(off)) / torch.tensor(SIZE)).requires_grad_()
    out["score"] = torch.full((1, K), float(value)).requires_grad_()
    targets, weight = head.targets(kp, torch.ones(1, K))
    assert float(head.loss(out, targets, weight)["score"].detach()) < 1e-6
    (head.loss({**out, "score": out["score"] + 1}, targets, weight)["score"]).backward()
    assert out["xy"].grad is None and torch.allclose(out["score"].grad, torch.tensor(0.01))


def test_a_perfect_answer_has_no_loss():
    head, kp = make(), joints(5)
    targets, weight = head.targets(kp, torch.ones(4, K))
    out = {"xy": targets["xy"], "score": torch.ones(4, K), "sigma": torch.ones(4, K, 2)}
    assert all(float(v) == 0 for v in head.loss(out, targets, weight).values())
    np.testing.assert_allclose(head.decode(out).keypoints, kp, rtol=1e-6)


def test_joints_outside_the_crop_have_no_weight():
    kp = torch.tensor([[-0.1, 5], [0, 0], [63.9, 47.9], [64, 5], [5, 48.5], [1e9, 5], [5, -1e9]])
    kp = torch.cat([kp, torch.full((K - len(kp), 2), 10.0)])[None]
    targets, weight = make().targets(kp, torch.full((1, K), 0.5))
    assert weight[0].tolist() == [0, 0.5, 0.5, 0, 0, 0, 0] + [0.5] * (K - 7)
    np.testing.assert_allclose(targets["xy"][0].double(), kp[0].double() / torch.tensor(SIZE), rtol=1e-6)


def test_what_is_not_seen_teaches_nothing():
    """Joint 0 invisible, joint 1 outside the crop: exactly no gradient, in the rows of a map's layer and in the tokens."""
    kp, visible = joints(6), torch.ones(4, K)
    visible[:, 0], kp[:, 1] = 0, torch.tensor([70.0, 20.0])
    head = make((3, 5, 7))
    targets, weight = head.targets(kp, visible)
    sum(head.loss(head(noise(4, 3, 5, 7)), targets, weight).values()).backward()
    rows = head.final.weight.grad.unflatten(0, (5, K))
    assert (rows[:, :2] == 0).all() and (head.final.bias.grad.unflatten(0, (5, K))[:, :2] == 0).all()
    assert (rows[:3, 2:] != 0).all() and (rows[3:] == 0).all()  # the spread is taught by a teacher alone
    head, tokens = make(), noise(4, K, WIDTH).requires_grad_()
    sum(head.loss(head(tokens), targets, weight).values()).backward()
    assert (tokens.grad[:, :2] == 0).all() and (tokens.grad[:, 2:] != 0).any(-1).all()


def test_without_its_weight_the_score_is_not_taught():
    head = make((3, 5, 7), score=0)
    targets, weight = head.targets(joints(7), torch.ones(4, K))
    sum(head.loss(head(noise(4, 3, 5, 7)), targets, weight).values()).backward()
    rows = head.final.weight.grad.unflatten(0, (5, K))
    assert (rows[:2] != 0).all() and (rows[2:] == 0).all()


def test_decoding():
    out = answer(8)
    out["score"][0, :3] = torch.tensor([-0.2, 0.4, 1.7])
    got = make().decode(out)
    np.testing.assert_allclose(got.keypoints, out["xy"].double().numpy() * SIZE, rtol=1e-6)
    assert got.scores[0, :3].tolist() == pytest.approx([0, 0.4, 1]) and torch.equal(got.published, out["score"])


def test_flips_are_exact():
    """Twice is the identity; of a mirror image's answer it is the answer, scores and spreads exchanged as the joints are."""
    head, out = make(), answer(9)
    partner = dict(CROWDPOSE14.pairs) | {b: a for a, b in CROWDPOSE14.pairs}
    flipped = head.flip(out)
    for k in range(K):
        j = partner.get(k, k)
        assert torch.equal(flipped["score"][:, k], out["score"][:, j])
        assert torch.equal(flipped["sigma"][:, k], out["sigma"][:, j])
        assert torch.equal(flipped["xy"][:, k, 1], out["xy"][:, j, 1])
        np.testing.assert_allclose(flipped["xy"][:, k, 0], 1 - out["xy"][:, j, 0].double(), rtol=0, atol=HALF_ULP)
    assert len(partner) == 12
    twice = head.flip(flipped)
    assert torch.equal(twice["score"], out["score"]) and torch.equal(twice["sigma"], out["sigma"])
    assert (twice["xy"] - out["xy"]).abs().max() <= HALF_ULP
    on_grid = {**out, "xy": (out["xy"] * 2**20).round() / 2**20}  # shares that 1 - x does not round
    assert all(torch.equal(v, on_grid[n]) for n, v in head.flip(head.flip(on_grid)).items())


def test_merging_is_the_mean():
    head, a, b = make(), answer(10), answer(11)
    for n, v in head.merge(a, b).items():
        np.testing.assert_allclose(v, (a[n].double() + b[n].double()) / 2, atol=1e-7)
    again = head.merge(a, head.flip(head.flip(a)))
    assert all(torch.allclose(again[n], a[n], rtol=0, atol=HALF_ULP) for n in a)


@pytest.mark.parametrize("feature", [(WIDTH,), (WIDTH, 5, 7)])
def test_bfloat16_keeps_positions_in_float32(feature):
    """Under autocast a head says what it says without, of a feature in bfloat16, too: shares would be off by a 512th."""
    head = make(feature)
    given = noise(64, *((K,) if len(feature) == 1 else ()), *feature)
    with torch.no_grad():
        want = head(given)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got, from_half = head(given), head(given.bfloat16())
    assert all(v.dtype is torch.float32 for v in [*got.values(), *from_half.values()])
    for n in want:
        torch.testing.assert_close(got[n], want[n], rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(from_half["xy"], head(given.bfloat16().float())["xy"], rtol=1e-5, atol=1e-6)
    assert (want["xy"] - want["xy"].bfloat16()).abs().max() > 1e-3


@pytest.mark.parametrize("feature", [(WIDTH,), (WIDTH, 5, 7)])
def test_a_float64_model_answers_in_float64(feature):
    head = make(feature)
    given = noise(4, *((K,) if len(feature) == 1 else ()), *feature)
    want = head(given)
    for n, v in head.double()(given.double()).items():
        assert v.dtype is torch.float64
        torch.testing.assert_close(v.float(), want[n], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("target", [MPII16, CROWDPOSE14, LSP14])
@pytest.mark.parametrize(
    "tokens", [None, {"patch": [2, 2], "width": 16, "depth": 1, "mixer": {"name": "attention"}}], ids=["map", "tokens"]
)
def test_weights_of_another_skeleton_are_carried_over(tmp_path, tokens, target):
    """Joints that both skeletons name are answered as before, from the same map; the rest of the model is the same."""
    net = {"backbone": "test_resnet", "deconv": [8, 8, 8], "tokens": tokens}
    config = tiny(model=net, head={"name": "regression"})
    torch.manual_seed(1)
    source = build_model(config, COCO17).eval()
    save_weights(tmp_path / "w.safetensors", source, config)
    torch.manual_seed(2)
    model = build_model(config, target).eval()
    fresh = {k: v.clone() for k, v in model.state_dict().items()}
    missing = initialise(model, tmp_path / "w.safetensors")
    shared = [n for n in target.keypoints if n in COCO17.keypoints]
    own, old = ([s.keypoints.index(n) for n in shared] for s in (target, COCO17))
    assert len(shared) >= 12
    unknown = [n for n in target.keypoints if n not in shared]
    if tokens:
        changed = ["tokens.keypoint"]
        assert torch.equal(model.tokens.keypoint[own], source.tokens.keypoint[old])
        rest = [target.keypoints.index(n) for n in unknown]
        assert torch.equal(model.tokens.keypoint[rest], fresh["tokens.keypoint"][rest])
    else:
        changed = ["head.final.weight", "head.final.bias"]
        pictures = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
        with torch.no_grad():
            found, wanted = model(pictures), source(pictures)
        for n in found:
            torch.testing.assert_close(found[n][:, own], wanted[n][:, old], rtol=1e-6, atol=1e-6)
    assert sorted(missing) == sorted(f"{name}[{n}]" for name in changed for n in unknown)
    same = [n for n in model.state_dict() if n not in changed]
    assert all(torch.equal(model.state_dict()[n], source.state_dict()[n]) for n in same)


def test_settings():
    with pytest.raises(LowposeError, match="^'head.hidden' is for keypoint tokens; this head reads a feature map$"):
        make((3, 5, 7), hidden=64)
    for wrong in ({"stride": 0}, {"score": -0.1}, {"hidden": -1}, {"beta": -1}, {"sigma": 2}):
        with pytest.raises(ValidationError):
            RegressionConfig(**wrong)
