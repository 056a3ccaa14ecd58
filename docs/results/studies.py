"""Fills the tables of cdkd.md from the files in cdkd/: comparisons (`lowpose compare`), settings tried, cards.

python docs/results/studies.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from lowpose.comparison import cell

HERE = Path(__file__).parent
METRICS = ("PCKh@0.5", "PCKh@0.1", "PCK@0.2", "EPE_crop")
# rows of CDKD's Table IV, of the released wiring and of the full comparison
ROWS = {
    "simcc": "SimCC (baseline)",
    "projector": "+ projector",
    "ensemble": "+ ensemble of projectors",
    "sape": "+ SAU: all of SAPE",
    "cca": "CCA without ETHT",
    "cca-etht": "CCA with ETHT",
    "cdkd": "CDKD: SAPE, CCA, ETHT",
    "released": "what the released wiring teaches",
}


def comparison(path: Path, size: int, names: list[str]) -> str:
    """A Markdown table of the named rows; those without a run say so."""
    result = json.loads(path.read_text()) if path.is_file() else {"rows": [], "seeds": []}
    found = {Path(row["recipe"]).stem: row["metrics"] for row in result["rows"]}
    out = ["| | " + " | ".join(METRICS) + " |", "|---" * (len(METRICS) + 1) + "|"]
    for name in names:
        metrics = found.get(f"{name}_{size}")
        cells = [cell(metrics[m]) for m in METRICS] if metrics else ["not run"] * len(METRICS)
        out.append(f"| {ROWS[name]} | " + " | ".join(cells) + " |")
    if result["rows"]:
        b = result["budget"]
        seeds = ", ".join(map(str, result["seeds"]))
        out += ["", f"{b['epochs']} epochs, batches of {b['batch_size']}, seeds {seeds}; {b['data']}."]
    return "\n".join(out)


def tried(path: Path) -> str:
    """Settings that were tried on 'tune', a part of the training split."""
    out = ["| settings | PCKh@0.5 | PCKh@0.1 | PCK@0.2 |", "|---|---|---|---|"]
    for row in json.loads(path.read_text()) if path.is_file() else []:
        values = " | ".join(f"{row['metrics'][m]:.2f}" for m in METRICS[:3])
        out.append(f"| {row['settings']} | {values} |")
    return "\n".join(out)


def fill(text: str, tables: dict[str, str]) -> str:
    """`text` with each table between its marks."""
    for name, table in tables.items():
        marks = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        text, n = re.subn(marks, lambda m, t=table: f"{m[1]}{t}\n{m[2]}", text, flags=re.DOTALL)
        assert n == 1, f"the page has no place for {name}"
    return text


def tables(folder: Path) -> dict[str, str]:
    """Name of a place in cdkd.md -> its table."""
    return {
        "tried": tried(folder / "tune_32.json"),
        "screen_32": comparison(folder / "screen_32.json", 32, list(ROWS)),
        "compare_32": comparison(folder / "compare_32.json", 32, ["simcc", "projector", "cdkd"]),
        "compare_64": comparison(folder / "compare_64.json", 64, ["simcc", "projector", "cdkd"]),
    }


def main() -> None:
    page = HERE / "cdkd.md"
    page.write_text(fill(page.read_text(), tables(HERE / "cdkd")))


if __name__ == "__main__":
    main()
