"""Percentage of correct keypoints: a joint is right when it lies within a share of a body length.

Normalising lengths:

- MPII (M. Andriluka et al., CVPR 2014), `PCKh`: 0.6 of the head box's diagonal, as `PersonSample.head_size`
  holds it. Pelvis and thorax do not count; the mean is over all counted joints of the other 14 (upper
  neck included). Without head boxes there is no PCKh: `pck_neck_head` takes the distance from upper
  neck to head top, a shorter length, and its figures must not be compared with published PCKh.
- LSP (S. Johnson and M. Everingham, BMVC 2010), `PCKh`: distance from neck to head top, all 14 joints.
- `PCK@0.2`: the torso, from left shoulder to right hip (Y. Yang and D. Ramanan, PAMI 2013).

A joint on the threshold is right (<=). Published code of the HRNet family prints the rate at 0.11 as
"@0.1" in places; here @0.1 is exactly 0.10. Persons whose normalising length is unknown or zero are left
out and counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lowpose.errors import LowposeError
from lowpose.metrics.epe import labels
from lowpose.samples import PoseData
from lowpose.skeletons import Skeleton

_MPII_LEFT_OUT = ("pelvis", "thorax")


@dataclass(frozen=True)
class Pck:
    """One PCK metric of a split.

    Attributes:
        norm: (N,) float64, pixels, the normalising length of each person; NaN where unknown.
        mask: (N, K) bool, the joints that count, before persons without a length are left out.
    """

    name: str
    threshold: float
    norm: np.ndarray
    mask: np.ndarray

    @property
    def counted(self) -> np.ndarray:
        """(N, K) bool: joints that count, of persons whose normalising length is known."""
        return self.mask & known(self.norm)[:, None]


def known(norm: np.ndarray) -> np.ndarray:
    """(N,) bool: where a normalising length is a positive number."""
    return np.isfinite(norm) & (np.nan_to_num(norm) > 0)


def pck_hits(pred: np.ndarray, gt: np.ndarray, mask: np.ndarray, norm: np.ndarray, threshold: float) -> np.ndarray:
    """(N, K) bool: joints that count and lie within `threshold` x `norm` of the label (<=).

    Args:
        pred, gt: (N, K, 2), pixels, (x, y). `mask`: (N, K) bool, labelled joints.
        norm: (N,) in the same pixels; where it is not a positive number nothing is a hit.
    """
    difference = np.asarray(pred, np.float64) - np.asarray(gt, np.float64)
    norm = np.asarray(norm, np.float64)
    length = np.where(known(norm), norm, 1.0)[:, None]
    near = np.hypot(difference[..., 0], difference[..., 1]) / length <= threshold
    return near & np.asarray(mask, bool) & known(norm)[:, None]


def link_length(points: np.ndarray, labelled: np.ndarray, link: tuple[int, int]) -> np.ndarray:
    """(N,) float64: distance in pixels between two joints of (N, K, 2); NaN where one is not labelled."""
    a, b = link
    span = points[:, a] - points[:, b]
    return np.where(labelled[:, a] & labelled[:, b], np.hypot(span[:, 0], span[:, 1]), np.nan)


def pck_metrics(data: PoseData) -> list[Pck]:
    """The PCK metrics that users of this data set report, by `data.protocol` (none for 'crowdpose').

    Raises: LowposeError for MPII or LSP with a skeleton that has neither head sizes nor a head link.
    """
    points, labelled = labels(data)
    skeleton = data.skeleton
    out = []
    if data.protocol == "mpii":
        out += _mpii(data, points, labelled)
    elif data.protocol == "lsp":
        head = link_length(points, labelled, _head(skeleton))
        out += [Pck(f"PCKh@{t}", t, head, labelled) for t in (0.5, 0.1)]
    if data.protocol in ("lsp", "coco") and skeleton.torso is not None:
        out.append(Pck("PCK@0.2", 0.2, link_length(points, labelled, skeleton.torso), labelled))
    return out


def _mpii(data: PoseData, points: np.ndarray, labelled: np.ndarray) -> list[Pck]:
    name, norm = "PCKh", np.array([np.nan if s.head_size is None else s.head_size for s in data.samples], np.float64)
    if not known(norm).any():
        name, norm = "pck_neck_head", link_length(points, labelled, _head(data.skeleton))
    counts = np.array([joint not in _MPII_LEFT_OUT for joint in data.skeleton.keypoints])
    return [Pck(f"{name}@{t}", t, norm, labelled & counts) for t in (0.5, 0.1)]


def _head(skeleton: Skeleton) -> tuple[int, int]:
    if skeleton.head is None:
        raise LowposeError(f"skeleton '{skeleton.name}' has no 'head' link ([neck, head top]), which PCKh is normalised by")
    return skeleton.head


def pck_report(hits: np.ndarray, counted: np.ndarray, skeleton: Skeleton) -> dict[str, float]:
    """Percent, 0..100, of each joint group and of all joints as 'mean'.

    A group is the mean of its joints' rates, as the columns of MPII's tables are; 'mean' is the rate
    over all counted joints. A group without a counted joint is not in the report.

    Args:
        hits, counted: (N, K) bool.
    """
    right, total = hits.sum(0), counted.sum(0)
    out = {}
    for name, joints in skeleton.groups.items():
        rates = [100.0 * right[j] / total[j] for j in joints if total[j]]
        if rates:
            out[name] = float(np.mean(rates))
    if total.sum():
        out["mean"] = float(100.0 * right.sum() / total.sum())
    return out
