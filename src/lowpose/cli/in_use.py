"""Verbs that measure what trained weights are worth in use: calibrate, bench."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Column, Table

from lowpose.cli.printing import command_line, console, say, whole_numbers


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


def bench(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Weights, run folders, recipes or .onnx files.")],
    batch: Annotated[str, typer.Option(help="Crops at a time.")] = "1,32",
    threads: Annotated[str, typer.Option(help="Threads of torch and onnxruntime.")] = "1",
    runtimes: Annotated[str, typer.Option(help="Of torch,compiled,onnx,int8.")] = "torch,compiled,onnx,int8",
    size: Annotated[str | None, typer.Option(help="Sides of a recipe's input, as 256,512; default its own.")] = None,
    seconds: Annotated[float, typer.Option(help="Of each table: one number of threads, one batch.")] = 20.0,
    memory: Annotated[bool, typer.Option(help="Measure peak memory, a process for each row.")] = True,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Latency, throughput, memory and MACs, in one run.

    All models and runtimes take turns; milliseconds are medians with quartiles, `ratio` is to the first row.
    """
    from lowpose.benchmark import bench as run

    report = run(
        models,
        batches=whole_numbers("--batch", batch, "1,32"),
        threads=whole_numbers("--threads", threads, "1,2"),
        runtimes=[name.strip() for name in runtimes.split(",") if name.strip()],
        sizes=whole_numbers("--size", size, "256,512") if size else (),
        seconds=seconds,
        memory=memory,
        out=out,
    )
    _print_costs(report)
    for group in dict.fromkeys((row["threads"], row["batch"]) for row in report["rows"]):
        _print_times(report, *group)
    m = report["machine"]
    console.print(f"{m['processor']}, {m['cores']} cores; load {m['load']} before, {m['load_after']} after", highlight=False)
    for note in report["notes"]:
        console.print(note, highlight=False, markup=False)
    if out:
        console.print(str(out), soft_wrap=True, highlight=False, markup=False)


NARROW = {"box": SIMPLE_HEAD, "padding": (0, 1, 0, 0), "pad_edge": False, "title_justify": "left"}  # fits 80 columns


def _print_costs(report: dict[str, Any]) -> None:
    table = Table(Column("model", overflow="fold"), "px", "params M", "GMAC", **NARROW)
    costs = {(r["model"], *r["size"], r["params"], r["macs"]) for r in report["rows"]}
    for model, w, h, params, macs in sorted(costs, key=str):
        gmac = "-" if macs is None else f"{macs / 1e9:.3f}"
        table.add_row(model, f"{w}" if w == h else f"{w}x{h}", f"{params / 1e6:.2f}", gmac)
    console.print(table)


def _print_times(report: dict[str, Any], threads: int, batch: int) -> None:
    title = f"{threads} thread{'s' * (threads > 1)}, batch {batch}"
    columns = ("runtime", "ms", "quartiles", "persons/s", "/thread", "peak MB", "ratio")
    table = Table(Column("model", overflow="fold"), *(Column(c, no_wrap=True) for c in columns), title=title, **NARROW)
    for row in report["rows"]:
        if (row["threads"], row["batch"]) == (threads, batch):
            ms = row["ms"]
            table.add_row(
                row["model"],
                row["runtime"] if row["precision"] != "fp16" else f"{row['runtime']} fp16",
                f"{ms['median']:.2f}",
                f"{ms['low']:.2f}-{ms['high']:.2f}",
                f"{row['persons']:.0f}",
                f"{row['persons_per_thread']:.0f}",
                "-" if row["memory"] is None else f"{row['memory'] / 1e6:.0f}",
                f"{row['ratio']:.2f}",
            )
    console.print(table)
