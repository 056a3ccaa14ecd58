"""Recipes with a teacher: every printed row is there, students are their baselines plus teaching, and all parts fit together."""

from __future__ import annotations

import math
import re

import pytest
import torch
from recipe_models import cost_of, model_of, parts, side_of
from typer.testing import CliRunner

from lowpose.cli import app
from lowpose.nn.distill.base import build_distillers
from lowpose.recipe_files import load_config, recipe_names

CONFIGS = {name: load_config(name) for name in recipe_names()}
PACKAGED = [name for name in CONFIGS if name.startswith("lspet/shipped")]  # of the weights that come with the package
TAUGHT = [name for name, config in CONFIGS.items() if config.teacher and not config.model.tokens and name not in PACKAGED]
PAPERS = [name for name in TAUGHT if not name.startswith("lspet/")]
OWN = [name for name in TAUGHT if name.startswith("lspet/")]
SHIPPED = "weights/lspet_simcc_hrnet-w18-small_128.safetensors"
M32, M64 = "mpii/{}_hrnet-w32_32", "mpii/{}_hrnet-w32_64"

# (table, row as the paper orders and names it, recipe, printed value); None: the value is only plotted
ROWS = [
    ("Table I", "Simcc (baseline), 32", M32.format("simcc"), 59.5),
    ("Table I", "CDKD, 32", M32.format("cdkd"), 61.3),
    ("Table I", "Simcc (baseline), 64", M64.format("simcc"), 78.3),
    ("Table I", "CDKD, 64", M64.format("cdkd"), 79.4),
    ("Table II", "SimCC (baseline), 32", "coco/simcc_hrnet-w32_32", 29.8),
    ("Table II", "CDKD, 32", "coco/cdkd_hrnet-w32_32", 30.7),
    ("Table II", "Simcc (baseline), 64", "coco/simcc_split2_hrnet-w48_64", 58.6),
    ("Table II", "CDKD, 64", "coco/cdkd_split2_hrnet-w48_64", 60.3),
    ("Table II", "Simcc (baseline)*, 64", "coco/simcc_hrnet-w48_64", 59.7),
    ("Table II", "CDKD*, 64", "coco/cdkd_hrnet-w48_64", 61.1),
    ("Table III", "Simcc (baseline), 64", "crowdpose/simcc_hrnet-w32_64", 46.5),
    ("Table III", "CDKD, 64", "crowdpose/cdkd_hrnet-w32_64", 47.0),
    ("Table III", "Simcc (baseline), 32", "crowdpose/simcc_hrnet-w32_32", 23.3),
    ("Table III", "CDKD, 32", "crowdpose/cdkd_hrnet-w32_32", 23.7),
    ("Table IV", "baseline, COCO", "coco/simcc_hrnet-w32_32", 29.8),
    ("Table IV", "projector, COCO", "coco/cdkd_projector_hrnet-w32_32", 30.3),
    ("Table IV", "projector, ensemble, COCO", "coco/cdkd_ensemble_hrnet-w32_32", 30.4),
    ("Table IV", "projector, ensemble, SAU, COCO", "coco/cdkd_sape_hrnet-w32_32", 30.6),
    ("Table IV", "NECM, COCO", "coco/cdkd_necm_hrnet-w32_32", 30.3),
    ("Table IV", "NECM, ETHT, COCO", "coco/cdkd_cca_hrnet-w32_32", 30.6),
    ("Table IV", "all, COCO", "coco/cdkd_hrnet-w32_32", 30.7),
    ("Table IV", "baseline, MPII", M64.format("simcc"), 78.37),
    ("Table IV", "projector, MPII", M64.format("cdkd_projector"), 78.73),
    ("Table IV", "projector, ensemble, MPII", M64.format("cdkd_ensemble"), 78.88),
    ("Table IV", "projector, ensemble, SAU, MPII", M64.format("cdkd_sape"), 78.95),
    ("Table IV", "NECM, MPII", M64.format("cdkd_necm"), 78.68),
    ("Table IV", "NECM, ETHT, MPII", M64.format("cdkd_cca"), 78.85),
    ("Table IV", "all, MPII", M64.format("cdkd"), 79.24),
    ("Table V", "Conv Downsample", M64.format("simcc_fitnets"), 78.2),
    ("Table V", "Fully Connected Layer, feature", M64.format("simcc_fc-feature"), 78.2),
    ("Table V", "SAPE", M64.format("cdkd_sape"), 78.8),
    ("Table V", "Same Class Number", M64.format("simcc_kd"), 75.2),
    ("Table V", "Fully Connected Layer, logits", M64.format("simcc_fc-class"), 78.0),
    ("Table V", "CCA", M64.format("cdkd_cca"), 78.8),
    ("Table VI", "1, 1, 1, 0", M64.format("cdkd_kernels-357"), 79.0),
    ("Table VI", "2, 1, 1, 0", M64.format("cdkd_kernels-3357"), 78.9),
    ("Table VI", "3, 1, 1, 0", M64.format("cdkd_kernels-33357"), 78.5),
    ("Table VI", "1, 2, 1, 0", M64.format("cdkd_kernels-3557"), 79.2),
    ("Table VI", "1, 1, 2, 0", M64.format("cdkd"), 79.4),
    ("Table VI", "1, 1, 1, 1", M64.format("cdkd_kernels-3579"), 79.0),
    ("Table VII", "Non-ETHT", M64.format("cdkd_no-etht"), 78.8),
    ("Table VII", "tau", M64.format("cdkd"), 79.4),
    ("Table VII", "tau, alpha", M64.format("cdkd_tau-alpha"), 79.1),
    ("Table VII", "tau, alpha, beta", M64.format("cdkd_tau-alpha-beta"), 79.2),
    *(("Fig. 6", f"sum, {k}", M64.format(f"cdkd_sum-{k}"), None) for k in (1, 2, 3, 4, 5)),
    *(("Fig. 6", f"SAU, {k}", M64.format(f"cdkd_sau-{k}"), None) for k in (2, 4, 5)),
    *(("Fig. 6", f"SAU+FC, {k}", M64.format(f"cdkd_deep-{d}-{k}"), None) for d in ("gap", "softmax") for k in (3, 5)),
    ("Fig. 6", "SAU, 3", M64.format("cdkd"), None),
    ("Table VIII", "teacher", "coco/simcc_hrnet-w48_256", 76.4),
    ("Table VIII", "baseline", "coco/simcc_resnet-50_64", 40.0),
    ("Table VIII", "student", "coco/cdkd_cca_resnet-50_64", 42.0),
    ("Table IX", "HRNet", "mpii/heatmap_hrnet-w32_64", 74.8),
    ("Table IX", "HRNet (+SAPE)", "mpii/heatmap_sape_hrnet-w32_64", 76.2),
    ("Table IX", "HRNet (Teacher)", "mpii/heatmap_hrnet-w32_256", 90.3),
    ("Table X", "CDKD", M64.format("cdkd"), 63.5),
]


