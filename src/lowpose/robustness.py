"""How a model stands what its training did not show: its accuracy under each operator of `lowpose.data.degradations`.

Every person is predicted plain and under all operators at all severities in one pass, so all figures are of the same persons, and
relative accuracies get paired intervals: a resample of persons (of pictures for AP) is the same for all of them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from lowpose.cards import measured_on, sha256
from lowpose.checkpoint import load_model, weights_path
from lowpose.config import RunConfig
from lowpose.data.degradations import OPERATORS, DegradedCrops
from lowpose.errors import LowposeError
from lowpose.evaluation import measured_data, measuring_config
from lowpose.files import check_writable, write_report
from lowpose.geometry import invert, reduction, transform
from lowpose.metrics import figure
from lowpose.metrics.bootstrap import counts, interval, ratio
from lowpose.nn.model import PoseModel
from lowpose.recipe_files import shorten_paths
from lowpose.robustness_page import draw_robustness, markdown
from lowpose.samples import PoseData
from lowpose.shipped import home
from lowpose.tasks.pose import Predictions, check_fits, paired, read_as, validation_data

FILES = ("robustness.json", "robustness.md", "robustness.png")
ACCURACIES = ("AP", "PCKh@0.5", "pck_neck_head@0.5", "PCK@0.2")
ERROR = "EPE_crop"


def measure_robustness(
    weights: str | Path,
    source: str | None = None,
    split: str | None = None,
    *,
    persons: int | None = None,
    out: str | Path | None = None,
    overrides: tuple[str, ...] | list[str] = (),
    bootstrap: int = 1000,
    command: str | None = None,
) -> dict[str, Any]:
    """Accuracy under every operator at five severities; writes robustness.json, .md and .png into `out`, returns the JSON's dict.

    Args:
        weights: run folder or weights file; exported files are not measured here. source: 'KIND:ROOT', default the recipe's
            validation data. split: its split. persons: at most so many, from the start. out: default the weights' folder.
        overrides: as of `lowpose.evaluate`. bootstrap: resamples of the 95% intervals.

    Returns, beside what was measured on what:
        metrics: names, the first is the data set's main one. clean: name -> {value, low, high, n} on plain crops.
        operators: name -> {group, unit, severities: [{severity, value, figures: name -> {value, low, high, n, relative}}],
            mean: name -> relative accuracy, mean over its severities}. overall: name -> mean over operators.
        not_defined: name -> why its relative accuracy is not. A relative accuracy is {value, low, high}, percent of the clean
            one, of all metrics but EPE_crop; where the clean accuracy is 0 its value is None.
    Raises: LowposeError for weights that do not fit the data, data that cannot be read, a split without labelled joints.
    """
    path = weights_path(weights)
    paths = [Path(out or home(path)) / name for name in FILES]
    check_writable(*paths)
    model, own = load_model(weights)
    config = measuring_config(own, overrides)
    config = config.model_copy(update={"data": measured_data(config, source, split, None)})
    if config.head != own.head:
        model.head = read_as(config, model)
    data = validation_data(config)
    check_fits(model, data)
    data = data.subset(range(min(len(data), persons or len(data))))
    found = predict_degraded(model, data, config)
    measures = main_measures(model, data, config, found, bootstrap)
    if not measures:
        raise LowposeError(f"{data.kind}:{data.root}: split '{data.split}' has no labelled joint to measure on")
    report = {
        "name": config.name,
        "weights": {"file": path.name, "sha256": sha256(path)},
        "measured_on": measured_on(data),
        "input": {"size": list(config.input.size), "padding": config.input.padding, "resample": config.input.resample},
        "flip_test": config.eval.flip,
        "seed": config.train.seed,
        "command": command,
        "overrides": [shorten_paths(item) for item in overrides],
        **summary(measures),
        "skipped_pictures": found[0].skipped,
    }
    write_report(paths, report, markdown, draw_robustness)
    return report


def predict_degraded(model: PoseModel, data: PoseData, config: RunConfig) -> list[Predictions]:
    """Of the plain crops, and of those of every operator and severity in the order of `DegradedCrops.person`."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model.to(device).eval()
    crops = DegradedCrops(data, config.input, config.train.seed)
    parts: list[list[np.ndarray]] = [[], [], []]
    scale, skipped = [], set()
    for index in track(
        range(len(data)), "robustness", console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True
    ):
        images, matrices, error = crops.person(index)
        batches = torch.from_numpy(images).permute(0, 3, 1, 2).split(config.eval.batch_size)
        decoded = [model.predict(batch.to(device), flip=config.eval.flip) for batch in batches]
        keypoints, scores, published = (
            torch.cat([getattr(d, name) for d in decoded]).cpu().numpy() for name in ("keypoints", "scores", "published")
        )
        for kept, now in zip(parts, (transform(invert(matrices), keypoints), scores, published), strict=True):
            kept.append(now)
        scale.append(reduction(matrices[0]))  # errors count in the same pixels everywhere
        skipped |= {error} if error else set()
    stacked = [np.stack(part, axis=1) for part in parts]
    return [Predictions(k, s, p, np.array(scale), sorted(skipped)) for k, s, p in zip(*stacked, strict=True)]


