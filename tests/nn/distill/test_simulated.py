"""Simulated heatmaps and predicted scores against plain NumPy float64, finite differences and DistilPose's own formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lowpose.errors import LowposeError
from lowpose.nn.distill.base import Side, build_distillers
from lowpose.nn.heads.heatmap import Heatmap, HeatmapConfig
from lowpose.nn.heads.regression import Regression, RegressionConfig
from lowpose.skeletons import CROWDPOSE14

K, CELLS = 3, (12, 8)  # columns, rows
STUDENT = Side({"xy": (K, 2), "score": (K,), "sigma": (K, 2)}, (48, 32))
TEACHER = Side({"map": (K, CELLS[1], CELLS[0])}, (96, 64))
WEIGHT = torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1]])
SEEN = list(zip(*np.nonzero(WEIGHT.numpy()), strict=True))


def build(name: str, student=STUDENT, teacher=TEACHER, **settings):
    return build_distillers({name: settings}, student, teacher)[0][name]


def answers(seed=0, cells=CELLS, k=K) -> tuple[dict, dict]:
    rng = np.random.default_rng(seed)
    ours = {"xy": rng.uniform(0, 1, (3, k, 2)), "sigma": rng.uniform(0.05, 0.3, (3, k, 2)), "score": rng.normal(0, 1, (3, k))}
    theirs = {"map": rng.normal(0.2, 0.3, (3, k, *cells[::-1]))}
    return tuple({n: torch.from_numpy(v).float() for n, v in side.items()} for side in (ours, theirs))


def float64(values) -> dict[str, np.ndarray]:
    return {name: value.detach().double().numpy() for name, value in values.items()}


def drawn(xy, sigma, cells=CELLS) -> np.ndarray:
    """(rows, columns): value at each cell's centre of a Gaussian of peak 1; joint and spread as shares of the map."""
    out = np.zeros(cells[::-1])
    for i in range(cells[1]):
        for j in range(cells[0]):
            dx, dy = (j + 0.5) / cells[0] - xy[0], (i + 0.5) / cells[1] - xy[1]
            out[i, j] = np.exp(-0.5 * ((dx / sigma[0]) ** 2 + (dy / sigma[1]) ** 2))
    return out


def squared(ours: dict, theirs: dict, joints=SEEN) -> float:
    """Mean over cells, summed over joints."""
    return sum(((drawn(ours["xy"][i, k], ours["sigma"][i, k]) - theirs["map"][i, k]) ** 2).mean() for i, k in joints)


def test_simulated_heatmaps():
    ours, theirs = answers()
    total, n = build("simulated_heatmap")(ours, theirs, WEIGHT)["simulated_heatmap"]
    assert n == 5 and total.item() == pytest.approx(squared(float64(ours), float64(theirs)), rel=1e-5)


def test_the_peak_is_one_and_stands_at_the_joint():
    """At a cell's centre: the value there is 1, at a spread's distance exp(-1/2); a teacher's own target has no distance."""
    head = Heatmap(HeatmapConfig(target="continuous", sigma=1.5), (4, CELLS[1], CELLS[0]), (96, 64), CROWDPOSE14)
    place = torch.tensor([[50.0, 21.0], [4.0, 60.0], [93.0, 3.0]])  # pixels of the teacher's crop
    kp = torch.cat([place, torch.full((11, 2), 9.0)])[None]
    maps = head.targets(kp, torch.ones(1, 14))[0]["map"][:, :K]
    ours = {"xy": place[None] / torch.tensor([96.0, 64.0]), "sigma": 1.5 / torch.tensor(CELLS).expand(1, K, 2)}
    one, module = torch.ones(1, K), build("simulated_heatmap")
    assert module(ours, {"map": maps}, one)["simulated_heatmap"].total.item() < 1e-10
    # against an empty map the distance is the mean of the Gaussian's square
    centre = {"xy": torch.tensor([6.5 / 12, 2.5 / 8]).expand(1, K, 2), "sigma": torch.full((1, K, 2), 1e-4)}
    total = module(centre, {"map": torch.zeros(1, K, 8, 12)}, one)["simulated_heatmap"].total
    assert total.item() == pytest.approx(K / 96, rel=1e-5), "a spread of next to nothing: one cell, of height 1"
    spread = {**centre, "sigma": torch.tensor([1 / 12, 1e-4]).expand(1, K, 2)}  # one cell wide, no cell high
    row = sum(np.exp(-((j - 6) ** 2)) for j in range(12))
    total = module(spread, {"map": torch.zeros(1, K, 8, 12)}, one)["simulated_heatmap"].total
    assert total.item() == pytest.approx(K * row / 96, rel=1e-5)


