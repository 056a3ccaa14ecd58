"""ETHT against hand computation: eq. 11 by central differences of a NumPy loss, eq. 12 in closed form, bounds, refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lowpose.errors import LowposeError
from lowpose.nn.distill.base import Side, build_distillers

K, BINS, TEACHER_BINS = 3, 8, 32
MAP, WANTED = (K, 4, 4), (K, 8, 8)
STUDENT = Side({"map": MAP, "x": (K, BINS), "y": (K, BINS)}, (16, 16))
TEACHER = Side({"map": WANTED, "x": (K, TEACHER_BINS), "y": (K, TEACHER_BINS)}, (64, 64))
WEIGHT = torch.tensor([[1.0, 0, 1], [1, 1, 1]])
SCHEDULES = {  # func of eq. 12 at four points of training, by hand
    "linear": {0.0: 0.0, 0.25: 0.25, 0.5: 0.5, 1.0: 1.0},
    "quadratic": {0.0: 0.0, 0.25: 0.0625, 0.5: 0.25, 1.0: 1.0},
    "cosine": {0.0: 0.0, 0.25: (2 - math.sqrt(2)) / 4, 0.5: 0.5, 1.0: 1.0},
    "constant": {0.0: 1.0, 0.25: 1.0, 0.5: 1.0, 1.0: 1.0},
}


def build(etht: dict | None = None, **methods):
    torch.manual_seed(0)
    return build_distillers({**(methods or {"cca": {}}), "etht": etht or {}}, STUDENT, TEACHER)


def outputs(seed: int, student_scale=1.0, teacher_scale=3.0):
    rng = np.random.default_rng(seed)

    def draw(scale, *shape):
        return torch.from_numpy(rng.normal(0, scale, (2, *shape))).float()

    student = {"map": draw(1, *MAP), **{axis: draw(student_scale, K, BINS) for axis in "xy"}}
    return student, {"map": draw(1, *WANTED), **{axis: draw(teacher_scale, K, TEACHER_BINS) for axis in "xy"}}


def run_loss(distillers, student, teacher) -> torch.Tensor:
    """The sum of all terms, each divided by its count, as a training step has it."""
    return sum(term.total / term.count for term in distillers(student, teacher, WEIGHT).values())


def numpy_loss(tau: float, student, teacher, alpha: float = 1.0) -> float:
    """CCA by eq. 6 and 7 in float64."""
    total = 0.0
    for axis in "xy":
        s, t = (side[axis].double().numpy() for side in (student, teacher))
        for b, k in zip(*np.nonzero(WEIGHT.numpy()), strict=True):
            p = np.exp(t[b, k])
            p = (p / p.sum()).reshape(BINS, -1).sum(1) ** (1 / tau)
            q = np.exp(s[b, k] / tau)
            p, q = p / p.sum(), q / q.sum()
            total += tau**2 * (p * np.log(p / q)).sum()
    return alpha * total / WEIGHT.sum().item()


def slope(tau: float, *args, step=1e-5) -> float:
    return (numpy_loss(tau + step, *args) - numpy_loss(tau - step, *args)) / (2 * step)


def sided(case: str):
    """Answers whose loss rises with tau (a sharp teacher, a student without an opinion), or falls (a student sure of one bin)."""
    student, teacher = outputs(1, 0.3, 4.0 if case == "rising" else 0.3)
    if case == "falling":
        for axis in "xy":
            student[axis][..., 2] += 4
    return student, teacher


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("case,sign", [("rising", 1), ("falling", -1)])
@pytest.mark.parametrize("done", [0.25, 1.0])
def test_one_step_is_xi_eta_times_the_slope_whatever_its_sign(schedule, case, sign, done):
    """Eq. 11: tau + xi eta dL/dtau."""
    (student, teacher), tau = sided(case), 3.0
    distillers, curriculum = build({"schedule": schedule}, cca={"temperature": tau, "weight": 0.5})
    gradient = slope(tau, student, teacher, 0.5)
    assert math.copysign(1, gradient) == sign and abs(gradient) > 0.05
    run_loss(distillers, student, teacher).backward()
    eta = 0.1 / abs(gradient)
    curriculum.prepare(done, eta)
    curriculum.optimizer.step()
    want = SCHEDULES[schedule][done] * eta * gradient
    assert distillers["cca"].temperature.item() - tau == pytest.approx(want, rel=2e-3)
    assert curriculum.values() == {"cca.temperature": distillers["cca"].temperature.item()}


@pytest.mark.parametrize("case,sign", [("rising", 1), ("falling", -1)])
def test_an_adaptive_optimizer_would_cancel_xi(case, sign):
    """Why the curriculum has an optimizer of its own: Adam's step is as long for every slope and every xi."""
    student, teacher = sided(case)
    gradient = slope(3.0, student, teacher)
    for xi in (0.2, 0.4):
        moved = {}
        for name in ("plain", "adam"):
            distillers, curriculum = build({"schedule": "linear"}, cca={"temperature": 3.0})
            loss = run_loss(distillers, student, teacher)
            if name == "plain":
                loss.backward()
                curriculum.prepare(xi, 0.01)
                curriculum.optimizer.step()
            else:
                (-xi * loss).backward()  # the reversed gradient, as a layer before the student's optimizer would give it
                torch.optim.Adam(curriculum.learned.values(), lr=0.01).step()
            moved[name] = distillers["cca"].temperature.item() - 3.0
        want = xi * 0.01 * gradient
        assert moved["plain"] == pytest.approx(want, rel=5e-3)
        assert moved["adam"] == pytest.approx(sign * 0.01, rel=1e-3) and moved["adam"] != pytest.approx(want, rel=0.1)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_xi_rises_as_in_closed_form(schedule):
    _, curriculum = build({"schedule": schedule})
    for done, want in SCHEDULES[schedule].items():
        assert curriculum.xi(done) == pytest.approx(want, abs=1e-12)
    values = [curriculum.xi(done) for done in np.linspace(0, 1, 101)]
    assert all(a < b or schedule == "constant" for a, b in zip(values, values[1:], strict=False)) and values == sorted(values)


