"""What CDKD is compared with, against plain NumPy float64: kd, fitnets, fc_feature, fc_class (Table V)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lowpose.errors import LowposeError
from lowpose.nn.distill.base import Side, Tempered, build_distillers
from lowpose.nn.distill.kd import KD

K = 3
MAP, WANTED = (K, 3, 4), (K, 6, 12)
WEIGHT = torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1]])
STUDENT = Side({"map": MAP, "x": (K, 16), "y": (K, 12)}, (8, 6))
TEACHER = Side({"map": WANTED, "x": (K, 16), "y": (K, 12)}, (48, 24))


def build(name: str, student=STUDENT, teacher=TEACHER, **settings):
    torch.manual_seed(1)
    return build_distillers({name: settings}, student, teacher)[0][name]


def noise(side: Side, seed: int, scale=2.0) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(seed)
    return {name: torch.from_numpy(rng.normal(0, scale, (3, *shape))).float() for name, shape in side.shapes.items()}


def float64(outputs) -> dict[str, np.ndarray]:
    return {name: value.detach().double().numpy() for name, value in outputs.items()}


def kl(teacher: np.ndarray, student: np.ndarray, tau: float) -> float:
    """tau^2 KL of two rows of logits."""
    p, q = (np.exp(z / tau) / np.exp(z / tau).sum() for z in (teacher, student))
    return tau**2 * sum(a * (np.log(a) - np.log(b)) for a, b in zip(p, q, strict=True))


def unit(map_: np.ndarray) -> np.ndarray:
    return map_ / np.sqrt((map_**2).sum())


@pytest.mark.parametrize("tau", [0.5, 1.0, 4.0, 15.6])
def test_kd(tau):
    student, teacher = noise(STUDENT, 0), noise(TEACHER, 1)
    total, count = build("kd", temperature=tau)(student, teacher, WEIGHT)["kd"]
    ours, theirs = float64(student), float64(teacher)
    joints = list(zip(*np.nonzero(WEIGHT.numpy()), strict=True))
    want = sum(kl(theirs[axis][b, k], ours[axis][b, k], tau) for axis in "xy" for b, k in joints)
    assert count == 5 == len(joints) and total.item() == pytest.approx(want, rel=2e-4)


def test_kd_at_a_high_temperature_compares_logits():
    """Hinton et al., eq. 4: tau^2 KL goes to half the mean squared difference of the centred logits."""
    student, teacher = noise(STUDENT, 2, 0.5), noise(TEACHER, 3, 0.5)
    total, _ = build("kd", temperature=20)(student, teacher, torch.ones(3, K))["kd"]
    want = 0.0
    for axis in "xy":
        d = float64(teacher)[axis] - float64(student)[axis]
        want += 0.5 * ((d - d.mean(-1, keepdims=True)) ** 2).mean(-1).sum()
    assert total.item() == pytest.approx(want, rel=2e-2)


def test_kd_is_cca_where_the_classes_agree():
    """At temperature one; the same gradient, too."""
    grads = []
    for name in ("kd", "cca"):
        student, teacher = noise(STUDENT, 4), noise(TEACHER, 5)
        student["x"].requires_grad_()
        build(name)(student, teacher, WEIGHT)[name].total.backward()
        grads.append(student["x"].grad)
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("tau", [1.0, 3.0])
@pytest.mark.parametrize("y", [(12, 30), (16, 48)])  # the latter as x: still a layer for each axis
def test_fc_class(tau, y):
    sides = [Side({"x": (K, a), "y": (K, b)}, (8, 6)) for a, b in ((16, y[0]), (48, y[1]))]
    student, teacher, module = noise(sides[0], 6), noise(sides[1], 7), build("fc_class", *sides, temperature=tau)
    total, count = module(student, teacher, WEIGHT)["fc_class"]
    p, ours, theirs = float64(module.state_dict()), float64(student), float64(teacher)
    want = 0.0
    for axis in "xy":
        for b, k in zip(*np.nonzero(WEIGHT.numpy()), strict=True):
            aligned = p[f"align.{axis}.weight"] @ ours[axis][b, k] + p[f"align.{axis}.bias"]
            want += kl(theirs[axis][b, k], aligned, tau)
    assert count == 5 and total.item() == pytest.approx(want, rel=1e-4)
    assert sum(v.numel() for v in module.parameters()) == (16 * 48 + 48) + (y[0] * y[1] + y[1])


def test_fc_feature():
    student, teacher, module = noise(STUDENT, 8), noise(TEACHER, 9), build("fc_feature")
    total, count = module(student, teacher, WEIGHT)["fc_feature"]
    p, ours, theirs = float64(module.state_dict()), float64(student)["map"], float64(teacher)["map"]
    want = 0.0
    for b in (0, 2):
        aligned = np.stack([p["align.weight"] @ ours[b, k].ravel() + p["align.bias"] for k in range(K)])
        want += ((unit(aligned) - unit(theirs[b].reshape(K, -1))) ** 2).sum()
    assert count == 2 and total.item() == pytest.approx(want, rel=1e-5)
    assert sum(v.numel() for v in module.parameters()) == 12 * 72 + 72


def test_fitnets():
    """A convolution whose kernel and stride are both the ratio, here 2 down and 3 across."""
    student, teacher, module = noise(STUDENT, 10), noise(TEACHER, 11), build("fitnets")
    total, count = module(student, teacher, WEIGHT)["fitnets"]
    p, ours, theirs = float64(module.state_dict()), float64(student)["map"], float64(teacher)["map"]
    assert p["down.weight"].shape == (K, K, 2, 3)
    want = 0.0
    for b in (0, 2):
        hint = np.zeros(MAP)
        for o in range(K):
            for i in range(3):
                for j in range(4):
                    patch = theirs[b, :, 2 * i : 2 * i + 2, 3 * j : 3 * j + 3]
                    hint[o, i, j] = (p["down.weight"][o] * patch).sum() + p["down.bias"][o]
        want += ((unit(ours[b]) - unit(hint)) ** 2).sum()
    assert count == 2 and total.item() == pytest.approx(want, rel=1e-5)


def test_maps_cannot_be_made_alike_by_making_them_small():
    module, student, teacher = build("fitnets"), noise(STUDENT, 12), noise(TEACHER, 13)
    before = module(student, teacher, WEIGHT)["fitnets"].total.item()
    with torch.no_grad():
        for p in module.parameters():
            p *= 1e-3
    student["map"] = student["map"] * 1e-3
    assert module(student, teacher, WEIGHT)["fitnets"].total.item() == pytest.approx(before, rel=1e-4)


@pytest.mark.parametrize(
    "size,teacher_bins,split", [((8, 6), (64, 48), "8"), ((32, 32), (512, 512), "16"), ((8, 6), (20, 12), "2.5")]
)
def test_kd_names_the_split_that_gives_the_same_classes(size, teacher_bins, split):
    """The split it names, given to the student's head, does."""
    student = Side({"x": (K, 2 * size[0]), "y": (K, 2 * size[1])}, size)
    teacher = Side({"x": (K, teacher_bins[0]), "y": (K, teacher_bins[1])}, (256, 192))
    with pytest.raises(LowposeError) as error:
        build("kd", student, teacher)
    line = f"distill.kd: the student has {2 * size[0]} bins in x, the teacher {teacher_bins[0]}; use head.split={split}, "
    assert str(error.value) == line + "or distill.cca, which aligns them"
    bins = [int(side * float(split)) for side in size]
    if bins == list(teacher_bins):
        KD(Tempered(), Side({"x": (K, bins[0]), "y": (K, bins[1])}, size), teacher)


