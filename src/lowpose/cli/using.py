"""Verbs that take trained weights: predict, sheet, explain, export, pack."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lowpose import shipped
from lowpose.cli.printing import command_line, console, say
from lowpose.errors import LowposeError


def predict(
    sources: Annotated[list[str], typer.Argument(help="Pictures, folders or videos.")],
    weights: Annotated[
        Path, typer.Option(help="Run folder, weights file, exported .onnx file, or a name (see: lowpose weights).")
    ] = Path(shipped.DEFAULT),
    boxes: Annotated[
        str, typer.Option(help="'whole' (one person a picture), a JSON, CSV or MOT file, or detector[:NAME].")
    ] = "whole",
    out: Annotated[Path, typer.Option(help="Folder for results.json and the drawn pictures.")] = Path("poses"),
    draw: Annotated[bool, typer.Option(help="Draw the skeletons.")] = True,
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Least score of a joint that is drawn.")] = 0.05,
    min_score: Annotated[float | None, typer.Option(help="Leave out boxes with a lower score; 0.5 for detectors.")] = None,
    detector_weights: Annotated[Path | None, typer.Option(help="File of the detector's weights; default its own.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the network; default its engine's choice.")] = None,
    provider: Annotated[list[str] | None, typer.Option(help="Of onnxruntime, for .onnx files; may be repeated.")] = None,
    engine: Annotated[str | None, typer.Option(help="onnxruntime or openvino, for .onnx files.")] = None,
) -> None:
    """Predict poses in pictures, folders and videos.

    Writes COCO results as JSON, and drawn overlays.
    """
    from lowpose.predict import predict_sources
    from lowpose.runtime import load

    options = {"threads": threads, "providers": provider or None, "engine": engine}
    report = predict_sources(
        load(weights, **{name: value for name, value in options.items() if value is not None}),
        sources,
        boxes,
        results=out / "results.json",
        draw=out if draw else None,
        threshold=threshold,
        min_score=min_score,
        detector_weights=detector_weights,
    )
    console.print(f"persons: {report.persons}, pictures or frames: {report.frames}; {out / 'results.json'}")
    if report.problems:
        say("yellow", "warning", f"{len(report.problems)} could not be read; they are named above")


def sheet(
    weights: Annotated[Path, typer.Argument(help="Run folder or weights file.")],
    persons: Annotated[int, typer.Option(min=3, help="How many: a third each of best, median, worst.")] = 24,
    out: Annotated[Path | None, typer.Option(help="PNG file; default sheet.png beside the weights.")] = None,
) -> None:
    """Draw best, median and worst predictions of a run."""
    from lowpose.sheet import draw_sheet

    console.print(str(draw_sheet(weights, persons, out)))


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


def export(
    weights: Annotated[Path, typer.Argument(help="Run folder or weights file.")],
    to: Annotated[str, typer.Option(help="Format: onnx.")] = "onnx",
    out: Annotated[Path | None, typer.Option(help="File to write; default beside the weights.")] = None,
    flip: Annotated[
        bool | None, typer.Option("--flip/--no-flip", help="Flip test inside; default as the recipe evaluates.")
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="Compute in 8 bits; measured before and after.")] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="Store weights in 16 bits; measured before and after.")] = False,
    data: Annotated[
        str | None,
        typer.Option(
            help="KIND:ROOT of crops: those that the file is proven on, default drawn people; of --int8, --fp16 the recipe's."
        ),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of the data that is proven or measured on.")] = None,
    calibration: Annotated[
        int | None, typer.Option(min=1, help="With --int8: crops of the training split; default 256.", show_default=False)
    ] = None,
    keep_float: Annotated[
        str | None, typer.Option(help="With --int8, --fp16: parts left in float32, as head,backbone.body.conv1; default head.")
    ] = None,
    limit: Annotated[
        float | None, typer.Option(min=0, help="With --int8, --fp16: points that the main metric may fall; default 1.")
    ] = None,
) -> None:
    """Write weights as one ONNX file, checked to be equal.

    --int8 and --fp16 are measured instead, before and after; the card beside the file says both.
    """
    from lowpose.export import export_onnx
    from lowpose.smaller import export_reduced, real_crops

    if to != "onnx":
        raise LowposeError(f"--to {to}: only onnx can be written")
    if int8 and fp16:
        raise LowposeError("--int8 and --fp16: give one of them")
    settings = {"calibration": calibration, "limit": limit}
    if keep_float is not None:
        settings["keep"] = [part.strip() for part in keep_float.split(",") if part.strip()]
    given = {name: value for name, value in settings.items() if value is not None}
    if fp16 and calibration is not None:
        raise LowposeError("--calibration is for --int8: 16 bits need no ranges")
    if given and not (int8 or fp16):
        raise LowposeError(
            "--calibration, --keep-float and --limit are for --int8 and --fp16; a float32 file is equal, or not written"
        )
    if not (int8 or fp16):
        report = export_onnx(weights, out, flip=flip, crops=real_crops(weights, data, split) if data or split else None)
    else:
        precision = "int8" if int8 else "fp16"
        report = export_reduced(weights, precision, out, flip=flip, source=data, split=split, command=command_line(), **given)
    console.print(str(report), soft_wrap=True, highlight=False, markup=False)


def pack(
    weights: Annotated[Path, typer.Argument(help="Run folder or weights file.")],
    out: Annotated[Path, typer.Argument(help="The .safetensors file to write.")],
) -> None:
    """Write weights to hand on: fp16, without local paths."""
    from lowpose.checkpoint import pack_weights

    pack_weights(weights, out)
    console.print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")
