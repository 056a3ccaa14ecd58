"""Pictures, folders and videos through a predictor: COCO results and drawn overlays. Needs no torch."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from lowpose.boxes import Boxes, load_boxes
from lowpose.draw import draw_poses
from lowpose.errors import LowposeError
from lowpose.files import write_json
from lowpose.images import write_image
from lowpose.runtime import PosePredictor, check_boxes
from lowpose.samples import PoseResult
from lowpose.sources import Frame, VideoWriter, count_frames, frames, names

log = logging.getLogger("lowpose")
FRAMES_AT_ONCE = 16


@dataclass
class PredictReport:
    """What a prediction run did: COCO result rows, and lines about what could not be read."""

    results: list[dict[str, Any]] = field(default_factory=list)
    frames: int = 0
    persons: int = 0
    problems: list[str] = field(default_factory=list)
    drawn: list[Path] = field(default_factory=list)


def predict_sources(
    predictor: PosePredictor,
    sources: list[str],
    boxes: str = "whole",
    *,
    results: str | Path | None = None,
    draw: str | Path | None = None,
    threshold: float = 0.05,
    min_score: float | None = None,
) -> PredictReport:
    """Predict every person of every picture or frame, batched over people of several frames.

    Args:
        sources: pictures, folders, videos. boxes: 'whole' (one person fills each picture) or a file of boxes.
        results: COCO result JSON to write. draw: folder for overlays (pictures as .png or .jpg, videos as .mp4).
        threshold: joints with a lower score are not drawn. min_score: boxes with a lower score are left out.

    Raises: LowposeError for missing sources, box files without any box for them, or nothing that could be read.
    """
    report, table = PredictReport(), load_boxes(boxes, min_score)
    pictures = names(sources)
    if pictures is not None:  # before anything is drawn
        _check_boxes_used(table, sum(frame in table for frame in pictures), len(pictures))
    stream = frames(sources, report.problems.append)
    total = count_frames(sources)
    known = 0
    with Overlays(Path(draw) if draw else None, threshold) as overlays:
        for chunk in _chunks(
            track(stream, "predict", total, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True)
        ):
            known += sum(frame in table for frame in chunk)
            for frame, result in zip(chunk, predictor.predict_many([(f.image, *_boxes(table, f)) for f in chunk]), strict=True):
                report.results += result.to_coco(frame.image_id)
                report.persons += len(result)
                overlays.add(frame, result)
            report.frames += len(chunk)
        if not report.frames:
            raise LowposeError(f"none of the {len(report.problems)} files can be read; the first: {report.problems[0]}")
        _check_boxes_used(table, known, report.frames)
        report.drawn = overlays.paths
    for line in report.problems:
        log.warning("%s", line)
    if results:
        write_json(results, report.results)
    return report


def _chunks(stream) -> Iterator[list[Frame]]:
    stream = iter(stream)
    while chunk := list(islice(stream, FRAMES_AT_ONCE)):
        yield chunk


def _boxes(table: Boxes, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    """The boxes and scores of a frame. Raises: LowposeError naming the file of boxes and the frame that they do not fit."""
    try:
        return check_boxes(*table(frame), frame.image)
    except LowposeError as e:
        raise LowposeError(f"{table.source}: {frame.name}: {e}") from None


def _check_boxes_used(table: Boxes, known: int, frames: int) -> None:
    if not known:
        raise LowposeError(
            f"{table.source}: names none of the {frames} pictures or frames; boxes go by file name, image id or frame"
        )


class Overlays:
    """Writes each frame with its skeletons: a picture per picture, a video per video. Used as a context."""

    def __init__(self, folder: Path | None, threshold: float):
        self.folder, self.threshold, self.paths = folder, threshold, []
        self._taken: set[Path] = set()
        self._stack = ExitStack()
        self._video: tuple[str, VideoWriter] | None = None

    def __enter__(self) -> Overlays:
        self._stack.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

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
        """A path inside the folder that no other frame has. Raises: LowposeError if it is the source itself."""
        inside = Path(*(part for part in name.parts if part not in (name.anchor, "..")))
        path, number = self.folder / inside, 2
        while path in self._taken:
            path, number = (self.folder / inside).with_stem(f"{inside.stem}-{number}"), number + 1
        if path.exists() and path.samefile(frame.source):
            raise LowposeError(f"{path}: the drawing would overwrite the picture; give another --out")
        self._taken.add(path)
        self.paths.append(path)
        return path

    def _writer(self, frame: Frame) -> VideoWriter:
        if self._video is None or self._video[0] != frame.source:
            self._stack.close()  # ends the video before
            path = self._place(frame, Path(f"{Path(frame.source).stem}-poses.mp4"))
            self._video = (frame.source, self._stack.enter_context(VideoWriter(path, frame.fps)))
        return self._video[1]
