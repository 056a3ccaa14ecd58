"""End-point error: the mean Euclidean distance between predicted and labelled joints.

All labelled joints count, occluded ones too (visibility 1 or 2). In picture pixels, and in pixels of
the crop when the reduction of each person's crop is given.
"""

from __future__ import annotations

import numpy as np

from lowpose.samples import PoseData
from lowpose.skeletons import Skeleton


def labels(data: PoseData) -> tuple[np.ndarray, np.ndarray]:
    """The joints of a split: (N, K, 2) float64, picture pixels, (x, y), and (N, K) bool, labelled."""
    k = len(data.skeleton)
    points = np.array([s.keypoints for s in data.samples], np.float64).reshape(-1, k, 2)
    labelled = np.array([s.labelled for s in data.samples], bool).reshape(-1, k)
    return points, labelled


def distances(pred: np.ndarray, gt: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(N, K) float64: Euclidean distance in pixels where `mask` (N, K) holds, 0 elsewhere.

    `pred` and `gt` are (N, K, 2), pixels, (x, y).
    """
    difference = np.asarray(pred, np.float64) - np.asarray(gt, np.float64)
    return np.where(mask, np.hypot(difference[..., 0], difference[..., 1]), 0.0)


def epe_report(distance: np.ndarray, mask: np.ndarray, skeleton: Skeleton) -> dict[str, float]:
    """Mean distance over the labelled joints of each group, and over all joints as 'mean'.

    Args:
        distance: (N, K), pixels; `mask`: (N, K) bool, which joints count.

    A group without a labelled joint is not in the report.
    """
    columns = {**skeleton.groups, "mean": tuple(range(len(skeleton)))}
    out = {}
    for name, joints in columns.items():
        inside = mask[:, list(joints)]
        if inside.any():
            out[name] = float(distance[:, list(joints)][inside].mean())
    return out
