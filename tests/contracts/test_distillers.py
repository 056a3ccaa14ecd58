"""What every registered distillation method promises, for every head that it applies to, on feature maps and on tokens."""

from __future__ import annotations

import pytest
import torch
from distiller_worlds import (
    BATCH,
    CASES,
    FIVE,
    HEADS,
    KINDS,
    LARGE,
    NAMES,
    ON_TOKENS,
    SMALL,
    SPLIT,
    TEACHERS,
    K,
    answers,
    applies,
    build_head,
    every_case,
    follow,
    inner,
    label,
    labels,
    lacking,
    make,
    side,
    sides,
    some,
    taught,
)
from torch import nn

from lowpose import registry
from lowpose.config import TokensConfig
from lowpose.errors import LowposeError
from lowpose.nn.distill.base import FEATURE, INNER, TOKENS, build_distillers, describe
from lowpose.nn.distill.cca import merge_bins
from lowpose.nn.model import PoseModel
from lowpose.nn.tokens import TokenEncoder


def test_every_method_is_listed():
    known = {"cca", "fc_class", "fc_feature", "fitnets", "kd", "sape"}
    tokens = {"heatmap_marginals", "keypoint_tokens", "predicted_score", "simulated_heatmap", "visual_tokens"}
    assert known | tokens <= set(NAMES)
    for name in NAMES:
        entry = registry.find("distill", name)
        assert entry.summary and entry.config().weight == 1.0


def test_which_heads_each_method_applies_to():
    """Feature alignments with any head that has maps; alignments of classes where there are classes; of tokens, on tokens."""
    assert {"heatmap", "regression", "simcc", "udp"} <= set(HEADS)
    for name in ("sape", "fitnets", "fc_feature"):
        found = {kind for kind in KINDS if applies(name, kind, {})}
        assert {"heatmap", "simcc", "udp", "heatmap-tokens"} <= found
        assert not {"regression", "regression-tokens", "simcc-tokens"} & found
    assert all(applies("sape", kind, {"source": "feature"}) for kind in KINDS)
    for name in ("cca", "kd", "fc_class", "heatmap_marginals"):
        found = {kind for kind in KINDS if applies(name, kind, {})}
        assert {"simcc", "simcc-tokens"} <= found and not {"heatmap", "udp", "regression", "heatmap-tokens"} & found
    for name in ("keypoint_tokens", "visual_tokens"):
        assert {kind for kind in KINDS if applies(name, kind, {})} == set(ON_TOKENS)
    for name in ("predicted_score", "simulated_heatmap"):
        found = {kind for kind in KINDS if applies(name, kind, {})}
        assert {"regression", "regression-tokens"} <= found and not {"heatmap", "simcc", "udp"} & found


@every_case(False)
def test_a_student_without_the_output_is_refused(name, settings, head):
    with pytest.raises(LowposeError) as error:
        make(name, settings, head)
    line, (missing, *_) = str(error.value), lacking(name, settings, "student", side(head, SMALL))
    assert line.startswith(f"distill.{name} needs the output '{missing}', and the student gives only ") and "feature" in line
    assert "\n" not in line


UNFIT = [case for case in CASES if lacking(*case[:2], "teacher", side(case[2], LARGE))]


@pytest.mark.parametrize("name,settings,head", UNFIT, ids=map(label, UNFIT))
def test_a_teacher_without_the_output_is_refused(name, settings, head):
    student = next(kind for kind in KINDS if applies(name, kind, settings))
    (missing, *_) = lacking(name, settings, "teacher", side(head, LARGE))
    with pytest.raises(LowposeError) as error:
        build_distillers({name: settings}, side(student, SMALL), side(head, LARGE))
    line = str(error.value)
    assert line.startswith(f"distill.{name} needs the output '{missing}', and the teacher gives only ") and "\n" not in line


@pytest.mark.parametrize("name", TEACHERS)
@pytest.mark.parametrize(
    "head,what", [("simcc", "classifies coordinates"), ("udp", "has head.name=udp, whose map is a disc with offsets")]
)
def test_a_keypoint_map_that_is_no_heatmap_is_refused(name, head, what):
    """SimCC's map before its classifiers and UDP's disc have the shape of a heatmap, and other values."""
    student = next(kind for kind in KINDS if applies(name, kind, {}))
    with pytest.raises(LowposeError) as error:
        build_distillers({name: {}}, side(student, SMALL), side(head, LARGE))
    assert str(error.value) == f"distill.{name} needs a teacher of head.name=heatmap; this one {what}"


@pytest.mark.parametrize("name", TEACHERS)
def test_a_map_without_a_prior_is_refused(name):
    """The map of head integral has a Gaussian's height only where a Gaussian taught it."""
    entry, student = registry.find("head", "integral"), next(kind for kind in KINDS if applies(name, kind, {}))
    teachers = {
        prior: describe(PoseModel(Backbone(), entry.make(entry.config(prior=prior), SMALL.feature, SMALL.size, FIVE), FIVE))
        for prior in (0, 1)
    }
    build_distillers({name: {}}, side(student, SMALL), teachers[1])
    with pytest.raises(LowposeError, match="this one's map was taught by coordinates alone"):
        build_distillers({name: {}}, side(student, SMALL), teachers[0])


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
    for n in taught(name, method):
        grad = student[n].grad
        assert torch.isfinite(grad).all() and all((g != 0).any() for g in grad[[0, 2, 3]])
    assert all(student[n].grad is None for n in set(method.needs("student")) - set(taught(name, method)))
    assert not any(v.requires_grad or v.grad is not None for v in teacher.values())


