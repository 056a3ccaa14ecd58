"""Verbs of `lowpose study`: bias."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lowpose.cli.printing import console, say
from lowpose.errors import LowposeError

app = typer.Typer(no_args_is_help=True, help="Studies of a method, with a table and a figure.")


@app.command()
def bias(
    weights: Annotated[Path | None, typer.Option(help="Run folder or weights file whose maps are studied too.")] = None,
    data: Annotated[str | None, typer.Option(help="KIND:ROOT of its pictures; default the recipe's.")] = None,
    sigma: Annotated[float, typer.Option(help="Of the drawn Gaussian, cells.")] = 1.0,
    betas: Annotated[str, typer.Option(help="Betas that are drawn as curves.")] = "1,3,10,30",
    persons: Annotated[int, typer.Option(min=1, help="At most so many of the split.")] = 1000,
    out: Annotated[Path, typer.Option(help="Folder of bias.json, bias.md and bias.png.")] = Path("runs/bias"),
) -> None:
    """Bias of integral regression, measured and predicted.

    Over beta, position, peak and map size, on drawn maps and on those of a trained network.
    """
    try:
        numbers = [float(b) for b in betas.split(",")]
    except ValueError:
        raise LowposeError(f"--betas {betas}: give numbers, as 1,3,10,30") from None
    from lowpose.bias import FILES, study_bias

    report = study_bias(out, weights, data, sigma=sigma, betas=numbers, persons=persons)
    skipped = report.get("network", {}).get("skipped_pictures", [])
    if skipped:
        say("yellow", "warning", f"{len(skipped)} pictures could not be read; the first: {skipped[0]}")
    for name in FILES:
        console.print(str(out / name), soft_wrap=True, highlight=False, markup=False)
