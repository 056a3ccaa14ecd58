"""What is in a data set, and what is wrong with it: `lowpose data check KIND:ROOT`.

Annotations that `load_data` refuses are written down here instead, with those that readers leave out, so that one run
names everything. Left/right labels: see `_sides.py` for the criteria and how often they are right.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from lowpose.data import read_split
from lowpose.data._problems import Problem, collecting, number_of, print_problems
from lowpose.data._sides import agreement, crossed
from lowpose.errors import LowposeError
from lowpose.samples import PersonSample, PoseData, check_sample

EDGES = (0, 16, 32, 64, 96, 128, 192, 256, 384, 512)  # pixels; the last bin is open
QUANTILES = (0, 5, 25, 50, 75, 95, 100)  # percent
KINDS = {
    "missing-picture": "picture files that are missing",
    "broken-picture": "picture files that cannot be read",
    "picture-size": "pictures of another size than the annotations say",
    "missing-key": "annotations that lack a key",
    "bad-value": "annotations with NaN, infinity or a value that cannot be",
    "length": "annotations with another number of joints than the skeleton",
    "duplicate-id": "ids that stand twice",
    "no-area": "boxes of no area",
    "box-outside": "boxes that lie outside the picture, or reach out of it",
    "joint-outside": "persons with joints outside the picture",
    "duplicate-person": "persons annotated twice",
    "swapped": "persons whose left and right look exchanged",
    "swapped-set": "left/right pairs that look exchanged in the whole data set",
    "no-joints": "persons without labelled joints (left out)",
}
NOTES = {"no-joints"}  # told, but nothing is wrong
OUTSIDE = 1.0  # pixels that joints and boxes may stick out
SAME_BOX, SAME_JOINTS = 0.95, 1.0  # IoU; mean distance in pixels


@dataclass
class CheckReport:
    """What `check_data` found.

    Attributes:
        pictures: with persons. `decoded`: whether they were read, or only looked for.
        joints: keypoint name -> (labelled, labelled and visible) persons.
        heights: (N,) box heights, pixels.
        agreement, facing: of left and right, see `Sides`.
        problems: everything that is wrong, and the notes, in the order of KINDS.
    """

    kind: str
    root: str
    split: str
    boxes: str
    skeleton: str
    pictures: int
    persons: int
    decoded: bool
    joints: dict[str, tuple[int, int]]
    heights: np.ndarray
    agreement: dict[str, tuple[float, int]] = field(default_factory=dict)
    facing: tuple[float, int] | None = None
    problems: list[Problem] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        """Kind of problem -> how many, only those that occur, in the order of KINDS."""
        return number_of(self.problems, KINDS)

    @property
    def ok(self) -> bool:
        return not set(self.counts) - NOTES

    def histogram(self) -> list[tuple[str, int]]:
        """Bins of person heights as ('32-64', persons), pixels, lower end included; the last is '512+'."""
        counts = np.histogram(self.heights, [*EDGES, np.inf])[0] if len(self.heights) else np.zeros(len(EDGES), int)
        names = [f"{a}-{b}" for a, b in zip(EDGES, EDGES[1:], strict=False)] + [f"{EDGES[-1]}+"]
        return list(zip(names, (int(c) for c in counts), strict=True))

    def quantiles(self) -> dict[int, float]:
        """Percent -> person height in pixels."""
        return {q: float(np.percentile(self.heights, q)) for q in QUANTILES} if len(self.heights) else {}

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON; every problem is in it."""
        return {
            "kind": self.kind,
            "root": self.root,
            "split": self.split,
            "boxes": self.boxes,
            "skeleton": self.skeleton,
            "pictures": self.pictures,
            "decoded": self.decoded,
            "persons": self.persons,
            "joints": {name: {"labelled": a, "visible": b} for name, (a, b) in self.joints.items()},
            "heights": {"histogram": dict(self.histogram()), "quantiles": {str(q): v for q, v in self.quantiles().items()}},
            "agreement": {pair: {"cosine": c, "persons": n} for pair, (c, n) in self.agreement.items()},
            "facing": None if self.facing is None else {"share": self.facing[0], "persons": self.facing[1]},
            "ok": self.ok,
            "counts": self.counts,
            "problems": [problem.to_dict() for problem in self.problems],
        }