def test_joints_whose_box_misses_the_map_teach_nothing():
    """The box of three spreads around the joint, cells; touching the map is enough."""
    sigma = torch.tensor([1 / 12, 1 / 8]).expand(1, 6, 2).clone()  # one cell
    cells = torch.tensor([[-2.9, 4.0], [-3.1, 4.0], [14.9, 4.0], [15.1, 4.0], [6.0, -3.1], [6.0, 11.1]])
    ours = {"xy": (cells / torch.tensor([12.0, 8.0]))[None].requires_grad_(), "sigma": sigma.requires_grad_()}
    side = Side({"xy": (6, 2), "score": (6,), "sigma": (6, 2)}, (48, 32))
    module = build("simulated_heatmap", side, Side({"map": (6, 8, 12)}, (96, 64)))
    maps = torch.rand(1, 6, 8, 12, generator=torch.Generator().manual_seed(0))
    total, n = module(ours, {"map": maps}, torch.ones(1, 6))["simulated_heatmap"]
    total.backward()
    assert n == 2
    for v in (ours["xy"], ours["sigma"]):
        assert [bool((g != 0).any()) for g in v.grad[0]] == [True, False, True, False, False, False]


def test_gradients_are_finite_differences():
    """Of the sum in float64, by joint and by spread; exactly none where there is no label."""
    ours, theirs = answers(1)
    for v in ours.values():
        v.requires_grad_()
    build("simulated_heatmap")(ours, theirs, WEIGHT)["simulated_heatmap"].total.backward()
    a, b, h = float64(ours), float64(theirs), 1e-5
    assert ours["score"].grad is None
    for name in ("xy", "sigma"):
        assert (ours[name].grad[WEIGHT == 0] == 0).all()
        for i, k in SEEN:
            for axis in (0, 1):
                slopes = []
                for sign in (1, -1):
                    moved = {n: v.copy() for n, v in a.items()}
                    moved[name][i, k, axis] += sign * h
                    slopes.append(squared(moved, b, [(i, k)]))
                want = (slopes[0] - slopes[1]) / (2 * h)
                assert ours[name].grad[i, k, axis].item() == pytest.approx(want, rel=2e-3, abs=2e-6)


def test_a_spread_of_zero_is_finite():
    ours, theirs = answers(2)
    ours["sigma"] = torch.zeros(3, K, 2)
    for v in (ours["xy"], ours["sigma"]):
        v.requires_grad_()
    total = build("simulated_heatmap")(ours, theirs, WEIGHT)["simulated_heatmap"].total
    total.backward()
    assert torch.isfinite(total) and torch.isfinite(ours["xy"].grad).all() and torch.isfinite(ours["sigma"].grad).all()


def test_shares_mean_the_same_at_every_size_and_stride():
    """Three students of the same layers, whose cells are 4 of 32 pixels, 8 of 64 and 16 of 128: the losses are the same."""
    found: dict[str, list[float]] = {"simulated_heatmap": [], "predicted_score": []}
    maps = answers(3, k=14)[1]
    feature = torch.randn(3, 14, 6, generator=torch.Generator().manual_seed(3))
    for size, stride in (((48, 32), 4), ((96, 64), 8), ((192, 128), 16), ((48, 32), 8)):
        torch.manual_seed(4)
        outputs = Regression(RegressionConfig(stride=stride), (6,), size, CROWDPOSE14)(feature)
        student = Side({n: tuple(v.shape[1:]) for n, v in outputs.items()}, size)
        teacher = Side({"map": (14, CELLS[1], CELLS[0])}, (96, 64))
        for name, totals in found.items():
            totals.append(build(name, student, teacher)(outputs, maps, torch.ones(3, 14))[name].total.item())
    for name, (first, *same, wider) in found.items():
        assert same == pytest.approx([first] * 2, rel=1e-5)
        assert (wider == pytest.approx(first, rel=1e-3)) == (name == "predicted_score"), "another share is another Gaussian"


