"""Verbs of `lowpose data`: check, get."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lowpose.cli.printing import AsJson, console, errors, print_json
from lowpose.errors import LowposeError

app = typer.Typer(no_args_is_help=True, help="Data sets: check what is there, get what is not.")


@app.command()
def check(
    source: Annotated[str, typer.Argument(help="KIND:ROOT, as coco:data/coco or folder:data/birds")],
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
    from lowpose.data import parse_source, readers_of
    from lowpose.recipe_files import apply_overrides

    readers = readers_of(source.partition(":")[0])
    kind, root = parse_source(source, readers)
    chosen = apply_overrides({}, options or [])
    if readers == "classes":
        from lowpose.data.check_classes import check_classes, print_report

        if boxes != "gt" or skeleton or chosen:
            raise LowposeError(f"{source}: pictures in classes have no boxes, skeleton or options; leave them out")
        report = check_classes(kind, root, split, decode=decode, console=errors)
    else:
        from lowpose.data.check import check_data, print_report

        report = check_data(kind, root, split, boxes=boxes, skeleton=skeleton, options=chosen, decode=decode, console=errors)
    if as_json:
        return print_json(report.to_dict())
    print_report(report, console)


@app.command()
def get(
    name: Annotated[str, typer.Argument(help="lspet, coco, mpii, crowdpose, cifar-10 or tiny-imagenet")],
    target: Annotated[Path | None, typer.Option("--to", help="Folder; default where the recipes look for it.")] = None,
) -> None:
    """Download a data set: resumable, hashes checked."""
    from lowpose.data.get import get as download

    console.print(f"{download(name, target, console=console)}")
