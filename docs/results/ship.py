"""Makes the weights that come with the package from a run: fp16 weights with calibrated scores, an fp16 ONNX file, a card.

    python docs/results/ship.py RUN NAME --data lsp:data/lsp

Everything in the card is measured on the packed weights, so that it speaks of what is shipped; by height, too.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

from lowpose.breakdown_page import height_tables, main_figures
from lowpose.calibration import calibrate
from lowpose.cards import markdown, sha256, table_lines
from lowpose.checkpoint import pack_weights
from lowpose.evaluation import evaluate
from lowpose.files import write_json, write_text
from lowpose.shipped import FOLDER
from lowpose.smaller import export_reduced

HEIGHTS = (16, 24, 32, 48, 64, 96, 128)
TERMS = (
    "Trained on LSPET (S. Johnson, M. Everingham, CVPR 2011), whose photographs come from Flickr and stay their photographers'; "
    "its authors name no licence and ask to be cited. For research and for trying lowpose; whether the weights may serve another "
    "purpose is for the user to judge."
)
LIMITS = (
    "Sports photographs (athletics, gymnastics, parkour), one athlete to a picture: expect less of crowds, night and people "
    "who are cut."
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--data", required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        weights = folder / f"{args.name}.safetensors"
        pack_weights(args.run, weights)
        reliability = calibrate(weights, args.data, out=folder / "calibration")
        card = evaluate(weights, args.data, out=folder, breakdown=True, heights=HEIGHTS)
        reduced = export_reduced(weights, "fp16", folder / f"{args.name}.onnx", source=args.data, keep=[], limit=0.2)
        lost = json.loads(reduced.card.with_suffix(".json").read_text())["exported"]
        parts = card.pop("breakdown")
        card |= {
            "name": args.name,
            "recipe_name": card["name"],
            "weights": {"file": weights.name, "sha256": sha256(weights)},
            "onnx": {"file": reduced.path.name, "sha256": sha256(reduced.path), "difference": lost["difference"]},
            "heights": parts["heights"],
            "reliability": {k: reliability[k] for k in ("correct", "calibration", "persons", "figures")},
            "terms": TERMS,
            "limits": LIMITS,
            "command": f"python docs/results/ship.py RUN {args.name} --data {args.data.split(':')[0]}:ROOT",
        }
        by_height = [line for table in height_tables(parts, main_figures(parts), 1) for line in _lines(table)]
        right = reliability["figures"]["calibrated"]["held out"]
        told = [
            f"Scores are probabilities that a keypoint is right ({reliability['correct']['rule']}); calibration error "
            f"{100 * right['ece']:.1f}% on {reliability['persons']['held out']} persons that did not fit them.",
            "",
            f"The ONNX file differs by {lost['difference']['PCKh@0.5']['difference']:+.2f} points of PCKh@0.5.",
        ]
        for suffix in (".safetensors", ".onnx"):
            shutil.copy(folder / f"{args.name}{suffix}", FOLDER / f"{args.name}{suffix}")
        write_json(FOLDER / f"{args.name}.json", card)
        lines = [markdown(card), *by_height, *told, "", "## Terms and limits", "", card["terms"], "", card["limits"], ""]
        write_text(FOLDER / f"{args.name}.md", "\n".join(lines))


def _lines(table) -> list[str]:
    return [f"## {table.title}", "", *table_lines(table.columns, table.rows), ""]


if __name__ == "__main__":
    main()
