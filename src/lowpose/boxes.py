"""Person boxes for prediction, from `--boxes whole|FILE`: COCO JSON, a mapping of names, CSV or MOT."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from lowpose.errors import LowposeError
from lowpose.files import os_problem
from lowpose.sources import Frame

NO_ID = -1  # of a box that belongs to no track


@dataclass
class Boxes:
    """Person boxes by frame; call it with a frame: `boxes, scores = table(frame)`, or `boxes, scores, ids = table.people(frame)`.

    A name fits a frame if it is the frame's name or the end of its path, with or without suffix ('val/7.jpg', '7').
    Numbers fit `image_id`; in a video file alone that is the 0-based index. Frames of MOT files count from 1.
    """

    source: str
    by_name: dict[str, list] = field(default_factory=dict)
    by_id: dict[int, list] = field(default_factory=dict)
    by_frame: dict[int, list] = field(default_factory=dict)
    everything: bool = False
    tracked: bool = False
    met: set[int | str] = field(default_factory=set)  # what the frames asked for are called here

    def __call__(self, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        """(P, 4) float64 boxes, picture pixels, (x, y, width, height), and (P,) float64 scores; P = 0 if there are none."""
        return self.people(frame)[:2]

    def people(self, frame: Frame) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Boxes and scores as above, and (P,) int64 track ids, -1 for a box without; None if the whole file has none.

        With ids, the boxes are in their order, those without at the end.
        """
        whole = [[0.0, 0.0, frame.image.shape[1], frame.image.shape[0], 1.0, NO_ID]]
        key, rows = (None, whole) if self.everything else self._find(frame)
        self.met.add(key)
        table = np.array(rows or [], np.float64).reshape(-1, 6)
        if not self.tracked:
            return table[:, :4], table[:, 4], None
        ids = table[:, 5].astype(np.int64)
        order = np.lexsort([ids, ids == NO_ID])
        return table[order, :4], table[order, 4], ids[order]

    def __contains__(self, frame: Frame) -> bool:
        """Whether the file says anything about this frame. A file that knows none of the frames is the wrong file."""
        return self.everything or self._find(frame)[1] is not None

    def left(self) -> list[int | str]:
        """Pictures or frames that have boxes here and were not asked for, as the file calls them."""
        have = {_plain(key): key for keyed in (self.by_id, self.by_frame, self.by_name) for key, rows in keyed.items() if rows}
        met = set(map(_plain, self.met))
        return [name for key, name in have.items() if key not in met]

    def _find(self, frame: Frame) -> tuple[int | str | None, list | None]:
        """What the file calls a frame, and its rows; None, None where it does not know the frame."""
        for name in _names_of(frame):
            if name in self.by_name:
                return name, self.by_name[name]
        number = frame.image_id
        if isinstance(number, int) and number in self.by_id:
            return number, self.by_id[number]
        number = number if frame.fps is None else frame.index + 1
        return (number, self.by_frame[number]) if number in self.by_frame else (None, None)


def _plain(key: int | str) -> int | str:
    """A name that is a number, as the number: lines of `name,x,y,w,h` are kept under both."""
    return int(key) if isinstance(key, str) and _is_short_number(key) else key


def _is_short_number(name: str) -> bool:
    return name.isdecimal() and len(name) <= 18


def _names_of(frame: Frame) -> Iterator[str]:
    """The names that fit a frame, longest first: its own, then ends of its path with and without suffix."""
    yield frame.name
    path = PurePath(os.path.abspath(frame.source))
    for tail in [path.as_posix(), *("/".join(path.parts[i:]) for i in range(1, len(path.parts)))]:
        for name in (tail, tail.removesuffix(path.suffix)):
            yield name if frame.fps is None else f"{name}:{frame.index}"


