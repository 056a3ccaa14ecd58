"""Recipes of token models: KDGF's 24 rows with and without distillation, their teachers, TokenPose and DistilPose."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from recipe_models import cost_of, crop, model_of, parts, side_of
from scipy.special import log_softmax

from lowpose.checkpoint import save_weights
from lowpose.config import parse_config
from lowpose.nn.distill.base import build_distillers
from lowpose.nn.model import build_model
from lowpose.recipe_files import load_config, recipe_names
from lowpose.skeletons import LSP14

RESULTS = Path(__file__).parents[1] / "docs" / "results"
TITLE = "Knowledge Distillation with Global Filters for Efficient Human Pose Estimation"
TEACHER = "mpii/tokenpose_b_hrnet-w48_256"
POSITIONS = 49_152  # numbers of the fixed sine table, which the paper counts as parameters
A, B, S1, S2 = "poster, Table A", "poster, Table B", "supplement, Table 1", "supplement, Table 2"
W32, W48 = "hrnet-w32", "hrnet-w48"

# as printed: table, outputs, mixer, backbone, PCKh without and with distillation, parameters (M), GFLOPs; then the
# parameters (M) of the reconstruction that uses the native grid, counted apart from this library
ROWS = [
    (A, "regression", "fft-gs", "none", 40.07, 65.3, "3.61", 0.77, 3.6133),
    (A, "regression", "fft-gd", "none", 48.97, 76.0, "6.39", 1.28, 6.3919),
    (A, "regression", "fft-gs", W32, 71.90, 87.7, "11.25", 7.13, 11.2497),
    (A, "regression", "fft-gd", W32, 67.81, 87.7, "14.03", 7.64, 14.0284),
    (A, "regression", "fft-gs", W48, 71.0, 87.9, "20.3", 12.9, 20.3191),
    (A, "regression", "attention", "none", 46.8, 79.30, "4.72", 1.6, 4.7215),
    (A, "regression", "attention", W32, 68.39, 88.73, "12.36", 7.95, 12.3580),
    (A, "regression", "attention", W48, 72.8, 88.61, "21.4", 13.8, 21.4273),
    (B, "simcc", "fft-gs", "none", 69.2, 77.87, "3.73", 0.78, 3.7341),
    (B, "simcc", "fft-gd", "none", 77.48, 80.63, "6.51", 1.28, 6.5127),
    (B, "simcc", "fft-gs", W32, 88.13, 89.40, "11.37", 7.13, 11.3706),
    (B, "simcc", "fft-gd", W32, 87.67, 89.25, "14.14", 7.63, 14.1492),
    (B, "simcc", "fft-gs", W48, 88.87, 89.5, "20.4", 13, 20.4399),
    (B, "simcc", "attention", "none", 78.42, 81.94, "4.84", 1.60, 4.8423),
    (B, "simcc", "attention", W32, 88.83, 89.97, "12.48", 7.96, 12.4788),
    (B, "simcc", "attention", W48, 89.07, 90.3, "21.5", 13.8, 21.5481),
    (S1, "simcc", "dct-gs", "none", 67.64, 76.21, "3.69", 0.79, 3.6972),
    (S1, "simcc", "dct-gd", "none", 69.36, 72.77, "6.47", 1.29, 6.4751),
    (S1, "simcc", "dct-gs", W32, 88.93, 89.16, "11.33", 7.14, 11.3337),
    (S1, "simcc", "dct-gd", W32, 88.0, 89.58, "14.11", 7.64, 14.1116),
    (S2, "regression", "dct-gs", "none", 49.82, 64.45, "3.58", 0.78, 3.5764),
    (S2, "regression", "dct-gd", "none", 36.47, 67.3, "6.35", 1.28, 6.3543),
    (S2, "regression", "dct-gs", W32, 70.58, 87.73, "11.21", 7.14, 11.2129),
    (S2, "regression", "dct-gd", W32, 65.94, 87.09, "13.99", 7.64, 13.9908),
]
BACKBONES = {"none": "none", "hrnet-stem": "hrnet_w32", W32: "hrnet_w32", W48: "hrnet_w48"}
TOKENS = [name for name in recipe_names() if name.startswith(("mpii/", "coco/")) and load_config(name).model.tokens]


def names(head: str, mixer: str, backbone: str) -> tuple[str, str]:
    """Recipes of a row, without and with distillation."""
    return f"mpii/{head}_{mixer}_{backbone}_256", f"mpii/{head}_{mixer}-kd_{backbone}_256"


PLAIN = [names(*row[1:4])[0] for row in ROWS]
TAUGHT = [names(*row[1:4])[1] for row in ROWS]
DISTILPOSE = {"coco/distilpose_s_hrnet-stem_256x192", "coco/distilpose_l_hrnet-w48_256x192"}


def test_every_row_is_there_once():
    stand = {name: load_config(name).paper for name in TOKENS}
    stand = {name: (paper.table, paper.row) for name, paper in stand.items() if paper and paper.title == TITLE}
    assert set(stand) == {*PLAIN, *TAUGHT} and len(stand) == 48 == len(set(stand.values()))
    assert [sum(row[0] == table for row in ROWS) for table in (A, B, S1, S2)] == [8, 8, 4, 4]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: " ".join(row[:4]))
def test_printed_values(row):
    table, head, mixer, backbone, without, distilled, params, gflops, _ = row
    words = {"none": "no backbone", W32: "HRNet-W32", W48: "HRNet-W48"}[backbone]
    way, _, weights = mixer.upper().partition("-")
    label = ", ".join([way if weights else "Attention", words, *([weights] if weights else [])])
    for name, value, taught in zip(names(head, mixer, backbone), (without, distilled), ("", ", with distillation"), strict=True):
        paper = load_config(name).paper
        assert (paper.table, paper.row, paper.metric) == (table, f"{label}{taught}, 256 x 256", "PCKh@0.5")
        assert (paper.value, paper.params_m, paper.gmacs) == (value, float(params), gflops)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: " ".join(row[:4]))
def test_parameters_and_macs_are_the_printed_ones(row):
    _, head, mixer, backbone, _, _, params, gflops, plain = row
    cost = cost_of(names(head, mixer, backbone)[0])
    counted = (cost.params + POSITIONS) / 1e6
    assert round(counted, 4) == plain
    assert abs(counted - float(params)) <= (0.05 if len(params.partition(".")[2]) == 1 else 0.01)
    assert abs(cost.published_macs / 1e9 / gflops - 1) <= 0.02
    taught = cost_of(names(head, mixer, backbone)[1])
    assert (taught.params, taught.published_macs) == (cost.params, cost.published_macs)


@pytest.mark.parametrize("name", [name for name in PLAIN if "-gd_" in name])
def test_the_counts_of_dynamic_rows_hold_a_static_filter_that_the_equations_lack(name):
    cost, equations = cost_of(name), cost_of(name, "model.tokens.mixer.static=false")
    numbers = 16 * 9 * 192 * 2 if "fft" in name else 16 * 17 * 192  # a grid of 16 x 17: complex, 9 of 17 columns; real, all
    assert cost.params - equations.params == 12 * numbers
    transforms = round(2 * 192 * 16 * 17 * np.log2(16 * 17))
    assert cost.published_macs - equations.published_macs == 12 * transforms
    for recipe in (name, name.replace("-gd_", "-gd-kd_")):
        assert "static filter" in load_config(recipe).paper.note


def test_results_page_is_current(monkeypatch):
    monkeypatch.syspath_prepend(RESULTS)  # as for a script that is run
    counts = runpy.run_path(str(RESULTS / "counts.py"))
    assert counts["rows"]() == PLAIN
    page = (RESULTS / "kdgf.md").read_text()
    assert counts["fill"](page, {"counts": counts["table"](cost_of)}) == page


@pytest.mark.parametrize("name", TOKENS)
def test_a_token_recipe_is_what_its_name_says(name):
    data, method, backbone, _ = parts(name)
    config, model = load_config(name), model_of(name)
    kind = method.partition("_")[0]
    assert (config.name, config.data.kind, config.input.size) == (name, data, crop(name))
    assert config.model.backbone == BACKBONES[backbone]
    whole = method == "tokenpose_teacher"
    assert config.model.stages == {"none": None, "hrnet-stem": 1}.get(backbone, None if whole else 3)
    assert config.head["name"] == {"tokenpose": "heatmap", "distilpose": "regression"}.get(kind, kind)
    assert (config.teacher is not None) == (method.endswith("-kd") or kind == "distilpose")
    assert config.paper or config.note
    stride = 1 if backbone == "none" else 4
    tokens = [side // stride // patch for side, patch in zip(config.input.size, config.model.tokens.patch, strict=True)]
    assert tokens == ([24, 32] if "s-v2" in name else [16, 16])
    assert (model.tokens.grid.width, model.tokens.grid.height, model.tokens.grid.keypoints) == (
        *tokens,
        {"coco": 17, "mpii": 16}[data],
    )


@pytest.mark.parametrize("name", TOKENS)
def test_published_training(name):
    data, method, backbone, _ = parts(name)
    config = load_config(name)
    t, a = config.train, config.augment
    assert (t.epochs, t.milestones, t.gamma, t.optimizer, t.lr) == (300, (200, 260), 0.1, "adam", 1e-3)
    assert (t.weight_decay, t.schedule, t.precision, t.ema, t.clip) == (0, "multistep", "no", None, None)
    teacher = method == "tokenpose_teacher"
    assert t.warmup_steps == (500 if teacher or name in DISTILPOSE else 0)
    batches = {"tokenpose_s-v2": 48, "tokenpose_l-d24": 64, "tokenpose_teacher": 512, "distilpose_s": 256, "distilpose_l": 256}
    assert t.batch_size == (64 if data == "mpii" else batches.get(method, 128))
    assert (a.scale, a.rotation, a.half_body) == (
        (0.5, 40, 0.3) if teacher else (0.35, 45, 0.3) if data == "coco" else (0.25, 30, 0)
    )
    assert (a.flip, config.eval.flip, config.input.resample) == (0.5, True, "paper")
    trunk = "none" if backbone in ("none", "hrnet-stem") else "imagenet"
    begins = {"distilpose_l": "runs/coco/tokenpose_teacher_hrnet-w48_256x192/weights.safetensors"}
    assert config.model.pretrained == begins.get(method, trunk)


@pytest.mark.parametrize("name", TOKENS)
def test_published_architecture(name):
    config, method = load_config(name), parts(name)[1]
    tokens = config.model.tokens
    kind, _, variant = method.partition("_")
    depth = {"l-d24": 24, "l-d6": 6}.get(variant, 12)
    assert (tokens.width, tokens.depth, tokens.mlp_ratio, tokens.residual) == (192, depth, 3, "double")
    assert tokens.taps == {"l-d24": (8, 16, 24), "l-d6": (2, 4, 6)}.get(variant, ())
    way, _, weights = variant.removesuffix("-kd").partition("-")
    if weights == "gs":
        assert tokens.mixer == {"name": "gfl-static", "transform": way}
    elif weights == "gd":
        assert tokens.mixer == {"name": "gfl-dynamic", "transform": way, "static": True}
    else:
        heads = {"t": 16, "l-d24": 12}.get(variant, 8)
        scale = (192 if variant.startswith("s-v") else 192 // heads) ** -0.5
        mixers = [layer.mixer for layer in model_of(name).tokens.layers]
        assert {(mixer.heads, mixer.scale) for mixer in mixers} == {(heads, scale)}
    head = model_of(name).head
    if kind == "tokenpose":
        assert (head.sigma, head.blur, head.config.target, head.config.decode) == (2, 11, "continuous", "dark")
        assert head.map_size == tuple(side // 4 for side in config.input.size)
        widths = [m.out_features for m in head.final.modules() if isinstance(m, torch.nn.Linear)]
        cells = head.map_size[0] * head.map_size[1]
        assert widths == ([cells] if variant.startswith("l-d") else [cells // 8, cells])
    elif kind == "simcc":
        assert (head.bins, head.config.target, head.sigma(0)) == ((512, 512), "gaussian", 6)
    else:
        widths = [m.out_features for m in head.final.modules() if isinstance(m, torch.nn.Linear)]
        assert widths == ([5] if kind == "distilpose" else [384, 5])
        assert config.head["score"] == 0


@pytest.mark.parametrize(
    ("name", "counted", "printed"),
    [  # M: the published models with the sine table, as counted on them; printed, TokenPose without the table
        ("coco/tokenpose_t_none_256x192", 5.87, 5.8),
        ("coco/tokenpose_s-v1_hrnet-stem_256x192", 6.67, 6.6),
        ("coco/tokenpose_s-v2_hrnet-stem_256x192", 6.37, 6.2),
        ("coco/tokenpose_b_hrnet-w32_256x192", 13.51, 13.5),
        ("coco/tokenpose_l-d24_hrnet-w48_256x192", 27.53, 27.5),
        ("mpii/tokenpose_l-d6_hrnet-w48_256", 21.49, None),
        ("mpii/tokenpose_b_hrnet-w32_256", 14.48, None),
        (TEACHER, 23.55, None),
    ],
)
def test_parameters_of_tokenpose(name, counted, printed):
    grid = model_of(name).tokens.grid
    params = cost_of(name).params
    assert abs((params + 192 * grid.height * grid.width) / 1e6 - counted) < 0.0051
    paper = load_config(name).paper
    assert (paper.params_m if paper else None) == printed
    assert printed is None or abs(params / 1e6 - printed) < 0.051


@pytest.mark.parametrize(
    ("name", "params", "gflops", "value"),
    [
        ("coco/distilpose_s_hrnet-stem_256x192", "5.4", 2.38, 71.6),
        ("coco/distilpose_l_hrnet-w48_256x192", "21.3", 10.33, 74.4),
        ("coco/tokenpose_teacher_hrnet-w48_256x192", "69.4", 17.03, 75.2),
    ],
)
def test_costs_of_distilpose(name, params, gflops, value):
    """Printed with the sine table, but the teacher's; without attention's products among tokens."""
    paper, cost = load_config(name).paper, cost_of(name)
    assert (paper.params_m, paper.gmacs, paper.value, paper.metric) == (float(params), gflops, value, "AP")
    table = 0 if "teacher" in name else POSITIONS
    assert f"{(cost.params + table) / 1e6:.1f}" == params
    if name.startswith("coco/distilpose_s"):
        assert cost.params + POSITIONS == 5_413_253
    attention = 12 * 2 * (256 + 17) ** 2 * 192
    assert abs((cost.macs - attention) / 1e9 / gflops - 1) < 0.01


def test_printed_values_of_tokenpose():
    printed = {"t_none": (65.6, 1.3), "s-v1_hrnet-stem": (72.5, 2.2), "s-v2_hrnet-stem": (73.5, 11.6)}
    printed |= {"b_hrnet-w32": (74.7, 5.7), "l-d24_hrnet-w48": (75.8, 11.0)}
    for name, (value, gflops) in printed.items():
        paper = load_config(f"coco/tokenpose_{name}_256x192").paper
        assert (paper.value, paper.gmacs, paper.metric) == (value, gflops, "AP")
        assert paper.title.startswith("TokenPose") and paper.row.endswith("256 x 192")


@pytest.mark.parametrize(("plain", "name"), list(zip(PLAIN, TAUGHT, strict=True)))
def test_a_student_is_its_baseline_with_a_teacher_and_nothing_else(plain, name):
    student, base = load_config(name).model_dump(), load_config(plain).model_dump()
    assert student["teacher"]["weights"] == f"runs/{TEACHER}" and base["teacher"] is None and base["distill"] == {}
    for values in (student, base):
        for key in ("name", "teacher", "distill", "paper", "note"):
            values.pop(key)
    assert student == base
    assert "teacher is not named" in load_config(name).paper.note


def test_teachers_are_recipes_that_learn_from_nobody():
    for name in (*TAUGHT, *DISTILPOSE):
        teacher = load_config(name).teacher.weights.removeprefix("runs/")
        assert load_config(teacher).teacher is None and load_config(teacher).head["name"] == "heatmap"
    for width in (32, 48):
        assert "names none" in load_config(f"mpii/tokenpose_b_hrnet-w{width}_256").note


@pytest.mark.parametrize("teacher", ["mpii/tokenpose_b_hrnet-w32_256", TEACHER])
@pytest.mark.parametrize("name", TAUGHT)
def test_tokens_of_teachers_match_those_of_students(name, teacher):
    student, side = side_of(name), side_of(teacher)
    assert student.shapes["keypoint_tokens"] == side.shapes["keypoint_tokens"] == (16, 192)
    assert student.shapes["feature"] == side.shapes["feature"] == (192, 16, 16)
    assert side.shapes["map"] == (16, 64, 64)


def teaching(name: str, *overrides: str):
    """Methods of a student's recipe, and random answers of both sides for three persons (numbers from a seed)."""
    config = load_config(name, overrides)
    student, side = side_of(name), side_of(config.teacher.weights.removeprefix("runs/"))
    methods, _ = build_distillers(config.distill, student, side)
    make = torch.Generator().manual_seed(0)
    ours = {n: torch.rand(3, *shape, generator=make).requires_grad_() for n, shape in student.shapes.items()}
    return methods, ours, {n: torch.rand(3, *shape, generator=make) for n, shape in side.shapes.items()}


