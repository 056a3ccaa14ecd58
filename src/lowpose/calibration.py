"""Calibrate the scores of trained weights: probabilities that keypoints are right, fitted on one half of a split and judged on
the other, and stored with the weights.

One temperature for a model and a bias for each of its keypoints, whatever its head, since the score of all heads is defined alike
(the mass near the peak). The bias is needed (see `lowpose.confidence`); one for all keypoints leaves heads too low and ankles
too high. The report has what the simpler forms would give.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from lowpose.calibration_page import draw_calibration, markdown
from lowpose.cards import sha256, versions
from lowpose.checkpoint import load_model, store_facts, weights_path
from lowpose.confidence import Calibration, calibrated
from lowpose.errors import LowposeError
from lowpose.evaluation import measured_data
from lowpose.files import check_writable, whole, write_json, write_text
from lowpose.metrics.reliability import Rule, figures, fit, reliability, rule_of
from lowpose.samples import PoseData
from lowpose.shipped import FOLDER, home
from lowpose.tasks.pose import check_fits, predict_split, validation_data

FILES = ("calibration.json", "calibration.md", "calibration.png")


def calibrate(
    weights: str | Path,
    source: str | None = None,
    split: str | None = None,
    *,
    radius: float | None = None,
    to: str | Path | None = None,
    out: str | Path | None = None,
    bootstrap: int = 1000,
    command: str | None = None,
) -> dict[str, Any]:
    """Fit a temperature and biases to the scores of weights and store them inside; writes calibration.json, .md and .png.

    Args:
        weights: run folder or weights file. source: 'KIND:ROOT', default the recipe's validation data. split: its split.
        radius: within which a keypoint is right, as `metrics.reliability.rule_of` counts it; default the data set's own.
        to: weights file to write; default the weights themselves, which then differ in their description alone.
        out: folder of the three files, default where the weights are.

    Returns the report. Raises: LowposeError for weights of another task or skeleton, data that cannot be read or have no
    labels, or scores to which no temperature can be fitted.
    """
    path = weights_path(weights)
    if to is None and path.parent == FOLDER:
        raise LowposeError(f"{weights}: comes with the package and stays as it is; name the file to write with --to")
    to = path if to is None else Path(to)
    if to.suffix != ".safetensors":
        raise LowposeError(f"{to}: a weights file must end in .safetensors")
    folder = Path(out) if out else home(path)
    check_writable(to, *(folder / name for name in FILES))
    model, config = load_model(weights)
    config = config.model_copy(update={"data": measured_data(config, source, split, None)})
    data = validation_data(config)
    check_fits(model, data)
    rule = rule_of(data, radius)
    found = predict_split(model, data, config)
    try:
        half, report = fit_halves(data, rule, found.keypoints, found.scores, bootstrap)
    except LowposeError as e:
        raise LowposeError(f"{weights}: {e}") from None
    calibration = Calibration(
        temperature=report["calibration"]["temperature"],
        bias=tuple(report["calibration"]["bias"]),
        correct=rule.name,
        kind=data.kind,
        split=data.split,
        persons=half,
        flip=config.eval.flip,
    )
    about = {
        "name": config.name,
        "weights": {"file": path.name, "sha256": sha256(path)},
        "measured_on": {"kind": data.kind, "split": data.split, "boxes": data.boxes},
        "head": config.head["name"],
        "flip_test": config.eval.flip,
        "skipped_pictures": found.skipped,
        "versions": versions(),
        "command": command,
    }
    report = about | report
    with whole(folder / FILES[0]) as values, whole(folder / FILES[1]) as text, whole(folder / FILES[2]) as picture:
        write_json(values, report)
        write_text(text, markdown(report))
        draw_calibration(report, picture)
        store_facts(path, to, calibration=calibration.model_dump())
    return report


def fit_halves(
    data: PoseData, rule: Rule, keypoints: np.ndarray, scores: np.ndarray, bootstrap: int = 1000
) -> tuple[int, dict[str, Any]]:
    """Persons of the fitted half, and the report: calibration, rule, persons, keypoints, figures, diagrams, by_keypoint.

    Args: keypoints: (N, K, 2) picture pixels. scores: (N, K) in 0..1, as the model gives them.
    """
    right, first = rule.right(data, keypoints), first_half(data)
    sides = {"fitted": rule.counted & first[:, None], "held out": rule.counted & ~first[:, None]}
    for name, counted in sides.items():
        if not counted.any():
            raise LowposeError(f"split '{data.split}' of {data.kind} leaves nobody in the half that is {name}; give more persons")
    a, b = sides.values()
    temperature, bias = fit(scores, right, a)
    ways = {
        "as they are": scores.astype(np.float64),
        "calibrated": calibrated(scores, temperature, bias),
        **_alternative(scores, right, a, "one bias for all keypoints", "one"),
        **_alternative(scores, right, a, "temperature alone", "none"),
    }
    persons = {name: int(counted.any(1).sum()) for name, counted in sides.items()}
    return persons["fitted"], {
        "correct": {"name": rule.name, "rule": rule.text, "radius": rule.radius},
        "calibration": {"temperature": temperature, "bias": bias.tolist()},
        "persons": persons,
        "keypoints": {name: int(counted.sum()) for name, counted in sides.items()},
        "figures": {way: {name: figures(p[c], right[c]) for name, c in sides.items()} for way, p in ways.items()},
        "diagrams": {way: reliability(ways[way][~first], right[~first], b[~first], bootstrap) for way in list(ways)[:2]},
        "by_keypoint": {
            name: {"n": int(b[:, k].sum()), **{way: float(p[b[:, k], k].mean()) for way, p in list(ways.items())[:2]}}
            | {"right": float(right[b[:, k], k].mean())}
            for k, name in enumerate(data.skeleton.keypoints)
            if b[:, k].any()
        },
    }


def first_half(data: PoseData) -> np.ndarray:
    """(N,) bool: persons of the half that is fitted, by a hash of their picture: one picture's persons stay together."""
    return np.array([hashlib.blake2b(str(s.image).encode()).digest()[0] % 2 == 0 for s in data.samples], bool)


def _alternative(scores: np.ndarray, right: np.ndarray, counted: np.ndarray, name: str, bias: str) -> dict[str, np.ndarray]:
    """A simpler form's probabilities; nothing where it has no temperature, as where even high scores are too low for how often
    they are right and there is no bias."""
    try:
        return {name: calibrated(scores, *fit(scores, right, counted, bias))}
    except LowposeError:
        return {}
