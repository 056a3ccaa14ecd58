"""What the readers of COCO-format files share: JSON, categories, persons, detector results.

COCO counts keypoints in pixel indices: they get +0.5 here. Its boxes are outlines and stay; they are clipped to
the picture. Published code takes the last pixel minus the first as the side of a box, one pixel less, about the
same centre.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lowpose.data._problems import BadAnnotation, note, refuse_options, tolerate
from lowpose.data.lsp import read_picture
from lowpose.errors import LowposeError, did_you_mean
from lowpose.files import os_problem
from lowpose.samples import PersonSample, PoseData
from lowpose.skeletons import BUILT_IN, Skeleton


@dataclass(frozen=True)
class Picture:
    id: int | str
    name: str
    size: tuple[int, int] | None  # width, height
    row: dict[str, Any]


@dataclass
class CocoFile:
    """A parsed file: its pictures by id, its annotations, the category that is read and its skeleton."""

    path: Path
    pictures: dict[int | str, Picture]
    annotations: list[dict[str, Any]]
    category: int
    skeleton: Skeleton
    folder: str = ""  # of the pictures, under the root
    seen: set = field(default_factory=set)


def read_json(path: Path) -> Any:
    """Raises: LowposeError naming a file that is missing, unreadable, empty, cut short or not JSON."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as e:
        raise os_problem(path, e) from None
    except UnicodeDecodeError:
        raise LowposeError(f"{path}: not JSON (not UTF-8 text)") from None
    try:
        return json.loads(text)
    except json.JSONDecodeError as e:
        cut = "; it seems cut short" if e.pos >= len(text.rstrip()) - 1 or "Unterminated" in e.msg else ""
        raise LowposeError(f"{path}: not JSON (line {e.lineno} column {e.colno}: {e.msg}{cut})") from None
    except RecursionError:
        raise LowposeError(f"{path}: not JSON (nested too deeply)") from None


def numbers(value: Any, count: int | None, what: str, where: str, **place) -> np.ndarray:
    """(count,) float64. Raises: BadAnnotation for another count, or for what is not a finite number."""
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError, OverflowError):
        raise BadAnnotation("bad-value", f"{where}: '{what}' must be numbers", **place) from None
    if array.ndim != 1 or (count is not None and len(array) != count):
        wanted = "a flat list of" if count is None else count
        raise BadAnnotation("bad-value", f"{where}: '{what}' must be {wanted} numbers", **place)
    if not np.isfinite(array).all():
        raise BadAnnotation("bad-value", f"{where}: '{what}' holds NaN or infinity; all must be finite numbers", **place)
    return array


def annotation_file(root: Path, split: str, candidates: Iterable[str]) -> Path:
    """The file of a split: the path itself where `split` ends in .json, else the first candidate that exists."""
    if str(split).endswith(".json"):
        path = root / split
        if not path.is_file():
            raise LowposeError(f"{path}: no such annotation file")
        return path
    paths = [root / name for name in candidates]
    for path in paths:
        if path.is_file():
            return path
    there = sorted({p.name for folder in {p.parent for p in paths} for p in folder.glob("*.json")})
    known = f"; there are: {', '.join(there[:8])}" if there else ""
    raise LowposeError(f"{paths[0]}: no such annotation file for split '{split}'{known}")


def picture_folder(root: Path, names: list[str], folders: Iterable[str], where: Path) -> str:
    """The first of `folders` under the root that holds one of the first pictures."""
    folders = list(dict.fromkeys(folders))
    for folder in folders:
        if any((root / folder / name).is_file() for name in names[:8]):
            return folder
    with tolerate():
        tried = ", ".join(str(root / f) for f in folders)
        raise BadAnnotation("missing-picture", f"{where}: none of its first pictures ({names[0]}, ...) is in {tried}")
    return folders[0]


# (pattern, replacement) of the left and of the right side
_SIDES = [((word, word), (other, other)) for word, other in (("left", "right"), ("Left", "Right"), ("LEFT", "RIGHT"))] + [
    ((rf"(^|[_-]){a}($|[_-])", rf"\g<1>{a}\g<2>"), (rf"(^|[_-]){b}($|[_-])", rf"\g<1>{b}\g<2>"))
    for a, b in (("l", "r"), ("L", "R"))
]


