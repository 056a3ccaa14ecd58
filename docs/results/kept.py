"""A comparison from the cards and predictions that are kept beside this file, for rows whose weights are gone.

    python docs/results/kept.py mgil/compare_32.json simcc_32 mgil_32 --seeds 0,1,2 --root data/lspet [--runs RUNS]

The first row is the baseline, as in `lowpose compare`, and lies in mgil/simcc_32/seed-0 and so on. RUNS holds new runs
(ROW/seed-N): their cards and predictions are kept first. `studies.py` makes a table of the file.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
from prepared import RESAMPLES
from studies import HERE

from lowpose.comparison import UNITS, Measured, budget, check_same_budget, table_rows
from lowpose.config import RunConfig, from_scratch, parse_config
from lowpose.files import write_json
from lowpose.tasks import task_of

FILES = ("card.json", "predictions.npz")


def keep(run: Path, folder: Path) -> None:
    """Copy what is kept of a finished run."""
    if all((run / name).is_file() for name in FILES):
        folder.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            shutil.copy(run / name, folder)


def measured(folder: Path, root: str) -> tuple[RunConfig, Measured]:
    """A kept recipe with its data at `root`, and what `lowpose.comparison.measure_run` gives; the model, here without its
    weights, knows its head's thresholds."""
    card = json.loads((folder / "card.json").read_text())
    config = from_scratch(parse_config(card["recipe"], str(folder)))
    config = config.model_copy(update={"data": config.data.model_copy(update={"root": root})})
    task = task_of(config)
    data = task.validation_data(config)
    sums, precise = task.paired(task.build(config, data), config, data, np.load(folder / "predictions.npz"))
    return config, Measured(sums, precise, card["cost"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("rows", nargs="+")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--root", required=True)
    parser.add_argument("--runs", type=Path)
    args = parser.parse_args()
    study = (HERE / args.out).parent
    seeds = [int(seed) for seed in args.seeds.split(",")]
    configs, rows = {}, {}
    for name in args.rows:
        folders = [study / name / f"seed-{seed}" for seed in seeds]
        for folder in folders if args.runs else []:
            keep(args.runs / name / folder.name, folder)
        recipes, runs = zip(*(measured(folder, args.root) for folder in folders), strict=True)
        assert [recipe.train.seed for recipe in recipes] == seeds, f"{name}: cards of other seeds"
        configs[name] = recipes[0]
        rows[f"docs/studies/{study.name}/{name}.yaml"] = list(runs)
    check_same_budget(configs)
    first = configs[args.rows[0]]
    result = {"seeds": seeds, "overrides": [], "units": UNITS[first.task], "budget": budget(first)}
    write_json(HERE / args.out, result | {"rows": table_rows(rows, RESAMPLES)})


if __name__ == "__main__":
    main()
