"""Verbs that measure weights beyond their card: robustness, sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from lowpose.cli.printing import Overrides, command_line, console, say


def robustness(
    weights: Annotated[Path, typer.Argument(help="Run folder or weights file.")],
    overrides: Overrides = None,
    data: Annotated[str | None, typer.Option(help="KIND:ROOT; default the recipe's.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of the data set.")] = None,
    persons: Annotated[int | None, typer.Option(min=1, help="At most so many of the split.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of robustness.json, .md and .png; default beside the weights.")] = None,
    bootstrap: Annotated[int, typer.Option(min=0, help="Resamples of the intervals.")] = 1000,
) -> None:
    """Measure a run under blur, noise, JPEG and the like.

    Nine operators at five severities: down-sampling, movement, blur, noise, JPEG and wrong boxes.
    """
    from lowpose.robustness import FILES, measure_robustness
    from lowpose.robustness_page import mean_rows

    report = measure_robustness(
        weights, data, split, persons=persons, out=out, overrides=overrides or [], bootstrap=bootstrap, command=command_line()
    )
    table = Table("operator", *report["overall"], title=f"{report['name']}: mean accuracy, percent of plain [95% interval]")
    for row in mean_rows(report):
        table.add_row(*row)
    console.print(table)
    _print_files(report, out or (weights if weights.is_dir() else weights.parent), FILES)


def _print_files(report: dict[str, Any], folder: Path, names: tuple[str, ...]) -> None:
    for name, why in report.get("not_defined", {}).items():
        say("yellow", "warning", f"relative {name} is not defined: {why}")
    if report["skipped_pictures"]:
        skipped = report["skipped_pictures"]
        say("yellow", "warning", f"{len(skipped)} pictures could not be read; the first: {skipped[0]}")
    for name in names:
        console.print(str(folder / name), soft_wrap=True, highlight=False, markup=False)
