"""Train recipes under one budget with the same seeds and views, and say which differences are real.

Every run reports its last EMA weights (or its last weights where the recipe has no EMA), never the best on
validation. Differences to the first recipe come with a paired bootstrap interval over persons and seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lowpose.checkpoint import WEIGHTS, load_model, read_weights
from lowpose.config import RunConfig, load_config, parse_config
from lowpose.errors import LowposeError
from lowpose.evaluate import evaluate, predict_split, validation_data
from lowpose.files import write_json, write_text
from lowpose.metrics import per_person
from lowpose.metrics.bootstrap import paired_difference
from lowpose.train import recipe_key, train

BUDGET = ("epochs", "batch_size")


def compare(
    recipes: Sequence[str], seeds: Sequence[int] = (0,), out: str | Path = "runs/compare", overrides: Sequence[str] = (), bootstrap: int = 2000
) -> dict[str, Any]:
    """Train and compare; a second call with the same arguments continues where the first was cut off.

    Args:
        recipes: names or files; the first is the baseline. seeds: each recipe is trained once per seed.
        out: folder of all runs and of compare.json and compare.md. overrides: of every recipe, as 'train.epochs=30'.

    Returns: {'rows': [{recipe, params, macs, metrics: {name: {mean, per_seed, difference, low, high}}}], ...}
    Raises: LowposeError if the recipes have different budgets, data or seeds.
    """
    if len(recipes) < 2:
        raise LowposeError("compare needs at least two recipes; the first is the baseline")
    if len(set(recipes)) != len(recipes) or len(set(seeds)) != len(seeds):
        raise LowposeError("compare: a recipe or a seed stands there twice")
    configs = {(name, seed): load_config(name, [*overrides, f"train.seed={seed}"]) for name in recipes for seed in seeds}
    check_same_budget({name: configs[name, seeds[0]] for name in recipes})
    folder = Path(out)
    sums: dict[str, list[dict[str, tuple[np.ndarray, np.ndarray]]]] = {}
    costs: dict[str, dict[str, Any]] = {}
    for name in recipes:
        for seed in seeds:
            run = folder / name.replace("/", "_").removesuffix(".yaml") / f"seed-{seed}"
            if (run / WEIGHTS).is_file():
                check_same_run(run, configs[name, seed])
            else:
                train(configs[name, seed], run, resume=True)
            card = evaluate(run)
            costs[name] = card["cost"]
            sums.setdefault(name, []).append(run_sums(run))
    result = {"seeds": list(seeds), "overrides": list(overrides), "budget": budget(configs[recipes[0], seeds[0]]), "rows": rows(recipes, sums, costs, bootstrap)}
    write_json(folder / "compare.json", result)
    write_text(folder / "compare.md", markdown(result))
    return result


def budget(config: RunConfig) -> dict[str, Any]:
    values = {key: getattr(config.train, key) for key in BUDGET}
    return values | {"data": f"{config.data.kind}:{config.data.train}/{config.data.val}"}


def check_same_budget(configs: dict[str, RunConfig]) -> None:
    first, *others = configs
    for name in others:
        ours, theirs = budget(configs[first]), budget(configs[name])
        for key in ours:
            if ours[key] != theirs[key]:
                right = "compare recipes of the same data" if key == "data" else f"give one budget, as train.{key}={ours[key]}"
                raise LowposeError(f"compare: {first} has {key} {ours[key]}, {name} has {theirs[key]}; {right}")


def check_same_run(run: Path, config: RunConfig) -> None:
    """Raises: LowposeError if the run that is there was trained from another recipe or budget."""
    there = parse_config(read_weights(run)[1]["config"], str(run))
    if recipe_key(there) != recipe_key(config):
        raise LowposeError(f"{run}: holds a run of another recipe or budget (see its recipe.yaml); give another --out")


def run_sums(run: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Per-person sums of every PCK and EPE metric of a trained run on its validation split."""
    model, config = load_model(run)
    data = validation_data(config)
    found = predict_split(model, data, config)
    return per_person(data, found.keypoints, found.crop_scale)


def rows(recipes: Sequence[str], sums: dict[str, list], costs: dict[str, dict], bootstrap: int) -> list[dict[str, Any]]:
    out = []
    base = sums[recipes[0]]
    for name in recipes:
        metrics = {}
        for metric in base[0]:
            a, b = ([np.stack([s[metric][i] for s in sums[n]]) for i in (0, 1)] for n in (name, recipes[0]))
            per_seed = a[0].sum(1) / a[1].sum(1)
            entry: dict[str, Any] = {"mean": float(per_seed.mean()), "per_seed": [float(v) for v in per_seed]}
            if name != recipes[0]:
                difference, low, high = paired_difference(a[0], a[1], b[0], b[1], resamples=bootstrap)
                entry |= {"difference": float(difference), "low": float(low), "high": float(high)}
            metrics[metric] = entry
        out.append({"recipe": name, "params": costs[name]["params"], "macs": costs[name]["macs"], "metrics": metrics})
    return out


def markdown(result: dict[str, Any]) -> str:
    names = list(result["rows"][0]["metrics"])
    b = result["budget"]
    lines = [
        "# Comparison",
        "",
        f"{b['epochs']} epochs of batches of {b['batch_size']}, seeds {', '.join(map(str, result['seeds']))}, {b['data']}. "
        "Last weights (EMA where the recipe has one). In brackets: difference to the first row, 95% paired bootstrap interval over persons and seeds.",
        "",
        "| recipe | params M | GMAC | " + " | ".join(names) + " |",
        "|---|" + "---|" * (len(names) + 2),
    ]
    for row in result["rows"]:
        cells = [cell(row["metrics"][n]) for n in names]
        lines.append(f"| {row['recipe']} | {row['params'] / 1e6:.2f} | {row['macs'] / 1e9:.3f} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def cell(entry: dict[str, Any]) -> str:
    """'53.2' or '54.0 (+0.8 [0.2, 1.4])'."""
    text = f"{entry['mean']:.2f}"
    if "difference" in entry:
        text += f" ({entry['difference']:+.2f} [{entry['low']:+.2f}, {entry['high']:+.2f}])"
    return text
