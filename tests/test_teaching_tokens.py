"""Token students under a token teacher, through the real training path: what learns, live and cached, and across sizes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from taught import batches, steps, taught
from tiny import digest, tiny

from lowpose import training as loop
from lowpose.checkpoint import load_model, save_weights
from lowpose.errors import LowposeError
from lowpose.nn.model import build_model
from lowpose.progress import read_log
from lowpose.skeletons import COCO17
from lowpose.training import Run, train

KDGF = {
    "keypoint_tokens": {"weight": 0.0005},
    "visual_tokens": {"weight": 0.0005},
    "simulated_heatmap": {"weight": 1},
    "predicted_score": {"weight": 0.01},
}
CLASSES = {"keypoint_tokens": {"weight": 0.0005}, "visual_tokens": {"weight": 0.0005}, "heatmap_marginals": {}}
REGRESSION = {"name": "regression", "score": 0}
DYNAMIC, STATIC = {"name": "gfl-dynamic"}, {"name": "gfl-static", "transform": "dct"}


def net(patch: int, width: int, mixer: dict, backbone: str = "none") -> dict:
    tokens = {"patch": [patch, patch], "width": width, "depth": 2, "mixer": mixer}
    return {"backbone": backbone, "pretrained": "none", "deconv": [8, 8, 8], "tokens": tokens}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A small TokenPose of 64 px: 8 x 8 visual tokens of 24 numbers, heatmaps of 16 x 16 that depend on the picture."""
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    model = net(8, 24, {"name": "attention", "heads": 4})
    config = tiny(name="the teacher", input={"size": [64, 64]}, model=model, head={"name": "heatmap"})
    torch.manual_seed(1)
    built = build_model(config, COCO17).eval()
    with torch.no_grad():
        for p in [*built.tokens.parameters(), *built.head.parameters()]:
            if p.ndim > 1:
                p.normal_(std=p[0].numel() ** -0.5)
        noise = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 255
        built.head.final[-2].weight.mul_(0.3 / built(noise)["map"].std())
    save_weights(path, built, config)
    return path


def student(teacher, methods=KDGF, patch=4, width=16, mixer=DYNAMIC, head=REGRESSION, backbone="none", **sections):
    """Of 32 px; patches of 4: as many visual tokens as the teacher has."""
    return taught(teacher, methods, model=net(patch, width, mixer, backbone), head=head, **sections)


CASES = {
    "regression": {},
    "another grid": {"patch": 8},
    "a finer grid": {"patch": 2, "mixer": STATIC},
    "the teacher's width": {"width": 24, "mixer": STATIC},
    "of a backbone": {"patch": 2, "backbone": "test_resnet"},
    "simcc": {"methods": CLASSES, "head": {"name": "simcc"}, "patch": 8},
}


@pytest.mark.parametrize("case", CASES)
def test_every_parameter_but_the_teachers_learns(tmp_path, teacher, case):
    """Student and projections: each gets a gradient and moves; the teacher stays as it is, to the bit."""
    run = Run(student(teacher, **CASES[case]), tmp_path, False)
    methods, answers = run.teaching.distillers, run.teaching.teacher.model
    own = dict(run.bare.named_parameters())
    projections = {n: p for n, p in methods.named_parameters() if "project" in n}
    assert len(projections) == len(list(methods.parameters())) == (0 if case == "the teacher's width" else 4)
    taken = sorted(id(p) for group in run.optimizer.param_groups for p in group["params"])
    assert taken == sorted(map(id, [*own.values(), *projections.values()]))
    before = {n: p.detach().clone() for n, p in (own | projections).items()}
    unmoved = digest(answers.state_dict())
    values = steps(run, 2)
    for name, p in (own | projections).items():
        assert p.grad is not None and torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0, f"{name} gets no gradient"
        assert not torch.equal(p, before[name]), f"{name} does not move"
    assert digest(answers.state_dict()) == unmoved
    assert all(p.grad is None and not p.requires_grad for p in answers.parameters())
    terms = {"simcc", *CLASSES} if case == "simcc" else {"regression", *KDGF}
    assert all(line.keys() == {"loss", *terms} and all(math.isfinite(v) and v > 0 for v in line.values()) for line in values)


