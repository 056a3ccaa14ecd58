"""Weights -> one ONNX file that predicts without torch, written only after it has been run and found equal.

The graph takes `images` (B, H, W, 3) uint8 RGB, any B, and gives `keypoints` (B, K, 2) float32, crop pixels, (x, y), `scores`
(B, K) and `published` (B, K): normalisation, network, flip test where wanted and decoding are inside. Its metadata key
`lowpose` is JSON with what a user of the file needs: crop settings, skeleton, head, licence, the weights' SHA-256.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lowpose import __version__, registry
from lowpose.cards import sha256
from lowpose.checkpoint import describe_weights, load_model, weights_path
from lowpose.config import InputConfig, RunConfig, validate
from lowpose.data import load_data
from lowpose.data.crops import CropReader
from lowpose.errors import LowposeError
from lowpose.files import whole
from lowpose.nn.model import PoseModel
from lowpose.runtime import load_onnx

OPSET = 18  # the oldest that the exporter writes, so that older runtimes read it
PIXELS = 0.05  # largest difference of a keypoint between file and torch, input pixels
SCORE = 1e-3  # of a score; relative for published scores above 1
CLOSE = 1e-3  # two best cells nearer than this, relative to the best: rounding may choose either
PERSONS, NOISE = 64, 4  # crops that a file is checked on by default
BATCH = 32


@dataclass(frozen=True)
class ExportReport:
    """A file that was written, and how equal it is to torch.

    Attributes:
        path: of the .onnx file; `bytes`: its size. flip: whether the flip test is inside.
        crops: how many it was run on; `keypoints`: how many points these have together.
        ties: keypoints whose two best cells are too near to compare (within CLOSE); they are not in the differences.
        pixels: largest distance of a keypoint along an axis, input pixels; `score`: largest difference of a score.
    """

    path: Path
    bytes: int
    flip: bool
    crops: int
    keypoints: int
    ties: int
    pixels: float
    score: float

    def __str__(self) -> str:
        flip = "with" if self.flip else "without"
        return (
            f"{self.path} ({self.bytes / 1e6:.1f} MB, {flip} flip test): equal to torch on {self.crops} crops within "
            f"{self.pixels:.1g} pixels and {self.score:.1g} of a score; {self.ties} of {self.keypoints} keypoints were ties"
        )


def export_onnx(
    weights: str | Path, out: str | Path | None = None, *, flip: bool | None = None, crops: np.ndarray | None = None
) -> ExportReport:
    """Write weights as one ONNX file, after onnxruntime and torch gave the same answers.

    Args:
        weights: file or run folder. out: the .onnx file; default beside the weights, with their name.
        flip: average with the mirror image inside the graph; default as the recipe evaluates.
        crops: (N, h, w, 3) uint8 RGB of the recipe's size to compare on; default synthetic people, noise and black.

    Raises: LowposeError if the extra `export` is missing, if the model cannot be exported, or if file and torch differ
        by more than PIXELS or SCORE in a keypoint that is no tie. Then nothing is written.
    """
    _check_extra()
    source = weights_path(weights)
    out = source.with_suffix(".onnx") if out is None else Path(out)
    if out.suffix != ".onnx":
        raise LowposeError(f"{out}: an exported file must end in .onnx")
    model, config = load_model(source)
    flip = config.eval.flip if flip is None else flip
    crops = example_crops(config.input) if crops is None else _check_crops(crops, config.input)
    program = _trace(model, flip, config.input, source)
    _drop_notes(program.model)
    program.model.producer_name, program.model.producer_version = "lowpose", __version__
    calibration = {k: v for k, v in describe_weights(source).items() if k == "calibration"}  # predictors apply it to the scores
    program.model.metadata_props["lowpose"] = json.dumps(describe(model, config, flip, sha256(source)) | calibration)
    with whole(out) as temporary:
        program.save(str(temporary), external_data=False)
        ties, pixels, score = _compare(temporary, model, flip, crops, out)
        size = temporary.stat().st_size
    return ExportReport(out, size, flip, len(crops), len(crops) * len(model.skeleton), ties, pixels, score)


def write_unproven(model: PoseModel, config: RunConfig, out: Path, name: str) -> None:
    """The graph without flip test and without a proof, to be timed: the best cells of random weights are ties.

    Args: name: of the model, for errors. Raises: LowposeError as `export_onnx`.
    """
    _check_extra()
    program = _trace(model, False, config.input, Path(name))
    _drop_notes(program.model)
    program.model.metadata_props["lowpose"] = json.dumps(describe(model, config, False, "not of a file"))
    with whole(out) as temporary:
        program.save(str(temporary), external_data=False)


def describe(model: PoseModel, config: RunConfig, flip: bool, digest: str) -> dict[str, Any]:
    """What the file says about itself under the metadata key `lowpose`."""
    head = validate(registry.find("head", config.head["name"]).config, config.head, "head")
    return {
        "version": __version__,
        "name": config.name,
        "input": config.input.model_dump(mode="json"),
        "skeleton": model.skeleton.to_dict(),
        "head": head.model_dump(mode="json"),
        "flip": flip,
        "licence": {"code": "Apache-2.0", "trained_on": config.data.kind},
        "weights_sha256": digest,
    }


def example_crops(settings: InputConfig) -> np.ndarray:
    """(PERSONS + NOISE + 1, h, w, 3) uint8 RGB, always the same: synthetic people, noise, and one black crop."""
    w, h = settings.size
    reader = CropReader(load_data("synthetic", split="test", options={"count": PERSONS}), settings)
    people = [reader.crop(i).image for i in range(PERSONS)]
    noise = np.random.default_rng(0).integers(0, 256, (NOISE, h, w, 3), np.uint8)
    return np.concatenate([np.stack(people), noise, np.zeros((1, h, w, 3), np.uint8)])


def _check_extra() -> None:
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise LowposeError(f"export needs {' and '.join(missing)}, which is not installed: pip install 'lowpose[export]'")


def _check_crops(crops: np.ndarray, settings: InputConfig) -> np.ndarray:
    w, h = settings.size
    if not isinstance(crops, np.ndarray) or crops.dtype != np.uint8 or crops.shape[1:] != (h, w, 3) or len(crops) == 0:
        found = f"{crops.dtype} {crops.shape}" if isinstance(crops, np.ndarray) else type(crops).__name__
        raise LowposeError(f"crops to compare on are (N, {h}, {w}, 3) uint8 RGB, at least one, not {found}")
    return crops


class _Graph(nn.Module):
    """What becomes the file: (B, h, w, 3) uint8 -> keypoints, scores, published."""

    def __init__(self, model: PoseModel, flip: bool):
        super().__init__()
        self.model, self.flip = model, flip

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return tuple(self.model.predict(images.permute(0, 3, 1, 2), flip=self.flip))


def _trace(model: PoseModel, flip: bool, settings: InputConfig, source: Path) -> torch.onnx.ONNXProgram:
    w, h = settings.size
    example = torch.zeros(2, h, w, 3, dtype=torch.uint8)
    try:
        with _quiet():
            return torch.onnx.export(
                _Graph(model, flip).eval(),
                (example,),
                dynamo=True,
                dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
                input_names=["images"],
                output_names=["keypoints", "scores", "published"],
                opset_version=OPSET,
                verbose=False,
            )
    except Exception as e:  # torch.export, the ONNX translation and the model's own code raise many kinds
        cause = e.__cause__ or e
        detail = " ".join(str(cause).split())[:200] or type(cause).__name__
        raise LowposeError(f"{source}: torch cannot translate this model to ONNX ({detail})") from e


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on its own inner workings; errors are exceptions and still come through."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _drop_notes(model: Any) -> None:
    """Remove the exporter's notes (stack traces with this machine's paths), which are no part of the model."""
    model.graph.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for value in [*model.graph.inputs, *model.graph.initializers.values()]:
        value.metadata_props.clear()


class _Choices(TorchDispatchMode):
    """Watches a head decode, and notes where a choice hangs on rounding, whatever the representation.

    A choice is the largest of a row of cells or bins (`max`, `argmax`), or the higher of two sides (`sign` of their
    difference, compared with the row's largest value). `close`: (B, K) bool, nearer than CLOSE.
    """

    def __init__(self, shape: tuple[int, int]):
        super().__init__()
        self.close = torch.zeros(shape, dtype=torch.bool)
        self._largest = torch.zeros(shape)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten.max.dim, torch.ops.aten.argmax.default) and len(args) > 1 and args[1] is not None:
            self._row(args[0], args[1])
        elif func is torch.ops.aten.sign.default and out.shape == self.close.shape:
            self.close |= args[0].abs() <= CLOSE * self._largest.abs()
        return out

    def _row(self, cells: Tensor, dim: int) -> None:
        best = cells.movedim(dim, -1).topk(min(2, cells.shape[dim]), -1).values
        if best.shape[:-1] == self.close.shape:
            self._largest = best[..., 0]
            if best.shape[-1] == 2:
                self.close |= best[..., 0] - best[..., 1] <= CLOSE * best[..., 0].abs()


def _torch_answers(model: PoseModel, flip: bool, crops: np.ndarray) -> tuple[np.ndarray, ...]:
    """keypoints (B, K, 2), scores (B, K), published (B, K), and where they are ties, (B, K) bool."""
    images = torch.from_numpy(crops).permute(0, 3, 1, 2)
    with _Choices((len(crops), len(model.skeleton))) as choices:
        decoded = model.predict(images, flip=flip)
    return *(v.numpy() for v in decoded), choices.close.numpy()


def _compare(file: Path, model: PoseModel, flip: bool, crops: np.ndarray, out: Path) -> tuple[int, float, float]:
    """Ties, and the largest differences of keypoints (input pixels) and scores. Raises: LowposeError if too large."""
    infer = load_onnx(file).infer
    ends = [0, 1, *range(1 + BATCH, len(crops), BATCH), len(crops)]  # a batch of one, too
    batches = [crops[a:b] for a, b in zip(ends, ends[1:], strict=False) if a < b]
    found = [np.concatenate(parts) for parts in zip(*(infer(batch) for batch in batches), strict=True)]
    *wanted, ties = (np.concatenate(parts) for parts in zip(*(_torch_answers(model, flip, b) for b in batches), strict=True))
    if ties.all():
        raise LowposeError(
            f"{out}: not written: the two best cells of every keypoint are equal, which proves nothing; are the weights trained?"
        )
    keypoints, scores, published = (np.abs(f.astype(np.float64) - w) for f, w in zip(found, wanted, strict=True))
    keypoints = np.where(ties, 0, keypoints.max(-1))
    scores = np.where(ties, 0, scores)  # a tie's score is that of another place; the height of its peak is the same
    published = published / np.maximum(1, np.abs(wanted[2]))
    for difference, limit, unit in (
        (keypoints, PIXELS, "pixels"),
        (scores, SCORE, "of its score"),
        (published, SCORE, "of its published score"),
    ):
        if not (difference <= limit).all():  # written so that NaN is too large as well
            crop, k = np.unravel_index(np.nan_to_num(difference, nan=np.inf).argmax(), difference.shape)
            raise LowposeError(
                f"{out}: not written: onnxruntime and torch differ by {difference[crop, k]:.3g} {unit} (limit {limit:g}) "
                f"in '{model.skeleton.keypoints[k]}' of crop {crop}"
            )
    return int(ties.sum()), float(keypoints.max()), float(max(scores.max(), published.max()))
