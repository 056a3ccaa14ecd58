"""Task `pose`: keypoints of persons in crops."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from lowpose.config import CacheConfig, RunConfig, validation_split
from lowpose.data import load_data
from lowpose.data.cache import open_cache
from lowpose.data.crops import CropReader
from lowpose.data.degradations import CoarseReader
from lowpose.errors import LowposeError
from lowpose.files import whole
from lowpose.geometry import invert, reduction, transform
from lowpose.loader import evaluation_batches
from lowpose.metrics import Precision, evaluate_predictions, has_precision, per_person, precision
from lowpose.metrics.breakdown import box_heights, breakdown, by_rendered_height, has_labels
from lowpose.metrics.oks import coco_rows, instance_score
from lowpose.nn.heads.base import PoseHead
from lowpose.nn.model import PoseModel, build_head, build_model
from lowpose.samples import PoseData, coco_result

READERS = "data"  # kind of the registered readers
log = logging.getLogger("lowpose")


def training_data(config: RunConfig) -> PoseData:
    d = config.data
    data = load_data(d.kind, d.root, d.train, skeleton=d.skeleton, options=d.options)
    if not any(s.labelled.any() for s in data.samples):
        raise LowposeError(f"{d.kind}:{data.root}: split '{d.train}' has no labelled joints to train on")
    return data


def validation_data(config: RunConfig) -> PoseData:
    d = config.data
    return load_data(d.kind, d.root, validation_split(config), boxes=d.boxes, skeleton=d.skeleton, options=d.options)


def build(config: RunConfig, data: PoseData) -> PoseModel:
    """The model of a recipe for the keypoints of its data."""
    return build_model(config, data.skeleton)


def check_fits(model: PoseModel, data: PoseData) -> None:
    """Raises: LowposeError if the weights predict other keypoints than the data set has."""
    ours, theirs = model.skeleton.keypoints, data.skeleton.keypoints
    if ours != theirs:
        raise LowposeError(
            f"weights for skeleton '{model.skeleton.name}' ({len(ours)} keypoints) do not fit data with '{data.skeleton.name}' "
            f"({len(theirs)} keypoints); train on it, with init=WEIGHTS to carry over what both share"
        )


def warn(config: RunConfig, data: PoseData) -> None:
    """What is worth a line before a training begins."""
    if config.augment.flip and not data.skeleton.pairs:
        log.warning("skeleton '%s' has no left/right pairs: flipped views exchange no names", data.skeleton.name)


def training_reader(data: PoseData, config: RunConfig) -> CropReader:
    """Random views of a split, from its cache if the recipe has one."""
    cache = open_cache(data, config.input, config.augment, config.cache) if config.cache.dir else None
    return CropReader(data, config.input, config.augment, config.train.seed, cache)


@dataclass
class Predictions:
    """Of one split, in its order.

    Attributes:
        keypoints: (N, K, 2) float64, picture pixels, (x, y). scores, published: (N, K) float32.
        crop_scale: (N,) picture pixels per crop pixel. skipped: a line per picture that could not be read.
    """

    keypoints: np.ndarray
    scores: np.ndarray
    published: np.ndarray
    crop_scale: np.ndarray
    skipped: list[str]

    def arrays(self) -> dict[str, np.ndarray]:
        """What is saved of them, and what paired intervals need."""
        return {name: getattr(self, name) for name in ("keypoints", "scores", "published", "crop_scale")}


def plain_reader(data: PoseData, config: RunConfig) -> CropReader:
    """Plain crops of a split, from its cache if the recipe has one."""
    cache = open_cache(data, config.input, None, config.cache) if config.cache.dir else None
    return CropReader(data, config.input, None, config.train.seed, cache)


def predict_split(
    model: PoseModel,
    data: PoseData,
    config: RunConfig,
    device: str | torch.device | None = None,
    reader: CropReader | None = None,
) -> Predictions:
    """Plain crops of every person of a split through the model, with the flip test if the recipe has it.

    `reader`: what cuts the crops, default as the recipe says.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    training, model = model.training, model.to(device).eval()

    def infer(images: torch.Tensor) -> tuple[np.ndarray, ...]:
        return tuple(v.cpu().numpy() for v in model.predict(images.to(device), flip=config.eval.flip))

    found = predict_crops(infer, data, config, reader)
    model.train(training)
    return found


def predict_crops(
    infer: Callable[[torch.Tensor], tuple[np.ndarray, ...]], data: PoseData, config: RunConfig, reader: CropReader | None = None
) -> Predictions:
    """Plain crops of every person of a split through anything that reads them; `reader` as in `predict_split`.

    `infer`: (B, 3, h, w) uint8 RGB, channels last in memory -> keypoints (B, K, 2) crop pixels, scores, published (B, K).
    """
    reader = plain_reader(data, config) if reader is None else reader
    loader = evaluation_batches(reader, config.eval.batch_size, config.train.workers)
    parts: list[tuple[np.ndarray, ...]] = []
    skipped: list[str] = []
    for batch in track(loader, "evaluate", console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True):
        keypoints, scores, published = infer(batch.images)
        points = transform(invert(batch.matrices), keypoints)
        scale = np.array([reduction(m) for m in batch.matrices])
        parts.append((points, scores, published, scale))
        skipped += batch.errors
    return Predictions(*(np.concatenate(p) for p in zip(*parts, strict=True)), sorted(set(skipped)))


