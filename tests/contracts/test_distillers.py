"""What every registered distillation method promises, for every head that it applies to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from lowpose import registry
from lowpose.errors import LowposeError
from lowpose.nn.distill.base import FEATURE, Side, build_distillers, describe
from lowpose.nn.distill.cca import merge_bins
from lowpose.nn.model import PoseModel
from lowpose.skeletons import Skeleton

NAMES = registry.names("distill")
HEADS = registry.names("head")
SETTINGS = {  # beyond the defaults
    "cca": [{"temperature": 4.0}, {"order": "temper-first", "temperature": 2.0}],
    "kd": [{"temperature": 3.0}],
    "fc_class": [{"temperature": 3.0}],
    "sape": [{"projector": "flatten", "fusion": "deep"}, {"fusion": "sum", "per": "joint"}, {"source": "feature"}],
}
METHODS = [(name, settings) for name in NAMES for settings in [{}, *SETTINGS.get(name, [])]]
CASES = [(name, settings, head) for name, settings in METHODS for head in HEADS]
FIVE = Skeleton("five", tuple("abcde"), pairs=((0, 3),))
K, BATCH = 5, 4
SMALL, LARGE = ((32, 24), (6, 6, 8)), ((64, 48), (7, 12, 16))  # crop (width, height); backbone's feature
SPLIT = {"kd": 4.0}  # of the student, so that both have as many classes; 2 elsewhere


def build_head(name: str, which, split: float = 2.0) -> nn.Module:
    size, feature = which
    entry = registry.find("head", name)
    return entry.make(entry.config(**({"split": split} if name == "simcc" else {})), feature, size, FIVE)


def sides(name: str, head: str) -> tuple[Side, Side]:
    """What a student and its teacher with this head answer, found by asking them."""
    found = []
    for which, split in ((SMALL, SPLIT.get(name, 2.0)), (LARGE, 2.0)):
        with torch.no_grad():
            outputs = build_head(head, which, split)(torch.zeros(1, *which[1]))
        found.append(Side({**{n: tuple(v.shape[1:]) for n, v in outputs.items()}, FEATURE: which[1]}, which[0]))
    return tuple(found)


def needs(name: str, settings: dict) -> list[str]:
    """Outputs that a method reads; those of `sape` depend on its settings."""
    return list(registry.find("distill", name).make.student_needs) or [settings.get("source", "map")]


def applies(name: str, head: str, settings: dict) -> bool:
    return set(needs(name, settings)) <= set(sides(name, head)[0].shapes)


def every_case(fits: bool, reads=()):
    chosen = [case for case in CASES if applies(case[0], case[2], case[1]) == fits]
    chosen = [case for case in chosen if set(reads) <= set(needs(*case[:2]))]
    return pytest.mark.parametrize(
        "name,settings,head", chosen, ids=["-".join([n, h, *map(str, s.values())]) for n, s, h in chosen]
    )


def make(name: str, settings: dict, head: str, **more):
    torch.manual_seed(0)
    return build_distillers({name: {**settings, **more}}, *sides(name, head))[0]


def answers(name: str, head: str, seed: int = 0, batch: int = BATCH) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {n: 2 * torch.randn(batch, *shape, generator=generator) for n, shape in side.shapes.items()} for side in sides(name, head)
    ]


def labels(seed: int = 0) -> torch.Tensor:
    """(B, K) some joints have none, and the second person has no joint at all."""
    weight = torch.from_numpy(np.random.default_rng(seed).integers(0, 2, (BATCH, K))).float()
    weight[0, 0], weight[1] = 1.0, 0.0
    return weight


def follow(outputs: dict[str, torch.Tensor], names) -> dict[str, torch.Tensor]:
    for n in names:
        outputs[n].requires_grad_()
    return outputs


def test_every_method_is_listed():
    assert {"cca", "fc_class", "fc_feature", "fitnets", "kd", "sape"} <= set(NAMES)
    for name in NAMES:
        entry = registry.find("distill", name)
        assert entry.summary and entry.config().weight == 1.0


def test_which_heads_each_method_applies_to():
    """Feature alignments work with any head that has maps; alignments of classes where there are classes."""
    assert {"heatmap", "simcc", "udp"} <= set(HEADS)
    for name in ("sape", "fitnets", "fc_feature"):
        assert all(applies(name, head, {}) for head in ("heatmap", "simcc", "udp"))
    assert all(applies("sape", head, {"source": "feature"}) for head in HEADS)
    for name in ("cca", "kd", "fc_class"):
        assert applies(name, "simcc", {}) and not applies(name, "heatmap", {}) and not applies(name, "udp", {})


@every_case(False)
def test_a_head_without_the_output_is_refused(name, settings, head):
    with pytest.raises(LowposeError) as error:
        make(name, settings, head)
    line = str(error.value)
    lacking = needs(name, settings)[0]
    assert line.startswith(f"distill.{name} needs the output '{lacking}', and the student gives only ") and "feature" in line
    assert "\n" not in line
    student, _ = sides(name, "simcc")
    _, teacher = sides(name, head)
    with pytest.raises(LowposeError, match=f"distill.{name} needs the output '{lacking}', and the teacher gives only "):
        build_distillers({name: settings}, student, teacher)


@every_case(True)
def test_terms(name, settings, head):
    method = make(name, settings, head)
    student, teacher = answers(name, head)
    weight = labels()
    terms = method(student, teacher, weight)
    assert terms and all(term == name or term.startswith(f"{name}_") for term in terms)
    persons, joints = (weight.sum(1) > 0).sum(), weight.sum()
    for total, count in terms.values():
        assert total.shape == count.shape == () and total.dtype == torch.float32
        assert torch.isfinite(total) and total > 0 and count in (persons, joints)
    lean = [{n: outputs[n] for n in method.needs(side)} for side, outputs in (("student", student), ("teacher", teacher))]
    assert all(lean)  # nothing is read but what is named
    torch.manual_seed(0)
    assert make(name, settings, head)(*lean, weight) == terms


@every_case(True)
def test_every_parameter_and_the_student_get_a_gradient(name, settings, head):
    """In train mode, from one batch, learned hyperparameters included; the teacher's answers need none."""
    method = make(name, settings, head).train()
    student, teacher = answers(name, head, 1)
    scalars = [n for n, v in method[name].named_buffers(recurse=False) if v.ndim == 0]
    assert "weight" in scalars
    for n in scalars:
        assert method[name].learn(n) is method[name].get_parameter(n)
        with pytest.raises(LowposeError, match=f"no hyperparameter '{n}'"):
            method[name].learn(n)  # it is one already
    follow(student, method.needs("student"))
    sum(total / count for total, count in method(student, teacher, labels(1)).values()).backward()
    for n, p in method.named_parameters():
        assert p.requires_grad and p.grad is not None and torch.isfinite(p.grad).all() and (p.grad != 0).any(), n
    for n in method.needs("student"):
        grad = student[n].grad
        assert torch.isfinite(grad).all() and all((g != 0).any() for g in grad[[0, 2, 3]])
    assert not any(v.requires_grad or v.grad is not None for v in teacher.values())


