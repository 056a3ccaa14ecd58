"""Task `classification`: the class of a picture. It is here because lossless down-sampling is claimed to serve any network."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from lowpose.config import RunConfig, validation_split
from lowpose.data.classes import load_classes
from lowpose.data.pictures import PictureReader
from lowpose.errors import LowposeError, first_of
from lowpose.files import whole
from lowpose.loader import evaluation_batches
from lowpose.metrics import figure
from lowpose.metrics.bootstrap import ratio_intervals
from lowpose.nn.classifier import Classifier, build_classifier
from lowpose.samples import ClassData

READERS = "classes"


@dataclass
class Predictions:
    """Of one split, in its order: probabilities (N, classes) float32, NaN for pictures that could not be read; skipped: a line
    for each of those."""

    probabilities: np.ndarray
    skipped: list[str]


def training_data(config: RunConfig) -> ClassData:
    return _load(config, config.data.train)


def validation_data(config: RunConfig) -> ClassData:
    return _load(config, validation_split(config))


def _load(config: RunConfig, split: str) -> ClassData:
    if config.data.boxes != "gt":
        raise LowposeError(f"boxes {config.data.boxes}: pictures of classes have none; leave it out")
    if config.data.options:
        raise LowposeError(f"data.options: readers of classes have none, not {', '.join(config.data.options)}")
    return load_classes(config.data.kind, config.data.root, split)


def build(config: RunConfig, data: ClassData) -> Classifier:
    """The model of a recipe for the classes of its data."""
    return build_classifier(config, data.classes)


def check_fits(model: Classifier, data: ClassData) -> None:
    """Raises: LowposeError if the weights tell other classes apart than the data set has."""
    if model.classes != data.classes:
        ours, theirs = (f"{len(names)} classes ({first_of(names)})" for names in (model.classes, data.classes))
        raise LowposeError(f"weights for {ours} do not fit {data.kind}:{data.root} with {theirs}; train on it")


def warn(config: RunConfig, data: ClassData) -> None:
    """Nothing is known that would be worth a line."""


def training_reader(data: ClassData, config: RunConfig) -> PictureReader:
    return PictureReader(data, config.input, config.augment, config.train.seed)


def predict_split(model: Classifier, data: ClassData, config: RunConfig, device: str | torch.device | None = None) -> Predictions:
    """Plain pictures of a split through the model, with the flip test if the recipe has it."""
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    training, model = model.training, model.to(device).eval()
    loader = evaluation_batches(PictureReader(data, config.input), config.eval.batch_size, config.train.workers)
    parts: list[np.ndarray] = []
    skipped: list[str] = []
    for batch in track(loader, "evaluate", console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True):
        found = model.predict(batch.images.to(device), flip=config.eval.flip).cpu().numpy()
        found[batch.weight.numpy() == 0] = np.nan
        parts.append(found)
        skipped += batch.errors
    model.train(training)
    return Predictions(np.concatenate(parts), sorted(set(skipped)))


def hits(probabilities: np.ndarray, labels: np.ndarray, best: int) -> np.ndarray:
    """(N,) bool: whether the true class is among the `best` likeliest. Of equally likely ones the first stands first; a picture
    that could not be read (NaN) is no hit."""
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :best]
    return (order == labels[:, None]).any(1) & ~np.isnan(probabilities).any(1)


def _sums(data: ClassData, probabilities: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Figure -> (hits in percent, 1) per picture. Top-5 only where there are more than five classes."""
    labels = np.array([s.label for s in data.samples])
    kinds = {"top-1": 1} | ({"top-5": 5} if len(data.classes) > 5 else {})
    return {name: (100.0 * hits(probabilities, labels, n), np.ones(len(data))) for name, n in kinds.items()}


def measure(model: Classifier, config: RunConfig, data: ClassData, found: Predictions, bootstrap: int = 1000) -> dict[str, Any]:
    """Accuracy in percent, top-1 and top-5, with intervals over pictures, and top-1 of each class."""
    sums = _sums(data, found.probabilities)
    low, high = ratio_intervals(*(np.array(x) for x in zip(*sums.values(), strict=True)), bootstrap)
    metrics = {name: figure(right.mean(), low[i], high[i], len(data)) for i, (name, (right, _)) in enumerate(sums.items())}
    labels, right = np.array([s.label for s in data.samples]), sums["top-1"][0]
    each = {name: float(right[labels == i].mean()) for i, name in enumerate(data.classes) if (labels == i).any()}
    return {"metrics": metrics, "groups": {"top-1": each}, "skipped_pictures": found.skipped}


def read_as(config: RunConfig, model: Classifier) -> torch.nn.Module:
    """Raises: LowposeError: a classifier's settings are all of training."""
    raise LowposeError(f"head {config.head}: a classifier has no setting that a measurement could change")


def save_predictions(path: Path, data: ClassData, found: Predictions) -> None:
    """images (N,) keys, probabilities (N, classes) float32, classes, in one .npz."""
    with whole(path) as aside, open(aside, "wb") as f:
        images = np.array([s.image for s in data.samples])
        np.savez_compressed(f, images=images, probabilities=found.probabilities, classes=np.array(data.classes))


def check_results() -> None:
    """Raises: LowposeError: classes have no keypoints to write."""
    raise LowposeError("COCO results hold keypoints; a classifier's predictions are in predictions.npz")


def paired(
    model: Classifier, config: RunConfig, data: ClassData, saved: dict[str, np.ndarray]
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], None]:
    """Sums per picture of saved predictions."""
    return _sums(data, saved["probabilities"]), None
