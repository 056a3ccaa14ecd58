"""Training with a teacher: what learns and what does not, the curriculum's step, what is kept and what the log says."""

from __future__ import annotations

import hashlib
import math
import pickle
import shutil

import numpy as np
import pytest
import torch
from taught import CDKD, NET, batches, merged, save_teacher, steps, taught
from tiny import digest, tiny

import lowpose
from lowpose import training as loop
from lowpose.checkpoint import STATE, WEIGHTS, describe_weights, load_model, load_state, pack_weights
from lowpose.errors import LowposeError
from lowpose.nn.cost import count
from lowpose.progress import read_log
from lowpose.recipe_files import load_config
from lowpose.training import Run, make_optimizer, train

EVERYTHING = CDKD | {"fitnets": {}, "fc_feature": {}, "fc_class": {"weight": 0.1}}
PACED = {"epochs": 4, "save_every": 3, "optimizer": "adamw", "weight_decay": 0.05, "schedule": "onecycle", "ema": 0.9}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return save_teacher(tmp_path_factory.mktemp("teacher") / "teacher.safetensors")


def grouped(optimizer) -> list[int]:
    return [id(p) for group in optimizer.param_groups for p in group["params"]]


@pytest.mark.parametrize("decay", [0.0, 0.01])
@pytest.mark.parametrize("fusion", [{}, {"fusion": "deep", "deep": "gap"}, {"fusion": "deep", "deep": "softmax"}])
def test_every_parameter_but_the_teachers_learns(tmp_path, teacher, fusion, decay):
    """Each stands in one group of one optimizer, gets a gradient and moves; the teacher stays as it is, to the bit."""
    methods = EVERYTHING | {"sape": fusion}
    run = Run(taught(teacher, methods, train={"weight_decay": decay, "optimizer": "adamw"}), tmp_path, False)
    student, own = dict(run.bare.named_parameters()), dict(run.teaching.distillers.named_parameters())
    learned = {"cca.temperature", "sape.weight"}
    assert learned < set(own) and any(n.startswith("sape.unit.branches") for n in own)
    by_loss = [*student.values(), *(p for n, p in own.items() if n not in learned)]
    assert sorted(grouped(run.optimizer)) == sorted(map(id, by_loss))
    assert sorted(grouped(run.teaching.curriculum.optimizer)) == sorted(id(own[n]) for n in learned)
    teachers = run.teaching.teacher.model
    assert not {id(p) for p in teachers.parameters()} & {*map(id, by_loss), *(id(p) for p in own.values())}
    before = {n: p.detach().clone() for n, p in (student | own).items()}
    unmoved = digest(teachers.state_dict())
    steps(run, 4)
    for name, p in (student | own).items():
        assert p.grad is not None and p.grad.abs().sum() > 0, f"{name} gets no gradient"
        assert not torch.equal(p, before[name]), f"{name} does not move"
    assert digest(teachers.state_dict()) == unmoved and not any(m.training for m in teachers.modules())
    assert all(p.grad is None and not p.requires_grad for p in teachers.parameters())


@pytest.mark.parametrize("light", ["none", "reduce", "depthwise"])
def test_a_lossless_student_learns_from_a_teacher(tmp_path, teacher, light):
    """MGIL and CDKD together: the new blocks learn, and the teacher has none."""
    down = {"name": "mgil", "light": light, "where": ["net.conv1*", "net.maxpool"]}
    run = Run(taught(teacher, CDKD, model=NET | {"downsampling": down}), tmp_path, False)
    blocks = {n: p for n, p in run.bare.named_parameters() if ".block." in n}
    assert run.bare.backbone.replaced and set(map(id, blocks.values())) <= set(grouped(run.optimizer))
    assert not any(".block." in n for n, _ in run.teaching.teacher.model.named_parameters())
    before = {n: p.detach().clone() for n, p in blocks.items()}
    steps(run, 2)
    still = [n for n, p in blocks.items() if p.grad is None or torch.equal(p, before[n])]
    assert not still


def test_learned_in_exactly_one_group_of_every_kind_of_optimizer(tmp_path, teacher):
    run = Run(taught(teacher), tmp_path, False)
    for name in ("adam", "adamw", "sgd"):
        for decay in (0.0, 0.1):
            t = run.t.model_copy(update={"optimizer": name, "weight_decay": decay})
            found = grouped(make_optimizer(run.bare, t, run.teaching))
            assert sorted(found) == sorted(map(id, [*run.bare.parameters(), *run.teaching.parameters]))