@every_case(True)
def test_the_gradient_reaches_the_students_head(name, settings, head):
    """Through the outputs of a head, into its parameters and its feature."""
    student = build_head(head, SMALL, SPLIT.get(name, 2.0))
    nn.init.normal_(student.final.weight, std=0.5)
    feature = torch.randn(BATCH, *SMALL[1], generator=torch.Generator().manual_seed(2), requires_grad=True)
    method, teacher = make(name, settings, head), answers(name, head, 2)[1]
    outputs = {**student(feature), FEATURE: feature}
    sum(total / count for total, count in method(outputs, teacher, torch.ones(BATCH, K)).values()).backward()
    assert (feature.grad != 0).flatten(1).any(1).all()
    reads = method.needs("student")
    if reads != [FEATURE]:
        assert (student.final.weight.grad[:K] != 0).flatten(1).any(1).all()  # of every keypoint
    if "x" in reads:
        assert (student.to_x.weight.grad != 0).any() and (student.to_y.weight.grad != 0).any()


@every_case(True)
def test_what_has_no_label_does_not_count(name, settings, head):
    method = make(name, settings, head).eval()  # batch norm mixes persons while it trains
    student, teacher = answers(name, head, 3)
    follow(student, method.needs("student"))
    weight = labels(3)
    terms = method(student, teacher, weight)
    sum(total for total, _ in terms.values()).backward()
    for n in method.needs("student"):
        assert (student[n].grad[1] == 0).all()
    for outputs in (student, teacher):
        for value in outputs.values():
            value.data[1] = 3 - 5 * value.data[1]
    for n, (total, count) in method(student, teacher, weight).items():
        torch.testing.assert_close(total, terms[n].total, rtol=1e-6, atol=0)
        assert count == terms[n].count
    for value in student.values():
        value.grad = None
    nobody = method(student, teacher, torch.zeros(BATCH, K))
    sum(total for total, _ in nobody.values()).backward()
    assert all(total == 0 and count == 0 for total, count in nobody.values())
    assert all((student[n].grad == 0).all() for n in method.needs("student"))


