"""COCO average precision and recall of poses, and the table of matches that bootstrap intervals need.

The figures are faster-coco-eval's, which equal pycocotools'. It does not hand out which prediction
matched which person, so `match_table` repeats the matching from its OKS values; `table_stats` of the whole table
gives the same figures again (tested), and those of any resampled or selected pictures.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lowpose.errors import LowposeError
from lowpose.samples import PersonSample, PoseData

THRESHOLDS = np.linspace(0.5, 0.95, 10)  # of OKS
RECALLS = np.linspace(0.0, 1.0, 101)
MAX_DETECTIONS = 20
AREAS = {"all": (0.0, 1e10), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}  # square pixels, inclusive
NAMES = ("AP", "AP50", "AP75", "APM", "APL", "AR", "AR50", "AR75", "ARM", "ARL")
_AT_50, _AT_75 = 0, 5
_CROWDPOSE_AREA = 0.53  # of the box; CrowdPose has no segments


@dataclass(frozen=True)
class GroundTruth:
    """Attributes:
    images: picture ids as in result files, sorted; position i is image_id i + 1 in `annotations`.
    annotations: COCO annotations in COCO's pixels, all of category 1.
    crowd: (I,) float64, CrowdPose's crowd index of each picture; None elsewhere.
    """

    images: list[int | str]
    annotations: list[dict[str, Any]]
    crowd: np.ndarray | None = None


@dataclass(frozen=True)
class MatchTable:
    """Which predictions matched a person. A areas of AREAS, T thresholds, D predictions, I pictures.

    Attributes:
        image: (D,) int64, picture of each prediction, predictions in falling order of score.
        matched, ignored: (A, T, D) bool; an ignored prediction is neither right nor wrong.
        persons: (A, I) int64, persons to be found.
    """

    image: np.ndarray
    matched: np.ndarray
    ignored: np.ndarray
    persons: np.ndarray


def ground_truth(data: PoseData) -> GroundTruth:
    """All persons to be found: from the COCO file of `data.annotations`, or from the samples without one.

    From a file everything counts: pictures without predictions, crowds, persons without labelled joints.
    With ground-truth boxes, persons of the file that are not in `data` (a subset) are ignored.

    Raises: LowposeError for a file that is no COCO file, and for what OKS needs and is not there.
    """
    crowdpose = data.protocol == "crowdpose"
    if data.protocol in ("coco", "crowdpose") and data.annotations is not None and Path(data.annotations).suffix == ".json":
        where = str(data.annotations)
        pictures, annotations = _from_file(data)
    else:
        where = data.root
        pictures = {s.image_id: s.crowd for s in data.samples}
        annotations = [_annotation(s) for s in data.samples]
    ids = sorted(pictures, key=lambda i: (isinstance(i, str), i))
    number = {image_id: n + 1 for n, image_id in enumerate(ids)}
    out = []
    for n, a in enumerate(annotations):
        if a["image_id"] not in number:
            raise LowposeError(f"{where}: annotation {a.get('id')} is of picture {a['image_id']}, which 'images' does not list")
        area = _CROWDPOSE_AREA * a["bbox"][2] * a["bbox"][3] if crowdpose else a.get("area")
        if area is None:
            raise LowposeError(f"{where}: annotation {a.get('id')} has no 'area' (square pixels), which OKS is scaled by")
        # Numbered anew from 1: evaluators take id 0 for "not matched".
        out.append({**a, "id": n + 1, "image_id": number[a["image_id"]], "category_id": 1, "area": float(area)})
    return GroundTruth(ids, out, _crowd_index(pictures, ids, where) if crowdpose else None)


def _crowd_index(pictures: dict[int | str, float | None], ids: list[int | str], where: str) -> np.ndarray:
    for i in ids:
        if pictures[i] is None:
            raise LowposeError(f"{where}: picture {i} has no 'crowdIndex', which CrowdPose's easy, medium and hard need")
    return np.array([pictures[i] for i in ids], np.float64)


def _annotation(sample: PersonSample) -> dict[str, Any]:
    points = np.column_stack([sample.keypoints.astype(np.float64) - 0.5, sample.visibility])
    return {
        "id": sample.id, "image_id": sample.image_id, "bbox": [float(v) for v in sample.box], "area": sample.area,
        "iscrowd": 0, "keypoints": points.ravel().tolist(), "num_keypoints": int(sample.labelled.sum()),
    }  # fmt: skip


def _from_file(data: PoseData) -> tuple[dict[int | str, float | None], list[dict[str, Any]]]:
    path = Path(data.annotations)
    try:
        content = json.loads(path.read_text())
        pictures = {i["id"]: i.get("crowdIndex") for i in content["images"]}
        rows = [a for a in content["annotations"] if len(a.get("keypoints", ())) == 3 * len(data.skeleton)]
        annotations = [_file_annotation(a) for a in rows]
    except FileNotFoundError:
        raise LowposeError(f"{path}: no such annotation file") from None
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise LowposeError(f"{path}: not a COCO annotation file ({type(e).__name__}: {e})") from None
    if data.boxes == "gt":
        inside = {s.id for s in data.samples}
        for a in annotations:
            # A person without area is no sample, yet counts as missed in published figures.
            if a["id"] not in inside and min(*a["bbox"][2:], 1 if a["area"] is None else a["area"]) > 0:
                a["num_keypoints"] = 0  # evaluators ignore such a person and what matches it
    return pictures, annotations


def _file_annotation(a: dict[str, Any]) -> dict[str, Any]:
    labelled = sum(v > 0 for v in a["keypoints"][2::3])
    keys = ("id", "image_id", "bbox", "keypoints")
    extra = {"area": a.get("area"), "iscrowd": int(a.get("iscrowd", 0)), "num_keypoints": int(a.get("num_keypoints", labelled))}
    return {**{k: a[k] for k in keys}, **extra}


def evaluate_rows(truth: GroundTruth, rows: list[dict[str, Any]], sigmas: np.ndarray) -> tuple[dict[str, float], MatchTable]:
    """COCO's ten figures in 0..1 (NaN where there is no such person) and the matches behind them.

    Args:
        rows: COCO result rows (`coco_rows`). `sigmas`: (K,).

    Raises: LowposeError without faster-coco-eval, and for a row whose picture is not in `truth`.
    """
    try:
        from faster_coco_eval.core.coco import COCO
        from faster_coco_eval.core.faster_eval_api import COCOeval_faster
    except ImportError:
        raise LowposeError("OKS average precision needs faster-coco-eval; pip install 'lowpose[train]'") from None
    number = {image_id: n + 1 for n, image_id in enumerate(truth.images)}
    for row in rows:
        if row["image_id"] not in number:
            raise LowposeError(f"prediction for picture {row['image_id']}, which is not among the {len(number)} annotated ones")
    content = {
        "images": [{"id": n} for n in number.values()],
        "annotations": [dict(a) for a in truth.annotations],
        "categories": [{"id": 1, "name": "person"}],
    }
    gt = COCO(content)
    dt = gt.loadRes([{**row, "image_id": number[row["image_id"]], "category_id": 1} for row in rows])
    evaluator = COCOeval_faster(gt, dt, "keypoints", kpt_oks_sigmas=list(sigmas))
    evaluator.params.catIds = [1]
    if not truth.annotations:
        table = match_table(truth, dt.dataset["annotations"], {})
        return dict.fromkeys(NAMES, float("nan")), table
    evaluator.run()
    stats = {name: float(v) if v > -1 else float("nan") for name, v in zip(NAMES, evaluator.all_stats, strict=True)}
    ious = {image: values for (image, _), values in evaluator.ious.items()}
    return stats, match_table(truth, dt.dataset["annotations"], ious)


def match_table(truth: GroundTruth, detections: list[dict[str, Any]], ious: dict[int, Any]) -> MatchTable:
    """The COCO matching of every picture.

    Args:
        detections: with 'image_id' (numbered as in `truth.annotations`), 'score' and 'area'.
        ious: image_id -> (D, G) OKS of its detections in falling order of score with its annotations.
    """
    found: dict[int, list] = {n + 1: [] for n in range(len(truth.images))}
    wanted: dict[int, list] = {n + 1: [] for n in range(len(truth.images))}
    for d in detections:
        found[d["image_id"]].append(d)
    for a in truth.annotations:
        wanted[a["image_id"]].append(a)
    persons = np.zeros((len(AREAS), len(truth.images)), np.int64)
    images, scores, matched, ignored = [], [], [], []
    for n in range(len(truth.images)):
        best = sorted(found[n + 1], key=lambda d: -d["score"])[:MAX_DETECTIONS]
        overlap = np.asarray(ious.get(n + 1, []), np.float64).reshape(len(best), len(wanted[n + 1]))
        hits, skips, persons[:, n] = _match_picture(best, wanted[n + 1], overlap)
        images += [n] * len(best)
        scores += [d["score"] for d in best]
        matched.append(hits)
        ignored.append(skips)
    empty = np.zeros((len(AREAS), len(THRESHOLDS), 0), bool)
    order = np.argsort(-np.array(scores, np.float64), kind="stable")
    all_hits, all_skips = (np.concatenate([empty, *parts], axis=2)[:, :, order] for parts in (matched, ignored))
    return MatchTable(np.array(images, np.int64)[order], all_hits, all_skips, persons)


def _match_picture(
    detections: list[dict], annotations: list[dict], overlap: np.ndarray
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Matched and ignored, (A, T, D) bool each, and the persons to be found in each area range, (A,)."""
    nobody = np.array([bool(a["iscrowd"]) or a["num_keypoints"] == 0 for a in annotations], bool)
    crowd = np.array([bool(a["iscrowd"]) for a in annotations], bool)
    gt_area = np.array([a["area"] for a in annotations], np.float64)
    dt_area = np.array([d["area"] for d in detections], np.float64)
    hits, skips, persons = [], [], []
    for low, high in AREAS.values():
        ignore = nobody | (gt_area < low) | (gt_area > high)
        hit, skip = _match(overlap, ignore, crowd)
        hits.append(hit)
        skips.append(skip | (~hit & ((dt_area < low) | (dt_area > high))))
        persons.append(int((~ignore).sum()))
    return np.array(hits), np.array(skips), persons


