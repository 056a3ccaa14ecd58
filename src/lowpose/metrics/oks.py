"""Object keypoint similarity, the suppression of double predictions by it, and COCO result rows.

COCO keypoint evaluation (T.-Y. Lin et al., "Microsoft COCO", ECCV 2014, and its evaluation page):
OKS = mean over the labelled joints of exp(-d_i^2 / (2 s^2 k_i^2)) with s^2 the person's area and
k_i = 2 sigma_i. Suppression and instance scores as in G. Papandreou et al., CVPR 2017
(arXiv:1701.01779) and the code of B. Xiao et al., ECCV 2018 (arXiv:1804.06208).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lowpose.errors import LowposeError
from lowpose.samples import PoseData, coco_result
from lowpose.skeletons import Skeleton

BOX_PADDING = 1.25  # of the crops, whose area published code takes for suppression


def require_sigmas(skeleton: Skeleton) -> np.ndarray:
    """(K,) float64. Raises: LowposeError if the skeleton has no OKS sigmas."""
    if skeleton.sigmas is None:
        raise LowposeError(
            f"skeleton '{skeleton.name}' has no 'sigmas' (one per keypoint); without them there is no OKS and no AP"
        )
    return np.array(skeleton.sigmas, np.float64)


def oks(pred: np.ndarray, gt: np.ndarray, labelled: np.ndarray, area: np.ndarray, sigmas: Sequence[float]) -> np.ndarray:
    """(P, G) float64 in 0..1: OKS of every prediction with every labelled person; 0 for one without labels.

    Args:
        pred: (P, K, 2), `gt`: (G, K, 2), the same pixels, (x, y). `labelled`: (G, K) bool.
        area: (G,) or (P, G), square pixels. `sigmas`: (K,).
    """
    pred, gt = np.asarray(pred, np.float64), np.asarray(gt, np.float64)
    labelled = np.asarray(labelled, bool)
    squared = ((pred[:, None] - gt[None]) ** 2).sum(-1)
    variance = (2 * np.asarray(sigmas, np.float64)) ** 2
    scale = 2 * (np.asarray(area, np.float64) + np.spacing(1))
    similar = np.exp(-squared / variance / scale[..., None]) * labelled
    return similar.sum(-1) / np.maximum(labelled.sum(-1), 1)


def oks_nms(
    keypoints: np.ndarray, scores: np.ndarray, areas: np.ndarray, sigmas: Sequence[float], threshold: float = 0.9
) -> np.ndarray:
    """Indices of the predictions of one picture that are kept, best first.

    Greedy: the best prediction is kept, and those whose OKS with it is above `threshold` are dropped;
    the area of a pair is the mean of both. Equal scores: the earlier prediction goes first.

    Args:
        keypoints: (P, K, 2), pixels, (x, y). `scores`: (P,). `areas`: (P,), square pixels.
    """
    keypoints, areas = np.asarray(keypoints, np.float64), np.asarray(areas, np.float64)
    everywhere = np.ones((1, len(sigmas)), bool)
    left = np.argsort(-np.asarray(scores, np.float64), kind="stable")
    kept = []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        pair_area = (areas[left] + areas[best])[:, None] / 2
        left = left[oks(keypoints[left], keypoints[best][None], everywhere, pair_area, sigmas)[:, 0] <= threshold]
    return np.array(kept, np.int64)


def instance_score(box_scores: np.ndarray, keypoint_scores: np.ndarray, threshold: float) -> np.ndarray:
    """(P,) float64: box score times the mean of the keypoint scores above `threshold`, 0 if there is none.

    Published: threshold 0.2 for heatmaps, 0.02 for SimCC.

    Args:
        box_scores: (P,). `keypoint_scores`: (P, K), those of the published method.
    """
    scores = np.asarray(keypoint_scores, np.float64)
    above = scores > threshold
    mean = np.where(above, scores, 0).sum(-1) / np.maximum(above.sum(-1), 1)
    return np.asarray(box_scores, np.float64) * mean


def coco_rows(
    data: PoseData, keypoints: np.ndarray, scores: np.ndarray, published: np.ndarray, keypoint_threshold: float, nms: float
) -> list[dict[str, Any]]:
    """COCO result rows of predictions on `data`'s boxes, rescored and suppressed picture by picture.

    As in COCO's form for keypoints there is no box in a row (evaluators then take a prediction's area
    from its joints), and pixels are COCO's (ours minus 0.5).

    Args:
        keypoints: (N, K, 2), picture pixels, continuous, (x, y). `scores`, `published`: (N, K).
        keypoint_threshold: of `instance_score`. `nms`: OKS above which the lower of two is dropped; 0.9 published.

    Raises: LowposeError if the skeleton has no sigmas.
    """
    sigmas = require_sigmas(data.skeleton)
    samples = data.samples
    totals = instance_score(np.array([s.score for s in samples]), published, keypoint_threshold)
    areas = np.array([s.box[2] * s.box[3] * BOX_PADDING**2 for s in samples], np.float64)
    pictures: dict[int | str, list[int]] = {}
    for i, sample in enumerate(samples):
        pictures.setdefault(sample.image_id, []).append(i)
    rows = []
    for image_id, members in pictures.items():
        index = np.array(members)
        for i in index[oks_nms(keypoints[index], totals[index], areas[index], sigmas, nms)]:
            row = coco_result(keypoints[i], scores[i], 0.0, samples[i].box, image_id)
            del row["bbox"]
            rows.append({**row, "score": float(totals[i])})  # not rounded: it ranks the predictions
    return rows
