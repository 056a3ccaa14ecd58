"""The `lowpose` command: each verb is a few lines over the public API. A LowposeError is one line and exit code 2."""

from __future__ import annotations

import json
import logging
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from lowpose.errors import LowposeError

PUBLISHED = ("coco", "mpii", "crowdpose")
MAIN_METRICS = ("AP", "PCKh@0.5", "PCKh@0.1", "PCK@0.2", "pck_neck_head@0.5", "EPE_crop")  # of a narrow table

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, help=(
    "Human pose estimation for people a few dozen pixels tall."
))  # fmt: skip
data_app = typer.Typer(no_args_is_help=True, help="Data sets: check what is there, get what is not.")
app.add_typer(data_app, name="data")
console = Console()
errors = Console(stderr=True)
# typer brings its own copy of click in some versions and the package in others
UsageProblem = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

Overrides = Annotated[list[str] | None, typer.Argument(help="key=value overrides of the recipe, as train.epochs=10")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def main() -> None:
    """Entry point: runs a verb and turns errors that a user can act on into one line and exit code 2."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[_Lines()])
    try:
        result = app(standalone_mode=False)
        sys.exit(result if isinstance(result, int) else 0)
    except typer.Abort:
        _fail("stopped", 130)
    except UsageProblem as e:
        if type(e).__name__ == "NoArgsIsHelpError":
            print(e.format_message())
            sys.exit(2)
        _fail(e.format_message(), 2)
    except LowposeError as e:
        _fail(str(e), 2)
    except ModuleNotFoundError as e:
        if e.name is None or e.name.split(".")[0] == "lowpose":
            raise
        _fail(f"this needs '{e.name}', which is not installed: pip install 'lowpose[train]'", 2)
    except OSError as e:
        if e.errno is None:
            raise
        _fail(f"{e.filename + ': ' if e.filename else ''}{e.strerror}", 2)
    except KeyboardInterrupt:
        _fail("stopped", 130)


class _Lines(logging.Handler):
    """Each log record is one line, however long: a file name that is broken in two cannot be copied."""

    def emit(self, record: logging.LogRecord) -> None:
        _say("yellow", record.levelname.lower(), self.format(record))


def _say(colour: str, what: str, message: str) -> None:
    errors.print(f"[{colour}]{what}:[/{colour}] {escape(' '.join(message.split()))}", soft_wrap=True, highlight=False)


def _fail(message: str, code: int) -> None:
    _say("red", "error", str(message))
    sys.exit(code)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def _command() -> str:
    """The command line, as a card states it; absolute paths are shortened to their last two parts."""
    from lowpose.recipe_files import shorten_paths

    return shlex.join(["lowpose", *map(shorten_paths, sys.argv[1:])])


@app.command()
def version() -> None:
    """Versions of lowpose and of what it stands on."""
    from lowpose.cards import versions

    for name, number in versions().items():
        console.print(f"{name} {number}")


@app.command()
def recipes(as_json: AsJson = False) -> None:
    """List the recipes, with the published rows that they stand for."""
    from lowpose.listing import list_recipes

    rows = list_recipes()
    if as_json:
        return _print_json(rows)
    table = Table("recipe", "published row", "metric", "value")
    for r in rows:
        p = r.get("paper")
        row = (
            f"{p['title'][:24]}..., {p['table'].split(' on ')[0]}: {p['row']}"
            if p
            else ("no printed row" if r["data"] in PUBLISHED else "ours")
        )
        table.add_row(r["name"], row, p["metric"] if p else "", str(p.get("value", "not printed")) if p else "")
    console.print(table)


@app.command()
def methods() -> None:
    """List what a recipe can name: data readers, heads, methods of distillation."""
    from lowpose import registry

    for kind in ("data", "head", "distill", "curriculum"):
        table = Table(kind, "what it is")
        for name in registry.names(kind):
            table.add_row(name, registry.find(kind, name).summary)
        console.print(table)


@app.command()
def info(recipe: str, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Parameters and MACs of a recipe's model, by part."""
    from lowpose.recipe_info import info as find

    found = find(recipe, overrides or [])
    if as_json:
        return _print_json(found)
    table = Table(
        "part", "parameters", "MACs", title=f"{found['name']}  {found['size'][0]}x{found['size'][1]}, {found['skeleton']}"
    )
    for part, params in found["params_by_part"].items():
        table.add_row(part, f"{params:,}", f"{found['macs_by_part'].get(part, 0):,}")
    table.add_row("all", f"{found['params']:,}", f"{found['macs']:,}", style="bold")
    table.add_row("norms (beside)", "", f"{found['norm_macs']:,}")
    console.print(table)
    if "paper" in found:
        p = found["paper"]
        console.print(f"{p['title']}, {p['table']}: {p['row']}: {p['metric']} {p.get('value', 'not printed')}")


@app.command()
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
    _print_card(measure(folder, command=_command()))
    console.print(f"run folder: {folder}")


@app.command(name="eval")
def evaluate(
    weights: Annotated[Path, typer.Argument(help="Run folder or weights file.")],
    overrides: Overrides = None,
    data: Annotated[str | None, typer.Option(help="KIND:ROOT; default the recipe's.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of the data set.")] = None,
    boxes: Annotated[str | None, typer.Option(help="'gt' or a detector's result file.")] = None,
    results: Annotated[Path | None, typer.Option("--json", help="Write COCO keypoint results to this file.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the card; default beside the weights.")] = None,
    bootstrap: Annotated[int, typer.Option(min=0, help="Resamples of the intervals.")] = 1000,
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
        command=_command(),
    )
    _print_card(card)


def _print_card(card: dict[str, Any]) -> None:
    from lowpose.cards import interval

    m = card["measured_on"]
    table = Table("metric", "value [95% interval]", "n", title=f"{card['name']} on {m['kind']} {m['split']}, boxes: {m['boxes']}")
    for name, value in card["metrics"].items():
        table.add_row(name, interval(value), str(value.get("n", "")))
    console.print(table)
    if card["skipped_pictures"]:
        _say("yellow", "warning", f"{len(card['skipped_pictures'])} pictures could not be read; the card names them")
    if "paper" in card and card["paper"].get("value") is not None:
        console.print(
            f"published: {card['paper']['metric']} {card['paper']['value']} ({card['paper']['title']}, {card['paper']['table']})"
        )


@app.command()
def predict(
    sources: Annotated[list[str], typer.Argument(help="Pictures, folders or videos.")],
    weights: Annotated[Path, typer.Option(help="Run folder, weights file or exported .onnx file.")],
    boxes: Annotated[str, typer.Option(help="'whole' (one person fills each picture) or a JSON or CSV file of boxes.")] = "whole",
    out: Annotated[Path, typer.Option(help="Folder for results.json and the drawn pictures.")] = Path("poses"),
    draw: Annotated[bool, typer.Option(help="Draw the skeletons.")] = True,
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Least score of a joint that is drawn.")] = 0.05,
    min_score: Annotated[float | None, typer.Option(help="Leave out boxes with a lower score.")] = None,
) -> None:
    """Predict poses in pictures, folders and videos.

    Writes COCO results as JSON, and drawn overlays.
    """
    from lowpose.predict import predict_sources
    from lowpose.runtime import load

    report = predict_sources(
        load(weights),
        sources,
        boxes,
        results=out / "results.json",
        draw=out if draw else None,
        threshold=threshold,
        min_score=min_score,
    )
    console.print(f"persons: {report.persons}, pictures or frames: {report.frames}; {out / 'results.json'}")
    if report.problems:
        _say("yellow", "warning", f"{len(report.problems)} could not be read; they are named above")


@app.command()
def sheet(
    weights: Annotated[Path, typer.Argument(help="Run folder or weights file.")],
    persons: Annotated[int, typer.Option(min=3, help="How many: a third each of best, median, worst.")] = 24,
    out: Annotated[Path | None, typer.Option(help="PNG file; default sheet.png beside the weights.")] = None,
) -> None:
    """Draw best, median and worst predictions of a run."""
    from lowpose.sheet import draw_sheet

    console.print(str(draw_sheet(weights, persons, out)))


@app.command()
def explain(
    weights: Annotated[Path, typer.Argument(help="Run folder or weights file.")],
    beside: Annotated[Path | None, typer.Option(help="Run folder or weights file of a baseline.")] = None,
    joints: Annotated[str | None, typer.Option(help="Keypoints, as head_top,left_knee.")] = None,
    layers: Annotated[str | None, typer.Option(help="Layers, as head,stage4, or paths of modules.")] = None,
    method: Annotated[str, typer.Option(help="grad-cam or hires-cam.")] = "grad-cam",
    persons: Annotated[int, typer.Option(min=3, help="How many: a third each of best, median, worst.")] = 6,
    data: Annotated[str | None, typer.Option(help="KIND:ROOT; default the recipe's.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the pictures; default beside the weights.")] = None,
) -> None:
    """Draw where a run looks for joints (attention.png), and where it fails (grid.png)."""
    from lowpose.explain import explain as draw

    chosen = (None if names is None else [n.strip() for n in names.split(",") if n.strip()] for names in (joints, layers))
    for path in draw(weights, beside, *chosen, persons, out, data, method):
        console.print(str(path))


@app.command()
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
    try:
        numbers = [int(s) for s in seeds.split(",")]
    except ValueError:
        raise LowposeError(f"--seeds {seeds}: give whole numbers, as 0,1,2") from None
    result = run(chosen, numbers, out, [n for n in names if "=" in n], bootstrap)
    metrics = [n for n in result["rows"][0]["metrics"] if n in MAIN_METRICS]
    table = Table(Column("recipe", overflow="fold"), "params M", "GMAC", *metrics)
    for row in result["rows"]:
        table.add_row(
            row["recipe"], f"{row['params'] / 1e6:.2f}", f"{row['macs'] / 1e9:.3f}", *(cell(row["metrics"][m]) for m in metrics)
        )
    console.print(table)
    console.print(f"{out / 'compare.md'}")


@app.command()
def export(
    weights: Annotated[Path, typer.Argument(help="Run folder or weights file.")],
    to: Annotated[str, typer.Option(help="Format: onnx.")] = "onnx",
    out: Annotated[Path | None, typer.Option(help="File to write; default beside the weights.")] = None,
    flip: Annotated[
        bool | None, typer.Option("--flip/--no-flip", help="Flip test inside; default as the recipe evaluates.")
    ] = None,
) -> None:
    """Write weights as one ONNX file, checked to be equal."""
    from lowpose.export import export_onnx

    if to != "onnx":
        raise LowposeError(f"--to {to}: only onnx can be written")
    console.print(str(export_onnx(weights, out, flip=flip)), soft_wrap=True, highlight=False, markup=False)


@app.command()
def pack(
    weights: Annotated[Path, typer.Argument(help="Run folder or weights file.")],
    out: Annotated[Path, typer.Argument(help="The .safetensors file to write.")],
) -> None:
    """Write weights to hand on: fp16, without local paths."""
    from lowpose.checkpoint import pack_weights

    pack_weights(weights, out)
    console.print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder of runs and pictures.")] = Path("demo"),
    minutes: Annotated[float, typer.Option(min=0.1, help="Training time of all three sizes together.")] = 4.0,
) -> None:
    """Train and predict on synthetic people; needs no data."""
    from lowpose.demo import run_demo

    run_demo(out, minutes, console)


