"""Whether an exported file gives torch's answers: run on real crops, compared number by number.

Keypoints may differ where rounding chooses between two cells that are as good (ties); these are counted and left out. The
maps that they are read from are compared everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lowpose.errors import LowposeError
from lowpose.nn.model import PoseModel

PIXELS = 0.05  # largest difference of a keypoint between file and torch, input pixels
SCORE = 1e-3  # of a score; relative for published scores above 1
MAPS = 1e-4  # of a map or another output that keypoints are read from, relative to its largest value in that crop
CLOSE = 1e-3  # two best cells nearer than this, relative to the best: rounding may choose either
BATCH = 32

Infer = Callable[[np.ndarray], Sequence[np.ndarray]]


class Answers(NamedTuple):
    """keypoints (N, K, 2) crop pixels; scores, published (N, K); maps: name -> (N, ...) what they are read from."""

    keypoints: np.ndarray
    scores: np.ndarray
    published: np.ndarray
    maps: dict[str, np.ndarray]


class Differences(NamedTuple):
    """keypoints: how many were compared; ties: of these left out. pixels, score: largest differences; maps: relative."""

    keypoints: int
    ties: int
    pixels: float
    score: float
    maps: float


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


@torch.no_grad()
def torch_answers(model: PoseModel, flip: bool, crops: np.ndarray) -> tuple[Answers, np.ndarray]:
    """What torch gives for crops (N, h, w, 3) uint8, and where its keypoints are ties, (N, K) bool."""
    outputs = model.answer(torch.from_numpy(crops).permute(0, 3, 1, 2), flip)
    with _Choices((len(crops), len(model.skeleton))) as choices:
        decoded = model.head.decode(outputs)
    maps = {name: value.float().numpy() for name, value in outputs.items()}
    return Answers(*(v.numpy() for v in decoded), maps), choices.close.numpy()


def compare(
    file: Infer, whole: Infer, names: Sequence[str], model: PoseModel, flip: bool, crops: np.ndarray, out: Path
) -> Differences:
    """How far a file's answers are from torch's.

    Args:
        file: crops -> keypoints, scores, published, as the file gives them. whole: crops -> the outputs called `names`, of
            the same graph before they were cut off. crops: (N, h, w, 3) uint8. out: the file, for errors.

    Returns: Differences.
    Raises: LowposeError if one is larger than its limit (PIXELS, SCORE, MAPS), or if every keypoint is a tie.
    """
    ends = [0, 1, *range(1 + BATCH, len(crops), BATCH), len(crops)]  # a batch of one, too
    found, wanted, ties = [], [], []
    for batch in (crops[a:b] for a, b in zip(ends, ends[1:], strict=False) if a < b):
        found.append(Answers(*file(batch), dict(zip(names, whole(batch), strict=True))))
        answer, close = torch_answers(model, flip, batch)
        wanted.append(answer)
        ties.append(close)
    return differences(_joined(found), _joined(wanted), np.concatenate(ties), model, out)


def _joined(parts: list[Answers]) -> Answers:
    maps = {name: np.concatenate([p.maps[name] for p in parts]) for name in parts[0].maps}
    return Answers(*(np.concatenate([p[i] for p in parts]) for i in range(3)), maps)


def differences(found: Answers, wanted: Answers, ties: np.ndarray, model: PoseModel, out: Path) -> Differences:
    if ties.all():
        raise LowposeError(
            f"{out}: not written: the two best cells of every keypoint are equal, which proves nothing; are the weights trained?"
        )
    maps = max(_check_map(found.maps[name], wanted.maps[name], name, out) for name in wanted.maps)
    keypoints, scores, published = (np.abs(f.astype(np.float64) - w) for f, w in zip(found[:3], wanted[:3], strict=True))
    keypoints = np.where(ties, 0, keypoints.max(-1))
    scores = np.where(ties, 0, scores)  # a tie's score is that of another place; the height of its peak is the same
    published = published / np.maximum(1, np.abs(wanted.published))
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
    return Differences(ties.size, int(ties.sum()), keypoints.max(), max(scores.max(), published.max()), maps)


def _check_map(found: np.ndarray, wanted: np.ndarray, name: str, out: Path) -> float:
    """The largest difference of an output, relative to the largest value that it has in that crop."""
    axes = tuple(range(1, wanted.ndim))
    largest = np.abs(wanted).max(axes)
    difference = np.abs(found.astype(np.float64) - wanted).max(axes) / np.where(largest > 0, largest, 1)
    if not (difference <= MAPS).all():
        crop = int(np.nan_to_num(difference, nan=np.inf).argmax())
        raise LowposeError(
            f"{out}: not written: onnxruntime and torch differ by {difference[crop]:.3g} of the largest value (limit {MAPS:g}) "
            f"in output '{name}' of crop {crop}"
        )
    return float(difference.max())
