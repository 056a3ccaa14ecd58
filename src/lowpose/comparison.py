"""Train recipes under one budget with the same seeds and views, and say which differences are real.

Every run reports its last EMA weights (or its last weights where the recipe has no EMA), never the best on
validation. Differences to the first recipe come with a paired bootstrap interval over persons (or pictures) and seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lowpose.cards import sha256, table_lines
from lowpose.checkpoint import WEIGHTS, describe_weights, load_model, weights_path
from lowpose.config import RunConfig, parse_config
from lowpose.errors import LowposeError
from lowpose.evaluation import evaluate
from lowpose.files import write_json, write_text
from lowpose.metrics import Precision
from lowpose.metrics.bootstrap import paired_difference, paired_stats_difference, ratio
from lowpose.recipe_files import load_config
from lowpose.tasks import task_of
from lowpose.training import recipe_key, train

BUDGET = ("epochs", "batch_size")
UNITS = {"pose": "persons", "classification": "pictures"}  # what is resampled


def compare(
    recipes: Sequence[str],
    seeds: Sequence[int] = (0,),
    out: str | Path = "runs/compare",
    overrides: Sequence[str] = (),
    bootstrap: int = 2000,
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
    if len({run_name(name) for name in recipes}) != len(recipes):
        raise LowposeError(
            f"compare: two recipe files have the same name ({', '.join(recipes)}); their runs would share a folder"
        )
    configs = {
        (name, seed): load_config(name, [*own_overrides(name, overrides), f"train.seed={seed}"])
        for name in recipes
        for seed in seeds
    }
    check_same_budget({name: configs[name, seeds[0]] for name in recipes})
    folder = Path(out)
    measured: dict[str, list[Measured]] = {}
    for (name, seed), config in configs.items():
        run = folder / run_name(name) / f"seed-{seed}"
        if (run / WEIGHTS).is_file():
            check_same_run(run, config)
        else:
            train(config, run, resume=True)
        measured.setdefault(name, []).append(measure_run(run))
    result = {
        "seeds": list(seeds),
        "overrides": list(overrides),
        "units": UNITS[configs[recipes[0], seeds[0]].task],
        "budget": budget(configs[recipes[0], seeds[0]]),
        "rows": table_rows(measured, bootstrap),
    }
    write_json(folder / "compare.json", result)
    write_text(folder / "compare.md", markdown(result))
    return result


def own_overrides(recipe: str, overrides: Sequence[str]) -> list[str]:
    """The overrides that concern a recipe: a teacher is for those that learn from one."""
    if load_config(recipe).methods:
        return list(overrides)
    return [item for item in overrides if not item.startswith(("teacher=", "teacher."))]


def run_name(recipe: str) -> str:
    """Folder of a recipe's runs: DATA_METHOD_BACKBONE_SIZE, or the stem of a file."""
    return Path(recipe).stem if Path(recipe).suffix else recipe.replace("/", "_")


def budget(config: RunConfig) -> dict[str, Any]:
    values = {key: getattr(config.train, key) for key in BUDGET}
    views = {"augment.views": config.augment.views, "augment.seed": config.augment.seed}
    return values | views | {"data": f"{config.data.kind}:{config.data.train}/{config.data.val}"}


def check_same_budget(configs: dict[str, RunConfig]) -> None:
    first, *others = configs
    for name in others:
        ours, theirs = budget(configs[first]), budget(configs[name])
        for key in ours:
            if ours[key] != theirs[key]:
                name_of = key if "." in key else f"train.{key}"
                right = (
                    "compare recipes of the same data"
                    if key == "data"
                    else f"give one budget, as {name_of}={theirs[key] if ours[key] is None else ours[key]}"
                )
                raise LowposeError(f"compare: {first} has {key} {ours[key]}, {name} has {theirs[key]}; {right}")


def check_same_run(run: Path, config: RunConfig) -> None:
    """Raises: LowposeError if the run that is there was trained from another recipe or budget."""
    about = describe_weights(run)
    there = parse_config(about["config"], str(run))
    if recipe_key(there) != recipe_key(config):
        raise LowposeError(f"{run}: holds a run of another recipe or budget (see its recipe.yaml); give another --out")
    if config.teacher and about["teacher"]["sha256"] != sha256(weights_path(config.teacher.weights)):
        raise LowposeError(f"{run}: learned from another teacher than {config.teacher.weights}; give another --out")