@pytest.mark.parametrize("name", [*TAUGHT, *sorted(DISTILPOSE)])
def test_student_teacher_and_methods_fit_together(name):
    methods, ours, theirs = teaching(name)
    assert not list(methods.parameters())  # tokens need no projection
    regression = ["keypoint_tokens", "visual_tokens", "simulated_heatmap", "predicted_score"]
    assert list(methods) == (regression[:2] if "simcc" in name else regression)
    terms = methods(ours, theirs, torch.ones(3, len(model_of(name).skeleton)))
    sum(term.total / term.count for term in terms.values()).backward()
    for output in methods.needs("student"):
        assert ours[output].grad.abs().sum() > 0, output


def ours_in_total(name: str, methods, ours, theirs, targets) -> float:
    """The loss as the training loop adds it up; all joints are labelled."""
    head = model_of(name).head
    joints = torch.ones(3, len(head.skeleton))
    with torch.no_grad():
        total = sum(head.loss(ours, targets, joints).values()) / joints.sum()
        return float(total + sum(term.total / term.count for term in methods(ours, theirs, joints).values()))


@pytest.mark.parametrize("name", ["mpii/regression_fft-gs-kd_none_256", "coco/distilpose_s_hrnet-stem_256x192"])
def test_the_loss_of_regression_students_is_the_published_one(name):
    """DistilPose's five terms, means over batch and joints, in float64; cells by their centres, as everywhere here."""
    methods, ours, theirs = teaching(name)
    with torch.no_grad():
        ours["sigma"] *= 0.2
    targets = {"xy": torch.rand(ours["xy"].shape, generator=torch.Generator().manual_seed(1))}
    o, t, goal = ({n: v.detach().double().numpy() for n, v in side.items()} for side in (ours, theirs, targets))
    apart = np.abs(o["xy"] - goal["xy"])
    loss = np.mean(np.where(apart < 1, apart**2 / 2, apart - 0.5))
    loss += 0.0005 * np.mean((o["keypoint_tokens"] - t["keypoint_tokens"]) ** 2)
    loss += 0.0005 * np.mean((o["feature"] - t["feature"]) ** 2)
    h, w = t["map"].shape[2:]
    mu, sigma = o["xy"] * (w, h), o["sigma"] * (w, h)
    x = ((np.arange(w) + 0.5 - mu[..., :1]) / sigma[..., :1])[:, :, None]
    y = ((np.arange(h) + 0.5 - mu[..., 1:]) / sigma[..., 1:])[..., None]
    loss += 1.0 * np.mean((np.exp(-0.5 * (x**2 + y**2)) - t["map"]) ** 2)
    column, row = np.floor(mu).astype(int).transpose(2, 0, 1)
    there = np.take_along_axis(t["map"].reshape(*mu.shape[:2], -1), (row * w + column)[..., None], -1)[..., 0]
    loss += 0.01 * np.mean(np.abs(o["score"] - there))
    assert ours_in_total(name, methods, ours, theirs, targets) == pytest.approx(loss, rel=1e-5)


