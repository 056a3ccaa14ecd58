"""Pictures, folders and videos through a predictor: COCO results and drawn overlays. Needs no torch.

Frames are read, and drawn and written, in threads beside the network, a few at a time.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Generator, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from lowpose.boxes import Boxes, load_boxes
from lowpose.detectors import LEAST, TORCHVISION, Detected, Detector, load_detector
from lowpose.draw import draw_poses
from lowpose.errors import LowposeError
from lowpose.files import all_whole, whole, write_json
from lowpose.images import write_image
from lowpose.pipeline import Behind, ahead
from lowpose.runtime import PICTURES_AT_ONCE, PosePredictor, check_boxes, outside
from lowpose.samples import PoseResult
from lowpose.sources import Frame, VideoWriter, count_files, count_frames, frames, names

log = logging.getLogger("lowpose")
BYTES_AT_ONCE = 64e6  # of pixels in one batch of frames; about five batches are in memory


@dataclass
class PredictReport:
    """What a prediction run did: COCO result rows, and lines about what could not be read."""

    results: list[dict[str, Any]] = field(default_factory=list)
    frames: int = 0
    persons: int = 0
    outside: int = 0  # boxes of tracks that have left the picture
    problems: list[str] = field(default_factory=list)
    drawn: list[Path] = field(default_factory=list)


def predict_sources(
    predictor: PosePredictor,
    sources: list[str],
    boxes: str | Detector = "whole",
    *,
    results: str | Path | None = None,
    draw: str | Path | None = None,
    threshold: float = 0.05,
    min_score: float | None = None,
    detector_weights: str | Path | None = None,
) -> PredictReport:
    """Predict every person of every picture or frame, batched over people of several frames.

    Args:
        sources: pictures, folders, videos. boxes: 'whole' (one person fills each picture), a file of boxes (`load_boxes`),
            'detector' or 'detector:NAME_OR_FOLDER' (`load_detector`), or any function of that form.
        results: COCO result JSON to write. draw: folder for overlays (pictures as .png or .jpg, videos as .mp4).
        threshold: joints with a lower score are not drawn. min_score: boxes with a lower score are left out; default all
            of a file, 0.5 for the detectors known by name. detector_weights: file of a detector's weights.

    Raises: LowposeError for missing sources, box files without any box for them, or nothing that could be read.
    """
    report, table = PredictReport(), _table(boxes, min_score, detector_weights)
    pictures = names(sources)
    if pictures is not None:  # before anything is drawn
        _check_boxes_used(table, sum(frame in table for frame in pictures), len(pictures))
    elif isinstance(table, Boxes) and table.by_frame and (files := count_files(sources)) > 1:
        raise LowposeError(f"{boxes}: numbers the frames of one video (MOT), and {files} files are to be predicted")
    stream = _chunks(frames(sources, report.problems.append))
    console = Console(stderr=True)
    known = 0
    with (
        whole(results) if results else nullcontext() as file,  # opened first: it may not be writable
        Overlays(Path(draw) if draw else None, threshold) as overlays,
        Progress(console=console, disable=not sys.stderr.isatty(), transient=True) as bar,
        ahead(stream) as chunks,
        Behind(overlays.add_all) as later,
    ):
        task = bar.add_task("predict", total=count_frames(sources))
        for chunk in chunks:
            known += sum(frame in table for frame in chunk)
            found = _predict(predictor, table, chunk, report)
            for frame, result in found:
                report.results += result.to_coco(frame.image_id)
                report.persons += len(result)
            later(found)
            report.frames += len(chunk)
            bar.advance(task, len(chunk))
        if not report.frames:
            raise LowposeError(f"none of the {len(report.problems)} files can be read; the first: {report.problems[0]}")
        _check_boxes_used(table, known, report.frames)
        if file:
            write_json(file, report.results)
    report.drawn = overlays.paths
    for line in (*report.problems, *_left_out(table, report)):
        log.warning("%s", line)
    return report


def _left_out(table: Boxes | Detected, report: PredictReport) -> Iterator[str]:
    if report.outside:
        yield f"{table.source}: {report.outside} boxes of tracks that have left the picture are left out"
    left = table.left() if isinstance(table, Boxes) else []
    if left:
        yield f"{table.source}: has boxes for {len(left)} more pictures or frames that are not there, as '{left[0]}'"


def _table(boxes: str | Detector, min_score: float | None, weights: str | Path | None) -> Boxes | Detected:
    """What gives each frame its boxes. Raises: LowposeError as `load_boxes` and `load_detector`; weights for no detector."""
    if min_score is not None and not math.isfinite(min_score):
        raise LowposeError(f"min_score: boxes need a finite number, not {min_score}")
    if callable(boxes):
        return Detected("detector", boxes, min_score)
    if boxes == "detector" or boxes.startswith("detector:"):
        name = boxes.partition(":")[2]
        detector = load_detector(name or TORCHVISION[0], weights)
        return Detected(boxes, detector, LEAST if min_score is None else min_score)
    if weights is not None:
        raise LowposeError(f"{weights}: weights of a detector go with --boxes detector, not with --boxes {boxes}")
    return load_boxes(boxes, min_score)


def _predict(
    predictor: PosePredictor, table: Boxes | Detected, chunk: list[Frame], report: PredictReport
) -> list[tuple[Frame, PoseResult]]:
    """The frames with their persons, in the order of the frames. Raises: LowposeError naming boxes that do not fit a frame."""
    items, ids = [], []
    for frame in chunk:
        boxes, scores, tracks = table.people(frame)
        if tracks is not None:  # trackers follow a person out of the picture for a while
            inside = ~outside(boxes, frame.image)
            boxes, scores, tracks = boxes[inside], scores[inside], tracks[inside]
            report.outside += int((~inside).sum())
        try:
            items.append((frame.image, *check_boxes(boxes, scores, frame.image)))
        except LowposeError as e:
            raise LowposeError(f"{table.source}: {frame.name}: {e}") from None
        ids.append(tracks)
    found = predictor.predict_many(items)
    for result, tracks in zip(found, ids, strict=True):
        result.ids = tracks
    return list(zip(chunk, found, strict=True))


def _chunks(stream: Iterator[Frame]) -> Generator[list[Frame], None, None]:
    """Frames that are predicted together: a few, and only so many that they fit into a bounded memory."""
    chunk, size = [], 0
    for frame in stream:
        chunk.append(frame)
        size += frame.image.nbytes
        if len(chunk) == PICTURES_AT_ONCE or size >= BYTES_AT_ONCE:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _check_boxes_used(table: Boxes, known: int, frames: int) -> None:
    if not known:
        raise LowposeError(
            f"{table.source}: names none of the {frames} pictures or frames; boxes go by file name, image id or frame"
        )


class Overlays:
    """Writes each frame with its skeletons: a picture per picture, a video per video; all or none. Used as a context."""

    def __init__(self, folder: Path | None, threshold: float):
        self.folder, self.threshold, self.paths = folder, threshold, []
        self._taken: set[Path] = set()
        self._all, self._open = ExitStack(), ExitStack()  # all files; the video that is being written
        self._video: tuple[str, VideoWriter] | None = None

    def __enter__(self) -> Overlays:
        if self.folder is not None:
            self._aside = self._all.enter_context(all_whole(self.folder))
            self._all.push(self._open)
        return self

    def __exit__(self, *error: Any) -> None:
        self._all.__exit__(*error)

    def add_all(self, found: list[tuple[Frame, PoseResult]]) -> None:
        for frame, result in found:
            self.add(frame, result)

    def add(self, frame: Frame, result: PoseResult) -> None:
        if self.folder is None:
            return
        image = draw_poses(frame.image, result, threshold=self.threshold)
        if frame.fps is not None:
            self._writer(frame).write(image)
            return
        name = Path(frame.name)
        suffix = name.suffix if name.suffix.lower() in (".png", ".jpg", ".jpeg") else ".png"
        write_image(self._place(frame, name.with_suffix(suffix)), image)

    def _place(self, frame: Frame, name: Path) -> Path:
        """Where to write what will have a path inside the folder that no other frame has.

        Raises: LowposeError if that is the source itself, or a folder.
        """
        inside = Path(*(part for part in name.parts if part not in (name.anchor, "..")))
        path, number = self.folder / inside, 2
        while path in self._taken:
            path, number = (self.folder / inside).with_stem(f"{inside.stem}-{number}"), number + 1
        if path.exists() and path.samefile(frame.source):
            raise LowposeError(f"{path}: the drawing would overwrite the picture; give another --out")
        if path.is_dir():
            raise LowposeError(f"{path}: is a folder, and a drawing would have this name; give another --out")
        self._taken.add(path)
        self.paths.append(path)
        return self._aside / path.relative_to(self.folder)

    def _writer(self, frame: Frame) -> VideoWriter:
        if self._video is None or self._video[0] != frame.source:
            self._open.close()  # ends the video before
            path = self._place(frame, Path(f"{Path(frame.source).stem}-poses.mp4"))
            self._video = (frame.source, self._open.enter_context(VideoWriter(path, frame.fps)))
        return self._video[1]
