"""MPII Human Pose, from the JSON files of the HRNet family.

M. Andriluka et al., "2D Human Pose Estimation: New Benchmark and State of the Art Analysis", CVPR 2014. 16 joints; a rough centre
and a scale in units of 200 pixels instead of boxes. Both count pixels from 1: they get -0.5. The box is the square of side
200 scale about the centre, which published code moves down by 15 scale; with padding 1.25 its crop is the published one.

Splits: 'train', 'valid' (or 'val'), 'trainval' are `annot/SPLIT.json`; a split that ends in .json is a file, under the root or
absolute. Pictures are in images/ or the root. Head boxes, and joints that PCKh leaves out, come from `annot/gt_valid.mat` and
so only for the validation split; without that file the head size is unknown.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lowpose.data._coco_format import annotation_file, numbers, picture_folder, read_json
from lowpose.data._problems import BadAnnotation, note, refuse_options, tolerate
from lowpose.data.lsp import read_mat, read_picture
from lowpose.errors import LowposeError
from lowpose.geometry import box_of_points
from lowpose.registry import register
from lowpose.samples import PersonSample, PoseData
from lowpose.skeletons import MPII16, Skeleton

JOINTS = len(MPII16)
SC_BIAS = 0.6  # of the head box's diagonal, in the official PCKh


def _heads(path: Path, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(N,) head sizes in pixels and (N, 16) bool joints that are left out."""
    values = read_mat(path)
    boxes, missing = values.get("headboxes_src"), values.get("jnt_missing")
    if boxes is None or missing is None or boxes.shape != (2, 2, n) or missing.shape != (JOINTS, n):
        raise LowposeError(
            f"{path}: expected 'headboxes_src' 2 x 2 x {n} and 'jnt_missing' {JOINTS} x {n}, as the JSON has {n} persons"
        )
    return SC_BIAS * np.linalg.norm(boxes[1].astype(float) - boxes[0].astype(float), axis=0), missing.T > 0


def _person(row: Any, i: int, path: Path, folder: str, head: float | None, left_out: np.ndarray | None) -> PersonSample | None:
    """Raises: BadAnnotation."""
    where = f"{path}: entry {i}"
    for key in ("image", "center", "scale", "joints", "joints_vis"):
        if not isinstance(row, dict) or key not in row:
            unlabelled = " (the joints of MPII's test split are not public)" if key == "joints" else ""
            raise BadAnnotation("missing-key", f"{where} has no '{key}'{unlabelled}", i + 1)
    image = (Path(folder) / str(row["image"])).as_posix()
    place = {"annotation": i + 1, "image": image}
    if not isinstance(row["joints"], list) or len(row["joints"]) != JOINTS:
        count = len(row["joints"]) if isinstance(row["joints"], list) else 0
        raise BadAnnotation("length", f"{where} has {count} joints, skeleton '{MPII16.name}' has {JOINTS}", **place)
    joints = np.stack([numbers(joint, 2, "joints", where, **place) for joint in row["joints"]])
    flag = numbers(row["joints_vis"], JOINTS, "joints_vis", where, **place)
    x, y, scale = numbers([*np.atleast_1d(row["center"]), row["scale"]], 3, "center and scale", where, **place)
    if scale <= 0:
        raise BadAnnotation("no-area", f"{where} has scale {scale:g}; it must be positive", **place)
    seen = (flag > 0) & (joints >= 0).all(1)
    if left_out is not None:
        seen &= ~left_out
    if not seen.any():
        return note("no-joints", f"{where} has no labelled joint", **place)
    points = np.where(seen[:, None], joints - 0.5, 0).astype(np.float32)
    side = 200 * scale
    box = np.array([x - 0.5 - side / 2, y - 0.5 + 15 * scale - side / 2, side, side])
    around = box_of_points(points[seen])
    return PersonSample(
        image,
        box,
        points,
        np.where(seen, 2, 0).astype(np.uint8),
        i + 1,
        str(row["image"]),
        area=float(around[2] * around[3]),
        head_size=head,
    )


@register("data", "mpii")
def mpii(root: Path, split: str, *, boxes: str, skeleton: Skeleton | None, options: dict[str, Any]) -> PoseData:
    """MPII Human Pose: 16 joints, centre and scale (annot/train.json, annot/valid.json, annot/gt_valid.mat)."""
    refuse_options("mpii", options)
    if boxes != "gt":
        raise LowposeError(f"mpii has no detector boxes; boxes must be 'gt', not '{boxes}'")
    path = annotation_file(root, split, [f"annot/{'valid' if split == 'val' else split}.json"])
    rows = read_json(path)
    if not isinstance(rows, list) or not rows:
        raise LowposeError(f"{path}: not an MPII file of the HRNet family (expected a list of persons)")
    names = [str(row["image"]) for row in rows if isinstance(row, dict) and "image" in row]
    folder = picture_folder(root, names, ["images", "."], path) if names else "images"
    mat = root / "annot" / "gt_valid.mat"
    measured = path.name == "valid.json" and mat.is_file()
    heads, left_out = _heads(mat, len(rows)) if measured else ([None] * len(rows), [None] * len(rows))
    samples = []
    for i, row in enumerate(rows):
        with tolerate():
            head = float(heads[i]) if measured else None
            sample = _person(row, i, path, folder, head, left_out[i])
            if sample is not None:
                samples.append(sample)
    sources = (path, mat) if measured else (path,)
    return PoseData(
        "mpii", split, str(root), skeleton or MPII16, samples, partial(read_picture, root), sources, "gt", "mpii", path, "joints"
    )