def _match(overlap: np.ndarray, ignore: np.ndarray, crowd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """COCO's greedy rule: each prediction, best first, takes the free person of highest OKS.

    A person to be found goes before an ignored one; a crowd can be taken many times; of equals the last.

    Args:
        overlap: (D, G) OKS. `ignore`, `crowd`: (G,) bool.

    Returns: (T, D) bool matched, and (T, D) bool matched to an ignored one.
    """
    shape = len(THRESHOLDS), len(overlap)
    hit, skip = np.zeros(shape, bool), np.zeros(shape, bool)
    taken = np.zeros((len(THRESHOLDS), len(ignore)), bool)
    for d, row in enumerate(overlap):
        if len(ignore) == 0 or row.max() < THRESHOLDS[0]:
            continue
        near = (row >= THRESHOLDS[:, None]) & (~taken | crowd)
        regular = near & ~ignore
        use = np.where(regular.any(1, keepdims=True), regular, near)
        last_best = len(ignore) - 1 - np.argmax(np.where(use, row, -1.0)[:, ::-1], axis=1)
        at = np.flatnonzero(use.any(1))
        taken[at, last_best[at]] = True
        hit[at, d] = True
        skip[at, d] = ignore[last_best[at]]
    return hit, skip


def accumulate(matched: np.ndarray, ignored: np.ndarray, weights: np.ndarray, persons: float) -> tuple[np.ndarray, np.ndarray]:
    """Interpolated precision (T, 101) at RECALLS and the highest recall (T,), predictions counted `weights` times.

    Args:
        matched, ignored: (T, D) bool, in falling order of score. `weights`: (D,). `persons`: to be found, above 0.
    """
    right = np.cumsum((matched & ~ignored) * weights, axis=1)
    seen = np.cumsum(~ignored * weights, axis=1)
    precision = right / np.maximum(seen, 1)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    padded = np.concatenate([envelope, np.zeros((len(right), 1))], axis=1)
    recall = right / persons
    at = np.array([np.searchsorted(r, RECALLS, side="left") for r in recall])
    highest = recall[:, -1] if recall.shape[1] else np.zeros(len(recall))
    return np.take_along_axis(padded, at, axis=1), highest


def table_stats(table: MatchTable, weights: np.ndarray | None = None) -> dict[str, float]:
    """COCO's ten figures in 0..1 with picture i counted `weights[i]` times; NaN where there is no such person.

    Args:
        weights: (I,) whole numbers; None: every picture once.
    """
    weights = np.ones(table.persons.shape[1]) if weights is None else np.asarray(weights, np.float64)
    per_row = weights[table.image]
    use = per_row > 0
    out = dict.fromkeys(NAMES, float("nan"))
    for a, end in enumerate(("", "M", "L")):
        persons = float(table.persons[a] @ weights)
        if persons == 0:
            continue
        precision, recall = accumulate(table.matched[a][:, use], table.ignored[a][:, use], per_row[use], persons)
        out[f"AP{end}"], out[f"AR{end}"] = float(precision.mean()), float(recall.mean())
        if not end:
            for t, at in (("50", _AT_50), ("75", _AT_75)):
                out[f"AP{t}"], out[f"AR{t}"] = float(precision[at].mean()), float(recall[at])
    return out