def check_data(
    data: PoseData | str,
    root: str | Path | None = None,
    split: str = "train",
    *,
    boxes: str = "gt",
    skeleton: str | None = None,
    options: dict[str, Any] | None = None,
    decode: bool = True,
    console: Console | None = None,
) -> CheckReport:
    """Read a split, its pictures too, and write down what is in it and what is wrong with it.

    Args:
        data: kind of the data; or PoseData, and then the next five are not looked at.
        root, split, boxes, skeleton, options: as `load_data` takes them.
        decode: read every picture; False: only look whether the files are there.
        console: shows a progress bar while pictures are read; None shows nothing.

    Raises: LowposeError where nothing can be read at all: unknown kind, no folder, annotation file missing or not JSON.
    """
    problems: list[Problem] = []
    if isinstance(data, str):
        with collecting() as problems:
            data = read_split(data, root, split, boxes=boxes, skeleton=skeleton, options=options)
    samples = []
    for sample in data.samples:
        try:
            samples.append(check_sample(sample, data.skeleton, str(data.annotations or f"{data.kind}:{data.root}")))
        except LowposeError as e:
            problems.append(Problem("bad-value", str(e), sample.id, sample.image))
    keys = list(dict.fromkeys(sample.image for sample in samples))
    sizes = _look_at_pictures(data, samples, keys, decode, console, problems)
    labels = np.stack([s.visibility for s in samples]) if samples else np.zeros((0, len(data.skeleton)), np.uint8)
    report = CheckReport(
        data.kind,
        data.root,
        data.split,
        data.boxes,
        data.skeleton.name,
        len(keys),
        len(samples),
        decode,
        {name: (int((v > 0).sum()), int((v == 2).sum())) for name, v in zip(data.skeleton.keypoints, labels.T, strict=True)},
        np.array([s.box[3] for s in samples]),
        problems=problems,
    )
    for sample in samples:
        problems += _outside(sample, sizes.get(sample.image), data)
    if (labels > 0).any():
        _look_at_labels(report, data, samples)
    order = list(KINDS)
    problems.sort(key=lambda p: order.index(p.kind))
    return report


def _look_at_labels(report: CheckReport, data: PoseData, samples: list[PersonSample]) -> None:
    points = np.stack([s.keypoints for s in samples])
    labelled = np.stack([s.labelled for s in samples])
    for i, reason in crossed(points, labelled, data.skeleton):
        report.problems.append(Problem("swapped", f"{_name(samples[i])}: {reason}", samples[i].id, samples[i].image))
    sides = agreement(points, labelled, data.skeleton)
    report.agreement, report.facing = sides.agreement, sides.facing
    report.problems += [Problem("swapped-set", line) for line in sides.exchanged]
    report.problems += _duplicates(samples)


def _name(sample: PersonSample) -> str:
    return f"{sample.image}: annotation {sample.id}"


def _look_at_pictures(
    data: PoseData, samples: list[PersonSample], keys: list[str], decode: bool, console: Console | None, problems: list[Problem]
) -> dict[str, tuple[int, int]]:
    """Sizes (width, height) of the pictures that are known; adds missing, broken and mis-sized ones to `problems`."""
    declared = {s.image: s.extra["size"] for s in samples if s.extra.get("size")}
    on_disk = bool(data.sources)  # generated pictures have no files
    sizes = dict(declared)

    def look(key: str) -> tuple[int, int] | Problem | None:
        path = Path(data.root) / key
        if on_disk and not path.is_file():
            return Problem("missing-picture", f"{path}: no such picture file", image=key)
        if not decode:
            return None
        try:
            height, width = data.read(key).shape[:2]
        except LowposeError as e:
            return Problem("broken-picture", str(e), image=key)
        return width, height

    pool = ThreadPoolExecutor(os.cpu_count() or 1)
    try:
        results: Iterable = pool.map(look, keys)
        if console is not None:
            results = track(
                results, "reading pictures" if decode else "looking for pictures", len(keys), console=console, transient=True
            )
        for key, result in zip(keys, results, strict=True):
            if isinstance(result, Problem):
                problems.append(result)
            elif result is not None:
                sizes[key] = result
                if declared.get(key, result) != result:
                    message = "{}: is {} x {} pixels, the annotations say {} x {}".format(key, *result, *declared[key])
                    problems.append(Problem("picture-size", message, image=key))
    finally:
        pool.shutdown(cancel_futures=True)
    return sizes