def test_a_student_begins_as_its_baseline_and_its_ema_holds_nothing_else(tmp_path, teacher):
    plain = Run(tiny(model=NET, train={"ema": 0.9}), tmp_path / "plain", False)
    run = Run(taught(teacher, train={"ema": 0.9}), tmp_path / "taught", False)
    assert digest(run.bare.state_dict()) == digest(plain.bare.state_dict())
    steps(run, 3)
    assert run.ema.module.state_dict().keys() == plain.bare.state_dict().keys() == run.bare.state_dict().keys()


def cca_by_hand(student, teacher, weight, tau: float) -> float:
    """Eq. 6 and 7 in float64: bins merged, both sides tempered, tau^2 KL(teacher || student) of x and y per labelled joint."""
    total = 0.0
    for axis in "xy":
        q = torch.softmax(student[axis].double() / tau, -1)
        p = merged(teacher[axis], q.shape[-1]) ** (1 / tau)
        p = p / p.sum(-1, keepdim=True)
        total += tau**2 * float(((p * (p / q).log()).sum(-1) * weight.double()).sum())
    return total / float(weight.sum())


@pytest.mark.parametrize("own_rate", [0.03, None])
def test_the_curriculum_climbs_as_computed_by_hand(tmp_path, teacher, own_rate):
    """theta + xi eta dL/dtheta for temperature and weights; decay and clipping, strong here, do not reach them."""
    learn = ["cca.temperature", "cca.weight", "sape.weight"]
    methods = CDKD | {"etht": {"learn": learn, "lr": own_rate}}
    paced = {"weight_decay": 0.5, "clip": 1e-6, "lr": 0.02, "warmup_steps": 4, "epochs": 4}
    run = Run(taught(teacher, methods, train=paced), tmp_path, False)
    seen: dict = {}
    run.bare.register_forward_hook(lambda _m, _i, out: seen.update(student={k: v.detach() for k, v in out.items()}))
    run.teaching.teacher.model.register_forward_hook(lambda _m, _i, out: seen.update(teacher=out))
    run.teaching.distillers["sape"].register_forward_hook(lambda _m, _i, out: seen.update(sape=out["sape"]))
    moved = 0.0
    for step, batch in enumerate(batches(run, 8)):
        old = run.teaching.curriculum.values()
        values, _ = run._step(batch)
        run.step += 1
        _, weight = run.bare.head.targets(batch.keypoints, batch.weight)

        def cca(tau, weight=weight):
            return cca_by_hand(seen["student"], seen["teacher"], weight, tau)

        tau, h = old["cca.temperature"], 1e-4
        slope = {
            "cca.temperature": old["cca.weight"] * (cca(tau + h) - cca(tau - h)) / (2 * h),
            "cca.weight": cca(tau),
            "sape.weight": float(seen["sape"].total.detach() / seen["sape"].count),
        }
        assert values["cca"] == pytest.approx(old["cca.weight"] * cca(tau), rel=1e-4)
        xi = (1 - math.cos(math.pi * step / 8)) / 2
        eta = own_rate or 0.02 * min(1, (step + 1) / 4)
        new = run.teaching.curriculum.values()
        for name in learn:
            assert new[name] - old[name] == pytest.approx(xi * eta * slope[name], rel=1e-3, abs=3e-7), name
        moved += abs(new["cca.temperature"] - old["cca.temperature"])
        norm = math.sqrt(sum(float(p.grad.square().sum()) for g in run.optimizer.param_groups for p in g["params"]))
        assert norm < 1.01e-6
    assert moved > 0.02


