"""Models of the shipped recipes without memory or numbers, built once for all recipes that share them."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from functools import cache

import torch

from lowpose.config import ModelConfig
from lowpose.nn.backbones import build_backbone
from lowpose.nn.cost import Cost, count
from lowpose.nn.distill.base import Side, describe
from lowpose.nn.model import PoseModel, assemble
from lowpose.recipe_files import load_config
from lowpose.recipe_info import recipe_skeleton

_MODELS: dict[tuple, PoseModel] = {}


def parts(name: str) -> tuple[str, str, str, int]:
    """Data, method (with its variant), backbone ('none': no backbone) and height of the crop, as the name of a recipe says."""
    found = re.fullmatch(r"([a-z]+)/([a-z0-9]+(?:_[a-z0-9-]+)?)_(none|[a-z0-9]+(?:-[a-z0-9]+)+)_(\d+)(?:x\d+)?", name)
    assert found, f"'{name}' is not DATA/METHOD_BACKBONE_SIZE or DATA/METHOD_VARIANT_BACKBONE_SIZE"
    return found[1], found[2], found[3], int(found[4])


def crop(name: str) -> tuple[int, int]:
    """Width and height as the name of a recipe says: 64, or height x width as in 256x192."""
    height, _, width = name.rpartition("_")[2].partition("x")
    return int(width or height), int(height)


@cache
def backbone_of(model: str, size: tuple[int, int]):
    """`model`: the recipe's section as JSON, tokens aside."""
    settings = json.loads(model)
    tokens = {} if settings["backbone"] == "none" else None  # without a backbone there must be some
    with torch.device("meta"):
        return build_backbone(ModelConfig.model_validate(settings | {"pretrained": "none", "tokens": tokens}), size)


@cache
def model_of(recipe: str, *overrides: str) -> PoseModel:
    """Backbone on the meta device, head on the CPU."""
    config = load_config(recipe, overrides)
    assert config.model.deconv == (256, 256, 256)
    frame = (config.model.model_dump_json(exclude={"tokens", "pretrained"}), config.input.size)
    key = (
        *frame,
        config.model.tokens and config.model.tokens.model_dump_json(),
        json.dumps(config.head, sort_keys=True),
        config.data.kind,
    )
    if key not in _MODELS:
        backbone, skeleton = backbone_of(*frame), recipe_skeleton(config)
        _MODELS[key] = assemble(config, backbone, skeleton)
    return _MODELS[key]


@cache
def _whole(model: PoseModel) -> PoseModel:
    """All of it on the meta device."""
    return PoseModel(model.backbone, deepcopy(model.head), model.skeleton, deepcopy(model.tokens)).to("meta")


_cost = cache(lambda model: count(_whole(model), model.input_size))
_side = cache(lambda model: describe(_whole(model)))


def cost_of(recipe: str, *overrides: str) -> Cost:
    return _cost(model_of(recipe, *overrides))


def side_of(recipe: str, *overrides: str) -> Side:
    return _side(model_of(recipe, *overrides))
