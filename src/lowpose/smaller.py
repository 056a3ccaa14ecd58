"""Weights -> an INT8 or FP16 file, written only with its accuracy before and after, and only if it lost little.

The float32 file is exported and proven equal first (`lowpose.export`); the smaller one is made from it. Both are measured on
the same split with the same boxes, and the card beside the file says both, with paired intervals of the difference.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lowpose.cards import make_card, sha256, write_card
from lowpose.checkpoint import load_model, weights_path
from lowpose.comparison import Measured, precision_metrics, ratio_metrics
from lowpose.config import RunConfig
from lowpose.data import load_data
from lowpose.errors import LowposeError
from lowpose.evaluation import measured_data, training_facts
from lowpose.export import PERSONS, check_extra, export_onnx, onnx_path
from lowpose.files import check_writable, whole
from lowpose.nn.cost import count
from lowpose.nn.model import PoseModel
from lowpose.quantisation import add_facts, blame, halvable, quantisable, without, write_fp16, write_int8
from lowpose.runtime import load_onnx
from lowpose.samples import PoseData
from lowpose.tasks import pose

FORMATS = ("int8", "fp16")
CALIBRATION, BLAME = 256, 32  # crops
NAMED = 5  # layers in an error


@dataclass(frozen=True)
class ReducedReport:
    """An INT8 or FP16 file, and what it lost. metric: the main one; before, after: its values; folder, stem: of the card."""

    path: Path
    bytes: int
    bytes_before: int
    metric: str
    before: float
    after: float
    card: Path

    def __str__(self) -> str:
        return (
            f"{self.path} ({self.bytes / 1e6:.1f} MB, float32 {self.bytes_before / 1e6:.1f} MB): {self.metric} {self.after:.2f}, "
            f"float32 {self.before:.2f}; {self.card}"
        )


def export_reduced(
    weights: str | Path,
    precision: str,
    out: str | Path | None = None,
    *,
    flip: bool | None = None,
    source: str | None = None,
    split: str | None = None,
    calibration: int = CALIBRATION,
    keep: Sequence[str] = ("head",),
    limit: float = 1.0,
    bootstrap: int = 1000,
    command: str | None = None,
) -> ReducedReport:
    """Write weights as an INT8 or FP16 file with a card that says what this cost.

    Args:
        weights: file or run folder. precision: 'int8' or 'fp16'. out: the .onnx file; default beside the weights.
        flip: as `export_onnx`. source: 'KIND:ROOT' of the crops, default the recipe's data. split: that accuracy is measured on,
            default the recipe's. calibration: INT8's ranges come from so many crops of the training split, evenly spread.
        keep: parts of the network that stay in float32, as 'head' or 'backbone.body.conv1'.
        limit: points that the main metric may fall. bootstrap: resamples of the intervals.

    Raises: LowposeError if data are missing, if `keep` names nothing, or if the accuracy falls by more than `limit`: then the
        error names the layers that move keypoints most, and nothing is written.
    """
    check_extra()
    if precision not in FORMATS:
        raise LowposeError(f"precision {precision}: it is one of {', '.join(FORMATS)}")
    if calibration < 1 or limit < 0:
        raise LowposeError(f"calibration {calibration}, limit {limit}: at least one crop, and a limit of 0 points or more")
    path = weights_path(weights)
    out = onnx_path(out, path, f"-{precision}")
    stem = f"card-{out.stem}"
    check_writable(*(out.parent / f"{stem}{suffix}" for suffix in (".json", ".md")))
    model, config = load_model(path)
    flip = config.eval.flip if flip is None else flip
    where = measured_data(config, source, split, None)
    data = pose.validation_data(config.model_copy(update={"data": where}))
    pose.check_fits(model, data)
    crops = spread_crops(config.model_copy(update={"data": where}), where.train, calibration)
    write = write_int8(crops) if precision == "int8" else write_fp16
    with tempfile.TemporaryDirectory() as folder, whole(out) as temporary:
        plain = Path(folder) / "float32.onnx"
        export_onnx(path, plain, flip=flip, crops=crops[:PERSONS])
        layers = without(list(quantisable(plain) if precision == "int8" else halvable(plain).values()), keep, path.name)
        write(plain, temporary, layers)
        add_facts(temporary, precision={"weights": precision, "layers": len(layers), "float32": list(keep)})
        files = {"float32": plain, precision: temporary}
        results = {name: measure_file(file, model, config, data, bootstrap) for name, file in files.items()}
        metric, before, after = main_metric(*(report for report, _ in results.values()))
        if not before - after <= limit:
            raise LowposeError(_fell(out, metric, before, after, limit, blame(plain, write, layers, crops[:BLAME])))
        sizes = [file.stat().st_size for file in (plain, temporary)]
        card = make_card(
            *(config, data, results[precision][0], temporary, asdict(count(model, config.input.size))),
            **training_facts(path), flip_test=flip, command=command,
        )  # fmt: skip
        card["weights"]["file"] = out.name
        card["exported"] = {
            "precision": precision,
            "from": {"file": path.name, "sha256": sha256(path)},
            "layers": len(layers),
            "float32_parts": list(keep),
            "calibration": {"split": where.train, "crops": len(crops)} if precision == "int8" else None,
            "bytes": sizes[1],
            "bytes_float32": sizes[0],
            "limit": limit,
            "before": results["float32"][0]["metrics"],
            "difference": _difference(results, bootstrap),
        }
        write_card(out.parent, card, stem)
    return ReducedReport(out, sizes[1], sizes[0], metric, before, after, out.parent / f"{stem}.md")


def real_crops(weights: str | Path, source: str | None, split: str | None, count: int = PERSONS) -> np.ndarray:
    """Crops of a data set that a file is proven on, as `spread_crops`; source, split: as `export_reduced`."""
    _, config = load_model(weights_path(weights))
    where = measured_data(config, source, split, None)
    return spread_crops(config.model_copy(update={"data": where}), where.val or where.train, count)


def spread_crops(config: RunConfig, split: str, count: int) -> np.ndarray:
    """(N, h, w, 3) uint8 RGB: plain crops of at most `count` persons of a split, evenly spread; of its cache if
    the recipe has one. Raises: LowposeError if it cannot be read."""
    d = config.data
    data = load_data(d.kind, d.root, split, skeleton=d.skeleton, options=d.options)
    reader = pose.plain_reader(data, config)
    chosen = np.linspace(0, len(data) - 1, min(count, len(data))).round().astype(int)
    crops = [reader.crop(int(i)) for i in chosen]
    good = [c.image for c in crops if c.error is None]
    if not good:
        raise LowposeError(f"{d.kind}:{data.root}: none of the pictures of split '{split}' can be read; {crops[0].error}")
    return np.stack(good)


def measure_file(
    file: Path, model: PoseModel, config: RunConfig, data: PoseData, bootstrap: int
) -> tuple[dict[str, Any], Measured]:
    """The report of an exported file on a split, and what paired intervals need."""
    infer = load_onnx(file).infer

    def through(images: torch.Tensor) -> tuple[np.ndarray, ...]:
        return infer(images.permute(0, 2, 3, 1).contiguous().numpy())

    found = pose.predict_crops(through, data, config)
    return pose.measure(model, config, data, found, bootstrap), Measured(*pose.paired(model, config, data, found.arrays()), {})


def main_metric(before: dict[str, Any], after: dict[str, Any]) -> tuple[str, float, float]:
    """The name of the main metric of a data set, the first of its report where more is better, and its values in two reports.

    Raises: LowposeError if none could be measured.
    """
    for name, found in before["metrics"].items():
        if found.get("value") is not None and not name.startswith("EPE"):
            return name, found["value"], after["metrics"][name]["value"]
    raise LowposeError(
        "the data have no measure but distances (EPE), of which no limit is known: give --data with head or torso sizes"
    )


def _difference(results: dict[str, tuple[dict[str, Any], Measured]], bootstrap: int) -> dict[str, Any]:
    """Metric -> mean, difference, low, high of the smaller file."""
    before, after = ([measured] for _, measured in results.values())
    resamples = max(bootstrap, 100)
    return precision_metrics(after, before, resamples) | ratio_metrics(after, before, resamples)


def _fell(out: Path, metric: str, before: float, after: float, limit: float, blamed: list[tuple[str, float]]) -> str:
    worst = ", ".join(f"{layer} ({pixels:.2f})" for layer, pixels in blamed[:NAMED])
    return (
        f"{out}: not written: {metric} falls by {before - after:.2f}, from {before:.2f} to {after:.2f} (limit {limit:g}); "
        f"alone, these layers move keypoints most (mean pixels): {worst}; keep some with --keep-float, or raise --limit"
    )