def test_tokens_of_classification_students_have_their_share_of_the_published_loss():
    """SimCC's divergence is a mean over bins, ours a sum: all of the loss is 512 times the published one."""
    name = "mpii/simcc_fft-gs-kd_none_256"
    methods, ours, theirs = teaching(name)
    keypoints = 256 * torch.rand(3, 16, 2, generator=torch.Generator().manual_seed(1))
    targets, _ = model_of(name).head.targets(keypoints, torch.ones(3, 16))
    o, t, goal = ({n: v.detach().double().numpy() for n, v in side.items()} for side in (ours, theirs, targets))
    loss = 0.0
    for axis in "xy":
        p = np.maximum(goal[axis], 1e-300)
        loss += np.mean(goal[axis] * (np.log(p) - log_softmax(o[axis], -1)))
    loss += 0.0005 * np.mean((o["keypoint_tokens"] - t["keypoint_tokens"]) ** 2)
    loss += 0.0005 * np.mean((o["feature"] - t["feature"]) ** 2)
    assert ours_in_total(name, methods, ours, theirs, targets) == pytest.approx(512 * loss, rel=1e-5)


def test_the_teachers_term_of_classification_is_an_option():
    name = "mpii/simcc_dct-gd-kd_hrnet-w32_256"
    methods, ours, theirs = teaching(name, "distill.heatmap_marginals.weight=1")
    term = methods(ours, theirs, torch.ones(3, 16))["heatmap_marginals"]
    assert float(methods["heatmap_marginals"].weight) == 1 and term.total > 0
    for taught in TAUGHT:
        assert "simcc" not in taught or "distill.heatmap_marginals.weight=1" in load_config(taught).paper.note


def test_a_trunk_begins_as_that_of_a_run(tmp_path):
    """DistilPose-L: the first stages of the teacher's HRNet, from its weights file; nothing else of it."""

    def recipe(**model):
        tokens = {"patch": [4, 4], "depth": 1, "width": 8, "mixer": {"name": "attention", "heads": 2}}
        values = {"input": {"size": [64, 64]}, "model": {"backbone": "hrnet_w18_small", "tokens": tokens, **model}}
        return parse_config({**values, "head": {"name": "heatmap", "hidden": 0}}, "tiny")

    torch.manual_seed(0)
    config = recipe(pretrained="none")
    teacher = build_model(config, LSP14)
    save_weights(tmp_path / "weights.safetensors", teacher, config)
    student = build_model(recipe(pretrained=str(tmp_path / "weights.safetensors"), stages=3), LSP14)
    theirs, own = teacher.state_dict(), student.state_dict()
    trunk = [name for name in own if name.startswith("backbone.")]
    assert len(trunk) > 100 and all(torch.equal(own[name], theirs[name]) for name in trunk)
    assert not torch.equal(own["tokens.embed.weight"], theirs["tokens.embed.weight"])
