"""Verbs that train and measure: train, eval, compare, demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Column, Table

from lowpose.cli.printing import Overrides, command_line, console, say
from lowpose.errors import LowposeError

MAIN_METRICS = ("AP", "top-1", "PCKh@0.5", "PCKh@0.1", "PCK@0.2", "pck_neck_head@0.5", "EPE_crop")  # of a narrow table


def train(
    recipe: str,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/RECIPE.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the last whole state in the run folder.")] = False,
    stop_after: Annotated[int | None, typer.Option(min=1, help="Leave after this many steps; the run can be resumed.")] = None,
) -> None:
    """Train a recipe, then measure it.

    Weights, card, learning curve and logs go into the run folder. RECIPE is a name (see: lowpose recipes) or a YAML file,
    as in: lowpose train lspet/simcc_hrnet-w18-small_64 data.root=data/lsp train.epochs=30
    """
    from lowpose.recipe_files import load_config

    config = load_config(recipe, overrides or [])  # a typing error should not wait for torch
    from lowpose.checkpoint import WEIGHTS
    from lowpose.evaluation import evaluate as measure
    from lowpose.plots import learning_curve
    from lowpose.training import is_main_process
    from lowpose.training import train as run

    folder = run(config, out, resume, stop_after)
    if not is_main_process():
        return
    learning_curve(folder)
    if not (folder / WEIGHTS).is_file():
        console.print(f"stopped early; continue with --resume --out {folder}")
        return
    if config.data.val is None:
        console.print(f"data.val is null: trained, not measured; run folder: {folder}")
        return
    _print_card(measure(folder, command=command_line()))
    console.print(f"run folder: {folder}")


def evaluate(
    weights: Annotated[Path, typer.Argument(help="Run folder or weights file.")],
    overrides: Overrides = None,
    data: Annotated[str | None, typer.Option(help="KIND:ROOT; default the recipe's.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of the data set.")] = None,
    boxes: Annotated[str | None, typer.Option(help="'gt' or a detector's result file.")] = None,
    results: Annotated[Path | None, typer.Option("--json", help="Write COCO keypoint results to this file.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the card; default beside the weights.")] = None,
    bootstrap: Annotated[int, typer.Option(min=0, help="Resamples of the intervals.")] = 1000,
    breakdown: Annotated[
        bool, typer.Option("--breakdown", help="Also by labelled joints, occlusion, size and height of the persons.")
    ] = False,
    heights: Annotated[
        str | None,
        typer.Option(help="With --breakdown: bring everybody down to these heights too, pixels, as 16,24,32,48,64,96,128."),
    ] = None,
    sizes: Annotated[str, typer.Option(help="With --breakdown: size by 'area' of the person or by 'box'.")] = "area",
) -> None:
    """Measure a run or weights file, with 95% intervals."""
    from lowpose.evaluation import evaluate as measure

    card = measure(
        weights,
        data,
        split,
        boxes=boxes,
        results=results,
        out=out,
        overrides=overrides or [],
        bootstrap=bootstrap,
        command=command_line(),
        breakdown=breakdown,
        heights=whole_numbers("--heights", heights, "16,24,32") if heights is not None else (),
        sizes=sizes,
    )
    _print_card(card)
    if breakdown:
        _print_breakdown(card["breakdown"])


def whole_numbers(option: str, text: str, example: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise LowposeError(f"{option} {text}: give whole numbers, as {example}") from None


def _print_breakdown(report: dict[str, Any]) -> None:
    from lowpose.breakdown_page import cross_tables, height_tables, main_figures, remarks, tables
    from lowpose.plots import error_of

    shown = main_figures(report)
    crossed = cross_tables(report, error_of(report), intervals=False)
    for part in [*tables(report, shown, 1)[1:], *crossed, *height_tables(report, shown, 1)]:
        narrow = {"box": SIMPLE_HEAD, "padding": (0, 1, 0, 0), "pad_edge": False}  # fits 80 columns
        table = Table(*part.columns, title=part.title, title_justify="left", **narrow)
        for row in part.rows:
            table.add_row(*row)
        console.print(table)
    for remark in remarks(report):
        console.print(remark)


def _print_card(card: dict[str, Any]) -> None:
    from lowpose.cards import interval

    m = card["measured_on"]
    boxes = f", boxes: {m['boxes']}" if "boxes" in m else ""
    table = Table("metric", "value [95% interval]", "n", title=f"{card['name']} on {m['kind']} {m['split']}{boxes}")
    for name, value in card["metrics"].items():
        table.add_row(name, interval(value), str(value.get("n", "")))
    console.print(table)
    if card["skipped_pictures"]:
        say("yellow", "warning", f"{len(card['skipped_pictures'])} pictures could not be read; the card names them")
    if "paper" in card and card["paper"].get("value") is not None:
        console.print(
            f"published: {card['paper']['metric']} {card['paper']['value']} ({card['paper']['title']}, {card['paper']['table']})"
        )


def compare(
    names: Annotated[
        list[str], typer.Argument(metavar="RECIPE RECIPE ... [key=value ...]", help="The first recipe is the baseline.")
    ],
    seeds: Annotated[str, typer.Option(help="Training seeds, as 0,1,2.")] = "0",
    out: Annotated[Path, typer.Option(help="Folder of all runs; called again, it continues there.")] = Path("runs/compare"),
    bootstrap: Annotated[int, typer.Option(min=100, help="Resamples of the intervals.")] = 2000,
) -> None:
    """Train recipes under one budget; print differences.

    All see the same seeds and views; differences have paired bootstrap intervals over persons and seeds.
    """
    from lowpose.comparison import cell
    from lowpose.comparison import compare as run

    chosen = [n for n in names if "=" not in n]
    result = run(chosen, whole_numbers("--seeds", seeds, "0,1,2"), out, [n for n in names if "=" in n], bootstrap)
    metrics = [n for n in result["rows"][0]["metrics"] if n in MAIN_METRICS]
    table = Table(Column("recipe", overflow="fold"), "params M", "GMAC", *metrics)
    for row in result["rows"]:
        table.add_row(
            row["recipe"], f"{row['params'] / 1e6:.2f}", f"{row['macs'] / 1e9:.3f}", *(cell(row["metrics"][m]) for m in metrics)
        )
    console.print(table)
    console.print(f"{out / 'compare.md'}")


def demo(
    out: Annotated[Path, typer.Option(help="Folder of runs and pictures.")] = Path("demo"),
    minutes: Annotated[float, typer.Option(min=0.1, help="Training time of all three sizes together.")] = 4.0,
) -> None:
    """Train and predict on synthetic people; needs no data."""
    from lowpose.demo import run_demo

    run_demo(out, minutes, console)
