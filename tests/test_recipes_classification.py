"""The recipes of MGIL's Table 4: printed values, costs, and what stands in the place of down-sampling layers."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from lowpose.cli import app
from lowpose.config import CLASSIFICATION, POSE_ONLY, RunConfig, parse_config
from lowpose.errors import LowposeError
from lowpose.nn.cost import count
from lowpose.recipe_files import load_config, recipe_names
from lowpose.recipe_info import recipe_model

NAMES = [name for name in recipe_names() if load_config(name).task == "classification"]
ROWS = {  # printed top-1
    "cifar-10/plain_resnet-50_32": ("ResNet50, CIFAR-10", 93.94),
    "cifar-10/mgil_resnet-50_32": ("MGIL (ours), CIFAR-10", 94.20),
    "tiny-imagenet/plain_resnet-18_64": ("ResNet18, TinyImageNet", 61.68),
    "tiny-imagenet/mgil_resnet-18_64": ("MGIL (ours), TinyImageNet", 63.61),
}
OURS = {f"cifar-10/{method}_resnet-18_32" for method in ("plain", "spd", "mgil")}


@cache
def model_of(name: str, *overrides: str):
    with torch.device("meta"):
        return recipe_model(load_config(name, overrides))


def test_every_recipe_is_a_row_or_ours():
    assert set(NAMES) == {*ROWS, *OURS}
    for name in NAMES:
        paper = load_config(name).paper
        assert (None if paper is None else (paper.row, paper.value)) == ROWS.get(name)
        if paper is not None:
            assert (paper.table, paper.metric) == ("Table 4", "top-1") and "neither the training nor the stem" in paper.note
            assert paper.title.startswith("Focus on Low-Resolution Information")


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_what_its_name_says(name):
    data, rest = name.split("/")
    method, backbone, size = rest.split("_")
    config, model = load_config(name), model_of(name)
    assert config.name == name and config.data.kind == data
    assert (config.data.train, config.data.val) == ("train", {"cifar-10": "test", "tiny-imagenet": "val"}[data])
    assert config.input.size == (int(size), int(size)) and config.input.padding == 1.0
    assert (config.model.backbone, config.model.stem, config.model.pretrained) == (backbone.replace("-", ""), "small", "none")
    assert (config.augment.flip, config.augment.shift, config.augment.whole_pixels) == (0.5, 0.125, True)
    assert (config.augment.scale, config.augment.rotation, config.augment.colour) == (0, 0, 0)
    t = config.train
    assert (t.epochs, t.batch_size, t.optimizer, t.lr, t.weight_decay, t.schedule) == (200, 128, "sgd", 0.1, 5e-4, "cosine")
    assert len(model.classes) == {"cifar-10": 10, "tiny-imagenet": 200}[data]
    assert model.backbone.feature_size == (int(size) // 8, int(size) // 8)
    left_out = {"name", "paper", "note", "model"}
    plain = load_config(f"{data}/plain_{backbone}_{size}")
    assert config.model_dump(exclude=left_out) == plain.model_dump(exclude=left_out)  # only the model differs, and in one thing
    assert config.model.model_copy(update={"downsampling": None}) == plain.model


@pytest.mark.parametrize(
    ("recipe", "change", "params", "gmac", "replaced"),
    [  # counted beforehand on other code for these networks
        ("cifar-10/plain_resnet-50_32", (), 23.5, 1.30, 0),
        ("cifar-10/plain_resnet-50_32", ("model.downsampling=spd",), 32.8, 1.64, 3),
        ("cifar-10/mgil_resnet-50_32", (), 54.6, 2.43, 3),
        ("tiny-imagenet/plain_resnet-18_64", (), 11.3, 2.22, 0),
        ("tiny-imagenet/plain_resnet-18_64", ("model.downsampling=spd",), 15.9, 2.90, 3),
        ("tiny-imagenet/mgil_resnet-18_64", (), 31.5, 5.17, 3),
    ],
)
def test_costs(recipe, change, params, gmac, replaced):
    model = model_of(recipe, *change)
    cost = count(model, model.input_size)
    assert (round(cost.params / 1e6, 1), round(cost.macs / 1e9, 2)) == (params, gmac)
    layer = "conv2" if "resnet-50" in recipe else "conv1"
    paths = [f"net.layer{i}.0.{layer}" for i in (2, 3, 4)]
    assert [r.path.removeprefix("net.") for r in model.backbone.replaced] == [p.removeprefix("net.") for p in paths[:replaced]]


def test_info_names_the_classes():
    result = CliRunner().invoke(app, ["info", "cifar-10/plain_resnet-18_32", "--json"])
    found = json.loads(result.stdout)
    assert (found["classes"], found["params"]) == (10, 11_173_962) and "skeleton" not in found
    assert found["params_by_part"]["head"] == 512 * 10 + 10 and found["macs_by_part"]["head"] == 512 * 10
    printed = CliRunner().invoke(app, ["info", "cifar-10/plain_resnet-18_32"]).stdout
    assert "cifar-10/plain_resnet-18_32 32x32, 10 classes" in " ".join(printed.split())


NOT_FOR_CLASSES = {
    "data.boxes": "found.json",
    "data.skeleton": "coco17",
    "augment.half_body": 0.3,
    "augment.half_body_joints": 4,
    "augment.camera": 0.5,
    "cache": {"dir": "cache"},
    "model.neck": "deconv",
    "model.deconv": [64],
    "model.tokens": {"patch": [2, 2]},
    "teacher": {"weights": "run"},
    "distill": {"cca": None},
    "eval.nms": 0.5,
    "eval.keypoint_threshold": 0.1,
}


def nested(path: str, value):
    for part in reversed(path.split(".")):
        value = {part: value}
    return value


@pytest.mark.parametrize("path", NOT_FOR_CLASSES)
def test_keys_of_poses_are_refused_by_name(path):
    values = {"task": "classification", **nested(path, NOT_FOR_CLASSES[path])}
    with pytest.raises(LowposeError) as error:
        parse_config(values, "recipe")
    assert str(error.value) == f"recipe: {path} is for poses; a recipe with task: classification leaves it out"
    assert set(NOT_FOR_CLASSES) == set(POSE_ONLY)


def test_what_a_recipe_does_not_say_and_what_it_does():
    config = parse_config({"task": "classification", "augment": {"shift": 0.2}, "head": {"smoothing": 0.1}}, "recipe")
    assert (config.data.kind, config.input.padding, config.eval.flip, config.model.neck) == ("folder", 1.0, False, "none")
    assert (config.augment.shift, config.augment.whole_pixels, config.augment.rotation) == (0.2, True, 0)
    assert config.head == {"name": "linear", "smoothing": 0.1}
    assert parse_config(config.model_dump(mode="json", exclude_none=True), "again") == config
    assert CLASSIFICATION["head"] == {"name": "linear"}  # left as it was
    pose = RunConfig()
    assert (pose.task, pose.input.padding, pose.augment.whole_pixels, pose.augment.scale) == ("pose", 1.25, False, 0.25)


def test_views_by_whole_pixels_are_not_for_a_teacher():
    """Its crop has other pixels: the same draw would be another view."""
    with pytest.raises(LowposeError, match="^recipe: augment.whole_pixels: a teacher's crop has other pixels"):
        parse_config({"teacher": "run", "distill": {"cca": {}}, "augment": {"whole_pixels": True, "shift": 0.1}}, "recipe")


STUDY = Path(__file__).resolve().parents[1] / "docs" / "studies" / "mgil"


@pytest.mark.skipif(not STUDY.is_dir(), reason="no docs beside the tests")
def test_the_recipes_of_the_study_differ_in_what_they_compare():
    plain, spd, mgil, wide = (load_config(STUDY / f"cifar_{name}.yaml") for name in ("plain", "spd", "mgil", "wide"))
    assert [c.model.downsampling and c.model.downsampling["name"] for c in (plain, spd, mgil)] == [None, "spd", "mgil"]
    for config in (spd, mgil, wide):
        assert config.model_dump(exclude={"name", "model"}) == plain.model_dump(exclude={"name", "model"})
    for config in (spd, mgil):
        assert config.model.model_copy(update={"downsampling": None}) == plain.model
    assert wide.model == plain.model.model_copy(update={"options": {"channels": [24, 48, 96, 192]}})
    full = load_config("cifar-10/plain_resnet-18_32").model
    assert plain.model == full.model_copy(update={"options": {"channels": [16, 32, 64, 128]}}) and plain.data.kind == "folder"
