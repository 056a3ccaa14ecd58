"""Which persons a model fails on: figures by labelled joints, occlusion, size and height in pixels, with 95% intervals.

K. Gu, L. Yang, A. Yao, Removing the Bias of Integral Pose Regression, ICCV 2021: Tables 1 to 4 of its supplement count COCO's
validation persons by labelled joints, share of occluded ones and size, and give the end-point error of each part. Its bounds are
not printed. These are the ones that fit the counts of Tables 2 and 3 on a part of that split:

| persons by | bins |
|---|---|
| labelled joints of 17 | few 1-5, some 6-10, many 11-17; of K joints the same shares: up to 5/17, up to 10/17 |
| occluded share of the labelled joints | few below 20%, some below 50%, many from 50% |
| size, `area` (default) | square root of the person's area: M below 64 pixels, L below 96, XL below 128, XXL |
| size, `box` | square root of the box's area: M below 96 pixels, L below 144, XL below 192, XXL |
| height of the box | 16, 24, 32, 48, 64, 96 and 128 pixels (ours) |

A bin holds its lower bound. Every cell is what `lowpose.metrics` measures on the persons in it alone. OKS is the mean over
persons of their object keypoint similarity, in percent. Persons without a labelled joint stand in no cell and are counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowpose.errors import LowposeError
from lowpose.metrics import figure, per_person
from lowpose.metrics.bootstrap import ratio, ratio_intervals
from lowpose.metrics.epe import labels
from lowpose.metrics.oks import oks
from lowpose.samples import PoseData

Sums = dict[str, tuple[np.ndarray, np.ndarray]]  # of `per_person`

FEW, SOME, OF = 5, 10, 17  # joints
OCCLUDED = (0.2, 0.5)
SIZES = {"area": (64, 96, 128), "box": (96, 144, 192)}  # square roots, pixels
HEIGHTS = (16, 24, 32, 48, 64, 96, 128)  # pixels
TITLES = {
    "joints": "labelled joints",
    "occlusion": "occluded share of the labelled joints",
    "size": "size",
    "height": "height of the box in pixels",
}
CROSSED = (("occlusion", "joints"), ("size", "joints"))  # rows and columns of the paper's tables


@dataclass(frozen=True)
class Bins:
    """Persons sorted by one thing.

    Attributes:
        names, bounds: of each bin, for tables. index: (N,) int, the bin of each person; -1: in none.
    """

    names: tuple[str, ...]
    bounds: tuple[str, ...]
    index: np.ndarray


def breakdown(
    data: PoseData,
    keypoints: np.ndarray,
    crop_scale: np.ndarray | None = None,
    *,
    sizes: str = "area",
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """The figures of a split by labelled joints, occlusion, size and height of its persons.

    Args:
        keypoints: (N, K, 2), picture pixels, continuous, (x, y), one prediction for each sample.
        crop_scale: (N,) picture pixels per crop pixel, for EPE_crop; None leaves it out.
        sizes: 'area' (of the person) or 'box'. bootstrap: resamples; with 0 there are no intervals. seed: of the resamples.

    Returns a dict that JSON can hold; a cell is {persons, figures: name -> {value, low, high, n}}, n persons that the figure
    counts, low and high None with fewer than two of them; a figure that nobody in the cell has is not in it:
        metrics: names of the figures. not_measured: name of a figure or of 'occlusion' or 'size' -> why it is missing.
        all: the cell of all persons. unlabelled: persons without a labelled joint, who are in none.
        by: 'joints', 'occlusion', 'size', 'height' -> bin -> cell, with the 'bounds' of the bin.
        cross: 'occlusion x joints', 'size x joints' -> row -> column -> cell.
        unsorted: persons whose area is not known, though that of others is. joints: of the skeleton. sizes: as given.

    Raises: LowposeError for boxes of a detector, an unknown `sizes`, or arrays that do not fit the samples.
    """
    check_breakdown(data, sizes)
    sums = person_sums(data, keypoints, crop_scale)
    missing = {name: "no person has what it needs" for name, (_, counted) in sums.items() if not counted.any()}
    if data.skeleton.sigmas is None:
        missing["OKS"] = f"skeleton '{data.skeleton.name}' has no sigmas"
    sums = {name: value for name, value in sums.items() if name not in missing}
    found = {"joints": by_joints(data), "occlusion": by_occlusion(data), "size": by_size(data, sizes), "height": by_height(data)}
    missing |= {name: bins for name, bins in found.items() if isinstance(bins, str)}
    sorted_by = {name: bins for name, bins in found.items() if not isinstance(bins, str)}
    labelled = has_labels(data)

    def cell(chosen: np.ndarray) -> dict[str, Any]:
        return figures(sums, chosen & labelled, bootstrap, seed)

    return {
        "metrics": list(sums),
        "not_measured": missing,
        "joints": len(data.skeleton),
        "sizes": sizes,
        "unlabelled": int((~labelled).sum()),
        "unsorted": int((sorted_by["size"].index[labelled] < 0).sum()) if "size" in sorted_by else 0,
        "all": cell(labelled),
        "by": {
            name: {bin_: {"bounds": bins.bounds[i], **cell(bins.index == i)} for i, bin_ in enumerate(bins.names)}
            for name, bins in sorted_by.items()
        },
        "cross": {
            f"{a} x {b}": {
                row: {
                    column: cell((sorted_by[a].index == i) & (sorted_by[b].index == j))
                    for j, column in enumerate(sorted_by[b].names)
                }
                for i, row in enumerate(sorted_by[a].names)
            }
            for a, b in CROSSED
            if a in sorted_by
        },
    }


def check_breakdown(data: PoseData, sizes: str = "area") -> None:
    """Raises: LowposeError for persons without labels or an unknown kind of sizes."""
    if sizes not in SIZES:
        raise LowposeError(f"sizes must be one of {', '.join(SIZES)}, not '{sizes}'")
    if data.boxes not in ("gt", "joints"):
        raise LowposeError(
            f"'{data.boxes}': a breakdown sorts labelled persons, boxes of a detector have no labels; use boxes 'gt'"
        )


def check_heights(heights: Sequence[float]) -> None:
    """Raises: LowposeError unless they are rising heights from 8 to 4096 pixels (a far camera keeps at least four pixels)."""
    rising = all(a < b for a, b in zip(heights, heights[1:], strict=False))
    if not rising or not all(8 <= h <= 4096 for h in heights):
        found = ", ".join(f"{h:g}" for h in heights)
        raise LowposeError(f"heights must rise and be 8 to 4096 pixels, as 16,24,32; found {found}")


def has_labels(data: PoseData) -> np.ndarray:
    """(N,) bool: persons with at least one labelled joint."""
    return labels(data)[1].any(1)


def person_sums(data: PoseData, keypoints: np.ndarray, crop_scale: np.ndarray | None = None) -> Sums:
    """`per_person`, and 'OKS' in percent where the skeleton has sigmas; it counts persons of known area.

    Args: keypoints: (N, K, 2), picture pixels. crop_scale: (N,) or None.
    """
    keypoints = np.asarray(keypoints, np.float64)
    want = (len(data), len(data.skeleton), 2)
    if keypoints.shape != want or not np.isfinite(keypoints).all():
        raise LowposeError(f"{data.kind}: predicted keypoints must be {want} finite numbers; found shape {keypoints.shape}")
    sums = per_person(data, keypoints, crop_scale)
    sigmas = data.skeleton.sigmas
    if sigmas is not None:
        points, labelled = labels(data)
        area = areas(data)
        counted = labelled.any(1) & ~np.isnan(area)
        similar = np.zeros(len(data))
        for i in np.flatnonzero(counted):
            one = slice(i, i + 1)
            similar[i] = oks(keypoints[one], points[one], labelled[one], area[one], sigmas)[0, 0]
        sums["OKS"] = 100 * similar, counted.astype(np.float64)
    return sums


def areas(data: PoseData) -> np.ndarray:
    """(N,) float64, square pixels, as OKS takes them; NaN where unknown."""
    found = np.array([np.nan if s.area is None else s.area for s in data.samples], np.float64)
    return np.where(found > 0, found, np.nan)


def figures(sums: Sums, chosen: np.ndarray, bootstrap: int, seed: int) -> dict[str, Any]:
    """The cell of the persons that `chosen`, (N,) bool, holds."""
    out: dict[str, Any] = {"persons": int(chosen.sum()), "figures": {}}
    if not sums or not chosen.any():
        return out
    numerator, denominator = (np.array([s[part][chosen] for s in sums.values()]) for part in (0, 1))
    values = ratio(numerator.sum(1), denominator.sum(1))
    low, high = ratio_intervals(numerator, denominator, bootstrap, seed)
    for i, name in enumerate(sums):
        n = int((denominator[i] > 0).sum())
        if n:
            out["figures"][name] = figure(values[i], *((low[i], high[i]) if n > 1 else (np.nan, np.nan)), n)
    return out


def joint_bounds(joints: int) -> dict[str, tuple[int, int]]:
    """few, some, many -> least and most labelled joints of a skeleton with so many; a bin that cannot be filled is left out."""
    few, some = FEW * joints // OF, SOME * joints // OF
    bounds = {"few": (1, few), "some": (few + 1, some), "many": (some + 1, joints)}
    return {name: (low, high) for name, (low, high) in bounds.items() if low <= high}


def by_joints(data: PoseData) -> Bins:
    number = labels(data)[1].sum(1)
    bounds = joint_bounds(len(data.skeleton))
    index = np.full(len(data), -1)
    for i, (low, high) in enumerate(bounds.values()):
        index[(low <= number) & (number <= high)] = i
    return Bins(tuple(bounds), tuple(f"{a}-{b}" if a < b else f"{a}" for a, b in bounds.values()), index)


def by_occlusion(data: PoseData) -> Bins | str:
    """Or why there is none: a data set that marks every labelled joint alike says nothing about occlusion."""
    visibility = np.array([s.visibility for s in data.samples]).reshape(-1, len(data.skeleton))
    labelled, occluded = (visibility > 0).sum(1), (visibility == 1).sum(1)
    if not occluded.any():
        return "no labelled joint of this split is marked as occluded, so occlusion is not labelled here"
    if (occluded == labelled).all():
        return "no labelled joint of this split is marked as visible, so occlusion is not labelled here"
    index = np.where(labelled > 0, np.digitize(occluded / np.maximum(labelled, 1), OCCLUDED), -1)
    low, high = (f"{100 * bound:g}" for bound in OCCLUDED)
    return Bins(("few", "some", "many"), (f"<{low}%", f"{low}-{high}%", f">={high}%"), index)


def by_size(data: PoseData, sizes: str = "area") -> Bins | str:
    """Or why there is none: areas that are not those of the persons."""
    if sizes == "area" and data.areas != "labelled":
        return f"the areas here are made from the {data.areas}, not labelled; --sizes box sorts by the boxes"
    squares = areas(data) if sizes == "area" else np.array([s.box[2] * s.box[3] for s in data.samples], np.float64)
    if np.isnan(squares).all():
        return "no person's area is known; --sizes box sorts by the boxes"
    edges = SIZES[sizes]
    index = np.where(np.isnan(squares), -1, np.digitize(np.sqrt(squares), edges))
    return Bins(("M", "L", "XL", "XXL"), _between(edges), index)


def by_height(data: PoseData) -> Bins:
    names = _between(HEIGHTS)
    return Bins(names, names, np.digitize(box_heights(data), HEIGHTS))


def box_heights(data: PoseData) -> np.ndarray:
    """(N,) float64, picture pixels."""
    return np.array([s.box[3] for s in data.samples], np.float64)


def _between(edges: Sequence[int]) -> tuple[str, ...]:
    inner = (f"{a}-{b}" for a, b in zip(edges, edges[1:], strict=False))
    return f"<{edges[0]}", *inner, f">={edges[-1]}"


def by_rendered_height(
    data: PoseData,
    renders: Mapping[int, np.ndarray],
    keypoints: np.ndarray,
    crop_scale: np.ndarray | None = None,
    *,
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """The figures of the same persons at other heights, from predictions on crops that the `camera` policy brought down to them.

    That policy enlarges nobody: who is smaller than a height keeps the pixels there are. So a height counts only the persons
    whose box is at least as high ('enough'), and, since those differ from row to row, also the persons at least as high as the
    largest height, who are the same in every row ('same').

    Args:
        renders: height in pixels, rising -> (N, K, 2) predictions, picture pixels; empty where nobody is as high.
        keypoints: (N, K, 2), predictions on the crops as they are. The others as of `breakdown`.

    Returns a dict that JSON can hold: rows: a list of {height, smaller (persons left out), enough, same (cells)};
    plain: {enough: cell of all persons, same} as they are. tallest: the height that 'same' asks for.
    """
    high, labelled, tallest = box_heights(data), has_labels(data), max(renders)
    same = labelled & (high >= tallest)

    def pair(points: np.ndarray, enough: np.ndarray) -> dict[str, Any]:
        sums = person_sums(data, points, crop_scale)
        return {name: figures(sums, chosen, bootstrap, seed) for name, chosen in (("enough", enough), ("same", same))}

    rows = []
    for height, points in renders.items():
        enough = labelled & (high >= height)
        # nobody is counted where nothing was rendered
        cells = pair(points if len(points) else keypoints, enough)
        rows.append({"height": height, "smaller": int((labelled & ~enough).sum()), **cells})
    return {"tallest": tallest, "rows": rows, "plain": pair(keypoints, labelled)}
