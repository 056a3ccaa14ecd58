"""What lossless down-sampling costs: the models of the study in docs/studies/mgil, with and without it, in one run.

    python benchmarks/downsampling.py [--size 32] [--batches 1 32] [--rounds 15] [--threads 1] [--json FILE]

Milliseconds of a batch of crops are medians over rounds in which all models take turns; `ratio` is the median over rounds of
a model's time divided by the plain one's. Parameters and multiply-accumulates as `lowpose info` counts them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from lowpose.files import write_text
from lowpose.nn.cost import count
from lowpose.recipe_files import load_config
from lowpose.recipe_info import recipe_model
from lowpose.turns import measure

STUDIES = Path(__file__).parents[1] / "docs" / "studies"
ROWS = ("simcc", "spd", "flie", "flie-cii", "mgil", "depthwise", "reduce", "below", "wide", "enlarged")
MODELS = {name: f"mgil/{name}_32.yaml" for name in ROWS}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    size = f"input.size=[{args.size},{args.size}]"
    models = {name: recipe_model(load_config(STUDIES / path, [size])).eval() for name, path in MODELS.items()}
    costs = {name: count(model, (args.size, args.size)) for name, model in models.items()}
    rows: dict[str, dict] = {name: {"params": c.params, "macs": c.macs, "ms": {}, "ratio": {}} for name, c in costs.items()}
    about = f"torch {torch.__version__}, {args.threads} thread(s), float32, eager, {args.size} px"
    print(about)
    for batch in args.batches:
        pictures = torch.randint(0, 256, (batch, 3, args.size, args.size), dtype=torch.uint8)
        times = measure({n: (lambda m=m, x=pictures: m(x)) for n, m in models.items()}, args.rounds, args.seconds)
        print(f"\nbatch {batch}{'params M':>18}{'MMAC':>9}{'ms':>9}{'ratio':>8}")
        for name, values in times.items():
            ratio = float(np.median(np.array(values) / np.array(times["simcc"])))
            rows[name]["ms"][str(batch)], rows[name]["ratio"][str(batch)] = round(float(np.median(values)), 3), round(ratio, 3)
            print(f"{name:14}{costs[name].params / 1e6:9.2f}{costs[name].macs / 1e6:9.1f}{np.median(values):9.2f}{ratio:8.2f}")
    if args.json:
        write_text(args.json, json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