def maps(shape) -> Side:
    return Side({"map": shape}, (16, 16))


@pytest.mark.parametrize(
    "name,student,teacher,line",
    [
        (
            "fitnets",
            maps((K, 4, 4)),
            maps((K, 8, 10)),
            "the teacher's map of 10 x 8 is no whole multiple of the student's 4 x 4; distill.sape aligns any sizes",
        ),
        ("fitnets", maps((K, 8, 8)), maps((K, 4, 4)), "no whole multiple"),
        (
            "fitnets",
            maps((K, 4, 4)),
            maps((5, 8, 8)),
            "distill.fitnets: maps of 3 and 5 channels; they must be of the same keypoints",
        ),
        ("fc_feature", maps((K, 4, 4)), maps((5, 8, 8)), "distill.fc_feature: maps of 3 and 5 channels"),
        (
            "fc_feature",
            maps(MAP),
            Side({"x": (K, 8)}, (8, 8)),
            "distill.fc_feature needs the output 'map', and the teacher gives only x",
        ),
        (
            "fitnets",
            Side({"x": (K, 8)}, (8, 8)),
            maps(MAP),
            "distill.fitnets needs the output 'map', and the student gives only x",
        ),
        ("kd", STUDENT, maps(MAP), "distill.kd needs the output 'x', and the teacher gives only map"),
        ("kd", maps(MAP), TEACHER, "distill.kd needs the output 'x', and the student gives only map"),
        ("fc_class", STUDENT, maps(MAP), "distill.fc_class needs the output 'x', and the teacher gives only map"),
    ],
)
def test_refusals(name, student, teacher, line):
    with pytest.raises(LowposeError) as error:
        build(name, student, teacher)
    assert line in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name,values,line",
    [
        ("kd", {"temprature": 1}, "distill.kd: unknown key 'temprature'; did you mean 'temperature'?"),
        ("fc_class", {"temperature": -1}, "distill.fc_class: 'temperature' = -1: input should be greater than 0"),
        ("fc_feature", {"wieght": 1}, "distill.fc_feature: unknown key 'wieght'; did you mean 'weight'?"),
        ("fitnets", {"wheight": 1}, "distill.fitnets: unknown key 'wheight'; did you mean 'weight'?"),
        ("fitnet", {}, "unknown key 'distill.fitnet'; did you mean 'fitnets'?"),
        ("fc_clas", {}, "unknown key 'distill.fc_clas'; did you mean 'fc_class'?"),
    ],
)
def test_wrong_settings_are_refused(name, values, line):
    with pytest.raises(LowposeError) as error:
        build_distillers({name: values}, STUDENT, TEACHER)
    assert str(error.value) == line
