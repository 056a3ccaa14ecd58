"""Verbs that measure what trained weights are worth in use: calibrate, bench."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lowpose.cli.printing import command_line, console, say


def calibrate(
    weights: Annotated[Path, typer.Argument(help="Run folder or weights file.")],
    data: Annotated[str | None, typer.Option(help="KIND:ROOT; default the recipe's.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of the data set.")] = None,
    radius: Annotated[
        float | None, typer.Option(help="Right within so many head lengths (MPII, LSP; default 0.5) or s k (COCO; 1.18).")
    ] = None,
    to: Annotated[Path | None, typer.Option(help="Weights file to write; default the weights themselves.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the report; default beside the weights.")] = None,
    bootstrap: Annotated[int, typer.Option(min=0, help="Resamples of the intervals.")] = 1000,
) -> None:
    """Make scores probabilities, stored with the weights.

    Fitted on half the split, judged on the other; writes calibration.json, .md and .png.
    """
    from lowpose.calibration import calibrate as run

    report = run(weights, data, split, radius=radius, to=to, out=out, bootstrap=bootstrap, command=command_line())
    before, after = (report["figures"][way]["held out"] for way in ("as they are", "calibrated"))
    bias = report["calibration"]["bias"]
    console.print(
        f"{to or weights}: temperature {report['calibration']['temperature']:.3f}, biases {min(bias):+.2f} to {max(bias):+.2f}; "
        f"on {report['persons']['held out']} other persons calibration error {100 * before['ece']:.1f}% -> "
        f"{100 * after['ece']:.1f}%, log loss {before['log_loss']:.3f} -> {after['log_loss']:.3f}",
        soft_wrap=True, highlight=False, markup=False,
    )  # fmt: skip
    if report["skipped_pictures"]:
        say("yellow", "warning", f"{len(report['skipped_pictures'])} pictures could not be read; calibration.json names them")
