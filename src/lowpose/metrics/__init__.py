"""Predictions on a split -> the figures that its data set's users report, with 95% intervals.

| protocol | figures |
|---|---|
| coco | AP, AP50, AP75, APM, APL, AR, AR50, AR75, ARM, ARL; PCK@0.2 (torso); EPE |
| crowdpose | AP, AP50, AP75, AR, AP_easy, AP_medium, AP_hard; EPE |
| mpii | PCKh@0.5, PCKh@0.1 (without head boxes pck_neck_head@0.5, @0.1); EPE |
| lsp | PCKh@0.5, PCKh@0.1, PCK@0.2 (torso); EPE; AP and AR as for coco |

Percent for all but EPE (picture pixels) and EPE_crop (crop pixels). A detector's boxes have no labels of
their own: there only AP and AR are measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowpose.errors import LowposeError
from lowpose.metrics import average_precision, crowdpose
from lowpose.metrics.bootstrap import ratio, ratio_intervals, stats_intervals
from lowpose.metrics.epe import distances, epe_report, labels
from lowpose.metrics.oks import coco_rows, require_sigmas
from lowpose.metrics.pck import known, pck_hits, pck_metrics, pck_report
from lowpose.samples import PoseData

PROTOCOLS = ("coco", "crowdpose", "mpii", "lsp")


def evaluate_predictions(
    data: PoseData,
    keypoints: np.ndarray,
    scores: np.ndarray,
    published: np.ndarray,
    *,
    keypoint_threshold: float = 0.2,
    nms: float = 0.9,
    bootstrap: int = 1000,
    seed: int = 0,
    crop_scale: np.ndarray | None = None,
) -> dict[str, Any]:
    """All figures of a split, one prediction for each of its samples.

    Args:
        keypoints: (N, K, 2), picture pixels, continuous, (x, y).
        scores: (N, K) in 0..1. `published`: (N, K), the method's own scores, which AP ranks by.
        keypoint_threshold: published scores above it count in the instance score (0.2 heatmap, 0.02 SimCC).
        nms: OKS above which the lower-scored of two predictions is dropped.
        bootstrap: resamples; with 0, 'low' and 'high' are None. `seed`: of the resamples.
        crop_scale: (N,) picture pixels per crop pixel, for EPE_crop; None leaves it out.

    Returns a dict that JSON can hold:
        metrics: name -> {value, low, high, n}; n counts the persons behind it.
        groups: name of a PCK or EPE metric -> {joint group or 'mean': value}.
        persons_left_out: PCK metric -> labelled persons whose normalising length is unknown.
        not_measured: name -> why a figure of this protocol is missing (no large person, no sigmas ...).
        protocol, boxes, persons (samples), joints (labelled ones).

    Raises: LowposeError for arrays that do not fit the samples or hold values that are not finite.
    """
    keypoints, scores, published = _checked(data, keypoints, scores, published)
    report: dict[str, Any] = {"metrics": {}, "groups": {}, "persons_left_out": {}, "not_measured": {}}
    report.update(protocol=data.protocol, boxes=data.boxes, persons=len(data), joints=int(labels(data)[1].sum()))
    labelled = data.boxes in ("gt", "joints")
    if data.protocol != "mpii" and (data.skeleton.sigmas is not None or not labelled):
        rows = coco_rows(data, keypoints, scores, published, keypoint_threshold, nms)
        _add_precision(report, data, rows, bootstrap, seed)
    elif data.protocol in ("coco", "crowdpose"):
        report["not_measured"]["AP"] = f"skeleton '{data.skeleton.name}' has no sigmas"
    elif not labelled:
        raise LowposeError(f"'{data.boxes}': boxes of a detector allow only AP, which the {data.protocol} protocol does not have")
    if labelled:
        _add_ratios(report, per_person(data, keypoints, crop_scale), bootstrap, seed)
        _add_groups(report, data, keypoints, crop_scale)
    if data.protocol == "lsp":  # the figures that its users report stand first, as AP does for coco
        report["metrics"] = dict(sorted(report["metrics"].items(), key=lambda item: item[0] in average_precision.NAMES))
    return report


def per_person(
    data: PoseData, keypoints: np.ndarray, crop_scale: np.ndarray | None = None
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """PCK and EPE as sums: name -> (numerator (N,), denominator (N,)), float64.

    sum(numerator) / sum(denominator) is the figure, in percent or pixels, of any set of persons. The
    denominator is the number of joints that count, 0 for a person that is left out.

    Args:
        keypoints: (N, K, 2), picture pixels, continuous, (x, y).
        crop_scale: (N,) picture pixels per crop pixel, for EPE_crop; None leaves it out.
    """
    points, labelled = labels(data)
    out = {}
    for pck in pck_metrics(data):
        hits = pck_hits(keypoints, points, pck.mask, pck.norm, pck.threshold)
        out[pck.name] = 100.0 * hits.sum(1), pck.counted.sum(1).astype(np.float64)
    for name, distance in _distances(data, keypoints, crop_scale).items():
        out[name] = distance.sum(1), labelled.sum(1).astype(np.float64)
    return out


def _distances(data: PoseData, keypoints: np.ndarray, crop_scale: np.ndarray | None) -> dict[str, np.ndarray]:
    distance = distances(keypoints, *labels(data))
    if crop_scale is None:
        return {"EPE": distance}
    scale = np.asarray(crop_scale, np.float64)
    if scale.shape != (len(data),) or not (known(scale)).all():
        raise LowposeError(f"crop_scale must be {len(data)} positive numbers, picture pixels per crop pixel")
    return {"EPE": distance, "EPE_crop": distance / scale[:, None]}


def _add_ratios(report: dict, sums: dict[str, tuple[np.ndarray, np.ndarray]], bootstrap: int, seed: int) -> None:
    numerator, denominator = (np.array(x) for x in zip(*sums.values(), strict=True))
    values = ratio(numerator.sum(1), denominator.sum(1))
    low, high = ratio_intervals(numerator, denominator, bootstrap, seed)
    for i, name in enumerate(sums):
        if np.isnan(values[i]):
            report["not_measured"][name] = "no person has the joints that it needs"
        else:
            report["metrics"][name] = figure(values[i], low[i], high[i], (denominator[i] > 0).sum())


def _add_groups(report: dict, data: PoseData, keypoints: np.ndarray, crop_scale: np.ndarray | None) -> None:
    points, labelled = labels(data)
    for pck in pck_metrics(data):
        hits = pck_hits(keypoints, points, pck.mask, pck.norm, pck.threshold)
        report["groups"][pck.name] = pck_report(hits, pck.counted, data.skeleton)
        report["persons_left_out"][pck.name] = int((pck.mask.any(1) & ~known(pck.norm)).sum())
    for name, distance in _distances(data, keypoints, crop_scale).items():
        report["groups"][name] = epe_report(distance, labelled, data.skeleton)


@dataclass(frozen=True)
class Precision:
    """Average precision of predictions as a function of picture weights.

    Attributes:
        exact: COCO's (CrowdPose's) figures in 0..1, NaN where there is no such person.
        stats: weights (I,) -> the same figures with each picture counted that often. images: I. persons: behind each figure.
    """

    exact: dict[str, float]
    stats: Callable[[np.ndarray], dict[str, float]]
    images: int
    persons: dict[str, int]


def has_precision(data: PoseData) -> bool:
    """Whether AP is measured here: not under MPII's protocol, nor without OKS sigmas."""
    return data.protocol != "mpii" and data.skeleton.sigmas is not None