@every_case(True)
def test_terms_are_sums_over_the_batch(name, settings, head):
    """Totals and counts of parts of a batch add up: what dividing by the global count rests on."""
    method = make(name, settings, head).eval()
    student, teacher = answers(name, head, 4)
    weight = labels(4)
    whole = method(student, teacher, weight)
    parts = [
        method({n: v[s] for n, v in student.items()}, {n: v[s] for n, v in teacher.items()}, weight[s])
        for s in (slice(1), slice(1, 4))
    ]
    for n in whole:
        torch.testing.assert_close(parts[0][n].total + parts[1][n].total, whole[n].total, rtol=1e-5, atol=1e-6)
        assert parts[0][n].count + parts[1][n].count == whole[n].count


@every_case(True)
def test_a_batch_of_one_in_training(name, settings, head):
    method = make(name, settings, head).train()
    student, teacher = answers(name, head, 5, batch=1)
    follow(student, method.needs("student"))
    terms = method(student, teacher, torch.ones(1, K))
    sum(total for total, _ in terms.values()).backward()
    assert all(torch.isfinite(total) and total > 0 for total, _ in terms.values())
    assert all(torch.isfinite(student[n].grad).all() and (student[n].grad != 0).any() for n in method.needs("student"))


@every_case(True)
def test_the_weight_multiplies(name, settings, head):
    student, teacher = answers(name, head, 6)
    one, many = (make(name, settings, head, weight=w).eval()(student, teacher, labels(6)) for w in (1.0, 2.5))
    for n in one:
        torch.testing.assert_close(many[n].total, 2.5 * one[n].total)
        assert many[n].count == one[n].count


@every_case(True, reads="xy")
def test_merged_answers_are_enough_unless_every_bin_is_read(name, settings, head):
    """A cache of the teacher's bins merged to the student's, in fp16, gives the same loss, or the method says no."""
    method = make(name, settings, head).eval()
    if method[name].every_bin:
        assert name != "cca" or settings["order"] == "temper-first"
        return
    student, teacher = answers(name, head, 7)
    merged = {axis: merge_bins(teacher[axis], student[axis].shape[-1]).half().float() for axis in "xy"}
    assert merged["x"].shape[-1] < teacher["x"].shape[-1]
    for n, (total, _) in method(student, {**teacher, **merged}, labels(7)).items():
        torch.testing.assert_close(total, method(student, teacher, labels(7))[n].total, rtol=2e-3, atol=0)