@pytest.mark.parametrize("kept", ["none", "merged"])
def test_stopped_and_resumed_ends_with_the_same_bits(tmp_path, teacher, kept):
    """Student, EMA, projectors and what was learned; the teacher may lie elsewhere in the meantime."""
    moved = tmp_path / "moved.safetensors"
    shutil.copy(teacher, moved)
    other = {"augment": {"views": 3}, "cache": {"dir": str(tmp_path / "cache")}} if kept != "none" else {}

    def config(path):
        return taught({"weights": path, "cache": kept}, train=PACED, **other)

    whole = train(config(teacher), tmp_path / "whole")
    for path, n in ((teacher, 2), (moved, 3)):
        parts = train(config(path), tmp_path / "parts", resume=True, stop_after=n)
        assert not (parts / WEIGHTS).exists()
    train(config(teacher), parts, resume=True)
    a, b = load_state(whole), load_state(parts)
    assert digest(a["model"]) == digest(b["model"]) and digest(a["ema"]) == digest(b["ema"])
    assert digest(a["teaching"]["distillers"]) == digest(b["teaching"]["distillers"])
    assert (whole / WEIGHTS).read_bytes() == (parts / WEIGHTS).read_bytes()
    logs = [[{k: v for k, v in line.items() if k not in ("time", "images_per_s")} for line in read_log(run / "metrics.jsonl")]
            for run in (whole, parts)]  # fmt: skip
    assert logs[0] == logs[1] and [line["step"] for line in logs[0]] == list(range(1, 9))
    assert a["teaching"]["distillers"]["cca.temperature"] != 2


def test_resumed_with_another_teacher_is_refused(tmp_path, teacher):
    train(taught(teacher), tmp_path / "run", stop_after=2)
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir() if p.is_file()}
    other = save_teacher(tmp_path / "other.safetensors", seed=2)
    with pytest.raises(LowposeError, match="other.safetensors: not the weights that this run began with") as e:
        train(taught(other), tmp_path / "run", resume=True)
    assert "\n" not in str(e.value)
    assert before == {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir() if p.is_file()}
    changed = CDKD | {"cca": {"weight": 1.5, "temperature": 3.0}}
    with pytest.raises(LowposeError, match="holds a run of another recipe"):
        train(taught(teacher, changed), tmp_path / "run", resume=True)
    with pytest.raises(LowposeError, match="holds a run of another recipe"):
        train(tiny(model=NET), tmp_path / "run", resume=True)
    with pytest.raises(LowposeError, match="holds a run of another recipe"):
        train(taught({"weights": teacher, "precision": "bf16"}), tmp_path / "run", resume=True)


def test_nothing_of_the_teaching_is_left_in_the_weights(tmp_path, teacher):
    """Tensors, parameters and MACs are the plain student's; it predicts where there is no teacher, and names who it had."""
    own = tmp_path / "mine.safetensors"
    shutil.copy(teacher, own)
    short = {"epochs": 1, "ema": 0.9}
    plain, run = train(tiny(model=NET, train=short), tmp_path / "plain"), train(taught(own, train=short), tmp_path / "taught")
    sha = hashlib.sha256(own.read_bytes()).hexdigest()
    own.unlink()
    (a, _), (b, config) = load_model(plain), load_model(run)
    assert {k: v.shape for k, v in a.state_dict().items()} == {k: v.shape for k, v in b.state_dict().items()}
    assert count(a, (32, 32)) == count(b, (32, 32)) and count(b, (32, 32)).macs > 1e5
    assert config.teacher.weights == str(own)
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    found = lowpose.load(run).predict(image, [[10, 10, 40, 50]])
    assert np.isfinite(found.keypoints).all()
    about = describe_weights(run)["teacher"]
    assert (about["name"], about["sha256"], about["size"]) == ("the teacher", sha, [64, 64])
    assert (about["head"], about["backbone"]) == ("simcc", "test_resnet")
    assert (about["precision"], about["flip"], about["cache"]) == ("no", False, "none")
    pack_weights(run, tmp_path / "packed.safetensors")
    assert describe_weights(tmp_path / "packed.safetensors")["teacher"] == about
    assert "teacher" not in describe_weights(plain)


