"""What a recipe's model costs, without training it or reading its data."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from lowpose.config import RunConfig, from_scratch
from lowpose.data import find_reader
from lowpose.data.classes import load_classes
from lowpose.errors import LowposeError
from lowpose.nn.classifier import Classifier, build_classifier
from lowpose.nn.cost import count
from lowpose.nn.model import PoseModel, build_model
from lowpose.recipe_files import load_config
from lowpose.skeletons import COCO17, CROWDPOSE14, LSP14, MPII16, Skeleton, get_skeleton

KIND_SKELETONS = {"coco": COCO17, "synthetic": COCO17, "crowdpose": CROWDPOSE14, "mpii": MPII16, "lsp": LSP14}
KIND_CLASSES = {"cifar-10": 10, "tiny-imagenet": 200}


def info(recipe: str | Path, overrides: tuple[str, ...] | list[str] = ()) -> dict[str, Any]:
    """name, size, skeleton (or classes: how many), params, params_by_part, macs (products, FFT counted), macs_by_part,
    norm_macs and the `paper` block; with `model.downsampling` also `replaced`: path, was, params_before, params_after,
    macs_before and macs_after of each replaced layer.

    Raises: LowposeError for an unknown recipe, backbone or head, or a size that does not fit.
    """
    config = load_config(recipe, list(overrides))
    model = recipe_model(config)
    cost = count(model, config.input.size)
    out = {
        "name": config.name,
        "size": list(config.input.size),
        **({"classes": len(model.classes)} if isinstance(model, Classifier) else {"skeleton": model.skeleton.name}),
        "params": cost.params,
        "params_by_part": cost.params_by_part,
        "macs": cost.macs,
        "macs_by_part": cost.macs_by_part,
        "norm_macs": cost.norm_macs,
    }
    if model.backbone.replaced:
        out["replaced"] = [asdict(layer) for layer in model.backbone.replaced]
    if config.paper is not None:
        out["paper"] = config.paper.model_dump(exclude_none=True)
    return out


def recipe_model(config: RunConfig) -> PoseModel | Classifier:
    """The model of a recipe without weights, for the skeleton or the number of classes that its data have."""
    if config.task == "pose":
        return build_model(from_scratch(config), recipe_skeleton(config))
    return build_classifier(from_scratch(config), recipe_classes(config))


def recipe_classes(config: RunConfig) -> tuple[str, ...]:
    """The classes of a recipe's data: by number where they are known without its files, else by name from its folder."""
    find_reader("classes", config.data.kind)
    count = KIND_CLASSES.get(config.data.kind)
    return tuple(map(str, range(count))) if count else load_classes(config.data.kind, config.data.root, config.data.train).classes


def recipe_skeleton(config: RunConfig) -> Skeleton:
    """The skeleton of a recipe's data, from its settings alone (a custom COCO file must name it with data.skeleton)."""
    find_reader("data", config.data.kind)
    if config.data.skeleton:
        return get_skeleton(config.data.skeleton)
    if config.data.kind not in KIND_SKELETONS:
        raise LowposeError(
            f"the skeleton of '{config.data.kind}' data is in its files; name it, as data.skeleton=coco17 or a .yaml file"
        )
    return KIND_SKELETONS[config.data.kind]
