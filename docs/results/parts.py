"""Where every trained model of these pages errs: its saved predictions by labelled joints, size and height of the persons.

    python docs/results/parts.py --data lsp:data/lsp [--split val]

Reads the predictions.npz of runs (FOLDER/seed-N, or FOLDER itself) and writes parts.json; `studies.py` makes tables of it. Seeds
of one recipe are averaged.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from lowpose.breakdown_page import label
from lowpose.data import load_data, parse_source
from lowpose.files import write_json
from lowpose.metrics.breakdown import breakdown

HERE = Path(__file__).parent


def runs() -> dict[str, list[Path]]:
    """Name of a model (folder under docs/results) -> its predictions."""
    found: dict[str, list[Path]] = {}
    for path in sorted(HERE.rglob("predictions.npz")):
        folder = path.parent.parent if path.parent.name.startswith("seed-") else path.parent
        card = json.loads((path.parent / "card.json").read_text())
        if "persons" in card["measured_on"]:
            found.setdefault(folder.relative_to(HERE).as_posix(), []).append(path)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default="val")
    args = parser.parse_args()
    data = load_data(*parse_source(args.data), split=args.split)
    ids = np.array([s.id for s in data.samples])
    out = {}
    for name, paths in runs().items():
        reports = []
        for path in paths:
            saved = np.load(path)
            assert (saved["ids"] == ids).all(), f"{path}: predictions of other persons than {args.data} {args.split}"
            reports.append(breakdown(data, saved["keypoints"], saved["crop_scale"], sizes="box", bootstrap=0))
        first = reports[0]
        parts = {"all": {"all": [r["all"] for r in reports]}}
        parts |= {
            part: {label(b, c): [r["by"][part][b] for r in reports] for b, c in first["by"][part].items()} for part in first["by"]
        }
        out[name] = {
            "seeds": len(paths),
            "parts": {part: {b: _mean(cells, first["metrics"]) for b, cells in bins.items()} for part, bins in parts.items()},
            "not_measured": first["not_measured"],
        }
        print(name, len(paths))
    write_json(HERE / "parts.json", {"data": args.data.split(":")[0], "split": args.split, "models": out})


def _mean(cells: list[dict], metrics: list[str]) -> dict:
    """Persons, and the mean over runs of each figure; None where a part has none."""
    figures = {}
    for metric in metrics:
        values = [c["figures"][metric]["value"] for c in cells if c["figures"].get(metric, {}).get("value") is not None]
        figures[metric] = float(np.mean(values)) if len(values) == len(cells) else None
    return {"persons": cells[0]["persons"], **figures}


if __name__ == "__main__":
    main()
