"""Two recipes under one budget, with the same seeds and views: which difference is more than chance?

    python examples/04_compare_two_recipes.py          # about 40 s
    lowpose compare RECIPE RECIPE ... --seeds 0,1,2 train.epochs=30          # the same as a command

The recipes for LSPET photographs are given synthetic people instead, so that nothing needs to be downloaded. The first recipe is
the baseline; differences to it have a 95% paired bootstrap interval over persons and seeds. A run that was cut off continues
where it stopped. After so few steps the numbers say nothing about the methods.
"""

import argparse
from pathlib import Path

import lowpose

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--out", type=Path, default=Path("runs/examples/compare"))
parser.add_argument("--people", type=int, default=96)
parser.add_argument("--epochs", type=int, default=4)
parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
args = parser.parse_args()

budget = [
    f"data={{kind: synthetic, options: {{count: {args.people}}}}}",
    f"cache.dir={args.out / 'cache'}",
    f"train.epochs={args.epochs}",
    "train.batch_size=32",
]
recipes = ["lspet/simcc_hrnet-w18-small_32", "lspet/heatmap_hrnet-w18-small_32"]
result = lowpose.compare(recipes, args.seeds, args.out, budget)

for row in result["rows"]:
    error = row["metrics"]["EPE_crop"]
    line = f"{row['recipe']}: mean error {error['mean']:.2f} of 32 pixels, by seed {[round(v, 2) for v in error['per_seed']]}"
    if "difference" in error:
        line += f"; difference {error['difference']:+.2f} [{error['low']:+.2f}, {error['high']:+.2f}]"
    print(line)
print(args.out / "compare.md")