@dataclass(frozen=True)
class Measure:
    """One metric. values: (C,), plain first. samples: (R, C) of resampled persons. n: (C,) persons behind each value."""

    values: np.ndarray
    samples: np.ndarray
    n: np.ndarray


def main_measures(
    model: PoseModel, data: PoseData, config: RunConfig, found: list[Predictions], bootstrap: int, seed: int = 0
) -> dict[str, Measure]:
    """The main metrics of the data set, the one that its users report first, then the error in crop pixels."""
    measured = [paired(model, config, data, f.arrays()) for f in found]
    out = {}
    for name in (*ACCURACIES, ERROR):
        if name == "AP" and measured[0][1] is not None:
            precise = [p for _, p in measured]
            out[name] = _of_precision(precise, bootstrap, seed)
        elif name in measured[0][0]:
            out[name] = _of_sums([sums[name] for sums, _ in measured], bootstrap, seed)
    out = {name: m for name, m in out.items() if np.isfinite(m.values[0])}
    return dict(sorted(out.items(), key=lambda item: item[0] == "AP")) if data.protocol == "lsp" else out


def _of_sums(sums: list[tuple[np.ndarray, np.ndarray]], bootstrap: int, seed: int) -> Measure:
    numerator, denominator = (np.array(part) for part in zip(*sums, strict=True))
    blocks = (ratio(c @ numerator.T, c @ denominator.T) for c in counts(numerator.shape[1], bootstrap, seed))
    samples = np.concatenate([np.zeros((0, len(sums))), *blocks])
    return Measure(ratio(numerator.sum(1), denominator.sum(1)), samples, (denominator > 0).sum(1))


def _of_precision(precise: list, bootstrap: int, seed: int) -> Measure:
    weights = [w for block in counts(precise[0].images, bootstrap, seed) for w in block]
    stats: list[Callable] = [p.stats for p in precise]
    show = {"console": Console(stderr=True), "disable": not sys.stderr.isatty(), "transient": True}
    samples = [[100 * of(w)["AP"] for of in stats] for w in track(weights, "intervals of AP", **show)]
    values = np.array([100 * p.exact["AP"] for p in precise])
    return Measure(values, np.array(samples).reshape(-1, len(stats)), np.array([p.persons["AP"] for p in precise]))


def summary(measures: dict[str, Measure]) -> dict[str, Any]:
    """metrics, clean, operators, overall and not_defined of the report."""
    steps = len(OPERATORS[0].values)
    accuracies = {name: m for name, m in measures.items() if name != ERROR}
    relative = {name: _relative(m) for name, m in accuracies.items()}
    operators: dict[str, Any] = {}
    for i, operator in enumerate(OPERATORS):
        first = 1 + i * steps
        rows = [
            {
                "severity": j + 1,
                "value": value,
                "figures": {
                    name: _cell(m, first + j) | ({"relative": _share(relative[name], [first + j])} if name in relative else {})
                    for name, m in measures.items()
                },
            }
            for j, value in enumerate(operator.values)
        ]
        every = list(range(first, first + steps))
        operators[operator.name] = {
            "group": operator.group,
            "unit": operator.unit,
            "severities": rows,
            "mean": {name: _share(relative[name], every) for name in relative},
        }
    everything = list(range(1, 1 + steps * len(OPERATORS)))
    return {
        "metrics": list(measures),
        "clean": {name: _cell(m, 0) for name, m in measures.items()},
        "operators": operators,
        "overall": {name: _share(relative[name], everything) for name in relative},
        "not_defined": {name: "the accuracy on plain crops is 0" for name, m in accuracies.items() if m.values[0] == 0},
    }


def _relative(m: Measure) -> tuple[np.ndarray, np.ndarray]:
    """(C,) and (R, C) percent of the plain value; NaN where that is 0."""
    return 100 * ratio(m.values, np.broadcast_to(m.values[:1], m.values.shape)), 100 * ratio(
        m.samples, np.broadcast_to(m.samples[:, :1], m.samples.shape)
    )


def _share(relative: tuple[np.ndarray, np.ndarray], chosen: list[int]) -> dict[str, float | None]:
    """Mean relative accuracy over conditions, as {value, low, high}."""
    value = relative[0][chosen].mean()
    low, high = interval(relative[1][:, chosen].mean(1))
    return {name: float(x) if np.isfinite(x) else None for name, x in (("value", value), ("low", low), ("high", high))}


def _cell(m: Measure, i: int) -> dict[str, Any]:
    return figure(m.values[i], *interval(m.samples[:, i]), m.n[i])
