"""CCA against plain NumPy float64: bins merged by counting, eq. 7, and what a perfect student is told."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lowpose.errors import LowposeError
from lowpose.nn.distill.base import Side, build_distillers
from lowpose.nn.distill.cca import CCA, CCAConfig, merge_bins, shares
from lowpose.nn.heads.simcc import SimCC, SimCCConfig
from lowpose.skeletons import Skeleton

K = 3
SKELETON = Skeleton("three", ("a", "b", "c"))
TEMPERATURES = [0.5, 1.0, 2.0, 4.0, 15.6]


def side(x: int, y: int) -> Side:
    return Side({"x": (K, x), "y": (K, y)}, (16, 12))


def make(student=(16, 12), teacher=(64, 48), **settings) -> CCA:
    return CCA(CCAConfig(**settings), side(*student), side(*teacher))


def logits(seed: int, bins=(16, 12), batch=2, scale=2.0) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(seed)
    return {axis: torch.from_numpy(rng.normal(0, scale, (batch, K, n))).float() for axis, n in zip("xy", bins, strict=True)}


def softmax(z) -> np.ndarray:
    z = np.asarray(z, dtype=np.float64)
    p = np.exp(z - z.max())
    return p / p.sum()


def counted(p: np.ndarray, m: int) -> np.ndarray:
    """Eq. 6 by counting."""
    out = np.zeros(len(p) // m)
    for i, value in enumerate(p):
        out[i // m] += value
    return out


def share(given: int, bins: int) -> np.ndarray:
    """(given, bins) part of [i, i + 1) / given that lies in [j, j + 1) / bins, in whole numbers of 1 / (given bins)."""
    out = np.zeros((given, bins))
    for i in range(given):
        for j in range(i * bins // given, bins):
            covered = min((i + 1) * bins, (j + 1) * given) - max(i * bins, j * given)
            if covered <= 0:
                break
            out[i, j] = covered / bins
    return out


def overlapped(p: np.ndarray, bins: int) -> np.ndarray:
    """Any ratio, by exact overlap."""
    out = np.zeros(bins)
    for i, j in zip(*np.nonzero(table := share(len(p), bins)), strict=True):
        out[j] += p[i] * table[i, j]
    return out


def tempered(p: np.ndarray, tau: float) -> np.ndarray:
    """What softmax(log p / tau) is."""
    return softmax(np.log(p) / tau)


def eq7(student, teacher, tau: float, order: str) -> tuple[float, np.ndarray]:
    """tau^2 KL of one axis of one joint, and its gradient: tau (q - p)."""
    bins = len(student)
    if order == "merge-first":
        p = tempered(overlapped(softmax(teacher), bins), tau)
    else:
        p = overlapped(softmax(np.asarray(teacher, np.float64) / tau), bins)
    q = softmax(np.asarray(student, np.float64) / tau)
    total = 0.0
    for j in range(bins):
        total += p[j] * (np.log(p[j]) - np.log(q[j]))
    return tau**2 * total, tau * (q - p)


@pytest.mark.parametrize("m", [1, 2, 3, 4, 8])
def test_merging_is_counting(m):
    z = logits(0, (24 * m, 24))["x"]
    got = merge_bins(z, 24)
    want = [[counted(softmax(row), m) for row in person] for person in z.numpy()]
    assert got.shape == (2, K, 24) and got.dtype == torch.float32
    np.testing.assert_allclose(got.exp().numpy(), want, rtol=1e-5)
    wrong = [[counted(np.roll(softmax(row), 1), m) for row in person] for person in z.numpy()]
    assert np.abs(got.exp().numpy() - wrong).max() > 1e-2  # groups that begin one bin too late would be seen


RATIOS = [(40, 16), (96, 36), (50, 49), (7, 3), (128, 100), (16, 40), (3, 7), (12, 48)]


@pytest.mark.parametrize("given,bins", RATIOS)
def test_any_ratio_is_exact_overlap(given, bins):
    """The last ones are coarser teachers."""
    z = logits(1, (given, 2))["x"]
    want = [[overlapped(softmax(row), bins) for row in person] for person in z.numpy()]
    np.testing.assert_allclose(merge_bins(z, bins).exp().numpy(), want, rtol=2e-5, atol=1e-9)
    got = shares(given, bins).numpy()
    np.testing.assert_allclose(got.sum(1), 1, rtol=1e-6)  # nothing of a teacher's bin is lost
    np.testing.assert_allclose(got.sum(0), given / bins, rtol=1e-6)  # and all student's bins cover as much


def test_a_coarser_teacher_spreads_evenly():
    z = logits(2, (6, 2))["x"]
    log_p = np.log([[softmax(row) for row in person] for person in z.numpy()])
    np.testing.assert_allclose(merge_bins(z, 48).numpy(), np.repeat(log_p - np.log(8), 8, axis=-1), rtol=1e-5)


@pytest.mark.parametrize("given,bins", [(768, 192), (768, 100)])
@pytest.mark.parametrize("scale", [1.0, 50.0])
def test_merged_in_half_precision_context(given, bins, scale):
    """Autocast changes nothing: probabilities that differ by one bin in bf16 would move joints."""
    z = logits(3, (given, 2), scale=scale)["x"]
    want = merge_bins(z, bins)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = merge_bins(z, bins)
        half = merge_bins(z.bfloat16(), bins)
    assert got.dtype == torch.float32 and torch.equal(got, want)
    assert torch.equal(half, merge_bins(z.bfloat16().float(), bins))


def head(pixels: int, target: str) -> SimCC:
    return SimCC(SimCCConfig(target=target, split=2.0), (4, pixels // 4, pixels // 4), (pixels, pixels), SKELETON)


def positions(seed: int, pixels: int, batch: int = 400) -> torch.Tensor:
    """Random crop pixels, odd multiples of 1/64: never on the edge of a bin of either model, and float32 counts them exactly."""
    u = np.random.default_rng(seed).uniform(0, pixels, (batch, K, 2))
    return torch.from_numpy(np.floor(u * 32) / 32 + 1 / 64).float()


@pytest.mark.parametrize("pixels", [64, 32])
@pytest.mark.parametrize("kind", ["hard", "gaussian"])
def test_half_pixel_bins_merge_to_the_students_bin(pixels, kind):
    """The teacher's target at 256 px, merged, stands in the bin in which the student's own hard target stands."""
    m, kp, ones = 256 // pixels, positions(4, pixels), torch.ones(400, K)
    fine = head(256, kind).targets(kp * m, ones)[0]
    coarse = head(pixels, "hard").targets(kp, ones)[0]
    for axis in "xy":
        merged = merge_bins(fine[axis].log().clamp(min=-1e4), 2 * pixels)
        assert torch.equal(merged.argmax(-1), coarse[axis].argmax(-1))
        if kind == "hard":
            torch.testing.assert_close(merged.exp(), coarse[axis], rtol=0, atol=1e-6)
        shifted = merge_bins(fine[axis].roll(m // 2, -1).log().clamp(min=-1e4), 2 * pixels)
        off = (shifted.argmax(-1) != coarse[axis].argmax(-1)).float().mean()
        assert 0.4 < off < 0.6  # groups that begin half a group late are wrong for half of all positions


@pytest.mark.parametrize("tau", TEMPERATURES)
@pytest.mark.parametrize("order", ["merge-first", "temper-first"])
@pytest.mark.parametrize("teacher", [(64, 48), (40, 32), (16, 12), (8, 9)])
def test_eq_7(tau, order, teacher):
    student, answers = logits(5), logits(6, teacher)
    for value in student.values():
        value.requires_grad_()
    weight = torch.tensor([[1.0, 0, 1], [0, 1, 1]])
    terms = make(teacher=teacher, temperature=tau, order=order)(student, answers, weight)
    assert list(terms) == ["cca"] and terms["cca"].count == 4
    terms["cca"].total.backward()
    total = 0.0
    for axis in "xy":
        want = np.zeros(student[axis].shape)
        for b, k in zip(*np.nonzero(weight.numpy()), strict=True):
            value, want[b, k] = eq7(student[axis][b, k].detach().numpy(), answers[axis][b, k].numpy(), tau, order)
            total += value
        np.testing.assert_allclose(student[axis].grad.numpy(), want, rtol=1e-4, atol=2e-6 * tau)
    np.testing.assert_allclose(terms["cca"].total.item(), total, rtol=1e-4)


def fine_answer(kind: str, bins: int) -> torch.Tensor:
    """(20, K, bins) logits of a teacher at random positions: label-smoothed (0.2), Gaussian, or noise."""
    rng = np.random.default_rng(7)
    u = rng.uniform(0, bins, (20, K))
    if kind == "noise":
        return torch.from_numpy(rng.normal(0, 3, (20, K, bins))).float()
    if kind == "gaussian":
        return torch.from_numpy(-0.5 * ((np.arange(bins) + 0.5 - u[..., None]) / 5) ** 2).float()
    p = np.full((20, K, bins), 0.2 / (bins - 1))
    np.put_along_axis(p, np.floor(u).astype(int)[..., None], 0.8, -1)
    return torch.from_numpy(np.log(p)).float()


def perfect(teacher: torch.Tensor, bins: int) -> torch.Tensor:
    """The student whose probabilities are the teacher's, merged in float64, in logarithms all the way."""
    table, z = share(teacher.shape[-1], bins), teacher.double().numpy()
    out = np.empty((*z.shape[:-1], bins))
    for j in range(bins):
        inside = table[:, j] > 0
        out[..., j] = np.logaddexp.reduce(z[..., inside] + np.log(table[inside, j]), axis=-1)
    return torch.from_numpy(out).float()