def measure(model: PoseModel, config: RunConfig, data: PoseData, found: Predictions, bootstrap: int = 1000) -> dict[str, Any]:
    """The report of `metrics.evaluate_predictions`, and the pictures that could not be read."""
    report = evaluate_predictions(
        data,
        found.keypoints,
        found.scores,
        found.published,
        keypoint_threshold=instance_threshold(model, config),
        nms=config.eval.nms,
        bootstrap=bootstrap,
        crop_scale=found.crop_scale,
    )
    return report | {"skipped_pictures": found.skipped}


def break_down(
    model: PoseModel,
    config: RunConfig,
    data: PoseData,
    found: Predictions,
    heights: Sequence[int] = (),
    sizes: str = "area",
    bootstrap: int = 1000,
) -> dict[str, Any]:
    """`metrics.breakdown` of predictions; with `heights`, 'heights' holds `by_rendered_height` of the model at each of them."""
    report = breakdown(data, found.keypoints, found.crop_scale, sizes=sizes, bootstrap=bootstrap)
    if not heights:
        return report
    report["heights"] = at_heights(model, config, data, found, heights, bootstrap)
    return report


def at_heights(
    model: PoseModel,
    config: RunConfig,
    data: PoseData,
    found: Predictions,
    heights: Sequence[int],
    bootstrap: int = 1000,
    share: float = 1.0,
) -> dict[str, Any]:
    """`metrics.by_rendered_height` of the model at each of the heights, and the 'camera' that brought persons down to them.

    `share`: of the resolution that the crops are rendered at before they are enlarged to the input (`CoarseReader`).
    """
    tallest = box_heights(data)[has_labels(data)].max(initial=0)
    renders = {}
    for h in heights:
        there = at_height(config, h)
        reader = CoarseReader(data, there.input, config.train.seed, share)
        renders[h] = predict_split(model, data, there, reader=reader).keypoints if h <= tallest else np.zeros((0, 0, 2))
    report = by_rendered_height(data, renders, found.keypoints, found.crop_scale, bootstrap=bootstrap)
    camera = config.input.camera
    drawn = {"blur": list(camera.blur), "noise": list(camera.noise), "jpeg": list(camera.jpeg), "seed": config.train.seed}
    return report | {"camera": drawn | ({"motion": list(camera.motion)} if camera.motion[1] > 0 else {})}


def at_height(config: RunConfig, height: int) -> RunConfig:
    """The recipe whose `camera` brings every person down to one height, from the pictures themselves.

    A reduced cache may hold fewer pixels than that height, so none is used.
    """
    camera = config.input.camera.model_copy(update={"height": (float(height), float(height))})
    settings = config.input.model_copy(update={"resample": "camera", "camera": camera})
    return config.model_copy(update={"input": settings, "cache": CacheConfig()})


def read_as(config: RunConfig, model: PoseModel) -> PoseHead:
    """The trained head under other settings. Raises: LowposeError if they need other layers."""
    head = build_head(config, model.head.feature_shape, model.skeleton)
    try:
        head.load_state_dict(model.head.state_dict())
    except RuntimeError:
        raise LowposeError(f"head {config.head}: needs other layers than the weights have; train it") from None
    return head


def paired(
    model: PoseModel, config: RunConfig, data: PoseData, saved: dict[str, np.ndarray]
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], Precision | None]:
    """What paired intervals need of saved predictions: sums per person, and average precision where the data set has it."""
    sums = per_person(data, saved["keypoints"], saved["crop_scale"])
    if not has_precision(data):
        return sums, None
    threshold = instance_threshold(model, config)
    rows = coco_rows(data, saved["keypoints"], saved["scores"], saved["published"], threshold, config.eval.nms)
    return sums, precision(data, rows)


def save_predictions(path: Path, data: PoseData, found: Predictions) -> None:
    """ids (N,), keypoints (N, K, 2) picture pixels, scores and published (N, K), crop_scale (N,), float32, in one .npz."""
    ids = np.array([s.id for s in data.samples])
    arrays = {name: value.astype(np.float32) for name, value in found.arrays().items()}
    with whole(path) as aside, open(aside, "wb") as f:
        np.savez_compressed(f, ids=ids, **arrays)


def check_results() -> None:
    """Poses have them."""


def result_rows(model: PoseModel, config: RunConfig, data: PoseData, found: Predictions) -> list[dict[str, Any]]:
    """COCO keypoint results (-0.5 applied) after OKS-NMS: the very rows that AP is computed from.

    A skeleton without sigmas has no OKS: then every box keeps its row.
    """
    if data.skeleton.sigmas is None:
        scores = instance_score(np.array([s.score for s in data.samples]), found.published, instance_threshold(model, config))
        return [
            coco_result(found.keypoints[i], found.scores[i], scores[i], s.box, s.image_id) for i, s in enumerate(data.samples)
        ]
    return coco_rows(data, found.keypoints, found.scores, found.published, instance_threshold(model, config), config.eval.nms)


def instance_threshold(model: PoseModel, config: RunConfig) -> float:
    """Keypoint scores above it count in the published instance score: the recipe's, or the head's published value."""
    chosen = config.eval.keypoint_threshold
    return model.head.published_threshold if chosen is None else chosen