@data_app.command()
def check(
    source: Annotated[str, typer.Argument(help="KIND:ROOT, as coco:data/coco")],
    split: Annotated[str, typer.Option(help="Split of the data set.")] = "train",
    boxes: Annotated[str, typer.Option(help="'gt' or a detector's result file.")] = "gt",
    skeleton: Annotated[str | None, typer.Option(help="Built-in name or YAML file.")] = None,
    decode: Annotated[bool, typer.Option(help="Decode every picture to find broken ones.")] = True,
    options: Annotated[
        list[str] | None, typer.Option("--option", help="key=value option of the reader, as category=dog.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Report what is in a data set and what is wrong with it."""
    from lowpose.data import parse_source
    from lowpose.data.check import check_data, print_report
    from lowpose.recipe_files import apply_overrides

    kind, root = parse_source(source)
    chosen = apply_overrides({}, options or [])
    report = check_data(kind, root, split, boxes=boxes, skeleton=skeleton, options=chosen, decode=decode, console=errors)
    if as_json:
        return _print_json(report.to_dict())
    print_report(report, console)


@data_app.command()
def get(
    name: Annotated[str, typer.Argument(help="lspet, coco, mpii or crowdpose")],
    target: Annotated[Path | None, typer.Option("--to", help="Folder; default where the recipes look for it.")] = None,
) -> None:
    """Download a data set: resumable, hashes checked."""
    from lowpose.data.get import get as download

    console.print(f"{download(name, target, console=console)}")