@pytest.mark.parametrize(("table", "row", "recipe", "value"), ROWS, ids=lambda v: str(v))
def test_every_row_of_the_paper_is_a_recipe(table, row, recipe, value):
    """In its block, or, where one recipe stands for rows of several tables, in the block's note."""
    paper = load_config(recipe).paper
    if paper.table == table:
        assert paper.value == value
        assert paper.title.startswith("Cross-Domain Knowledge Distillation")
    elif value != paper.value:
        assert value is None or f"{value}" in paper.note
        assert value is not None or table in paper.note


def test_no_recipe_with_a_teacher_stands_for_no_row():
    assert set(PAPERS) <= {recipe for _, _, recipe, _ in ROWS}


def test_rows_without_a_value_are_listed():
    result = CliRunner().invoke(app, ["recipes"])
    assert result.exit_code == 0, result.output


def plain_of(name: str) -> str:
    """The recipe without a teacher that a student is compared with."""
    data, method, backbone, size = parts(name)
    head = "heatmap" if method.startswith("heatmap") else "simcc"
    return f"{data}/{head}{'_split2' if method.endswith('split2') else ''}_{backbone}_{size}"


@pytest.mark.parametrize("name", TAUGHT)
def test_a_student_is_its_baseline_with_a_teacher_and_nothing_else(name):
    split = ["head.split=12"] if name == M64.format("simcc_kd") else []
    student, plain = (load_config(n, o).model_dump() for n, o in ((name, []), (plain_of(name), split)))
    if name in OWN:
        views = [[values["augment"].pop(key) for key in ("views", "seed")] for values in (student, plain)]
        assert views == [[10, 0], [None, None]]
    for values in (student, plain):
        for key in ("name", "teacher", "distill", "paper", "note"):
            values.pop(key)
    assert student == plain
    ours, theirs = cost_of(name), cost_of(plain_of(name), *split)
    assert (ours.params, ours.macs) == (theirs.params, theirs.macs)