def load_boxes(spec: str, min_score: float | None = None) -> Boxes:
    """The boxes of `--boxes whole|FILE`.

    'whole' takes each picture as one box. A FILE ending in .json is a COCO result list
    ([{image_id or file_name, bbox, score, category_id}]; rows of categories other than 1, person, are left
    out), a COCO annotation file (its category 'person', or its only one; crowd regions are left out) or a mapping
    {"name.jpg": [[x, y, w, h], or with score [x, y, w, h, s], ...]}. A FILE ending in .csv or .txt has lines
    `name,x,y,w,h[,score]`, or of MOT, `frame,id,x,y,w,h,score,...`, whose frames count from 1 and whose id is -1 without a
    track; with 9 fields it is MOT's ground truth, `frame,id,x,y,w,h,flag,class,visibility`, of which class 1, pedestrian,
    counts where the flag is not 0. Rows of COCO's two forms may have a "track_id". Boxes are in picture pixels, as they stand.

    Args:
        min_score: leaves out boxes with a lower score.

    Raises: LowposeError naming the file and the line or row: not of these forms, a box without area, NaN, an id twice in a frame.
    """
    if spec == "whole":
        return Boxes(spec, everything=True)
    path, table = Path(spec), Boxes(spec)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as e:
        raise os_problem(path, e) from None
    except UnicodeDecodeError:
        raise LowposeError(f"{path}: not a text file; boxes are JSON or CSV") from None
    if path.suffix.lower() == ".json":
        _read_json(path, text, table)
    elif path.suffix.lower() in (".csv", ".txt"):
        try:
            _read_csv(path, text, table)
        except csv.Error as e:
            raise LowposeError(f"{path}: not a list of boxes ({e})") from None
    else:
        raise LowposeError(f"{path}: boxes come from a .json, .csv or .txt file, or 'whole'")
    for keyed in (table.by_name, table.by_id, table.by_frame):
        for key, rows in keyed.items():
            if min_score is not None:
                rows = keyed[key] = [row for row in rows if row[4] >= min_score]
            ids = sorted(row[5] for row in rows if row[5] != NO_ID)
            table.tracked |= bool(ids)
            for one, other in zip(ids, ids[1:], strict=False):
                if one == other:
                    raise LowposeError(f"{path}: '{key}' has two boxes of track {one:.0f}")
    return table


def _box(values: Any, score: Any, where: str, track: Any = NO_ID) -> list[float]:
    """[x, y, w, h, score, id] as finite floats; the box has an area. Raises: LowposeError naming `where`."""
    try:
        if len(values) != 4 or isinstance(values, str):
            raise ValueError
        row = [float(v) for v in (*values, score)]
    except (TypeError, ValueError):
        raise LowposeError(f"{where}: expected four numbers x, y, width, height and a score, got {values!r}, {score!r}") from None
    if not all(map(math.isfinite, row)):
        raise LowposeError(f"{where}: box {row[:4]} with score {row[4]} is not made of finite numbers")
    if row[2] <= 0 or row[3] <= 0:
        raise LowposeError(f"{where}: box {row[:4]} has no area (x, y, width, height)")
    return [*row, _id(track, where)]


def _id(track: Any, where: str) -> float:
    """A track id as a float that holds it exactly. Raises: LowposeError naming `where`."""
    number = None if isinstance(track, bool) else _whole(track)
    if number is None or number < NO_ID:
        raise LowposeError(f"{where}: track ids are whole numbers from 0, or -1 without a track, got {track!r}")
    return float(number)


def _put(table: Boxes, key: Any, row: list[float] | None, where: str) -> None:
    """Add a row under a name or a number; None only makes the key known."""
    if isinstance(key, bool) or not isinstance(key, (int, str)):
        raise LowposeError(f"{where}: expected a file name or a number for the picture, got {key!r}")
    keyed: dict[Any, list] = table.by_id if isinstance(key, int) else table.by_name
    rows = keyed.setdefault(key.removeprefix("./") if isinstance(key, str) else key, [])
    if row is not None:
        rows.append(row)


def _read_json(path: Path, text: str, table: Boxes) -> None:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as e:
        raise LowposeError(f"{path}: line {e.lineno}: not JSON ({e.msg})") from None
    except RecursionError:
        raise LowposeError(f"{path}: not boxes (nested too deeply)") from None
    if isinstance(data, list):
        _coco_results(path, data, table)
    elif isinstance(data, dict) and "images" in data and "annotations" in data:
        _coco_annotations(path, data, table)
    elif isinstance(data, dict):
        for name, rows in data.items():
            _put(table, name, None, str(path))
            if not isinstance(rows, list):
                raise LowposeError(f"{path}: '{name}': expected a list of boxes [[x, y, w, h], ...]")
            for i, row in enumerate(rows):
                where = f"{path}: '{name}': box {i}"
                score = row[4] if isinstance(row, list) and len(row) == 5 else 1.0
                _put(table, name, _box(row[:4] if isinstance(row, list) and len(row) == 5 else row, score, where), where)
    else:
        raise LowposeError(f"{path}: expected COCO results, COCO annotations or a mapping of names to boxes")