ROWS = {"xy": slice(2), "score": slice(2, 3), "sigma": slice(3, 5)}  # of a map's last convolution, for a keypoint


@every_case(True)
def test_the_gradient_reaches_the_students_head(name, settings, head):
    """Through the outputs of a head, into its parameters and what it reads; or into that directly, where it is what is read."""
    student = build_head(head, SMALL, SPLIT.get(name, 2.0))
    for matrix in student.parameters():
        if matrix.ndim > 1:
            nn.init.normal_(matrix, std=matrix.shape[1] ** -0.5)
    generator = torch.Generator().manual_seed(2)
    before = {n: torch.randn(BATCH, *shape, generator=generator, requires_grad=True) for n, shape in inner(head, SMALL).items()}
    given = list(before.values())[-1]
    method, teacher = make(name, settings, head), answers(name, head, 2)[1]
    outputs = {**student(given), **before}
    sum(total / count for total, count in method(outputs, teacher, torch.ones(BATCH, K)).values()).backward()
    reads = taught(name, method)
    if set(reads) <= INNER:
        assert all((before[n].grad != 0).flatten(1).any(1).all() for n in reads)
        return
    assert (given.grad != 0).flatten(1).any(1).all()
    if head in ON_TOKENS:
        assert (given.grad != 0).any(-1).all()  # every keypoint's token
    else:
        rows = student.final.weight.grad.unflatten(0, (-1, K))
        assert all((rows[ROWS.get(n, slice(1))] != 0).flatten(2).any(2).all() for n in reads)  # of every keypoint
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
    for n in taught(name, method):
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
    assert all((student[n].grad == 0).all() for n in taught(name, method))


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
    assert all(torch.isfinite(student[n].grad).all() and (student[n].grad != 0).any() for n in taught(name, method))


@every_case(True)
def test_the_weight_multiplies(name, settings, head):
    student, teacher = answers(name, head, 6)
    one, many = (make(name, settings, head, weight=w).eval()(student, teacher, labels(6)) for w in (1.0, 2.5))
    for n in one:
        torch.testing.assert_close(many[n].total, 2.5 * one[n].total)
        assert many[n].count == one[n].count


@every_case(True, merged="xy")
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


@pytest.mark.parametrize(
    "student,teacher,least,reads,theirs",
    [
        ("simcc", "simcc", {"cca", "fc_class", "fc_feature", "fitnets", "sape"}, ["map", "x", "y"], ["map", "x", "y"]),
        (
            "regression-tokens",
            "heatmap-tokens",
            {"keypoint_tokens", "visual_tokens", "simulated_heatmap", "predicted_score"},
            [FEATURE, TOKENS, "score", "sigma", "xy"],
            [FEATURE, TOKENS, "map"],
        ),
        (
            "simcc-tokens",
            "heatmap-tokens",
            {"keypoint_tokens", "visual_tokens", "heatmap_marginals"},
            [FEATURE, TOKENS, "x", "y"],
            [FEATURE, TOKENS, "map"],
        ),
    ],
)
def test_all_methods_together(student, teacher, least, reads, theirs):
    """Each keeps its own term and weight; what they read is what any of them reads."""
    found = side(student, SMALL), side(teacher, LARGE)
    names = [n for n in NAMES if not lacking(n, {}, "student", found[0]) and not lacking(n, {}, "teacher", found[1])]
    names = [n for n in names if n != "kd" and TEACHERS.get(n, teacher) == teacher.removesuffix("-tokens" * (n in TEACHERS))]
    assert least <= set(names)  # kd: the classes must agree
    distillers = build_distillers({name: {"weight": 0.5} for name in names}, *found)[0].eval()
    generator = torch.Generator().manual_seed(10)
    ours, answer = (some(one, generator) for one in found)
    together = distillers(ours, answer, labels(10))
    assert set(together) == set(names)
    for name in names:
        total, _ = distillers[name](ours, answer, labels(10))[name]
        torch.testing.assert_close(together[name].total, 0.5 * total)
    assert distillers.needs("student") == reads and distillers.needs("teacher") == theirs


def test_what_is_read_depends_on_the_settings():
    feature = build_distillers({"sape": {"source": "feature"}, "cca": {}}, *sides("cca", "simcc"))[0]
    assert feature.needs("student") == [FEATURE, "x", "y"]


WITH_MAPS = [kind for kind in KINDS if applies("sape", kind, {})]


@pytest.mark.parametrize("student", WITH_MAPS)
@pytest.mark.parametrize("teacher", WITH_MAPS)
def test_any_head_learns_from_the_map_of_any_other(student, teacher):
    """SAPE between representations: the maps of the same keypoints."""
    sizes = side(student, SMALL), side(teacher, LARGE)
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


@pytest.mark.parametrize("head", KINDS)
@pytest.mark.parametrize("training", [False, True])
def test_a_model_is_described_without_a_trace(head, training):
    settings = TokensConfig(patch=(2, 2), width=SMALL.visual[0], depth=1)
    tokens = TokenEncoder(settings, SMALL.feature[0], SMALL.feature[:0:-1], K) if head in ON_TOKENS else None
    model = PoseModel(Backbone(), build_head(head, SMALL), FIVE, tokens).train(training)
    before = {n: v.clone() for n, v in model.state_dict().items()}
    found = describe(model)
    assert found.input_size == SMALL.size and found.shapes == side(head, SMALL).shapes
    assert model.training == model.backbone.layers[1].training == training
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
