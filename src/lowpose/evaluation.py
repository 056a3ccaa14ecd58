"""Run a model over a split and measure it: the protocol of the data set, with intervals, as a report."""

from __future__ import annotations

import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from lowpose.cards import make_card, write_card
from lowpose.checkpoint import describe_weights, load_model, weights_path
from lowpose.config import DataConfig, RunConfig, parse_config
from lowpose.data import load_data, parse_source
from lowpose.data.cache import open_cache
from lowpose.data.crops import CropReader
from lowpose.errors import LowposeError
from lowpose.files import whole, write_json
from lowpose.geometry import invert, reduction, transform
from lowpose.loader import evaluation_batches
from lowpose.metrics import evaluate_predictions
from lowpose.metrics.oks import coco_rows, instance_score
from lowpose.nn.cost import count
from lowpose.nn.heads.base import PoseHead
from lowpose.nn.model import PoseModel, build_head
from lowpose.recipe_files import apply_overrides, shorten_paths
from lowpose.samples import PoseData, coco_result

# what an override of `lowpose eval` may change
MEASURING = ("input.resample", "input.padding", "input.camera", "eval.", "cache.", "data.options", "train.workers", "head.")


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


def predict_split(model: PoseModel, data: PoseData, config: RunConfig, device: str | torch.device | None = None) -> Predictions:
    """Plain crops of every person of a split through the model, with the flip test if the recipe has it."""
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    training, model = model.training, model.to(device).eval()
    cache = open_cache(data, config.input, None, config.cache) if config.cache.dir else None
    reader = CropReader(data, config.input, None, config.train.seed, cache)
    loader = evaluation_batches(reader, config.eval.batch_size, config.train.workers)
    parts: list[tuple[np.ndarray, ...]] = []
    skipped: list[str] = []
    for batch in track(loader, "evaluate", console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True):
        decoded = model.predict(batch.images.to(device), flip=config.eval.flip)
        points = transform(invert(batch.matrices), decoded.keypoints.cpu().numpy())
        scale = np.array([reduction(m) for m in batch.matrices])
        parts.append((points, decoded.scores.cpu().numpy(), decoded.published.cpu().numpy(), scale))
        skipped += batch.errors
    model.train(training)
    return Predictions(*(np.concatenate(p) for p in zip(*parts, strict=True)), sorted(set(skipped)))


def validation_data(config: RunConfig) -> PoseData:
    d = config.data
    if d.val is None:
        raise LowposeError(f"{config.name}: has no validation split (data.val is null); name one with --split")
    return load_data(d.kind, d.root, d.val, boxes=d.boxes, skeleton=d.skeleton, options=d.options)


def check_skeleton(model: PoseModel, data: PoseData) -> None:
    """Raises: LowposeError if the weights predict other keypoints than the data set has."""
    ours, theirs = model.skeleton.keypoints, data.skeleton.keypoints
    if ours != theirs:
        raise LowposeError(
            f"weights for skeleton '{model.skeleton.name}' ({len(ours)} keypoints) do not fit data with '{data.skeleton.name}' "
            f"({len(theirs)} keypoints); train on it, with init=WEIGHTS to carry over what both share"
        )


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