def _sided_names(names: list[str], where: str) -> list[tuple[str, str]]:
    """(left, right) names. Sides are the words left and right, or l and r as a first or last part ('l_wrist', 'wrist_R')."""
    pairs = set()
    for name in names:
        for left, right in _SIDES:
            for mine, theirs, is_left in ((left, right, True), (right, left, False)):
                other = re.sub(mine[0], theirs[1], name)
                if other != name:
                    if other not in names:
                        raise LowposeError(f"{where}: keypoint '{name}' has no '{other}'; give skeleton=FILE.yaml with its pairs")
                    pairs.add((name, other) if is_left else (other, name))
    return sorted(pairs, key=lambda pair: names.index(pair[0]))


def from_category(category: dict[str, Any], where: str) -> Skeleton:
    """The built-in skeleton of the same keypoints, else one made from the category of a COCO-format file.

    Pairs are keypoints that differ by left and right in the name; `skeleton` holds 1-based edges.
    Raises: LowposeError for a keypoint on the left without its right one, or an edge to no keypoint.
    """
    names = category["keypoints"]
    for known in BUILT_IN.values():
        if tuple(names) == known.keypoints:
            return known
    pairs = [(names.index(a), names.index(b)) for a, b in _sided_names(names, where)]
    edges = []
    for edge in category.get("skeleton") or []:
        if not isinstance(edge, list) or len(edge) != 2 or not all(isinstance(e, int) and 1 <= e <= len(names) for e in edge):
            raise LowposeError(f"{where}: 'skeleton' holds {edge}; edges are two keypoint numbers from 1 to {len(names)}")
        edges.append((edge[0] - 1, edge[1] - 1))
    torso = ("left_shoulder", "right_hip")
    return Skeleton(
        name=str(category.get("name", "custom")),
        keypoints=tuple(names),
        pairs=tuple(pairs),
        edges=tuple(edges),
        torso=(names.index(torso[0]), names.index(torso[1])) if set(torso) <= set(names) else None,
    )


def _choose_category(rows: Any, skeleton: Skeleton | None, wanted: str | None, path: Path) -> tuple[int, Skeleton]:
    rows = [r for r in rows if isinstance(r, dict) and "id" in r] if isinstance(rows, list) else []
    posed = [r for r in rows if isinstance(r.get("keypoints"), list) and r["keypoints"]]
    if wanted is not None:
        found = [r for r in rows if r.get("name") == wanted]
        if not found:
            raise LowposeError(f"{path}: no category '{wanted}'{did_you_mean(str(wanted), [str(r.get('name')) for r in rows])}")
    elif skeleton is not None and not posed:
        found = rows
    else:
        found = posed
    if len(found) > 1:
        found = [r for r in found if r.get("name") == "person"] or found
    if not found:
        raise LowposeError(f"{path}: no category has 'keypoints'; this is not a COCO keypoint file (or give skeleton=)")
    if len(found) > 1:
        names = ", ".join(str(r.get("name")) for r in found[:8])
        raise LowposeError(f"{path}: {len(found)} categories have keypoints ({names}); choose with data.options.category=NAME")
    category = found[0]
    names = category.get("keypoints") or []
    where = f"{path}: category '{category.get('name')}'"
    if skeleton is None:
        return category["id"], from_category(category, where)
    if names and len(names) != len(skeleton):
        raise LowposeError(f"{where} has {len(names)} keypoints, skeleton '{skeleton.name}' has {len(skeleton)}")
    if names and tuple(names) != skeleton.keypoints and set(names) == set(skeleton.keypoints):
        raise LowposeError(f"{where} has the keypoints of skeleton '{skeleton.name}' in another order: {', '.join(names)}")
    return category["id"], skeleton