def _coco_results(path: Path, data: list, table: Boxes) -> None:
    others = 0
    for i, row in enumerate(data):
        where = f"{path}: row {i}"
        if not isinstance(row, dict) or "bbox" not in row or not ("image_id" in row or "file_name" in row):
            raise LowposeError(f"{where}: expected image_id (or file_name), bbox and score")
        if row.get("category_id", 1) != 1:
            others += 1
            continue
        box = _box(row["bbox"], row.get("score", 1.0), where, row.get("track_id", NO_ID))
        _put(table, row.get("file_name", row.get("image_id")), box, where)
    if others and others == len(data):
        raise LowposeError(f"{path}: all {others} rows have a category_id other than 1 (person)")


def _coco_annotations(path: Path, data: dict[str, Any], table: Boxes) -> None:
    try:
        names = {image["id"]: image["file_name"] for image in data["images"]}
        people = {c["id"] for c in data.get("categories", []) if c.get("name") == "person"}
        people = people or {a.get("category_id", 1) for a in data["annotations"]}
        keyed = [(names.get(a["image_id"]), a) for a in data["annotations"]]
    except (TypeError, KeyError, AttributeError) as e:
        raise LowposeError(f"{path}: not COCO annotations (images with id, file_name; annotations with image_id): {e}") from None
    if len(people) > 1:
        raise LowposeError(f"{path}: has categories {sorted(map(str, people))} and none is called 'person'")
    for name in names.values():
        _put(table, name, None, str(path))
    for i, (name, row) in enumerate(keyed):
        where = f"{path}: annotation {row.get('id', i)}"
        if name is None:
            raise LowposeError(f"{where}: image_id {row['image_id']!r} is not among the images")
        if row.get("category_id", 1) in people and not row.get("iscrowd"):
            box = _box(row.get("bbox"), row.get("score", 1.0), where, row.get("track_id", NO_ID))
            _put(table, name, box, where)


def _read_csv(path: Path, text: str, table: Boxes) -> None:
    width = None
    reader = csv.reader(text.splitlines(), skipinitialspace=True)
    for row in reader:
        where = f"{path}: line {reader.line_num}"
        if not row or row[0].startswith("#"):
            continue
        if width is None and len(row) >= 5 and not any(map(_is_number, row[1:])):
            continue  # a header
        width = width or len(row)
        if len(row) != width or width < 5:
            raise LowposeError(f"{where}: {len(row)} fields; every line is name,x,y,w,h[,score] or frame,id,x,y,w,h,score (MOT)")
        if width <= 6:
            name, box = row[0].strip(), _box(row[1:5], row[5] if width == 6 else 1.0, where)
            if name.isdecimal() and box[4] > 1:
                raise LowposeError(
                    f"{where}: 6 numbers, the last {box[4]:g}, are no name,x,y,w,h,score; lines of MOT have 7 or more"
                )
            for key in [name, int(name)] if _is_short_number(name) else [name]:
                _put(table, key, box, where)
            continue
        frame = _whole(row[0])
        if frame is None or frame < 1:
            raise LowposeError(f"{where}: MOT frames are whole numbers from 1, got '{row[0]}'")
        rows = table.by_frame.setdefault(frame, [])
        if width != 9 or _is_person(row, where):
            rows.append(_box(row[2:6], row[6], where, row[1]))
    if width is None:
        raise LowposeError(f"{path}: no boxes in this file")
    if width == 9 and not any(table.by_frame.values()):
        raise LowposeError(f"{path}: no line of class 1 (pedestrian) whose flag is not 0")


def _is_person(row: list[str], where: str) -> bool:
    """Whether a line of MOT's ground truth, `frame,id,x,y,w,h,flag,class,visibility`, is a person to count."""
    try:
        return float(row[7]) == 1 and float(row[6]) != 0
    except ValueError:
        raise LowposeError(f"{where}: expected numbers for flag and class, got '{row[6]}', '{row[7]}'") from None


def _whole(value: Any) -> int | None:
    """A whole number that a float holds exactly, as trackers write them, 7, '7' or '7.0'; None for anything else."""
    number = float(value) if _is_number(value) else math.nan
    return int(number) if number.is_integer() and abs(number) < 2**53 else None


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True