def evaluate(
    weights: str | Path,
    source: str | None = None,
    split: str | None = None,
    *,
    boxes: str | None = None,
    results: str | Path | None = None,
    out: str | Path | None = None,
    overrides: tuple[str, ...] | list[str] = (),
    bootstrap: int = 1000,
    command: str | None = None,
) -> dict[str, Any]:
    """Measure a run or weights file on a data set; writes card.json, card.md and predictions.npz, returns the card.

    Args:
        weights: run folder or weights file. source: 'KIND:ROOT', default the recipe's validation data. split: its split.
        boxes: 'gt' or a detector's result file. results: also write COCO result rows there.
        out: folder of the card, default where the weights are; a card for other data than the recipe's is named after it.
        overrides: of this measurement: input.resample, input.padding, input.camera, eval, cache, data.options, train.workers,
            or head settings that leave its layers as they are, as 'head.decode=argmax'.

    Raises: LowposeError for weights of another skeleton, data that cannot be read, or overrides of what is trained.
    """
    model, own = load_model(weights)
    path = weights_path(weights)
    config = measuring_config(own, overrides)
    if config.head != own.head:
        model.head = other_reading(model, config)
    where = measured_data(config, source, split, boxes)
    data = validation_data(config.model_copy(update={"data": where}))
    check_skeleton(model, data)
    found = predict_split(model, data, config)
    report = measure(model, config, data, found, bootstrap)
    facts = training_facts(path) | {"command": command, "overrides": [shorten_paths(item) for item in overrides]}
    card = make_card(config, data, report, path, asdict(count(model, config.input.size)), **facts)
    folder = Path(out) if out else path.parent
    stem = "card" if where == own.data and not overrides else card_name(data, bool(overrides))
    write_card(folder, card, stem)
    save_predictions(folder / f"{stem.replace('card', 'predictions')}.npz", data, found)
    if results:
        write_json(results, result_rows(model, config, data, found))
    return card


def measured_data(config: RunConfig, source: str | None, split: str | None, boxes: str | None) -> DataConfig:
    """The recipe's data settings with another source, split or boxes; what belongs to another kind does not go along."""
    d = config.data
    kind, root = parse_source(source) if source else (d.kind, d.root)
    values: dict[str, Any] = {"kind": kind, "root": root, "val": split or d.val, "boxes": boxes or d.boxes}
    if kind != d.kind:
        values |= {"val": split or "val", "boxes": boxes or "gt", "skeleton": None, "options": {}}
    return d.model_copy(update=values)


def measuring_config(own: RunConfig, overrides: tuple[str, ...] | list[str]) -> RunConfig:
    """The recipe of weights with overrides of how they are measured. Raises: LowposeError for others."""
    for item in overrides:
        if not item.startswith(MEASURING):
            raise LowposeError(f"'{item}': the weights are trained; a measurement can change {', '.join(MEASURING)}")
    values = own.model_dump(mode="json", exclude_none=True)
    return parse_config(apply_overrides(values, overrides), "overrides")


def other_reading(model: PoseModel, config: RunConfig) -> PoseHead:
    """The trained head under other settings. Raises: LowposeError if they need other layers."""
    head = build_head(config, model.head.feature_shape, model.skeleton)
    try:
        head.load_state_dict(model.head.state_dict())
    except RuntimeError:
        raise LowposeError(f"head {config.head}: needs other layers than the weights have; train it") from None
    return head


def card_name(data: PoseData, changed: bool) -> str:
    """File name of a card for other data, boxes or settings than the recipe's."""
    parts = ["card", data.kind, Path(data.root).name, Path(data.split).stem]
    parts += [Path(data.boxes).stem] if data.boxes not in ("gt", "joints") else []
    return re.sub(r"[^\w.-]+", "_", "-".join([*parts, *(["changed"] if changed else [])]))


def training_facts(weights: Path) -> dict[str, Any]:
    """What the weights file says of its training."""
    about = describe_weights(weights)
    return {k: about[k] for k in ("step", "teacher", "not_loaded", "skipped_in_training") if about.get(k)}


def save_predictions(path: Path, data: PoseData, found: Predictions) -> None:
    """ids (N,), keypoints (N, K, 2) picture pixels, scores and published (N, K), crop_scale (N,), float32, in one .npz."""
    ids = np.array([s.id for s in data.samples])
    arrays = {name: getattr(found, name).astype(np.float32) for name in ("keypoints", "scores", "published", "crop_scale")}
    with whole(path) as aside, open(aside, "wb") as f:
        np.savez_compressed(f, ids=ids, **arrays)


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