def _pictures(rows: Any, path: Path) -> dict[int | str, Picture]:
    if not isinstance(rows, list) or not rows:
        raise LowposeError(f"{path}: 'images' must be a list of at least one picture")
    pictures: dict[int | str, Picture] = {}
    for i, row in enumerate(rows):
        with tolerate():
            if not isinstance(row, dict) or not isinstance(row.get("file_name"), str) or "id" not in row:
                raise BadAnnotation("missing-key", f"{path}: picture {i} of 'images' needs 'id' and 'file_name'")
            key = row["id"]
            if not isinstance(key, (int, str)):
                raise BadAnnotation("bad-value", f"{path}: picture {i} of 'images' has id {key!r}; it must be a number or a text")
            if key in pictures:
                raise BadAnnotation(
                    "duplicate-id", f"{path}: two pictures have id {key}; ids must differ", image=row["file_name"]
                )
            size = None
            if "width" in row or "height" in row:
                w, h = numbers([row.get("width"), row.get("height")], 2, "width, height", f"{path}: picture {key}")
                size = (int(w), int(h))
            pictures[key] = Picture(key, row["file_name"], size, row)
    return pictures


def open_coco(path: Path, root: Path, folders: Iterable[str], skeleton: Skeleton | None, options: dict[str, Any]) -> CocoFile:
    """Parse a COCO-format file and find its pictures. Raises: LowposeError for a file of another form."""
    refuse_options("COCO format", options, ("category",))
    values = read_json(path)
    if not isinstance(values, dict) or not {"images", "annotations", "categories"} <= set(values):
        missing = [k for k in ("images", "annotations", "categories") if not isinstance(values, dict) or k not in values]
        raise LowposeError(f"{path}: not a COCO keypoint file (no '{missing[0]}')")
    if not isinstance(values["annotations"], list):
        raise LowposeError(f"{path}: 'annotations' must be a list")
    category, own = _choose_category(values["categories"], skeleton, options.get("category"), path)
    pictures = _pictures(values["images"], path)
    folder = picture_folder(root, [p.name for p in pictures.values()], folders, path) if pictures else ""
    return CocoFile(path, pictures, values["annotations"], category, own, folder)


def _key(file: CocoFile, picture: Picture) -> str:
    return picture.name if file.folder == "." else f"{file.folder}/{picture.name}"


def _person(file: CocoFile, row: Any, area_of: Callable[[dict, np.ndarray, str], float]) -> PersonSample | None:
    """One ground-truth person, or None for one that published code leaves out. Raises: BadAnnotation."""
    if not isinstance(row, dict) or "id" not in row or not isinstance(row["id"], int):
        raise BadAnnotation("missing-key", f"{file.path}: an annotation has no whole number 'id': {str(row)[:60]}")
    where, place = f"{file.path}: annotation {row['id']}", {"annotation": row["id"]}
    if row["id"] in file.seen:
        raise BadAnnotation("duplicate-id", f"{where}: two annotations have this id; ids must differ", **place)
    file.seen.add(row["id"])
    for key in ("image_id", "category_id", "bbox"):
        if key not in row:
            raise BadAnnotation("missing-key", f"{where} has no '{key}'", **place)
    if row["category_id"] != file.category or row.get("iscrowd", 0):
        return None
    picture = file.pictures.get(row["image_id"]) if isinstance(row["image_id"], (int, str)) else None
    if picture is None:
        raise BadAnnotation("missing-picture", f"{where} is in picture {row['image_id']!r}, which 'images' lacks", **place)
    place["image"] = _key(file, picture)
    if row.get("num_keypoints", 1) == 0:
        return note("no-joints", f"{where} has no labelled keypoint", **place)
    if "keypoints" not in row:
        raise BadAnnotation("missing-key", f"{where} has no 'keypoints'", **place)
    k = len(file.skeleton)
    points = numbers(row["keypoints"], None, "keypoints", where, **place)
    if len(points) != 3 * k:
        message = f"{where} has {len(points)} keypoint numbers, skeleton '{file.skeleton.name}' needs 3 x {k} = {3 * k}"
        raise BadAnnotation("length", message, **place)
    x, y, flag = points.reshape(k, 3).T
    known = (flag == 0) | (flag == 1) | (flag == 2)
    if not known.all():
        raise BadAnnotation("bad-value", f"{where}: visibility must be 0, 1 or 2, not {flag[~known][0]:g}", **place)
    if not (flag > 0).any():
        return note("no-joints", f"{where} has no labelled keypoint", **place)
    box = _clipped(numbers(row["bbox"], 4, "bbox", where, **place), picture)
    area = area_of(row, box, where)
    if np.abs(box - row["bbox"]).max() > 1:
        note("box-outside", f"{where}: box {row['bbox']} reaches out of {picture.size}; it is clipped", **place)
    if box[2] <= 0 or box[3] <= 0 or area <= 0:
        return note("no-area", f"{where} has a box of no area inside the picture ({row['bbox']}, area {area:g})", **place)
    xy = np.where((flag > 0)[:, None], np.column_stack([x, y]) + 0.5, 0).astype(np.float32)
    extra = {"size": picture.size} if picture.size else {}
    return PersonSample(
        place["image"],
        box,
        xy,
        flag.astype(np.uint8),
        row["id"],
        picture.id,
        area=area,
        crowd=picture.row.get("crowdIndex"),
        extra=extra,
    )


