"""Drawn people before photographs: runs of docs/studies/synthetic beside their baselines, whose budgets differ on purpose.

    python docs/results/prepared.py RUNS

RUNS holds the folders simcc_32 (that of docs/studies/mgil), prepared_32 and longer_32, each with a folder for every seed. Writes
synthetic/simcc_32.json and synthetic/longer_32.json, what `prepared_32` has more than each of them, and the cards that mgil/ does
not have. `studies.py` reads them.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from studies import HERE

from lowpose.comparison import measure_run, table_rows
from lowpose.files import write_json

RESAMPLES = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    runs = parser.parse_args().runs
    out = HERE / "synthetic"
    seeds = sorted(path.name for path in (runs / "prepared_32").glob("seed-*"))
    measured = {}
    for name in ("simcc_32", "longer_32", "prepared_32"):
        measured[name] = [measure_run(runs / name / seed) for seed in seeds]
        for seed in seeds if name != "simcc_32" else ():
            kept = out / name / seed
            kept.mkdir(parents=True, exist_ok=True)
            shutil.copy(runs / name / seed / "card.json", kept)
    for baseline in ("simcc_32", "longer_32"):
        rows = table_rows({name: measured[name] for name in (baseline, "prepared_32")}, RESAMPLES)
        write_json(out / f"{baseline}.json", {"seeds": [int(seed.removeprefix("seed-")) for seed in seeds], "rows": rows})


if __name__ == "__main__":
    main()
