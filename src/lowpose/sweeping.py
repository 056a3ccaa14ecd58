"""Sizes and models on one data set: accuracy, multiply-accumulates and milliseconds, measured in one run.

A person may have fewer pixels than a model's input. The baseline for a small model is then a large one that gets the small crop
enlarged: crops are rendered at the small size (`area`), enlarged bilinearly to the large model's input, and predicted by it. The
two scalings cancel exactly (`CoarseReader`), so predictions go back to the picture by the matrix of the large crop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lowpose.cards import measured_on, sha256, versions
from lowpose.checkpoint import load_model, weights_path
from lowpose.config import RunConfig
from lowpose.data.degradations import CoarseReader
from lowpose.errors import LowposeError
from lowpose.evaluation import measured_data
from lowpose.files import check_writable, write_report
from lowpose.metrics.breakdown import check_breakdown, check_heights
from lowpose.nn.cost import count
from lowpose.nn.model import PoseModel
from lowpose.samples import PoseData
from lowpose.sweep_page import draw_sweep, markdown
from lowpose.tasks.pose import at_heights, check_fits, measure, predict_split, validation_data
from lowpose.turns import machine, summary
from lowpose.turns import measure as take_turns

FILES = ("sweep.json", "sweep.md", "sweep.png")


@dataclass(frozen=True)
class Entry:
    """A model of the sweep. height: of its input, pixels. passes: through the network for a person, two with the flip test."""

    name: str
    path: Path
    model: PoseModel
    config: RunConfig

    @property
    def height(self) -> int:
        return self.config.input.size[1]

    @property
    def passes(self) -> int:
        return 2 if self.config.eval.flip else 1


def sweep(
    weights: Sequence[str | Path],
    source: str | None = None,
    split: str | None = None,
    *,
    sizes: Sequence[int] | None = None,
    heights: Sequence[int] = (),
    persons: int | None = None,
    flip: bool | None = None,
    batch: int = 32,
    rounds: int = 15,
    out: str | Path = "runs/sweep",
    bootstrap: int = 1000,
    command: str | None = None,
) -> dict[str, Any]:
    """Accuracy, cost and time of models at sizes; writes sweep.json, sweep.md and sweep.png into `out`, returns the JSON's dict.

    Every model is measured at its own input size and, as the baseline, at every smaller size of `sizes` from enlarged crops.

    Args:
        weights: run folders or weights files. source: 'KIND:ROOT', default the validation data of the first one's recipe.
        split: its split. sizes: heights of crops, pixels, rising; default the models' own. heights: also bring everybody down
            to these heights, pixels (`lowpose.evaluate`'s). persons: at most so many, from the start. flip: the flip test,
            default as each recipe evaluates. batch: of the second timing. rounds: of timings, in which all models take turns.

    Returns, beside what was measured on what:
        metric: the data set's main one. rows: of a model at a size, largest size first: {name, file, sha256, input (width,
            height), size, enlarged, resample, params, passes, macs (of all passes), ms: {one, batch} -> {median, low, high},
            metrics, heights, front: {macs, ms}}.
        ms: of `model.predict` on a CPU, one thread, milliseconds per person, low and high are quartiles; `batch`: of that many.
        heights: of `metrics.breakdown.by_rendered_height`. front: no other row of this size is as accurate for less.
    Raises: LowposeError for numbers out of range, weights that do not fit the data or each other, data that cannot be read.
    """
    entries = read_entries(weights, flip)
    sizes = check_numbers(entries, sizes, heights, batch, rounds)
    paths = [Path(out) / name for name in FILES]
    check_writable(*paths)
    first = entries[0].config
    data = validation_data(first.model_copy(update={"data": measured_data(first, source, split, None)}))
    for entry in entries:
        check_fits(entry.model, data)
    if heights:
        check_breakdown(data)
    data = data.subset(range(min(len(data), persons or len(data))))
    before, times = machine(), time_models(entries, batch, rounds)
    rows = [
        measure_row(entry, size, data, times[entry.name], heights, bootstrap)
        for entry in entries
        for size in sorted({*(s for s in sizes if s < entry.height), entry.height})
    ]
    rows.sort(key=lambda row: (-row["size"], row["macs"]))
    metric = next(name for name in rows[0]["metrics"] if not name.startswith("EPE"))
    mark_fronts(rows, metric)
    report = {
        "metric": metric,
        "measured_on": measured_on(data),
        "batch": batch,
        "rounds": rounds,
        "heights": list(heights),
        "machine": before | {"load_after": machine()["load"]},
        "versions": versions(),
        "command": command,
        "skipped_pictures": sorted({line for row in rows for line in row.pop("skipped")}),
        "rows": rows,
    }
    write_report(paths, report, markdown, draw_sweep)
    return report


def read_entries(weights: Sequence[str | Path], flip: bool | None) -> list[Entry]:
    """Raises: LowposeError for none, or the same file twice."""
    if not weights:
        raise LowposeError("a sweep is over models: give weights files or run folders")
    paths = [weights_path(w) for w in weights]
    again = next((w for w, path in zip(weights, paths, strict=True) if paths.count(path) > 1), None)
    if again is not None:
        raise LowposeError(f"{again}: given twice; a sweep compares different weights")
    loaded = [load_model(path) for path in paths]
    names = [config.name for _, config in loaded]
    if len(set(names)) < len(names):  # seeds of one recipe: the file tells them apart
        names = [str(w) for w in weights]
    entries = []
    for name, path, (model, config) in zip(names, paths, loaded, strict=True):
        if flip is not None:
            config = config.model_copy(update={"eval": config.eval.model_copy(update={"flip": flip})})
        entries.append(Entry(name, path, model, config))
    return entries


def check_numbers(
    entries: Sequence[Entry], sizes: Sequence[int] | None, heights: Sequence[int], batch: int, rounds: int
) -> list[int]:
    """The sizes. Raises: LowposeError for a size that nobody can be measured at, and numbers out of range."""
    if sizes is None:
        sizes = sorted({entry.height for entry in entries})
    largest = max(entry.height for entry in entries)
    for size in sizes:
        if not 8 <= size <= 4096:
            raise LowposeError(f"sizes are heights of crops, 8 to 4096 pixels, not {size}")
        if size > largest:
            raise LowposeError(f"size {size}: no model has an input so large; the largest is {largest} pixels high")
    if batch < 1 or rounds < 1:
        raise LowposeError(f"batch and rounds must be 1 or more, not {batch} and {rounds}")
    check_heights(heights)
    return list(sizes)


def measure_row(
    entry: Entry, size: int, data: PoseData, ms: dict[str, Any], heights: Sequence[int], bootstrap: int
) -> dict[str, Any]:
    """A model on crops that are rendered `size` pixels high, and enlarged where its input is higher."""
    model, config, share = entry.model, entry.config, size / entry.height
    resample = config.input.resample if share == 1 else "area"
    reader = CoarseReader(data, config.input.model_copy(update={"resample": resample}), config.train.seed, share)
    cost = count(model.cpu(), config.input.size)
    found = predict_split(model, data, config, reader=reader)
    report = measure(model, config, data, found, bootstrap)
    if all(name.startswith("EPE") for name in report["metrics"]):
        why = "; ".join(f"{name}: {reason}" for name, reason in report["not_measured"].items())
        raise LowposeError(f"{data.kind}:{data.root}: split '{data.split}' has no accuracy to compare ({why})")
    row = {
        "name": entry.name,
        "file": entry.path.name,
        "sha256": sha256(entry.path),
        "input": list(config.input.size),
        "size": size,
        "enlarged": share < 1,
        "resample": resample,
        "params": cost.params,
        "passes": entry.passes,
        "macs": entry.passes * cost.macs,
        "ms": ms,
        "metrics": report["metrics"],
        "skipped": found.skipped,
    }
    if heights:
        row["heights"] = at_heights(model, config, data, found, heights, bootstrap, share)
    return row


def time_models(entries: Sequence[Entry], batch: int, rounds: int) -> dict[str, dict[str, Any]]:
    """Name -> {one, batch} -> milliseconds per person of `model.predict` on a CPU with one thread: {median, low, high}.

    Models take turns in every round, so that other work on the machine falls on all of them.
    """
    calls = {(e.name, kind): _call(e, n) for e in entries for kind, n in (("one", 1), ("batch", batch))}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        taken = take_turns(calls, rounds, math.inf)
    finally:
        torch.set_num_threads(threads)
    out: dict[str, dict[str, Any]] = {}
    for (name, kind), times in taken.items():
        persons = batch if kind == "batch" else 1
        found = summary([t / persons for t in times])
        out.setdefault(name, {})[kind] = {k: found[k] for k in ("median", "low", "high")}
    return out


def _call(entry: Entry, batch: int) -> Callable[[], Any]:
    width, height = entry.config.input.size
    images = torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    model = entry.model.cpu().eval()
    return lambda: model.predict(images, flip=entry.config.eval.flip)


def mark_fronts(rows: list[dict[str, Any]], metric: str) -> None:
    """Set 'front' of each row: no other row of its size is as accurate for less, nor more accurate for as much."""
    for row in rows:
        others = [r for r in rows if r["size"] == row["size"] and r is not row]
        row["front"] = {
            kind: not any(_beats(_point(r, kind, metric), _point(row, kind, metric)) for r in others) for kind in ("macs", "ms")
        }


def _point(row: dict[str, Any], kind: str, metric: str) -> tuple[float, float]:
    return (row["macs"] if kind == "macs" else row["ms"]["one"]["median"]), row["metrics"][metric]["value"]


def _beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a != b and a[0] <= b[0] and a[1] >= b[1]