@pytest.mark.parametrize(
    ("recipe", "params"),
    [  # counted on the released code's students, which carry nothing of the teaching
        (M32.format("cdkd"), 28_548_593 - 33),  # one joint less than COCO's
        (M64.format("cdkd"), 28_634_801 - 33),
        ("coco/cdkd_hrnet-w32_32", 28_544_433),
        ("coco/cdkd_split2_hrnet-w48_64", 63_661_537),
        ("coco/cdkd_hrnet-w48_64", 63_694_433),
        ("coco/cdkd_cca_resnet-50_64", 34_098_385),
    ],
)
def test_parameters_of_students(recipe, params):
    assert cost_of(recipe).params == params


def test_table_x_counts_student_and_teacher_but_no_projectors():
    both = cost_of(M64.format("cdkd")).params + cost_of("mpii/simcc_hrnet-w32_256").params
    assert round(both / 1e6, 1) == 63.5
    assert "10.2 here" in load_config(M64.format("cdkd")).paper.note
    macs = cost_of(M64.format("cdkd")).macs + cost_of("mpii/simcc_hrnet-w32_256").macs
    assert round(macs / 2**30, 1) == 10.2


def teacher_of(name: str) -> str:
    """The recipe of a student's teacher."""
    weights = load_config(name).teacher.weights
    return "lspet/simcc_hrnet-w18-small_128" if weights == SHIPPED else weights.removeprefix("runs/")


