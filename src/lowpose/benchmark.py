"""What models cost in use: latency, throughput, memory, parameters and MACs of torch, torch.compile and ONNX, in turns.

Timed is the way from crops in memory to keypoints (normalisation, network, decoding; no flip test unless an exported file has it
inside), as `lowpose.load` runs it on a CPU. Cutting crops out of pictures is the same for all and not in it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from lowpose.cards import versions
from lowpose.checkpoint import weights_path
from lowpose.errors import LowposeError, did_you_mean
from lowpose.export import write_unproven
from lowpose.files import check_writable, write_json
from lowpose.nn.cost import count
from lowpose.shipped import find
from lowpose.turns import machine, measure, summary
from lowpose.ways import RUNTIMES, Way, crops_of, no_compiler, open_model, open_way, read_onnx

ROUNDS = 1000  # at most; `seconds` ends sooner
log = logging.getLogger("lowpose")


def bench(
    models: Sequence[str | Path],
    *,
    batches: Sequence[int] = (1, 32),
    threads: Sequence[int] = (1,),
    runtimes: Sequence[str] = RUNTIMES,
    sizes: Sequence[int] = (),
    seconds: float = 20.0,
    memory: bool = True,
    out: str | Path | None = None,
) -> dict[str, Any]:
    """Measure models under all runtimes in one run, in turns.

    Args:
        models: weights files, run folders, recipes (random weights), exported .onnx files.
        batches: crops at a time. threads: of torch and onnxruntime. runtimes: of 'torch', 'compiled', 'onnx' (exported on the
            fly, or an .onnx file in floats) and 'int8' (.onnx files alone).
        sizes: sides of square inputs, pixels, of recipes; default the recipe's own size.
        seconds: of each table (one number of threads and one batch); at least one round beside the one that warms up.
        memory: also measure peak memory, a process for each row of the largest batch. out: JSON file to write.

    Returns, and writes:
        rows: model, runtime, precision, size, threads, batch; ms {median, low, high (quartiles over rounds), rounds}; persons
            (per second) and persons_per_thread; ratio (median over rounds of the first row's time of the same threads and batch
            divided by this one's); params, macs (one crop; None for an .onnx file of unknown weights), memory (bytes, None where
            not measured).
        skipped: lines about what was not measured. notes, machine, versions, seconds.

    Raises: LowposeError for a model that cannot be opened, or numbers out of range.
    """
    _check(models, batches, threads, runtimes, sizes, seconds)
    if out is not None:
        check_writable(out)
    skipped: list[str] = []
    with tempfile.TemporaryDirectory(prefix="lowpose-bench-") as folder:
        ways, facts, notes = _ways(list(map(str, models)), list(runtimes), list(sizes), Path(folder), skipped)
        before, measured = machine(), []
        tables = [(t, b) for t in threads for b in batches]
        for number, batch in _shown(tables, "bench"):
            measured += _table(ways, number, batch, seconds, skipped)
        for way, row in _shown(measured, "memory"):
            row |= facts[way] | {"memory": None}
            if memory and row["batch"] == max(batches):
                row["memory"] = _memory(way, row["batch"], row["threads"], skipped)
    report = {
        "rows": [row for _, row in measured],
        "skipped": list(dict.fromkeys(skipped)),
        "notes": notes,
        "seconds": seconds,
        "machine": before | {"load_after": machine()["load"]},
        "versions": versions(),
    }
    for line in report["skipped"]:
        log.warning("%s", line)
    if out is not None:
        write_json(out, report)
    return report


def _shown(items: list, what: str):
    return track(items, what, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True)


def _check(models, batches, threads, runtimes, sizes, seconds) -> None:
    if not models:
        raise LowposeError("nothing to measure: give weights, run folders, recipes or .onnx files")
    for name in runtimes:
        if name not in RUNTIMES:
            raise LowposeError(f"unknown runtime '{name}'{did_you_mean(name, RUNTIMES)}; known: {', '.join(RUNTIMES)}")
    for what, numbers, least in (("batches", batches, 1), ("threads", threads, 1), ("sizes", sizes, 8)):
        if any(n < least for n in numbers) or (not numbers and what != "sizes"):
            raise LowposeError(f"{what} {list(numbers)}: give whole numbers from {least}")
    if not runtimes or not seconds > 0:
        raise LowposeError(
            f"seconds {seconds:g}: give a positive number" if runtimes else f"no runtime: give {', '.join(RUNTIMES)}"
        )


def _ways(
    models: list[str], runtimes: list[str], sizes: list[int], folder: Path, skipped: list[str]
) -> tuple[list[Way], dict[Way, dict[str, Any]], list[str]]:
    """The rows of a table in order, what is known of each (size, params, macs), and remarks."""
    ways: list[Way] = []
    facts: dict[Way, dict[str, Any]] = {}
    by_weights: dict[str, dict[str, Any]] = {}
    notes = []
    reason = no_compiler() if "compiled" in runtimes else None
    skipped += [reason] if reason else []
    exported = [m for m in models if m.endswith(".onnx")]
    for model in [m for m in models if m not in exported]:
        for way in _of_model(model, sizes):
            found, onnx = _torch_facts(way), None
            if way.file:
                by_weights[hashlib.sha256(Path(way.file).read_bytes()).hexdigest()] = found
            if "onnx" in runtimes:
                onnx = folder / f"{len(ways)}.onnx"
                write_unproven(*open_model(way), onnx, way.model)
                notes.append(f"{way.model}: its ONNX graph was not compared with torch (lowpose export does that)")
            chosen = [name for name in ("torch", "compiled", "onnx") if name in runtimes and not (name == "compiled" and reason)]
            new = [replace(way, runtime=name, file=str(onnx) if name == "onnx" else way.file) for name in chosen]
            ways, facts = [*ways, *new], facts | dict.fromkeys(new, found)
    for model in exported:
        held = read_onnx(Path(model))
        name = "int8" if held["precision"] == "int8" else "onnx"
        if name not in runtimes:
            raise LowposeError(f"{model}: a file of {held['precision']} numbers, runtime '{name}', which --runtimes leaves out")
        way = Way(Path(model).stem, name, held["precision"], file=model)
        macs = by_weights.get(held["weights_sha256"], {}).get("macs")
        ways, facts = [*ways, way], facts | {way: {"size": held["size"], "params": held["params"], "macs": macs}}
        notes += [f"{way.model}: the flip test is inside, the network runs twice"] if held["flip"] else []
    if not ways:
        raise LowposeError(f"nothing is left to measure: {reason or 'int8 is measured of .onnx files alone; give one'}")
    return ways, facts, notes


def _of_model(model: str, sizes: list[int]) -> list[Way]:
    """One way of weights, one for each size of a recipe; named as told apart in tables."""
    path = find(model, ".safetensors")
    if path.suffix == ".safetensors" or path.is_dir() or (path.is_file() and path.suffix not in (".yaml", ".yml")):
        if sizes:
            raise LowposeError(f"{model}: weights are trained for one size; sizes are for recipes")
        name = path.name if path.is_dir() else path.stem
        return [Way(name, "torch", file=str(weights_path(path)))]
    name = path.stem if path.suffix else model
    return [Way(f"{name} at {s}" if s else name, "torch", recipe=model, size=s) for s in sizes or [None]]


def _torch_facts(way: Way) -> dict[str, Any]:
    model, config = open_model(way)
    cost = count(model, config.input.size)
    return {"size": list(config.input.size), "params": cost.params, "macs": cost.macs}


def _table(ways: list[Way], threads: int, batch: int, seconds: float, skipped: list[str]) -> list[tuple[Way, dict[str, Any]]]:
    """Each way with its row, for one number of threads and one batch."""
    ready, were = {}, torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for way in ways:
            infer, size = open_way(way, threads)
            crops = crops_of(size, batch)
            try:
                infer(crops)
            except Exception as e:  # torch.compile raises many kinds
                if way.runtime != "compiled":
                    raise
                skipped.append(f"{way.model}: torch cannot compile it ({type(e).__name__}: {' '.join(str(e).split())[:120]})")
                continue
            ready[way] = lambda infer=infer, crops=crops: infer(crops)
        times = measure(ready, ROUNDS, seconds)
    finally:
        torch.set_num_threads(were)
        torch.compiler.reset()  # what was compiled for this batch is not needed for the next
    first = np.array(next(iter(times.values()), []))
    rows = []
    for way, values in times.items():
        ms = summary(values)
        persons = 1000 * batch / ms["median"]
        row = {name: value for name, value in asdict(way).items() if name in ("model", "runtime", "precision")}
        row |= {"threads": threads, "batch": batch, "ms": ms, "persons": persons, "persons_per_thread": persons / threads}
        rows.append((way, row | {"ratio": float(np.median(first / np.array(values)))}))
    return rows


def _memory(way: Way, batch: int, threads: int, skipped: list[str]) -> int | None:
    """Bytes, of a fresh process that loads and runs this way alone."""
    asked = json.dumps({"way": asdict(way), "batch": batch, "threads": threads})
    done = subprocess.run([sys.executable, "-m", "lowpose.bench_child", asked], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        skipped.append(f"{way.model}, {way.runtime}: its memory was not measured ({last[:160]})")
        return None
    return json.loads(done.stdout.splitlines()[-1])["peak"]
