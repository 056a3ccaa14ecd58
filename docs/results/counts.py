"""Fills the table of kdgf.md: what the models of KDGF's 24 rows cost, as printed and as counted here.

python docs/results/counts.py
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from studies import fill

from lowpose.config import from_scratch
from lowpose.nn.cost import Cost, count
from lowpose.nn.model import build_model
from lowpose.recipe_files import load_config, recipe_names
from lowpose.recipe_info import recipe_skeleton

PAGE = Path(__file__).parent / "kdgf.md"
TITLE = "Knowledge Distillation with Global Filters for Efficient Human Pose Estimation"
POSITIONS = 16 * 16 * 192  # numbers of the fixed table of sine positions, which the paper counts as parameters
ORDER = ("FFT", "DCT", "Attention", "no backbone", "HRNet-W32", "HRNet-W48", "GS", "GD")
EQUATIONS = "model.tokens.mixer.static=false"


def rows() -> list[str]:
    """Recipes of the 24 rows without distillation, in the order of the tables."""
    found = {}
    for name in recipe_names():
        config = load_config(name)
        if config.paper is not None and config.paper.title == TITLE and config.teacher is None:
            words = config.paper.row.split(", ")[:-1]
            found[name] = config.paper.table, [ORDER.index(word) for word in words]
    return sorted(found, key=found.get)


def table(cost: Callable[..., Cost]) -> str:
    """The Markdown table; `cost(recipe, *overrides)` counts a recipe's model."""
    out = [
        "| table | row | outputs | M, printed | M, here | M, equations | GFLOPs, printed | GMAC, here | GMAC, equations |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in rows():
        config = load_config(name)
        paper, dynamic = config.paper, config.model.tokens.mixer["name"] == "gfl-dynamic"
        costs = [cost(name), cost(name, EQUATIONS) if dynamic else cost(name)]
        params = [f"{(c.params + POSITIONS) / 1e6:.4f}" for c in costs]
        macs = [f"{c.published_macs / 1e9:.3f}" for c in costs]
        cells = [paper.table, paper.row.rpartition(", ")[0], config.head["name"], f"{paper.params_m:g}", *params]
        out.append("| " + " | ".join([*cells, f"{paper.gmacs:g}", *macs]) + " |")
    return "\n".join(out)


def counted(recipe: str, *overrides: str) -> Cost:
    config = from_scratch(load_config(recipe, overrides))
    return count(build_model(config, recipe_skeleton(config)), config.input.size)


def main() -> None:
    PAGE.write_text(fill(PAGE.read_text(), {"counts": table(counted)}))


if __name__ == "__main__":
    main()
