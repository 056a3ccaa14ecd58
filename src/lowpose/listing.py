"""What ships with the package, as lists: recipes with their published rows. Needs no torch."""

from __future__ import annotations

from typing import Any

from lowpose.recipe_files import load_config, recipe_names


def list_recipes() -> list[dict[str, Any]]:
    """One mapping per recipe: name, data, backbone, head, size, epochs and, for a published row, `paper`.

    `paper` has title, table, row, metric and value, and params_m and gmacs where they are printed.
    """
    return [_entry(name) for name in recipe_names()]


def _entry(name: str) -> dict[str, Any]:
    config = load_config(name)
    entry = {
        "name": name,
        "data": config.data.kind,
        "backbone": config.model.backbone,
        "head": config.head["name"],
        "size": list(config.input.size),
        "epochs": config.train.epochs,
    }
    if config.paper is not None:
        entry["paper"] = config.paper.model_dump(exclude_none=True)
    return entry