def test_the_rate_is_the_students_unless_it_is_given():
    for own, want in ((None, 0.02), (0.3, 0.3)):
        _, curriculum = build({"schedule": "linear", "lr": own})
        curriculum.prepare(0.5, 0.02)
        assert [g["lr"] for g in curriculum.optimizer.param_groups] == [pytest.approx(0.5 * want)]


def test_plain_sgd_without_memory():
    """No momentum, no decay: without a slope nothing moves, and a step does not depend on those before it."""
    distillers, curriculum = build({"schedule": "constant"}, cca={"temperature": 3.0})
    group, tau = curriculum.optimizer.param_groups[0], distillers["cca"].temperature
    assert type(curriculum.optimizer) is torch.optim.SGD and group["maximize"]
    assert group["momentum"] == group["weight_decay"] == group["dampening"] == 0 and not group["nesterov"]
    curriculum.prepare(0.5, 0.25)
    seen = []
    for gradient in (2.0, 0.0, -1.0, -1.0):
        tau.grad = torch.tensor(gradient)
        curriculum.optimizer.step()
        seen.append(tau.item())
    assert seen == [3.5, 3.5, 3.25, 3.0]


def test_only_what_is_named_is_in_its_optimizer():
    distillers, curriculum = build({"learn": ["cca.temperature", "sape.weight"]}, cca={}, sape={})
    mine = [p for g in curriculum.optimizer.param_groups for p in g["params"]]
    assert [id(p) for p in mine] == [id(distillers["cca"].temperature), id(distillers["sape"].weight)]
    names = {name for name, p in distillers.named_parameters() if any(p is q for q in mine)}
    assert names == {"cca.temperature", "sape.weight"}
    assert {"cca.weight"} <= {name for name, _ in distillers.named_buffers()}
    assert {"cca.temperature", "cca.weight", "sape.weight"} <= set(distillers.state_dict())  # in checkpoints, learned or not


def test_bounds_hold():
    settings = {"learn": ["cca.temperature", "cca.weight"], "temperature": [1.5, 4], "weight": [0.25, 2], "schedule": "constant"}
    distillers, curriculum = build(settings, cca={"temperature": 2, "weight": 0.5})
    method = distillers["cca"]
    curriculum.prepare(1.0, 1.0)
    for push, tau, weight in ((100.0, 4.0, 2.0), (-100.0, 1.5, 0.25)):
        method.temperature.grad, method.weight.grad = torch.tensor(push), torch.tensor(push)
        curriculum.optimizer.step()
        curriculum.bound()
        assert curriculum.values() == {"cca.temperature": tau, "cca.weight": weight}
    method.temperature.grad, method.weight.grad = torch.tensor(1.0), torch.tensor(0.125)  # and within them nothing is moved
    curriculum.optimizer.step()
    curriculum.bound()
    assert curriculum.values() == {"cca.temperature": 2.5, "cca.weight": 0.375}
    assert build({})[1].config.temperature == (1.0, 21.0)  # CTKD's