@every_case(True)
def test_bfloat16(name, settings, head):
    """Under autocast, losses and gradients are finite, and those of float32 to 2 %."""
    losses, grads = {}, {}
    for half in (False, True):
        method = make(name, settings, head).train()
        student, teacher = answers(name, head, 8)
        reads = method.needs("student")
        follow(student, reads)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            terms = method(student, teacher, labels(8))
        losses[half] = sum(total / count for total, count in terms.values())
        losses[half].backward()
        assert all(total.dtype == torch.float32 for total, _ in terms.values())
        got = {**{n: student[n].grad for n in reads}, **{n: p.grad for n, p in method.named_parameters()}}
        grads[half] = {n: g for n, g in got.items() if g is not None}
        assert torch.isfinite(losses[half]) and all(torch.isfinite(g).all() for g in grads[half].values())
    torch.testing.assert_close(losses[True], losses[False], rtol=2e-2, atol=0)
    a, b = (torch.cat([g.flatten() for g in grads[half].values()]) for half in (True, False))
    assert a.norm().item() == pytest.approx(b.norm().item(), rel=2e-2)
    assert torch.cosine_similarity(a, b, dim=0) > 0.995  # a ReLU's input next to zero may fall on its other side


@every_case(True)
def test_state_is_kept_and_carried_over(name, settings, head):
    """All of a method is in its state, learned or not: its parameters, its weight, its temperature."""
    first = make(name, settings, head, weight=0.3)
    torch.manual_seed(9)
    second = build_distillers({name: {**settings, "weight": 0.9}}, *sides(name, head))[0]
    assert {f"{name}.weight"} <= set(first.state_dict())
    second.load_state_dict(first.state_dict())
    student, teacher = answers(name, head, 9)
    for n, (total, _) in first.eval()(student, teacher, labels(9)).items():
        assert torch.equal(total, second.eval()(student, teacher, labels(9))[n].total)


@pytest.mark.parametrize("name", NAMES)
def test_unknown_keys_are_refused_with_the_nearest(name):
    with pytest.raises(LowposeError) as error:
        make(name, {}, "simcc", wieght=1.0)
    assert str(error.value) == f"distill.{name}: unknown key 'wieght'; did you mean 'weight'?"
    with pytest.raises(LowposeError) as error:
        build_distillers({f"{name}z": {}}, *sides(name, "simcc"))
    assert str(error.value) == f"unknown key 'distill.{name}z'; did you mean '{name}'?"


def test_all_methods_together():
    """Each keeps its own term and weight; what they read is what any of them reads."""
    names = [name for name in NAMES if name != "kd"]  # for which the classes must agree
    distillers = build_distillers({name: {"weight": 0.5} for name in names}, *sides("cca", "simcc"))[0].eval()
    student, teacher = answers("cca", "simcc", 10)
    together = distillers(student, teacher, labels(10))
    assert set(together) == set(names)
    for name in names:
        total, _ = distillers[name](student, teacher, labels(10))[name]
        torch.testing.assert_close(together[name].total, 0.5 * total)
    assert distillers.needs("student") == distillers.needs("teacher") == ["map", "x", "y"]
    feature = build_distillers({"sape": {"source": "feature"}, "cca": {}}, *sides("cca", "simcc"))[0]
    assert feature.needs("student") == [FEATURE, "x", "y"]


WITH_MAPS = [head for head in HEADS if applies("sape", head, {})]


@pytest.mark.parametrize("student", WITH_MAPS)
@pytest.mark.parametrize("teacher", WITH_MAPS)
def test_any_head_learns_from_the_map_of_any_other(student, teacher):
    """SAPE between representations: the maps of the same keypoints."""
    sizes = sides("sape", student)[0], sides("sape", teacher)[1]
    method = build_distillers({"sape": {}}, *sizes)[0]
    outputs = [answers("sape", student, 11)[0], answers("sape", teacher, 11)[1]]
    total, count = method(*outputs, torch.ones(BATCH, K))["sape"]
    assert count == BATCH and 0 < total < 2 * BATCH


class Backbone(nn.Module):
    """Stride 4; batch norm, so that the mode matters."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 6, 4, stride=4), nn.BatchNorm2d(6))

    def forward(self, images):
        return self.layers(images)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("training", [False, True])
def test_a_model_is_described_without_a_trace(head, training):
    model = PoseModel(Backbone(), build_head(head, SMALL), FIVE).train(training)
    before = {n: v.clone() for n, v in model.state_dict().items()}
    side = describe(model)
    assert side.input_size == SMALL[0] and side.shapes == sides("cca", head)[0].shapes
    assert model.training == model.backbone.layers[1].training == training
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