def residual(kind: str, bins: int, m: float, tau: float, order: str) -> tuple[float, torch.Tensor]:
    """Normalised loss of a perfect student, and the loss's gradient in its logits (20, K, bins)."""
    teacher = fine_answer(kind, round(bins * m))
    student = perfect(teacher, bins).requires_grad_()
    module = make((bins, bins), (teacher.shape[-1],) * 2, temperature=tau, order=order)
    term = module({"x": student, "y": student}, {"x": teacher, "y": teacher}, torch.ones(20, K))["cca"]
    term.total.backward()
    return (term.total / term.count).item(), student.grad


@pytest.mark.parametrize("kind", ["smooth", "gaussian", "noise"])
@pytest.mark.parametrize("m", [1, 2, 3, 4, 8, 2.5, 0.5, 0.75])
@pytest.mark.parametrize("tau", TEMPERATURES)
def test_a_perfect_student_has_no_loss(kind, m, tau):
    assert abs(residual(kind, 64, m, tau, "merge-first")[0]) < 1e-4


@pytest.mark.parametrize("bins,m", [(192, 4), (64, 8)])
@pytest.mark.parametrize("tau", [2.0, 4.0, 15.6])
def test_the_released_order_pushes_a_perfect_student_flatter(bins, m, tau):
    """Tempering does not commute with merging: above temperature one a student pays for being right. Closed form for a
    label-smoothed (0.2) teacher of m bins per student's bin."""
    assert abs(residual("smooth", bins, m, 1.0, "temper-first")[0]) < 1e-4
    loss, slope = residual("smooth", bins, m, tau, "temper-first")
    hot, rest = 0.8, 0.2 / (m * bins - 1)
    target = np.array([hot ** (1 / tau) + (m - 1) * rest ** (1 / tau)] + [m * rest ** (1 / tau)] * (bins - 1))
    answer = np.array([hot + (m - 1) * rest] + [m * rest] * (bins - 1)) ** (1 / tau)
    p, q = target / target.sum(), answer / answer.sum()
    want = 2 * tau**2 * (p * np.log(p / q)).sum()  # both axes
    assert loss == pytest.approx(want, rel=5e-3) and want > 0.1
    peak = perfect(fine_answer("smooth", bins * m), bins).argmax(-1, keepdim=True)
    assert (slope.gather(-1, peak) > 1e-2).all()  # descending lowers the logit of the right bin