def _outside(sample: PersonSample, size: tuple[int, int] | None, data: PoseData) -> list[Problem]:
    found = []
    place = {"annotation": sample.id, "image": sample.image}
    x, y, w, h = (float(v) for v in sample.box)
    if w <= 0 or h <= 0:
        found.append(Problem("no-area", f"{_name(sample)}: box {x:g}, {y:g}, {w:g} x {h:g} has no area", **place))
    if size is None:
        return found
    if x + w <= 0 or y + h <= 0 or x >= size[0] or y >= size[1]:
        found.append(
            Problem(
                "box-outside", f"{_name(sample)}: box {x:g}, {y:g}, {w:g} x {h:g} lies outside of {size[0]} x {size[1]}", **place
            )
        )
    points = sample.keypoints
    far = sample.labelled & ((points < -OUTSIDE) | (points > np.array(size) + OUTSIDE)).any(1)
    if far.any():
        names = ", ".join(f"{data.skeleton.keypoints[k]} at {points[k, 0]:g}, {points[k, 1]:g}" for k in np.flatnonzero(far)[:3])
        more = f" and {far.sum() - 3} more" if far.sum() > 3 else ""
        found.append(Problem("joint-outside", f"{_name(sample)}: {names}{more}, outside of {size[0]} x {size[1]}", **place))
    return found


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[:2] + a[2:], b[:2] + b[2:])
    both = float(np.prod(np.maximum(high - low, 0)))
    return both / max(float(a[2] * a[3] + b[2] * b[3]) - both, 1e-9)


def _duplicates(samples: list[PersonSample]) -> list[Problem]:
    """Persons of one picture with nearly the same box, or whose joints (at least 3 labelled in both) coincide."""
    by_picture: dict[str, list[PersonSample]] = {}
    for sample in samples:
        by_picture.setdefault(sample.image, []).append(sample)
    found = []
    for group in by_picture.values():
        for j, b in enumerate(group):
            for a in group[:j]:
                both = a.labelled & b.labelled
                same = both.sum() >= 3 and np.linalg.norm(a.keypoints[both] - b.keypoints[both], axis=1).mean() < SAME_JOINTS
                overlap = _iou(a.box, b.box)
                if same or overlap > SAME_BOX:
                    why = "the same joints" if same else f"nearly the same box (IoU {overlap:.2f})"
                    found.append(Problem("duplicate-person", f"{_name(b)} has {why} as annotation {a.id}", b.id, b.image))
                    break
    return found


def print_report(report: CheckReport, console: Console, examples: int = 5) -> None:
    """The report as text, with the first `examples` problems of each kind."""
    console.print(
        f"[bold]{escape(f'{report.kind}:{report.root}')}[/], split {escape(report.split)}: {report.persons} persons in "
        f"{report.pictures} pictures, boxes {escape(report.boxes)}, skeleton {escape(report.skeleton)}",
        soft_wrap=True,
    )
    _print_joints(report, console)
    _print_heights(report, console)
    if report.facing:
        console.print(f"facing the camera by their labels: {report.facing[0]:.0%} of {report.facing[1]}")
    if not report.decoded:
        console.print("pictures were looked for, not read")
    print_problems(report.problems, KINDS, NOTES, console, examples)


def _print_joints(report: CheckReport, console: Console) -> None:
    table = Table("joint", box=None, pad_edge=False)
    for column in ("labelled", "visible", "of persons"):
        table.add_column(column, justify="right")
    for name, (labelled, visible) in report.joints.items():
        table.add_row(escape(name), str(labelled), str(visible), f"{labelled / max(report.persons, 1):.0%}")
    console.print(table)


def _print_heights(report: CheckReport, console: Console, width: int = 40) -> None:
    rows = report.histogram()
    most = max(count for _, count in rows) or 1
    table = Table("height, pixels", box=None, pad_edge=False)
    table.add_column("persons", justify="right")
    table.add_column("")
    for name, count in rows:
        table.add_row(name, str(count), "█" * round(width * count / most) or ("▏" if count else ""))
    console.print(table)
    if len(report.heights):
        console.print("quantiles: " + ", ".join(f"{q}% {v:.0f}" for q, v in report.quantiles().items()) + " pixels")