def _clipped(box: np.ndarray, picture: Picture) -> np.ndarray:
    """As published code clips: the corner moves into the picture first, then the far sides do."""
    x, y = np.maximum(box[:2], 0)
    w, h = box[2:]
    if picture.size:
        w, h = min(w, picture.size[0] - x), min(h, picture.size[1] - y)
    return np.array([x, y, w, h], np.float64)


def persons(file: CocoFile, area_of: Callable[[dict, np.ndarray, str], float]) -> list[PersonSample]:
    """The ground-truth persons with labelled keypoints, no crowds and a box of some area, in file order."""
    samples = []
    for row in file.annotations:
        with tolerate():
            sample = _person(file, row, area_of)
            if sample is not None:
                samples.append(sample)
    return samples


def detections(file: CocoFile, boxes: str, root: Path) -> tuple[list[PersonSample], Path]:
    """Samples without labels from a detector's result list, and its path (as given, or under the data's root).

    Boxes of another category, of no area or with a negative score are left out, and those in other pictures.
    Raises: LowposeError for a file of another form, or one with no box in these pictures.
    """
    path = Path(boxes) if Path(boxes).is_file() else root / boxes
    rows = read_json(path)
    if not isinstance(rows, list):
        raise LowposeError(f"{path}: not a detector's result list (expected [{{image_id, category_id, bbox, score}}, ...])")
    samples, k = [], len(file.skeleton)
    for i, row in enumerate(rows):
        with tolerate():
            where = f"{path}: entry {i}"
            missing = [key for key in ("image_id", "category_id", "bbox", "score") if not isinstance(row, dict) or key not in row]
            if missing:
                raise BadAnnotation(
                    "missing-key", f"{where} has no '{missing[0]}'; a detection has image_id, category_id, bbox, score"
                )
            box = numbers(row["bbox"], 4, "bbox", where)
            score = float(numbers([row["score"]], 1, "score", where)[0])
            picture = file.pictures.get(row["image_id"]) if isinstance(row["image_id"], (int, str)) else None
            if picture is None or row["category_id"] != file.category or score < 0:
                continue
            if min(box[2:]) <= 0:
                note("no-area", f"{where} has a box of no area: {row['bbox']}")
                continue
            extra = {"size": picture.size} if picture.size else {}
            crowd = picture.row.get("crowdIndex")
            empty = np.zeros((k, 2), np.float32), np.zeros(k, np.uint8)
            key = len(samples) + 1
            area = float(box[2] * box[3])
            samples.append(PersonSample(_key(file, picture), box, *empty, key, picture.id, score, area, crowd=crowd, extra=extra))
    if not samples:
        raise LowposeError(f"{path}: none of its {len(rows)} boxes is a person in a picture of {file.path}")
    return samples, path


def coco_data(
    kind: str, split: str, root: Path, boxes: str, file: CocoFile, area_of, protocol: str, areas: str = "labelled"
) -> PoseData:
    """PoseData of a parsed file: its persons, or a detector's boxes in its pictures."""
    if boxes == "gt":
        samples, sources, source = persons(file, area_of), (file.path,), "gt"
    else:
        samples, path = detections(file, boxes, root)
        sources, source = (file.path, path), path.name
    read = partial(read_picture, root)
    areas = areas if boxes == "gt" else "boxes"
    return PoseData(kind, split, str(root), file.skeleton, samples, read, sources, source, protocol, file.path, areas)
