"""Verbs that measure weights beyond their card: robustness, sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Column, Table

from lowpose.cli.printing import Overrides, command_line, console, say, whole_numbers
from lowpose.shipped import home


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
    from lowpose.checkpoint import weights_path
    from lowpose.robustness import FILES, measure_robustness
    from lowpose.robustness_page import mean_rows

    report = measure_robustness(
        weights, data, split, persons=persons, out=out, overrides=overrides or [], bootstrap=bootstrap, command=command_line()
    )
    title = f"{report['name']}: accuracy, percent of plain"
    table = Table("operator", *report["overall"], title=title)
    for row in mean_rows(report):
        table.add_row(*row)
    console.print(table)
    _print_files(report, out or home(weights_path(weights)), FILES)


def sweep(
    weights: Annotated[list[Path], typer.Argument(help="Run folders or weights files.")],
    data: Annotated[str | None, typer.Option(help="KIND:ROOT; default that of the first one's recipe.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of the data set.")] = None,
    sizes: Annotated[str | None, typer.Option(help="Heights of crops, pixels, as 32,64,128; default the models' own.")] = None,
    heights: Annotated[
        str | None, typer.Option(help="Bring everybody down to these heights too, pixels, as 16,24,32,48,64,96,128.")
    ] = None,
    persons: Annotated[int | None, typer.Option(min=1, help="At most so many of the split.")] = None,
    flip: Annotated[bool | None, typer.Option("--flip/--no-flip", help="Flip test; default as each recipe evaluates.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Persons in a batch of the second timing.")] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="Timings of each model.")] = 15,
    out: Annotated[Path, typer.Option(help="Folder of sweep.json, sweep.md and sweep.png.")] = Path("runs/sweep"),
    bootstrap: Annotated[int, typer.Option(min=0, help="Resamples of the intervals.")] = 1000,
) -> None:
    """Measure sizes x models: accuracy, MACs and milliseconds.

    Each model at its own input size and, as the baseline of smaller ones, on enlarged crops of every smaller size.
    """
    given = {
        "sizes": whole_numbers("--sizes", sizes, "32,64,128") if sizes is not None else None,
        "heights": whole_numbers("--heights", heights, "16,24,32") if heights is not None else (),
    }
    from lowpose.sweep_page import label
    from lowpose.sweeping import FILES
    from lowpose.sweeping import sweep as run

    report = run(
        weights, data, split, **given, persons=persons, flip=flip, batch=batch, rounds=rounds,
        out=out, bootstrap=bootstrap, command=command_line(),
    )  # fmt: skip
    narrow = {"box": SIMPLE_HEAD, "padding": (0, 1, 0, 0), "pad_edge": False}  # fits 80 columns
    table = Table("crops", Column("model", overflow="fold"), report["metric"], "GMAC", "ms", "front", **narrow)
    for row in report["rows"]:
        front = ", ".join(kind for kind, on in row["front"].items() if on)
        value, ms = row["metrics"][report["metric"]]["value"], row["ms"]["one"]["median"]
        table.add_row(f"{row['size']} px", label(row), f"{value:.2f}", f"{row['macs'] / 1e9:.3f}", f"{ms:.1f}", front or "-")
    console.print(table)
    _print_files(report, out, FILES)


def _print_files(report: dict[str, Any], folder: Path, names: tuple[str, ...]) -> None:
    for name, why in report.get("not_defined", {}).items():
        say("yellow", "warning", f"relative {name} is not defined: {why}")
    if report["skipped_pictures"]:
        skipped = report["skipped_pictures"]
        say("yellow", "warning", f"{len(skipped)} pictures could not be read; the first: {skipped[0]}")
    for name in names:
        console.print(str(folder / name), soft_wrap=True, highlight=False, markup=False)