def reg2hm(xy, sigma, w: int, h: int) -> np.ndarray:
    """(h, w) DistilPose's: a Gaussian around (x W, y H) on whole-number cells, spreads in cells."""
    y, x = np.mgrid[:h, :w].astype(float)
    return np.exp(-0.5 * ((x - xy[0] * w) ** 2 / (sigma[0] ** 2 + 1e-9) + (y - xy[1] * h) ** 2 / (sigma[1] ** 2 + 1e-9)))


def test_it_is_distilposes_but_for_half_a_cell():
    """Their mean over persons, cells and joints, all of them labelled, at a joint half a cell up and left of ours."""
    ours, theirs = answers(5)
    total, n = build("simulated_heatmap")(ours, theirs, torch.ones(3, K))["simulated_heatmap"]
    a, maps = float64(ours), float64(theirs)["map"]
    w, h = CELLS
    per_joint = []
    for k in range(K):
        pairs = [(reg2hm(a["xy"][i, k] - (0.5 / w, 0.5 / h), a["sigma"][i, k] * (w, h), w, h), maps[i, k]) for i in range(3)]
        per_joint.append(np.mean([(drawn_ - given) ** 2 for drawn_, given in pairs]))
    assert (total / n).item() == pytest.approx(np.mean(per_joint), rel=1e-5)


def test_predicted_scores():
    """The value of the cell in which the joint lies; absolute difference, over labelled joints. Maps that are not square."""
    ours, theirs = answers(6)
    total, n = build("predicted_score")(ours, theirs, WEIGHT)["predicted_score"]
    a, maps = float64(ours), float64(theirs)["map"]
    want = 0.0
    for i, k in SEEN:
        column, row = int(a["xy"][i, k, 0] * CELLS[0]), int(a["xy"][i, k, 1] * CELLS[1])
        want += abs(a["score"][i, k] - maps[i, k, row, column])
    assert n == 5 and total.item() == pytest.approx(want, rel=1e-5)


def test_the_cell_of_a_score_is_column_and_row():
    """A map whose values count its cells; joints in corners, on borders and beyond them."""
    maps = torch.arange(96.0).reshape(1, 1, 8, 12).expand(1, K, 8, 12)
    places = {
        (0.0, 0.0): 0,
        (1.0, 1.0): 95,  # a share of 1 belongs to the last cell
        (1 / 12, 0.0): 1,
        (0.0, 1 / 8 + 1e-4): 12,
        (7.99 / 12, 2.01 / 8): 2 * 12 + 7,
        (0.999, 0.001): 11,
        (-0.2, 1.3): 84,
    }
    module = build("predicted_score")
    for place, value in places.items():
        ours = {"xy": torch.tensor(place).expand(1, K, 2), "score": torch.full((1, K), float(value))}
        assert module(ours, {"map": maps}, torch.ones(1, K))["predicted_score"].total.item() == 0, place


def test_scores_alone_learn_from_scores():
    """The position gets no gradient, nor does the spread; the score's is the sign of its error, where there is a label."""
    ours, theirs = answers(7)
    for v in ours.values():
        v.requires_grad_()
    build("predicted_score")(ours, theirs, WEIGHT)["predicted_score"].total.backward()
    assert ours["xy"].grad is None and ours["sigma"].grad is None
    a, maps, want = float64(ours), float64(theirs)["map"], np.zeros((3, K))
    for i, k in SEEN:
        column, row = (np.array(a["xy"][i, k]) * CELLS).astype(int)
        want[i, k] = np.sign(a["score"][i, k] - maps[i, k, row, column])
    assert np.array_equal(ours["score"].grad, want)


@pytest.mark.parametrize("name", ["simulated_heatmap", "predicted_score"])
def test_refusals(name):
    def line(student, teacher) -> str:
        with pytest.raises(LowposeError) as error:
            build(name, student, teacher)
        assert "\n" not in str(error.value)
        return str(error.value)

    simcc = Side({"x": (K, 8), "y": (K, 8)}, (8, 8))
    assert line(simcc, TEACHER) == f"distill.{name} needs the output 'xy', and the student gives only x, y"
    assert line(STUDENT, simcc) == f"distill.{name} needs the output 'map', and the teacher gives only x, y"
    assert line(STUDENT, STUDENT) == f"distill.{name} needs the output 'map', and the teacher gives only xy, score, sigma"
    mapped = Side({"map": (K, 8, 8), **simcc.shapes}, (8, 8))
    assert line(STUDENT, mapped) == f"distill.{name} needs a teacher of head.name=heatmap; this one classifies coordinates"
