"""Whether scores are the probabilities that keypoints are right: log loss, Brier score, expected calibration error, and the fit.

Expected calibration error (M. P. Naeini et al., AAAI 2015; C. Guo et al., ICML 2017): keypoints are sorted into bins of equal
width by their score; the mean over keypoints of the distance between a bin's mean score and its share of right keypoints.

When a keypoint is right follows the data set's main figure: within half a head length (PCKh@0.5) for MPII and LSP; for COCO and
CrowdPose, whose figure is AP by OKS, where the keypoint's own similarity exp(-d^2 / (2 s^2 k^2)) is at least 1/2, which is within
sqrt(2 ln 2) = 1.18 of its length s k (s^2 the person's area, k = 2 sigma of the keypoint).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowpose.confidence import logit, sigmoid
from lowpose.errors import LowposeError
from lowpose.metrics.bootstrap import ratio_intervals
from lowpose.metrics.epe import distances, labels
from lowpose.metrics.oks import require_sigmas
from lowpose.metrics.pck import known, pck_metrics
from lowpose.samples import PoseData

BINS = 15
SIMILAR = math.sqrt(2 * math.log(2))  # lengths s k at which a keypoint's similarity is 1/2
SPREAD = 1.0  # logits: how far the biases of keypoints are expected to lie from each other
COLDEST = 0.01  # a temperature below it means that right and wrong are apart, and nothing bounds the fit


@dataclass(frozen=True)
class Rule:
    """When a keypoint is right.

    Attributes:
        name: as 'PCKh@0.5'. text: in words. radius: in lengths.
        length: (N, K) picture pixels. counted: (N, K) bool, labelled keypoints whose length is known.
    """

    name: str
    text: str
    radius: float
    length: np.ndarray
    counted: np.ndarray

    def right(self, data: PoseData, keypoints: np.ndarray) -> np.ndarray:
        """(N, K) bool, of keypoints (N, K, 2), picture pixels; one on the radius is right."""
        points, _ = labels(data)
        return (distances(keypoints, points, self.counted) <= self.radius * self.length) & self.counted


def rule_of(data: PoseData, radius: float | None = None) -> Rule:
    """The data set's main rule, with its own radius or another, in head lengths (MPII, LSP) or s k (COCO, CrowdPose).

    Raises: LowposeError for boxes of a detector, which have no labels, a radius that is no positive number, or no sigmas.
    """
    if data.boxes not in ("gt", "joints"):
        raise LowposeError(f"'{data.boxes}': boxes of a detector have no labels to calibrate on; leave them out")
    if radius is not None and not (math.isfinite(radius) and radius > 0):
        raise LowposeError(f"radius {radius:g}: give a positive number of head lengths (MPII, LSP) or of s k (COCO, CrowdPose)")
    points, labelled = labels(data)
    if data.protocol in ("mpii", "lsp"):
        pck = pck_metrics(data)[0]
        radius = pck.threshold if radius is None else radius
        length = np.where(pck.counted, np.nan_to_num(pck.norm)[:, None], 0.0)
        name = f"{pck.name.split('@')[0]}@{radius:g}"
        return Rule(name, f"within {radius:g} head lengths of its label", radius, length, pck.counted)
    area = np.array([np.nan if s.area is None else s.area for s in data.samples], np.float64)
    counted = labelled & known(area)[:, None]
    length = np.where(counted, np.sqrt(np.where(known(area), area, 0))[:, None] * 2 * require_sigmas(data.skeleton), 0.0)
    radius = SIMILAR if radius is None else radius
    similarity = math.exp(-(radius**2) / 2)
    text = f"within {radius:.3g} s k of its label (s^2 the person's area, k = 2 sigma): similarity at least {similarity:.2g}"
    return Rule(f"similarity@{similarity:.2g}", text, radius, length, counted)


def fit(scores: np.ndarray, right: np.ndarray, counted: np.ndarray, bias: str = "keypoint") -> tuple[float, np.ndarray]:
    """The temperature, and the bias of each keypoint (K,) float64, of least log loss.

    The loss is convex in 1 / temperature and the biases, and Newton's method finds its minimum. A keypoint's bias is the common
    one plus an offset with a normal prior of deviation SPREAD, so that one that is seldom labelled, or always right, stays near
    the others. Without offsets the probabilities are the ones that were given, so that the log loss cannot become worse.

    Args: (N, K) each: scores in 0..1, which are right, which count. bias: 'keypoint', 'one' (for all) or 'none' (0).
    Raises: LowposeError where no temperature exists: all right or all wrong, completely apart, or scores that rank backwards.
    """
    counted = np.asarray(counted, bool)
    keypoint, y = np.nonzero(counted)[1], np.asarray(right, np.float64)[counted]
    if y.size == 0 or y.min() == y.max():
        what = "right" if y.size and y.min() else "wrong"
        raise LowposeError(f"nothing to calibrate on: all of {y.size} keypoints are {what}; give a split with both kinds")
    own = np.eye(counted.shape[1])[keypoint]
    columns = np.column_stack([logit(np.asarray(scores)[counted]), np.ones(len(y)), own])
    columns = columns[:, : {"none": 1, "one": 2, "keypoint": None}[bias]]
    found = _minimum(columns, y, np.array([0.0, 0.0, *([SPREAD**-2] * own.shape[1])])[: columns.shape[1]])
    if found[0] <= 0:
        raise LowposeError("keypoints with high scores are not more often right: no temperature exists; are the weights trained?")
    if found[0] * COLDEST > 1:
        raise LowposeError(f"right and wrong are quite apart in {y.size} keypoints: no temperature exists; give more persons")
    found = np.pad(found, (0, 2 + own.shape[1] - len(found)))
    return float(1 / found[0]), found[1] + found[2:]


def _minimum(columns: np.ndarray, y: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """Of the log loss of sigmoid(columns @ v) plus v^2 prior / 2 / len(y), from v = (1, 0, 0 ...), by damped Newton steps."""
    v = np.eye(len(prior))[0]
    prior = prior / len(y)

    def loss(at: np.ndarray) -> float:
        return _log_loss(columns @ at, y) + float(prior @ at**2) / 2

    for _ in range(100):
        p = sigmoid(columns @ v)
        slope = columns.T @ (p - y) / len(y) + prior * v
        if np.abs(slope).max() < 1e-9 or v[0] * COLDEST > 1:
            break
        curve = (columns * (p * (1 - p))[:, None]).T @ columns / len(y) + np.diag(prior)
        step, size, now = np.linalg.lstsq(curve, slope, rcond=None)[0], 1.0, loss(v)
        while loss(v - size * step) > now and size > 1e-9:
            size /= 2
        if size <= 1e-9:
            break
        v = v - size * step
    return v


def _log_loss(logits: np.ndarray, right: np.ndarray) -> float:
    return float(np.logaddexp(0, np.where(right > 0.5, -logits, logits)).mean())


def figures(probabilities: np.ndarray, right: np.ndarray) -> dict[str, float]:
    """log_loss (nats, of probabilities within confidence.EDGE of 0 and 1), brier, ece, mean and right; all shares 0..1.

    Args: probabilities: (M,). right: (M,) bool.
    """
    p, y = np.asarray(probabilities, np.float64), np.asarray(right, bool)
    gaps = [abs(float((p[inside] - y[inside]).sum())) for inside in _sorted_in(p)]
    return {
        "log_loss": _log_loss(logit(p), y),
        "brier": float(((p - y) ** 2).mean()),
        "ece": sum(gaps) / len(p),
        "mean": float(p.mean()),
        "right": float(y.mean()),
    }


def _sorted_in(p: np.ndarray) -> list[np.ndarray]:
    """Masks of the bins; a bin holds its lower bound, the last one 1 as well."""
    place = np.minimum((p * BINS).astype(int), BINS - 1)
    return [place == i for i in range(BINS)]


def reliability(
    probabilities: np.ndarray, right: np.ndarray, counted: np.ndarray, bootstrap: int = 1000, seed: int = 0
) -> list[dict[str, Any]]:
    """The diagram: from, to, n, mean (probability), right (share), low and high (95%, over persons; None without) of each bin.

    Args: (N, K) each; counted: which keypoints count. Bins without a keypoint are not in it.
    """
    p, inside = np.asarray(probabilities, np.float64), np.asarray(counted, bool)
    masks = [m & inside for m in _sorted_in(p)]
    numerator, denominator = np.array([(right & m).sum(1) for m in masks]), np.array([m.sum(1) for m in masks])
    low, high = ratio_intervals(numerator, denominator, bootstrap, seed)
    rows = []
    for i, mask in enumerate(masks):
        if mask.any():
            ends = {"low": None, "high": None} if np.isnan(low[i]) else {"low": float(low[i]), "high": float(high[i])}
            row = {"from": i / BINS, "to": (i + 1) / BINS, "n": int(mask.sum()), "mean": float(p[mask].mean())}
            rows.append(row | {"right": float(right[mask].mean()), **ends})
    return rows
