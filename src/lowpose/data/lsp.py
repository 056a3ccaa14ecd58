"""Leeds Sports Pose (LSP) and its extended training set (LSPET), from `joints.mat`.

S. Johnson and M. Everingham, BMVC 2010 and CVPR 2011. 14 joints, one annotated athlete a picture, no
boxes: they are made from the labelled joints. Joints stay as they are. The two files differ in layout
and flag: LSPET stores (14, 3, N) with 1 = labelled and visible; LSP stores (3, 14, N) with 1 = occluded.

Splits: LSPET 'train' im00001 to im07500, 'val' the rest (contiguous, so that pictures of one series
do not straddle it); LSP 'train' the first 1000, 'test' and 'val' the rest; 'all' everything. 'fit' and 'tune'
are the training split in two (13 to 2), to choose settings without looking at 'val'.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lowpose.data._problems import note, refuse_options
from lowpose.errors import LowposeError
from lowpose.geometry import box_of_points
from lowpose.images import read_image
from lowpose.registry import register
from lowpose.samples import PersonSample, PoseData
from lowpose.skeletons import LSP14, Skeleton

LSPET_TRAIN = 7500


def read_mat(path: Path) -> dict[str, Any]:
    """A MATLAB file. Raises: LowposeError naming a file that is missing or no MATLAB file."""
    if not path.is_file():
        raise LowposeError(f"{path}: no such file")
    try:
        from scipy.io import loadmat
    except ImportError:
        raise LowposeError(f"{path}: reading MATLAB files needs scipy; pip install 'lowpose[train]'") from None
    try:
        return loadmat(path)
    except Exception:  # scipy raises many kinds for a damaged file
        raise LowposeError(f"{path}: not a readable MATLAB file") from None


def read_picture(root: Path, key: str) -> np.ndarray:
    """(H, W, 3) uint8 RGB of the picture `key` under `root`."""
    return read_image(root / key)


def _joints(path: Path) -> tuple[np.ndarray, np.ndarray, bool]:
    """(N, 14, 2) joints, (N, 14) visibility, and whether the file is LSPET's."""
    joints = read_mat(path).get("joints")
    if joints is None or joints.ndim != 3 or {joints.shape[0], joints.shape[1]} != {3, 14}:
        raise LowposeError(f"{path}: expected an array 'joints' of 14 x 3 x N (LSPET) or 3 x 14 x N (LSP)")
    extended = joints.shape[0] == 14
    rows = np.transpose(joints, (2, 0, 1) if extended else (2, 1, 0)).astype(np.float32)
    flag = rows[..., 2] > 0
    visibility = np.where(flag, 2, 0) if extended else np.where(flag, 1, 2)
    if not extended:  # unlabelled joints of LSP lie at negative coordinates
        visibility = np.where((rows[..., :2] < 0).any(-1), 0, visibility)
    return rows[..., :2], visibility.astype(np.uint8), extended


def _rows(split: str, n: int, extended: bool, path: Path) -> range:
    cut = min(LSPET_TRAIN if extended else n // 2, n)
    fit = cut * 13 // 15
    ranges = {
        "train": range(cut),
        "fit": range(fit),
        "tune": range(fit, cut),
        "val": range(cut, n),
        "test": range(cut, n),
        "all": range(n),
    }
    if split not in ranges:
        raise LowposeError(f"{path}: unknown split '{split}'; known: {', '.join(ranges)}")
    return ranges[split]


@register("data", "lsp")
def lsp(root: Path, split: str, *, boxes: str, skeleton: Skeleton | None, options: dict[str, Any]) -> PoseData:
    """LSP and LSPET: athletes about 150 pixels long, 14 joints (joints.mat and images/)."""
    refuse_options("lsp", options)
    if boxes != "gt":
        raise LowposeError(f"lsp has no detector boxes; boxes must be 'gt', not '{boxes}'")
    path = root / "joints.mat"
    joints, visibility, extended = _joints(path)
    name = "im{:05d}.jpg" if extended else "im{:04d}.jpg"
    neck, top = LSP14.head
    samples = []
    for i in _rows(split, len(joints), extended, path):
        seen = visibility[i] > 0
        if not seen.any():
            note("no-joints", f"{path}: annotation {i + 1} has no labelled joint", i + 1)
            continue
        points = np.where(seen[:, None], joints[i], 0).astype(np.float32)
        head = float(np.linalg.norm(points[top] - points[neck])) if seen[neck] and seen[top] else None
        box = box_of_points(points[seen])
        samples.append(
            PersonSample(
                f"images/{name.format(i + 1)}",
                box,
                points,
                visibility[i],
                i + 1,
                i + 1,
                area=float(box[2] * box[3]),
                head_size=head,
            )
        )
    return PoseData(
        "lsp", split, str(root), skeleton or LSP14, samples, partial(read_picture, root), (path,), "joints", "lsp", path, "joints"
    )
