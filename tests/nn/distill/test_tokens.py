"""Token distillation against plain NumPy float64: equal and different widths, grids that are coarser, finer or neither."""

from __future__ import annotations

from math import lcm

import numpy as np
import pytest
import torch

from lowpose.errors import LowposeError
from lowpose.nn.distill.base import FEATURE, TOKENS, Side, build_distillers

K, D = 3, 8
WEIGHT = torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1]])


def model(grid=(2, 3), width=D, taps=1) -> Side:
    """A token model; grid: rows, columns."""
    return Side({"xy": (K, 2), FEATURE: (width, *grid), TOKENS: (K, width * taps)}, (32, 32))


def build(name: str, student: Side, teacher: Side, **settings):
    torch.manual_seed(1)
    return build_distillers({name: settings}, student, teacher)[0][name]


def noise(side: Side, seed: int) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(seed)
    return {name: torch.from_numpy(rng.normal(0, 2, (3, *shape))).float() for name, shape in side.shapes.items()}


def float64(values) -> dict[str, np.ndarray]:
    return {name: value.detach().double().numpy() for name, value in values.items()}


def averaged(feature: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """(C, h', w') -> (C, h, w): cells cut into pieces that fit both grids, and the pieces of each new cell averaged."""
    rows, columns = (lcm(given, wanted) for given, wanted in zip(feature.shape[1:], grid, strict=True))
    pieces = np.kron(feature, np.ones((1, rows // feature.shape[1], columns // feature.shape[2])))
    return pieces.reshape(len(feature), grid[0], rows // grid[0], grid[1], columns // grid[1]).mean((2, 4))


def count(module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    "width,taps,settings,parameters",
    [
        (D, 1, {}, 0),
        (D, 1, {"projection": "linear"}, D * D + D),
        (12, 1, {}, D * 12 + 12),
        (12, 1, {"projection": "linear"}, D * 12 + 12),
        (D, 3, {}, D * 3 * D + 3 * D),  # a teacher whose tokens are tapped after three layers
    ],
)
def test_keypoint_tokens(width, taps, settings, parameters):
    """Squared error, mean over channels, summed over labelled joints; a projection only where widths differ, or on demand."""
    student, teacher = model(), model(width=width, taps=taps)
    module, ours, theirs = build("keypoint_tokens", student, teacher, **settings), noise(student, 0), noise(teacher, 1)
    assert count(module) == parameters
    total, n = module(ours, theirs, WEIGHT)["keypoint_tokens"]
    p, a, b = float64(module.state_dict()), float64(ours)[TOKENS], float64(theirs)[TOKENS]
    if parameters:
        a = a @ p["project.weight"].T + p["project.bias"]
    want = sum(((a[i, k] - b[i, k]) ** 2).mean() for i, k in zip(*np.nonzero(WEIGHT.numpy()), strict=True))
    assert n == 5 and total.item() == pytest.approx(want, rel=1e-5)


def test_published_mean_is_the_term_divided_by_its_count():
    """Where every joint has a label: the mean over persons, joints and channels, as the published code has it."""
    student = model()
    ours, theirs = noise(student, 2), noise(student, 3)
    for name, read in (("keypoint_tokens", TOKENS), ("visual_tokens", FEATURE)):
        total, n = build(name, student, student)(ours, theirs, torch.ones(3, K))[name]
        want = ((float64(ours)[read] - float64(theirs)[read]) ** 2).mean()
        assert (total / n).item() == pytest.approx(want, rel=1e-5)


GRIDS = [
    ((2, 3), (2, 3), (2, 3)),
    ((2, 3), (4, 9), (2, 3)),  # the teacher is finer, by a whole number
    ((2, 3), (5, 4), (2, 3)),  # by none
    ((4, 9), (2, 3), (2, 3)),  # coarser
    ((5, 4), (2, 3), (2, 3)),
    ((2, 9), (4, 3), (2, 3)),  # finer along one axis, coarser along the other
    ((4, 4), (3, 5), (3, 4)),
    ((1, 1), (4, 6), (1, 1)),
]


@pytest.mark.parametrize("ours,theirs,meet", GRIDS)
@pytest.mark.parametrize("width", [D, 12])
def test_visual_tokens(ours, theirs, meet, width):
    """Both sides averaged over what each token of the coarser grid covers; squared error, mean over tokens and channels."""
    student, teacher = model(ours), model(theirs, width)
    module, a, b = build("visual_tokens", student, teacher), noise(student, 4), noise(teacher, 5)
    assert count(module) == (0 if width == D else D * width + width) and module.grid == meet
    total, n = module(a, b, WEIGHT)["visual_tokens"]
    p, a, b = float64(module.state_dict()), float64(a)[FEATURE], float64(b)[FEATURE]
    want = 0.0
    for i in (0, 2):
        mine = a[i]
        if width != D:
            mine = np.einsum("oc,chw->ohw", p["project.weight"][:, :, 0, 0], mine) + p["project.bias"][:, None, None]
        want += ((averaged(mine, meet) - averaged(b[i], meet)) ** 2).mean()
    assert n == 2 and total.item() == pytest.approx(want, rel=1e-5)


def test_a_projection_on_demand():
    student = model()
    module, a, b = build("visual_tokens", student, student, projection="linear"), noise(student, 6), noise(student, 7)
    assert count(module) == D * D + D
    p, mine, theirs = float64(module.state_dict()), float64(a)[FEATURE][2], float64(b)[FEATURE][2]
    mine = np.tensordot(p["project.weight"][:, :, 0, 0], mine, 1) + p["project.bias"][:, None, None]
    alone = torch.tensor([[0.0] * K, [0.0] * K, [1.0] * K])
    assert module(a, b, alone)["visual_tokens"].total.item() == pytest.approx(((mine - theirs) ** 2).mean(), rel=1e-5)


@pytest.mark.parametrize("ours,theirs", [((2, 3), (4, 9)), ((8, 3), (2, 12)), ((4, 4), (1, 1)), ((3, 5), (3, 5))])
def test_tokens_of_the_same_picture_have_no_distance(ours, theirs):
    """Whole ratios: means over what each token covers are the same, whoever took them."""
    picture = np.random.default_rng(8).normal(0, 2, (3, D, lcm(ours[0], theirs[0]), lcm(ours[1], theirs[1])))
    seen = [torch.from_numpy(np.stack([averaged(one, grid) for one in picture])).float() for grid in (ours, theirs)]
    module = build("visual_tokens", model(ours), model(theirs))
    assert module({FEATURE: seen[0]}, {FEATURE: seen[1]}, WEIGHT)["visual_tokens"].total.item() < 1e-10
    shifted = {FEATURE: seen[1] + 1}
    assert module({FEATURE: seen[0]}, shifted, WEIGHT)["visual_tokens"].total.item() == pytest.approx(2, rel=1e-4)


@pytest.mark.parametrize("name,lacks", [("keypoint_tokens", TOKENS), ("visual_tokens", TOKENS)])
@pytest.mark.parametrize("whose", ["student", "teacher"])
def test_models_without_tokens_are_refused(name, lacks, whose):
    """A feature map alone is no token model."""
    plain = Side({"map": (K, 8, 8), FEATURE: (D, 8, 8)}, (32, 32))
    sides = (plain, model()) if whose == "student" else (model(), plain)
    with pytest.raises(LowposeError) as error:
        build(name, *sides)
    assert str(error.value) == f"distill.{name} needs the output '{lacks}', and the {whose} gives only map, {FEATURE}"


@pytest.mark.parametrize(
    "values,line",
    [
        ({"projection": "non"}, "distill.visual_tokens: 'projection' = 'non': input should be 'auto' or 'linear'"),
        ({"projektion": "linear"}, "distill.visual_tokens: unknown key 'projektion'; did you mean 'projection'?"),
        ({"weight": -1}, "distill.visual_tokens: 'weight' = -1: input should be greater than or equal to 0"),
    ],
)
def test_wrong_settings_are_refused(values, line):
    with pytest.raises(LowposeError) as error:
        build("visual_tokens", model(), model(), **values)
    assert str(error.value) == line