def test_the_log_names_every_term_and_what_was_learned(tmp_path, teacher):
    lines = read_log(train(taught(teacher, EVERYTHING), tmp_path / "run") / "metrics.jsonl")
    terms = ("simcc", "sape", "cca", "fitnets", "fc_feature", "fc_class")
    assert all({*terms, "cca.temperature", "sape.weight"} < set(line) for line in lines) and len(lines) == 6
    assert all(line["loss"] == pytest.approx(sum(line[name] for name in terms)) for line in lines)
    assert lines[0]["cca.temperature"] == 2 and lines[0]["sape.weight"] == pytest.approx(0.7)
    weights = [line["sape.weight"] for line in lines]
    assert all(low < high for low, high in zip(weights[1:], weights[2:], strict=False))  # a distance is never negative
    state = load_state(tmp_path / "run")["teaching"]["distillers"]
    assert state["cca.temperature"].item() == lines[-1]["cca.temperature"] != 2
    fixed = read_log(train(taught(teacher, {"cca": {"temperature": 2.0}}), tmp_path / "fixed") / "metrics.jsonl")
    assert "cca" in fixed[0] and not any("temperature" in name for name in fixed[0])
    assert load_state(tmp_path / "fixed")["teaching"]["distillers"]["cca.temperature"] == 2


def test_a_weight_is_a_factor_of_its_term_alone(tmp_path, teacher):
    """Three times the weight: three times the logged term, and a gradient that differs by twice that of the term."""

    def first(weight, name):
        run = Run(taught(teacher, {"cca": {"weight": weight}}), tmp_path / name, False)
        (values,) = steps(run, 1)
        return values, torch.cat([p.grad.flatten() for p in run.bare.parameters()]).double()

    (zero, g0), (one, g1), (three, g3) = first(0.0, "a"), first(1.0, "b"), first(3.0, "c")
    assert zero["cca"] == 0 and three["cca"] == pytest.approx(3 * one["cca"], rel=1e-6) and one["simcc"] == zero["simcc"]
    assert float((g1 - g0).norm()) > 0.01 * float(g0.norm())
    assert float((g3 - g0 - 3 * (g1 - g0)).norm()) < 1e-4 * float((g3 - g0).norm())


def test_a_term_that_drowns_the_heads_loss_is_named_once(tmp_path, teacher, caplog):
    """With the weight that would make both alike, from the terms of the first epoch's last step."""
    config = taught(teacher, {"cca": {"weight": 1e4}, "sape": {}}, train={"epochs": 2, "log_every": 1})
    rows = read_log(train(config, tmp_path / "heavy") / "metrics.jsonl")
    (told,) = [r.getMessage() for r in caplog.records if "head's own loss" in r.getMessage()]
    last = next(row for row in rows if row["epoch"] == 1)
    ratio = last["cca"] / last["simcc"]
    assert f"distill.cca is {ratio:.0f} times" in told and f"distill.cca.weight={1e4 / ratio:.2g} " in told
    caplog.clear()
    train(taught(teacher, {"cca": {}, "sape": {}}), tmp_path / "usual")
    assert not [r for r in caplog.records if "head's own loss" in r.getMessage()]


def test_baseline_live_and_cached_see_the_same_views(tmp_path, teacher):
    """With declared views the pictures of each step are the same in all three, and return after as many epochs."""
    views = {"augment": {"views": 2}, "cache": {"dir": str(tmp_path / "cache")}, "train": {"epochs": 3}}
    runs = [
        Run(tiny(model=NET, **views), tmp_path / "plain", False),
        Run(taught(teacher, **views), tmp_path / "live", False),
        Run(taught({"weights": teacher, "cache": "merged"}, **views), tmp_path / "cached", False),
    ]
    seen = [batches(run, 6) for run in runs]
    for same in zip(*seen, strict=True):
        assert all(torch.equal(same[0].images, b.images) and torch.equal(same[0].index, b.index) for b in same[1:])
    by_epoch = [
        {int(i): im for b in seen[0][2 * e : 2 * e + 2] for i, im in zip(b.index, b.images, strict=True)} for e in range(3)
    ]
    back = by_epoch[0].keys() & by_epoch[2].keys()
    assert len(back) > 3 and all(torch.equal(by_epoch[0][i], by_epoch[2][i]) for i in back)
    assert not any(torch.equal(by_epoch[0][i], by_epoch[1][i]) for i in by_epoch[0].keys() & by_epoch[1].keys())


