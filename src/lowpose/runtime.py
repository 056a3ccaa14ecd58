"""Pictures and boxes -> poses. Needs no torch: `load` opens an exported file with onnxruntime, weights with torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from lowpose import shipped
from lowpose.confidence import Calibration, read_calibration
from lowpose.config import InputConfig
from lowpose.data.augment import generator
from lowpose.data.resample import cut, render
from lowpose.engines import OUTPUTS, open_graph
from lowpose.errors import LowposeError
from lowpose.geometry import crop_matrix, invert, transform
from lowpose.samples import PoseResult
from lowpose.skeletons import Skeleton
from lowpose.strict import validate

LARGEST_BOX = 3  # sides and corners of boxes, in longer sides of the picture; beyond, units are wrong and crops fill the memory
PICTURES_AT_ONCE = 16
Infer = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]


class PosePredictor:
    """Poses of persons in pictures; the crops are those of training and evaluation.

    Attributes:
        infer: (B, h, w, 3) uint8 RGB crops -> keypoints (B, K, 2) crop pixels, scores (B, K), published (B, K).
        settings: crop size, padding and resampling. skeleton: names of the keypoints.
        calibration: of the scores that `infer` gives; None leaves them as they are.
    """

    def __init__(
        self,
        infer: Infer,
        settings: InputConfig,
        skeleton: Skeleton,
        batch_size: int = 128,
        calibration: Calibration | None = None,
    ):
        self.calibration = calibration
        self.infer, self.settings, self.skeleton, self.batch_size = infer, settings, skeleton, batch_size

    def predict(self, image: np.ndarray, boxes: Any = None, box_scores: Any = None) -> PoseResult:
        """The persons of one picture.

        Args:
            image: (H, W, 3) uint8 RGB. boxes: (P, 4) picture pixels, (x, y, width, height); default: one person who fills it.
            box_scores: (P,) of the detector.

        Raises: LowposeError for a picture or boxes of another form, or boxes without area.
        """
        return self.predict_many([(image, boxes, box_scores)])[0]

    def predict_many(self, items: Sequence[tuple[np.ndarray, Any, Any]]) -> list[PoseResult]:
        """As `predict` for (image, boxes, box_scores) of many pictures, batched over all their persons."""
        items = [(check_image(image), *check_boxes(boxes, scores, image)) for image, boxes, scores in items]
        size, padding = self.settings.size, self.settings.padding
        matrices = [[crop_matrix(box, size, padding) for box in boxes] for _, boxes, _ in items]
        crops = (
            render(
                lambda w, image=image: cut(image, w), m, self.settings, size, float(box[3]), generator(0, 0, n, stream="pixels")
            )
            for (image, boxes, _), ms in zip(items, matrices, strict=True)
            for n, (box, m) in enumerate(zip(boxes, ms, strict=True))
        )
        flat = np.array([m for ms in matrices for m in ms]).reshape(-1, 2, 3)
        keypoints, scores, published = self._infer_batched(crops, len(flat))
        scores = scores if self.calibration is None else self.calibration(scores)
        keypoints = transform(invert(flat), keypoints).astype(np.float32)
        ends = np.cumsum([0, *(len(ms) for ms in matrices)])
        return [
            PoseResult(keypoints[a:b], scores[a:b], boxes, self.skeleton, box_scores, published[a:b])
            for a, b, (_, boxes, box_scores) in zip(ends, ends[1:], items, strict=False)
        ]

    def predict_stream(self, items: Iterable[tuple[np.ndarray, Any, Any]]) -> Iterator[PoseResult]:
        """As `predict_many` for any number of pictures, one result after the other; at most 16 pictures are held at a time."""
        items = iter(items)
        while some := list(islice(items, PICTURES_AT_ONCE)):
            yield from self.predict_many(some)

    def _infer_batched(self, crops: Iterable[np.ndarray], count: int) -> tuple[np.ndarray, ...]:
        k = len(self.skeleton)
        out = np.zeros((count, k, 2)), np.zeros((count, k), np.float32), np.zeros((count, k), np.float32)
        crops = iter(crops)
        for first in range(0, count, self.batch_size):
            batch = np.stack([next(crops) for _ in range(min(self.batch_size, count - first))])
            for whole, part in zip(out, self.infer(batch), strict=True):
                whole[first : first + len(batch)] = part
        return out


def check_image(image: np.ndarray) -> np.ndarray:
    if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise LowposeError(f"a picture is (H, W, 3) uint8 RGB, not {found}; lowpose.read_image reads any file so")
    if 0 in image.shape:
        raise LowposeError(f"a picture must have pixels, not shape {image.shape}")
    return image


def check_boxes(boxes: Any, scores: Any, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(P, 4) and (P,) float64. Raises: LowposeError naming the box that is wrong."""
    if boxes is None:
        boxes = [[0, 0, image.shape[1], image.shape[0]]]
    array = _numbers(boxes)
    if array.size == 0:
        array = array.reshape(0, 4)
    if array.ndim != 2 or array.shape[1] != 4:
        raise LowposeError(f"boxes are (P, 4): x, y, width, height in picture pixels, not {_form(boxes)}")
    height, width = image.shape[:2]
    limit = LARGEST_BOX * max(width, height)
    for i, box in enumerate(array):
        if not np.isfinite(box).all() or min(box[2:]) <= 0:
            raise LowposeError(f"box {i} = {box.tolist()} must be four finite numbers with width and height above 0")
        if np.abs(box).max() > limit:
            raise LowposeError(
                f"box {i} = {box.tolist()} is far larger than its picture of {width} x {height} pixels or far away"
            )
    for i in np.flatnonzero(outside(array, image)):
        raise LowposeError(f"box {i} = {array[i].tolist()} lies outside its picture of {width} x {height} pixels")
    weights = np.ones(len(array)) if scores is None else _numbers(scores)
    if weights.shape != (len(array),) or not np.isfinite(weights).all():
        raise LowposeError(f"{len(array)} boxes need as many finite scores, not {_form(scores)}")
    return array, weights