@dataclass(frozen=True)
class Measured:
    """One trained run: sums per person (PCK, EPE) or picture (accuracy), average precision where there is one, and the cost."""

    sums: dict[str, tuple[np.ndarray, np.ndarray]]
    precision: Precision | None
    cost: dict[str, Any]


def measure_run(run: Path) -> Measured:
    """Evaluate a run on its validation split, into its card, and keep what paired intervals need."""
    card = evaluate(run)
    model, config = load_model(run, task=None)
    task = task_of(config)
    saved = np.load(run / "predictions.npz")
    sums, precise = task.paired(model, config, task.validation_data(config), saved)
    return Measured(sums, precise, card["cost"])


def table_rows(measured: dict[str, list[Measured]], bootstrap: int) -> list[dict[str, Any]]:
    """One row per recipe; the first is the baseline of all differences."""
    baseline, *_ = measured
    out = []
    for name, runs in measured.items():
        other = None if name == baseline else measured[baseline]
        metrics = precision_metrics(runs, other, bootstrap) | ratio_metrics(runs, other, bootstrap)
        out.append({"recipe": name, "params": runs[0].cost["params"], "macs": runs[0].cost["macs"], "metrics": metrics})
    return out


def entry(per_seed: Sequence[float], difference: tuple[float, float, float] | None) -> dict[str, Any]:
    out: dict[str, Any] = {"mean": float(np.mean(per_seed)), "per_seed": [float(v) for v in per_seed]}
    if difference is not None:
        out |= dict(zip(("difference", "low", "high"), difference, strict=True))
    return out


def ratio_metrics(runs: list[Measured], baseline: list[Measured] | None, bootstrap: int) -> dict[str, Any]:
    out = {}
    for metric in runs[0].sums:
        ours, theirs = ([np.stack([r.sums[metric][i] for r in side]) for i in (0, 1)] for side in (runs, baseline or runs))
        difference = paired_difference(*ours, *theirs, resamples=bootstrap) if baseline else None
        out[metric] = entry(ratio(ours[0].sum(1), ours[1].sum(1)), difference)
    return out


def precision_metrics(runs: list[Measured], baseline: list[Measured] | None, bootstrap: int) -> dict[str, Any]:
    if runs[0].precision is None:
        return {}
    differences = {}
    if baseline:
        stats = ([r.precision.stats for r in side] for side in (runs, baseline))
        differences = paired_stats_difference(*stats, runs[0].precision.images, bootstrap)
    out = {}
    for metric, value in runs[0].precision.exact.items():
        if not np.isnan(value):
            difference = tuple(100 * v for v in differences[metric]) if baseline else None
            out[metric] = entry([100 * r.precision.exact[metric] for r in runs], difference)
    return out


def markdown(result: dict[str, Any]) -> str:
    names = list(result["rows"][0]["metrics"])
    b = result["budget"]
    lines = [
        "# Comparison",
        "",
        f"{b['epochs']} epochs of batches of {b['batch_size']}, seeds {', '.join(map(str, result['seeds']))}, {b['data']}. "
        "Last weights (EMA where the recipe has one). In brackets: difference to the first row, "
        f"95% paired bootstrap interval over {result['units']} and seeds.",
        "",
        *table_lines(
            ["recipe", "params M", "GMAC", *names],
            [
                [r["recipe"], f"{r['params'] / 1e6:.2f}", f"{r['macs'] / 1e9:.3f}", *(cell(r["metrics"][n]) for n in names)]
                for r in result["rows"]
            ],
        ),
    ]
    return "\n".join(lines) + "\n"


def cell(entry: dict[str, Any]) -> str:
    """'53.2' or '54.0 (+0.8 [0.2, 1.4])'."""
    text = f"{entry['mean']:.2f}"
    if "difference" in entry:
        text += f" ({entry['difference']:+.2f} [{entry['low']:+.2f}, {entry['high']:+.2f}])"
    return text