def test_everything_at_once_in_bf16_stays_finite_and_bounded(tmp_path, teacher):
    """Thirty steps with every method that fits; what is learned goes up to its bounds and no farther."""
    etht = {"learn": ["cca.temperature", "cca.weight", "sape.weight"], "lr": 20.0, "temperature": [1.5, 4], "weight": [0.2, 2]}
    methods = EVERYTHING | {"etht": etht, "sape": {"fusion": "deep", "projector": "flatten"}}
    config = taught(
        {"weights": teacher, "precision": "bf16"},
        methods,
        train={"precision": "bf16", "epochs": 15, "ema": 0.9, "save_every": 99},
    )
    folder = train(config, tmp_path / "run")
    lines = read_log(folder / "metrics.jsonl")
    assert len(lines) == 30 and all(math.isfinite(v) for line in lines for v in line.values())
    taus, weights = ([line[name] for line in lines] for name in ("cca.temperature", "sape.weight"))
    assert all(1.5 <= tau <= 4 for tau in taus) and all(0.2 <= w <= 2 for w in weights)
    assert len(set(taus)) > 2 and max(taus) == 4 and max(weights) == 2
    state = load_state(folder)
    for part in (state["model"], state["ema"], state["teaching"]["distillers"]):
        floats = [v for v in part.values() if v.is_floating_point()]
        assert all(v.dtype is torch.float32 and torch.isfinite(v).all() for v in floats)


def test_methods_can_be_left_out_with_null(tmp_path, teacher):
    run = Run(taught(teacher, {"cca": {}, "sape": None, "etht": None}), tmp_path / "run", False)
    assert list(run.teaching.distillers) == ["cca"] and run.teaching.curriculum is None
    assert not (tmp_path / "run" / STATE).exists()


@pytest.mark.parametrize(
    "methods,answer",
    [
        ({"cc": {}}, "unknown key 'distill.cc'; did you mean 'cca'"),
        ({"etht": {}}, "a teacher needs at least one method in 'distill': cca, "),
        ({"cca": {"temprature": 2}}, "distill.cca: unknown key 'temprature'; did you mean 'temperature'"),
        ({"cca": {"temperature": 0}}, "distill.cca: 'temperature' = 0: input should be greater than 0"),
        ({"cca": {}, "etht": {"learn": ["sape.weight"]}}, "distill.etht.learn: 'sape.weight': no method 'sape'"),
        ({"cca": {}, "etht": {"learn": ["cca.order"]}}, "'cca.order': only a temperature or a weight can be learned"),
        ({"cca": {}, "etht": {"learn": []}}, "distill.etht.learn is empty"),
        ({"cca": {"temperature": 50}, "etht": {}}, "distill.cca.temperature = 50 starts outside distill.etht.temperature"),
        ({"kd": {}}, "distill.kd: the student has 64 bins in x, the teacher 128; use head.split=4, or distill.cca"),
    ],
)
def test_wrong_methods_leave_no_folder(tmp_path, teacher, methods, answer):
    with pytest.raises(LowposeError) as e:
        train(taught(teacher, methods), tmp_path / "run")
    assert answer in str(e.value) and "\n" not in str(e.value) and not (tmp_path / "run").exists()


def test_worker_processes_read_the_kept_answers(tmp_path, teacher):
    """Open files do not travel into the workers; what they give is the same."""
    given = {"augment": {"views": 2}, "cache": {"dir": str(tmp_path / "cache")}}
    run = Run(taught({"weights": teacher, "cache": "merged"}, **given), tmp_path / "run")
    run.teaching.beside(0, 0)
    assert len(pickle.dumps(run.teaching.beside)) < 2000
    run.order.start, run.order.total = 0, 3
    here, there = (list(loop.training_loader(run.reader, run.order, n, False, run.teaching.beside)) for n in (0, 2))
    for ours, theirs in zip(here, there, strict=True):
        assert ours.teacher.keys() == {"map", "x", "y"}
        assert all(torch.equal(ours.teacher[name], theirs.teacher[name]) for name in ours.teacher)


def test_settings_that_were_left_out_can_be_put_back(tmp_path, teacher):
    (tmp_path / "base.yaml").write_text("distill: {sape: null}\n")
    config = load_config(tmp_path / "base.yaml", [f"teacher={teacher}", "distill.sape.weight=2"])
    assert config.distill == {"sape": {"weight": 2}} and config.teacher.weights == str(teacher)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_a_weight_is_a_number_that_pulls(tmp_path, teacher, value):
    with pytest.raises(LowposeError, match="distill.cca: 'weight'"):
        Run(taught(teacher, {"cca": {"weight": value}}), tmp_path / "run")
