"""Recipe files are YAML: `base: NAME` (or a list) names recipes to start from, `key.sub=value` overrides come last."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from lowpose.config import RunConfig, in_full, merge, parse_config
from lowpose.errors import LowposeError, did_you_mean, yaml_problem

RECIPES = Path(__file__).parent / "recipes"
# overrides that leave a recipe the published row that it was
HARMLESS = (
    *("data.root=", "data.boxes=", "cache.", "teacher.weights=", "teacher.cache=", "eval.batch_size=", "train.seed="),
    *("train.workers=", "train.save_every=", "train.log_every=", "train.eval_every=", "name="),
)


def recipe_names() -> list[str]:
    """Names of the recipes that ship with the package, `DATA/METHOD_BACKBONE_SIZE`."""
    found = (p.relative_to(RECIPES).with_suffix("").as_posix() for p in RECIPES.rglob("*.yaml"))
    return sorted(name for name in found if not name.startswith("_"))


def load_config(recipe: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """The recipe of this name or file, with `key.sub=value` overrides.

    Raises: LowposeError for an unknown recipe or key (nearest name offered) or a value of the wrong kind.
    """
    values = _read_recipe(recipe)
    published = "paper" in values
    values = apply_overrides(values, overrides)
    named = [item for item in overrides if item.startswith("teacher=") and "{" not in item]  # another file of the same teacher
    changes = [item for item in overrides if not item.startswith(HARMLESS) and item not in named]
    if published and changes:  # the row is of the recipe as it stands
        values.pop("paper", None)
        values["note"] = f"changed from {recipe}: {' '.join(map(shorten_paths, changes))}"
    return parse_config(values, str(recipe))


def apply_overrides(values: dict[str, Any], overrides: list[str] | tuple[str, ...]) -> dict[str, Any]:
    """`values` with `key.sub=value` texts put in; the values are YAML."""
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals or not key:
            raise LowposeError(f"'{item}': an override is key=value, as train.epochs=10")
        try:
            _put(values, key.split("."), yaml.safe_load(text), item)
        except yaml.YAMLError:
            raise LowposeError(f"'{item}': the value is not YAML") from None
    return values


def recipe_path(recipe: str | Path) -> Path:
    """The YAML file of a recipe: a path, a run folder's recipe, or a name that ships with the package."""
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise LowposeError(f"{path}: no such recipe file")
        return path
    shipped = RECIPES / f"{recipe}.yaml"
    if not shipped.is_file():
        raise LowposeError(f"unknown recipe '{recipe}'{did_you_mean(str(recipe), recipe_names())} (see: lowpose recipes)")
    return shipped


def read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise LowposeError(f"{path}: not YAML ({yaml_problem(e)})") from None
    if not isinstance(values, dict):
        raise LowposeError(f"{path}: a recipe is a mapping of keys to values")
    return values


def _read_recipe(recipe: str | Path, depth: int = 0) -> dict[str, Any]:
    values = read_yaml(recipe_path(recipe))
    if depth > 8:
        raise LowposeError(f"{recipe}: 'base' recipes form a circle")
    bases = values.pop("base", [])
    merged: dict[str, Any] = {}
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise LowposeError(f"{recipe}: 'base' is the name of a recipe, or a list of names")
    for base in bases:
        beside = recipe_path(recipe).parent / base
        inherited = _read_recipe(beside if beside.suffix in (".yaml", ".yml") else base, depth + 1)
        # what is derived from a published row is not that row
        merged = merge(merged, {k: v for k, v in inherited.items() if k not in ("name", "paper", "note")})
    merged = merge(merged, in_full(values))  # so that others can add keys
    if depth == 0 and "name" not in merged:
        merged["name"] = str(recipe) if Path(recipe).suffix == "" else Path(recipe).stem
    return merged


def _put(values: dict[str, Any], path: list[str], value: Any, item: str) -> None:
    for part in path[:-1]:
        values[part] = {} if values.get(part) is None else values[part]
        values = values[part]
        if not isinstance(values, dict):
            raise LowposeError(f"'{item}': '{part}' holds a value, not keys")
    values[path[-1]] = in_full(value, ".".join(path))


def shorten_paths(word: str) -> str:
    """A word of a command line with absolute paths cut to their last two parts, for cards."""
    return re.sub(r"(^|[=:])(/[^\s:]*)", lambda m: m[1] + "/".join(Path(m[2]).parts[-2:]), word)