def test_the_order_says_whether_every_bin_is_read():
    assert make(order="temper-first").every_bin and not make().every_bin


def test_merged_answers_give_the_same_loss():
    """What a cache of merged answers rests on; the released order does not have it."""
    student, answers, weight = logits(8), logits(9, (64, 48)), torch.ones(2, K)
    merged = {axis: merge_bins(answers[axis], n) for axis, n in zip("xy", (16, 12), strict=True)}
    for order, same in (("merge-first", True), ("temper-first", False)):
        module = make(temperature=4, order=order)
        a, b = (module(student, given, weight)["cca"].total.item() for given in (answers, merged))
        assert (abs(a - b) < 1e-4 * abs(a)) == same


@pytest.mark.parametrize("order", ["merge-first", "temper-first"])
def test_joints_without_a_label_are_left_out(order):
    student, answers = logits(10), logits(11, (64, 48))
    weight = torch.tensor([[1.0, 0, 0], [0, 0, 1]])
    masked = weight == 0
    for value in student.values():
        value.requires_grad_()
    module = make(temperature=2, order=order)
    term = module(student, answers, weight)["cca"]
    term.total.backward()
    assert term.count == 2
    for value in student.values():
        assert (value.grad[masked] == 0).all() and (value.grad[~masked] != 0).any()
    for given in (student, answers):
        for value in given.values():
            value.data[masked] = -7 * value.data[masked] + 3
    assert module(student, answers, weight)["cca"].total == term.total
    with torch.no_grad():
        none = module(student, answers, torch.zeros(2, K))["cca"]
    assert none.total == 0 and none.count == 0
    everyone = make(temperature=2, order=order, masked=False)(student, answers, weight)["cca"]
    assert everyone.count == 6 and everyone.total > term.total