def precision(data: PoseData, rows: list[dict[str, Any]]) -> Precision:
    """AP and AR of COCO result rows (`oks.coco_rows`) on a split. Raises: LowposeError without sigmas or faster-coco-eval."""
    truth = average_precision.ground_truth(data)
    exact, table = average_precision.evaluate_rows(truth, rows, require_sigmas(data.skeleton))
    everyone, medium, large = table.persons.sum(1)
    persons = dict.fromkeys(exact, int(everyone)) | {"APM": medium, "ARM": medium, "APL": large, "ARL": large}
    if truth.crowd is None:
        return Precision(exact, lambda w: average_precision.table_stats(table, w), len(truth.images), persons)
    split = crowdpose.difficulties(truth.crowd)
    persons |= {f"AP_{name}": table.persons[0][inside].sum() for name, inside in split.items()}
    splits = crowdpose.crowd_stats(table, truth.crowd)
    exact = {name: exact.get(name, splits[name]) for name in crowdpose.NAMES}
    return Precision(exact, lambda w: crowdpose.crowd_stats(table, truth.crowd, w), len(truth.images), persons)


def _add_precision(report: dict, data: PoseData, rows: list[dict], bootstrap: int, seed: int) -> None:
    found = precision(data, rows)
    resampled = stats_intervals(found.stats, found.images, bootstrap, seed)
    for name, value in found.exact.items():
        if np.isnan(value):
            report["not_measured"][name] = "no labelled person of this kind"
        else:
            low, high = resampled[name]
            report["metrics"][name] = figure(100 * value, 100 * low, 100 * high, found.persons[name])


def figure(value: float, low: float, high: float, n: int) -> dict[str, float | int | None]:
    """A figure of a report: value, low and high (None where they are NaN), and n, the samples behind it."""
    ends = {"low": None, "high": None} if np.isnan(low) else {"low": float(low), "high": float(high)}
    return {"value": float(value), **ends, "n": int(n)}


def _checked(data: PoseData, keypoints, scores, published) -> list[np.ndarray]:
    if data.protocol not in PROTOCOLS:
        raise LowposeError(f"{data.kind}: unknown protocol '{data.protocol}'; known: {', '.join(PROTOCOLS)}")
    shape = len(data), len(data.skeleton)
    out = []
    for name, array, want in (("keypoints", keypoints, (*shape, 2)), ("scores", scores, shape), ("published", published, shape)):
        array = np.asarray(array, np.float64)
        if array.shape != want:
            raise LowposeError(
                f"{data.kind}: predicted {name} have shape {array.shape}; {want} fits the samples and the skeleton"
            )
        if not np.isfinite(array).all():
            raise LowposeError(f"{data.kind}: predicted {name} hold values that are not finite numbers")
        out.append(array)
    return out