def test_weights_climb_by_their_terms():
    """Table VII: dL/dalpha is the feature term itself, dL/dbeta the logit term, and each moves by xi eta times that."""
    student, teacher = outputs(3)
    keys = ["cca.temperature", "sape.weight", "cca.weight"]
    distillers, curriculum = build(
        {"learn": keys, "schedule": "quadratic"}, cca={"temperature": 2.0, "weight": 0.7}, sape={"weight": 1.3, "fusion": "sum"}
    )
    run_loss(distillers, student, teacher).backward()
    ours = distillers["sape"].project(student["map"]).detach().double().numpy().reshape(2, -1)
    theirs = teacher["map"].double().numpy().reshape(2, -1)
    feature = np.mean([1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(ours, theirs, strict=True)])
    logit = numpy_loss(2.0, student, teacher)
    curriculum.prepare(0.5, 0.1)
    curriculum.optimizer.step()
    rate = 0.25 * 0.1
    got = curriculum.values()
    assert list(got) == keys
    assert got["sape.weight"] - 1.3 == pytest.approx(rate * feature, rel=1e-4)
    assert got["cca.weight"] - 0.7 == pytest.approx(rate * logit, rel=1e-4)
    assert got["cca.temperature"] - 2.0 == pytest.approx(rate * 0.7 * slope(2.0, student, teacher), rel=2e-3)


def test_a_learned_weight_is_no_part_of_its_own_term():
    """The logged term is weight times loss, whether the weight is learned or not."""
    student, teacher = outputs(4)
    fixed, learned = (build({"learn": learn}, cca={"weight": 0.4})[0] for learn in (["cca.temperature"], ["cca.weight"]))
    a, b = (d(student, teacher, WEIGHT)["cca"].total.item() for d in (fixed, learned))
    assert a == b == pytest.approx(0.4 * numpy_loss(1.0, student, teacher) * WEIGHT.sum().item(), rel=1e-4)


@pytest.mark.parametrize("method", ["cca", "fc_class"])
def test_temperature_in_bfloat16(method):
    """Under autocast the slope in tau is that of float32, and tau itself stays float32."""
    student, teacher = outputs(5)
    slopes = {}
    for half in (False, True):
        distillers, _ = build({"learn": [f"{method}.temperature"]}, **{method: {"temperature": 2.0}})
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            loss = run_loss(distillers, student, teacher)
        loss.backward()
        slopes[half] = distillers[method].temperature.grad
        assert slopes[half].dtype == distillers[method].temperature.dtype == torch.float32 and torch.isfinite(slopes[half])
    torch.testing.assert_close(slopes[True], slopes[False], rtol=2e-2, atol=0)


@pytest.mark.parametrize(
    "etht,line",
    [
        ({"learn": ["caa.temperature"]}, "distill.etht.learn: 'caa.temperature': no method 'caa'; did you mean 'cca'?"),
        ({"learn": ["kd.temperature"]}, "distill.etht.learn: 'kd.temperature': no method 'kd'; known: cca, sape"),
        ({"learn": ["cca.order"]}, "distill.etht.learn: 'cca.order': only a temperature or a weight can be learned"),
        ({"learn": ["cca"]}, "distill.etht.learn: 'cca': only a temperature or a weight can be learned"),
        ({"learn": ["sape.temperature"]}, "no hyperparameter 'temperature'"),
        ({"learn": []}, "distill.etht.learn is empty"),
        ({"temperature": [2, 5]}, "distill.cca.temperature = 1 starts outside distill.etht.temperature = [2.0, 5.0]"),
        ({"temperature": [0, 5]}, "temperature must be [least, most] above zero"),
        ({"weight": [3, 2]}, "weight must be [least, most]"),
        ({"schedule": "sine"}, "'schedule' = 'sine'"),
        ({"lr": 0}, "'lr' = 0: input should be greater than 0"),
        ({"shedule": "linear"}, "distill.etht: unknown key 'shedule'; did you mean 'schedule'?"),
    ],
)
def test_refusals(etht, line):
    with pytest.raises(LowposeError) as error:
        build(etht, cca={}, sape={})
    assert line in str(error.value) and "\n" not in str(error.value)


def test_unknown_methods_are_refused_with_the_nearest():
    with pytest.raises(LowposeError, match="unknown key 'distill.eth'; did you mean 'etht'?"):
        build_distillers({"cca": {}, "eth": {}}, STUDENT, TEACHER)
    with pytest.raises(LowposeError, match="a teacher needs at least one method in 'distill': "):
        build_distillers({"etht": {}, "cca": None}, STUDENT, TEACHER)
    assert build_distillers({"cca": None, "sape": {}, "etht": None}, STUDENT, TEACHER)[1] is None