def test_the_weight_means_the_same_in_any_batch_and_for_any_number_of_joints():
    student, answers, weight = logits(12), logits(13, (64, 48)), torch.tensor([[1.0, 0, 1], [1, 1, 0]])
    module = make(temperature=2)

    def mean(*repeats):
        many = [{axis: value.repeat(*repeats, 1) for axis, value in given.items()} for given in (student, answers)]
        total, count = module(*many, weight.repeat(*repeats))["cca"]
        assert count == 4 * np.prod(repeats)
        return (total / count).item()

    assert mean(4, 1) == pytest.approx(mean(1, 1), rel=1e-5)
    assert mean(1, 5) == pytest.approx(mean(1, 1), rel=1e-5)


@pytest.mark.parametrize("bins", [(16, 12), (64, 64), (384, 192)])
def test_a_student_without_an_opinion_costs_the_logarithm_of_its_bins(bins):
    """Closed form against a certain teacher: no division by the number of bins, both axes added."""
    teacher = {axis: torch.full((2, K, 4 * n), -1e4) for axis, n in zip("xy", bins, strict=True)}
    for value in teacher.values():
        value[..., 5] = 0
    student = {axis: torch.zeros(2, K, n) for axis, n in zip("xy", bins, strict=True)}
    total, count = make(bins, tuple(4 * n for n in bins))(student, teacher, torch.ones(2, K))["cca"]
    assert (total / count).item() == pytest.approx(np.log(bins).sum(), rel=1e-6)


def test_heads_that_do_not_classify_are_refused():
    maps = Side({"map": (K, 4, 4)}, (16, 12))
    for student, teacher, whose in ((maps, side(8, 8), "student"), (side(8, 8), maps, "teacher")):
        with pytest.raises(LowposeError) as error:
            build_distillers({"cca": {}}, student, teacher)
        assert str(error.value) == f"distill.cca needs the output 'x', and the {whose} gives only map"


@pytest.mark.parametrize(
    "values,line",
    [
        ({"temprature": 2}, "distill.cca: unknown key 'temprature'; did you mean 'temperature'?"),
        ({"order": "merge_first"}, "distill.cca: 'order' = 'merge_first': input should be 'merge-first' or 'temper-first'"),
        ({"temperature": 0}, "distill.cca: 'temperature' = 0: input should be greater than 0"),
    ],
)
def test_wrong_settings_are_refused(values, line):
    with pytest.raises(LowposeError) as error:
        build_distillers({"cca": values}, side(8, 8), side(16, 16))
    assert line in str(error.value) and "\n" not in str(error.value)