def outside(boxes: np.ndarray, image: np.ndarray) -> np.ndarray:
    """(P,) bool: which boxes (P, 4) have nothing of the picture in them."""
    x, y, w, h = boxes.T
    return (x >= image.shape[1]) | (y >= image.shape[0]) | (x + w <= 0) | (y + h <= 0)


def _numbers(value: Any) -> np.ndarray:
    """float64; of 0 dimensions, which nothing here has, where it is no array of numbers."""
    try:
        return np.asarray(value, np.float64)
    except (TypeError, ValueError):
        return np.array(np.nan)


def _form(value: Any) -> str:
    array = _numbers(value)
    return f"shape {array.shape}" if array.ndim else repr(value)[:60]


def load(path: str | Path = shipped.DEFAULT, **options: Any) -> PosePredictor:
    """A predictor from an exported .onnx file (no torch), or from weights or a run folder (torch).

    Args:
        path: a file, or the name of weights that come with the package (`lowpose.list_weights`).
        options: of `load_onnx` (threads, providers, engine) or of `lowpose.nn.predictor.load_torch` (flip, device, threads).

    Raises: LowposeError for a file that is missing or not lowpose's, an option of the other kind, or torch needed and absent.
    """
    path = shipped.find(path, ".onnx")
    exported = path.suffix == ".onnx"
    known = ("threads", "providers", "engine") if exported else ("flip", "device", "threads")
    for name in options:
        if name not in known:
            kind = "exported .onnx files" if exported else "weights, which torch runs,"
            raise LowposeError(f"{path}: {kind} have no option '{name}'; there are {', '.join(known)}")
    if exported:
        return load_onnx(path, **options)
    try:
        from lowpose.nn.predictor import load_torch
    except ImportError as e:
        raise LowposeError(
            f"{path}: weights need torch ({e.name} is missing): pip install 'lowpose[train]', or give an exported .onnx file"
        ) from None
    return load_torch(path, **options)


def load_onnx(
    path: Path, threads: int | None = None, providers: Sequence[str] | None = None, engine: str = "onnxruntime"
) -> PosePredictor:
    """A predictor from a file that `lowpose export` wrote.

    Args:
        threads: default the engine's own choice. providers: of onnxruntime, best first, as ["CUDAExecutionProvider"];
            default the CPU's. engine: 'onnxruntime', or 'openvino' where that package is installed.

    Raises: LowposeError for a file that is missing or not lowpose's, an engine or a provider that is not there.
    """
    if not path.is_file():
        raise LowposeError(f"{path}: no such file")
    graph = open_graph(path, engine, threads, providers)
    if graph.about is None:
        raise LowposeError(f"{path}: not a file of `lowpose export` (it says nothing about crops and keypoints)")
    try:
        facts = json.loads(graph.about)
        settings, skeleton = facts["input"], Skeleton.from_dict(facts["skeleton"], str(path))
        calibration = read_calibration(facts, len(skeleton), str(path))
    except (ValueError, TypeError, KeyError):
        raise LowposeError(f"{path}: what it says about its crops and keypoints is damaged; export it again") from None
    settings = validate(InputConfig, settings, str(path))
    for name in ("images", *OUTPUTS):
        if name not in graph.names:
            raise LowposeError(f"{path}: its graph has no '{name}'; export it again")
    return PosePredictor(graph.run, settings, skeleton, calibration=calibration)