@pytest.mark.parametrize("case", ["regression", "another grid", "simcc"])
def test_cached_answers_teach_the_same(tmp_path, teacher, case):
    """Two steps with the live teacher and two with its answers kept as fp16: the same losses to fp16's rounding."""
    kept = {"augment": {"views": 2}, "cache": {"dir": str(tmp_path / "cache")}}
    recipe = CASES[case]
    live = Run(student(teacher, **recipe, **kept), tmp_path / "live", False)
    cached = Run(student({"weights": teacher, "cache": "full"}, **recipe, **kept), tmp_path / "cached", False)
    assert cached.teaching.teacher.model is None and digest(live.bare.state_dict()) == digest(cached.bare.state_dict())
    files = {p.name.split("-", 2)[2] for p in cached.teaching.beside.folder.glob("view-*.npy")}
    assert files == {"map.npy", "feature.npy", "keypoint_tokens.npy"}
    (one, two), (again, _) = batches(cached, 2), batches(live, 2)
    assert torch.equal(one.images, again.images) and one.teacher["feature"].dtype is torch.float16
    found, wanted, other = (
        {name: (t.total / t.count).item() for name, t in terms.items()}
        for terms in (
            loop.compute_loss(cached.model, cached.bare.head, one, cached.accelerator.autocast, cached.teaching),
            loop.compute_loss(live.model, live.bare.head, again, live.accelerator.autocast, live.teaching),
            swapped(cached, one, two),
        )
    )
    for name in recipe.get("methods", KDGF):
        assert found[name] == pytest.approx(wanted[name], rel=2**-9)
        assert abs(other[name] - wanted[name]) > 3 * abs(found[name] - wanted[name]), f"{name}: a wrong answer must show"
    for a, b in zip(steps(live, 2), steps(cached, 2), strict=True):
        assert a == pytest.approx(b, rel=2**-8)


def swapped(run: Run, batch, other):
    """The terms of a batch under the teacher's answers for another one."""
    kept, batch.teacher = batch.teacher, other.teacher
    terms = loop.compute_loss(run.model, run.bare.head, batch, run.accelerator.autocast, run.teaching)
    batch.teacher = kept
    return terms


def test_terms_are_those_of_both_models_answers(tmp_path, teacher):
    """The four terms of a step, from what both models say of its pictures, by NumPy; some joints lie outside the crop."""
    run = Run(student(teacher, width=24, augment={"shift": 0.3}), tmp_path, False)
    (batch,) = batches(run, 1)
    with torch.no_grad():
        ours = {n: v.double().numpy() for n, v in run.bare.train()(batch.images, inner=True).items()}
        theirs = run.teaching.teacher.model(batch.teacher["images"], inner=True)
        theirs = {n: v.double().numpy() for n, v in theirs.items()}
    seen = run.bare.head.targets(batch.keypoints, batch.weight)[1].numpy() > 0
    assert 0 < seen.sum() < seen.size and seen.any(1).all()
    want = {n: [] for n in KDGF}
    y, x = (np.mgrid[:16, :16] + 0.5) / 16
    for i, k in np.argwhere(seen):
        want["keypoint_tokens"].append(((ours["keypoint_tokens"][i, k] - theirs["keypoint_tokens"][i, k]) ** 2).mean())
        (u, v), (su, sv), maps = ours["xy"][i, k], ours["sigma"][i, k], theirs["map"][i, k]
        drawn = np.exp(-0.5 * (((x - u) / su) ** 2 + ((y - v) / sv) ** 2))
        want["simulated_heatmap"].append(((drawn - maps) ** 2).mean())
        want["predicted_score"].append(abs(ours["score"][i, k] - maps[int(v * 16), int(u * 16)]))
    want["visual_tokens"] = ((ours["feature"] - theirs["feature"]) ** 2).mean((1, 2, 3))
    (values,) = steps(run, 1)
    for name, settings in KDGF.items():
        assert values[name] == pytest.approx(settings["weight"] * np.mean(want[name]), rel=1e-4), name


def test_bfloat16_across_grids_stays_finite(tmp_path, teacher):
    """Ten steps under autocast, where both grids differ, tokens are projected, and nothing but the student is saved."""
    lively = {"precision": "bf16", "epochs": 5, "ema": 0.9}
    run = train(student(teacher, patch=8, train=lively), tmp_path / "run")
    lines = read_log(run / "metrics.jsonl")
    assert len(lines) == 10 and all(math.isfinite(v) for line in lines for v in line.values())
    model, config = load_model(run)
    assert config.head["name"] == "regression" and all(torch.isfinite(v).all() for v in model.state_dict().values())
    plain = build_model(config, COCO17)
    assert {k: v.shape for k, v in plain.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}


@pytest.mark.parametrize(
    "methods,head,answer",
    [
        (KDGF, {"name": "heatmap"}, "distill.simulated_heatmap needs the output 'xy', and the student gives only map, feature"),
        (KDGF, {"name": "simcc"}, "distill.simulated_heatmap needs the output 'xy', and the student gives only x, y, feature"),
        (CLASSES, REGRESSION, "distill.heatmap_marginals needs the output 'x', and the student gives only xy, score, sigma"),
        ({"cca": {}}, {"name": "simcc"}, "distill.cca needs the output 'x', and the teacher gives only map, feature"),
    ],
)
def test_methods_that_do_not_fit_leave_no_folder(tmp_path, teacher, methods, head, answer):
    with pytest.raises(LowposeError) as e:
        train(student(teacher, methods, head=head), tmp_path / "run")
    assert str(e.value).startswith(answer) and "\n" not in str(e.value) and not (tmp_path / "run").exists()