@pytest.mark.parametrize("name", PAPERS)
def test_teachers_are_recipes_of_256_pixels_and_share_the_split_factor(name):
    data, method, backbone, size = parts(name)
    teacher = teacher_of(name)
    assert load_config(name).teacher.weights == f"runs/{teacher}" and teacher in recipe_names()
    want = "hrnet-w48" if backbone == "resnet-50" else backbone
    assert parts(teacher)[::2] == (data, want) and parts(teacher)[3] == 256
    student, other = model_of(name).head, model_of(teacher).head
    if method == "simcc_kd":
        assert student.bins == other.bins == (768, 768)
    elif method != "heatmap_sape":  # eq. 6: so many bins make one as pixels do
        assert tuple(b * 256 // size for b in student.bins) == other.bins
    assert load_config(teacher).teacher is None


@pytest.mark.parametrize("name", TAUGHT + PACKAGED)
def test_student_teacher_and_methods_fit_together(name):
    """All methods of the recipe are built for what both models answer; every term teaches the student."""
    config, student, teacher = load_config(name), side_of(name), side_of(teacher_of(name))
    assert model_of(name).skeleton is model_of(teacher_of(name)).skeleton
    distillers, curriculum = build_distillers(config.distill, student, teacher)
    assert {*distillers, *(["etht"] if curriculum else [])} == set(config.methods)
    torch.manual_seed(0)
    ours = {n: torch.randn(2, *shape).requires_grad_() for n, shape in student.shapes.items() if n in distillers.needs("student")}
    theirs = {n: torch.randn(2, *shape) for n, shape in teacher.shapes.items() if n in distillers.needs("teacher")}
    joints = torch.ones(2, model_of(name).head.num_keypoints)
    joints[1, 0] = 0
    terms = distillers(ours, theirs, joints)
    assert set(terms) == set(distillers)
    sum(term.total / term.count for term in terms.values()).backward()
    for output, value in ours.items():
        assert value.grad.abs().sum() > 0, output
    learned = curriculum.learned.values() if curriculum else ()
    assert all(p.grad is not None and p.grad != 0 for p in learned)


WANTED = {  # methods of the variants; what is not named is CDKD's own
    "projector": {"sape": {"projectors": 1, "fusion": "sum"}},
    "ensemble": {"sape": {"projectors": 3, "fusion": "sum"}},
    "sape": {"sape": {"projectors": 3, "fusion": "sau"}},
    "necm": {"cca": {}},
    "cca": {"cca": {}, "etht": {"learn": ["cca.temperature"]}},
    "no-etht": {"sape": {}, "cca": {}},
    "tau-alpha": {"sape": {}, "cca": {}, "etht": {"learn": ["cca.temperature", "sape.weight"]}},
    "tau-alpha-beta": {"sape": {}, "cca": {}, "etht": {"learn": ["cca.temperature", "sape.weight", "cca.weight"]}},
    "fitnets": {"fitnets": {}},
    "fc-feature": {"fc_feature": {}},
    "fc-class": {"fc_class": {}},
    "kd": {"kd": {}},
}


def wanted(variant: str) -> dict[str, dict]:
    if variant in WANTED:
        return WANTED[variant]
    whole = {
        "sape": {"projectors": 3, "fusion": "sau", "kernels": [3, 5, 7, 7]},
        "cca": {},
        "etht": {"learn": ["cca.temperature"]},
    }
    if found := re.fullmatch(r"kernels-(\d+)", variant):
        whole["sape"]["kernels"] = [int(k) for k in found[1]]
    elif found := re.fullmatch(r"(sum|sau|deep)(?:-(gap|softmax))?-(\d)", variant):
        whole["sape"] |= {"fusion": found[1], "projectors": int(found[3])} | ({"deep": found[2]} if found[2] else {})
    else:
        assert variant in ("", "split2"), variant
    return whole


@pytest.mark.parametrize("name", [n for n in TAUGHT if "released" not in n])
def test_methods_are_what_the_name_says(name):
    config, want = load_config(name), wanted(parts(name)[1].partition("_")[2])
    assert set(config.methods) == set(want)
    for method, settings in want.items():
        assert {key: config.distill[method][key] for key in settings} == settings, method


def test_the_weights_of_cdkd_stand_in_one_place():
    weights = {}
    for name in TAUGHT:
        if "released" not in name:
            for method, settings in load_config(name).distill.items():
                if settings and method in ("sape", "cca"):
                    weights.setdefault(method, set()).add((settings["weight"], settings.get("temperature")))
    assert {method: len(found) for method, found in weights.items()} == {"sape": 1, "cca": 1}


def test_own_students_learn_from_the_shipped_teacher():
    assert [name.removeprefix("lspet/") for name in OWN] == [
        "cdkd_hrnet-w18-small_32",
        "cdkd_hrnet-w18-small_64",
        "cdkd_released_hrnet-w18-small_32",
    ]
    for name in OWN:
        config, released = load_config(name), "released" in name
        assert config.teacher.weights == SHIPPED
        assert config.teacher.cache == ("full" if released else "merged")
        assert model_of(name).head.bins[0] == 3 * config.input.size[0]
        assert side_of(teacher_of(name)).shapes["x"] == (14, 384)  # 4 or 2 bins of the teacher make one


def test_packaged_students_see_half_of_their_views_from_afar():
    assert [parts(name)[1:] for name in PACKAGED] == [
        ("shipped", "hrnet-w18-small", 32),
        ("shipped", "hrnet-w18-small", 64),
        ("shipped_light", "hrnet-w18-small", 32),
    ]
    assert [load_config(name).model.enlarge for name in PACKAGED] == [2, 1, 1]
    for name in PACKAGED:
        config = load_config(name)
        assert config.teacher.weights == SHIPPED and config.distill["sape"] == WANTED["projector"]["sape"] | {"weight": 5}
        assert config.augment.camera == 0.5 and config.input.camera.height[0] < 32 and config.input.resample == "area"


def test_the_released_wiring():
    """Feature detached, tau a constant, tempered before merging, unmasked; the weight from the constants of MPII at 32 pixels."""
    config = load_config("lspet/cdkd_released_hrnet-w18-small_32")
    assert config.methods == ["cca"]
    cca = config.distill["cca"]
    assert cca["temperature"] == pytest.approx(1 + 20 / (1 + math.exp(-1)), abs=5e-4)
    batch, joints, beta, attention, task = 128, 16, 0.1, 0.4, 1000  # summed over batch and joints; the task's mean, times 1000
    assert cca["weight"] == pytest.approx(attention * beta * batch * joints / task, abs=5e-4)
    assert (cca["order"], cca["masked"]) == ("temper-first", False)
