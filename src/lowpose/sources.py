"""What `lowpose predict SOURCE...` reads: pictures, folders and videos; and drawn videos written."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

import cv2
import numpy as np

from lowpose.errors import LowposeError
from lowpose.files import os_problem, whole
from lowpose.images import SUFFIXES, read_image

VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"})
_CODECS = {".mp4": "mp4v", ".avi": "MJPG", ".mov": "mp4v", ".mkv": "mp4v"}
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # a broken video is one line of ours, not ten of FFmpeg
_MISSING = 0.02  # part of the announced frames that may be missing: containers estimate the number


@dataclass(frozen=True)
class Frame:
    """One picture, or one frame of a video.

    Attributes:
        name: unique in one prediction: 'a.jpg', 'folder-relative/a.jpg', 'street.mp4:12'.
        image: (H, W, 3) uint8 RGB.
        image_id: for result files. The number in the picture's name, as COCO counts ('000000000139.jpg', 'im00139.jpg'),
            or the frame's index if one video is all there is; where that is not unique or there is none: `name`.
        index: 0-based, of the frame in its video, of the picture among all sources.
        source: path of the picture or video. fps: frames per second of the video; None for pictures.
    """

    name: str
    image: np.ndarray
    image_id: int | str
    index: int
    source: str
    fps: float | None = None


@dataclass(frozen=True)
class _Item:
    path: Path
    name: str
    video: bool


def frames(sources: list[str], on_error: Callable[[str], None] | None = None) -> Iterator[Frame]:
    """Every picture and every frame of every video, in the order of `sources`; folders recursively, sorted by path.

    The sources are checked at the call, the pictures read one by one as they are asked for.

    Args:
        on_error: called with one line for each picture or video that cannot be read and each video that ends early,
            and reading goes on; without it, or if the broken file is all that was asked for, an error is raised.

    Raises: LowposeError for a missing path or a folder without pictures; in reading, as said.
    """
    return _read(_items(sources), on_error)


def names(sources: list[str]) -> list[Frame] | None:
    """The pictures that `frames` will give, without their pixels; None if there is a video among them. Raises: as `frames`."""
    items = _items(sources)
    if any(item.video for item in items):
        return None
    nothing = np.zeros((0, 0, 3), np.uint8)
    return [Frame(item.name, nothing, key, index, str(item.path)) for index, (item, key) in enumerate(_numbered(items))]


def count_files(sources: list[str]) -> int:
    """How many pictures and videos `frames` will read. Raises: as `frames`."""
    return len(_items(sources))


def count_frames(sources: list[str]) -> int | None:
    """About how many frames `frames` will give, for a progress bar; None if a video does not say. Raises: as `frames`."""
    total = 0
    for item in _items(sources):
        if not item.video:
            total += 1
            continue
        video = cv2.VideoCapture(str(item.path))
        count = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
        if video.isOpened() and count <= 0:
            return None
        total += max(count, 0)
        video.release()
    return total


def _items(sources: list[str]) -> list[_Item]:
    if not sources:
        raise LowposeError("no source given: name pictures, folders or videos")
    found: dict[Path, str] = {}  # a picture that is named twice is read once
    for source in sources:
        path = Path(source)
        if path.is_dir():
            inside = _pictures_in(path)
            if not inside:
                raise LowposeError(f"{source}: no pictures in this folder ({', '.join(sorted(SUFFIXES))})")
            for p in inside:
                found.setdefault(p, p.relative_to(path).as_posix())
        elif path.exists():
            found.setdefault(path, path.name)
        else:
            raise LowposeError(f"{source}: no such file or folder")
    times = Counter(found.values())
    return [_Item(p, n if times[n] == 1 else p.as_posix(), p.suffix.lower() in VIDEO_SUFFIXES) for p, n in found.items()]


def _pictures_in(folder: Path) -> list[Path]:
    def fail(e: OSError):
        raise os_problem(e.filename, e) from None

    found = []
    for here, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [f for f in folders if not f.startswith(".")]
        found += [Path(here, n) for n in names if Path(n).suffix.lower() in SUFFIXES and not n.startswith(".")]
    return sorted(found)


def _number(name: str) -> int | None:
    """'000000000139.jpg', 'im00139.jpg' and 'COCO_val2014_000000000139.jpg' -> 139; None for '2020-01-05.jpg'."""
    match = re.fullmatch(r"\D*(\d{1,18})|.*_(\d{12})", PurePath(name).stem)
    return int(match[1] or match[2]) if match else None


def _numbered(items: list[_Item]) -> list[tuple[_Item, int | str]]:
    """Each with its id for result files: the number in its name where only one picture has it, else its name."""
    numbers = Counter(_number(item.name) for item in items if not item.video)
    found = [(item, _number(item.name)) for item in items]
    return [(item, number if number is not None and numbers[number] == 1 else item.name) for item, number in found]


def _read(items: list[_Item], on_error: Callable[[str], None] | None) -> Iterator[Frame]:
    only = len(items) == 1
    for index, (item, image_id) in enumerate(_numbered(items)):
        try:
            if item.video:
                yield from _video_frames(item, only, on_error)
            else:
                yield Frame(item.name, read_image(item.path), image_id, index, str(item.path))
        except LowposeError as e:
            if on_error is None or only:
                raise
            on_error(str(e))


def _open_video(path: Path) -> cv2.VideoCapture:
    video = cv2.VideoCapture(str(path))
    if not video.isOpened():
        raise LowposeError(f"{path}: not a video that can be opened")
    return video


def _video_frames(item: _Item, only: bool, on_error: Callable[[str], None] | None) -> Iterator[Frame]:
    video = _open_video(item.path)
    try:
        expected = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
        fps = float(video.get(cv2.CAP_PROP_FPS))
        fps = fps if math.isfinite(fps) and fps > 0 else 25.0
        index = 0
        while True:
            there, image = video.read()
            if not there:
                break
            name = f"{item.name}:{index}"
            yield Frame(name, cv2.cvtColor(image, cv2.COLOR_BGR2RGB), index if only else name, index, str(item.path), fps)
            index += 1
    finally:
        video.release()
    if index == 0:
        raise LowposeError(f"{item.path}: a video without a readable frame")
    if index < expected - max(2, _MISSING * expected):
        message = f"{item.path}: the video ends early, after {index} of {expected} frames"
        if on_error is None:
            raise LowposeError(message)
        on_error(message)


# --- video out ------------------------------------------------------------------------------------------------------


class VideoWriter:
    """`with VideoWriter("out.mp4", fps=25) as video: video.write(image)`; the file appears when the block ends well.

    Frames are (H, W, 3) uint8 RGB, all of the size of the first. Suffixes: .mp4, .mov, .mkv (MPEG-4) and .avi (Motion JPEG).
    These codecs know even sizes only: an odd one gets its last row or column twice.

    Raises: LowposeError for another suffix, frames of another size, no frame at all, or a file that cannot be written.
    """

    def __init__(self, path: str | Path, fps: float):
        self.path, self.fps = Path(path), fps
        self.codec = _CODECS.get(self.path.suffix.lower())
        if self.codec is None:
            raise LowposeError(f"{path}: videos are written as {', '.join(_CODECS)}")
        self.size: tuple[int, int] | None = None
        self.count = 0

    def __enter__(self) -> VideoWriter:
        self._file = whole(self.path)
        self._temporary = self._file.__enter__()
        self._video: cv2.VideoWriter | None = None
        return self

    def write(self, image: np.ndarray) -> None:
        image = cv2.copyMakeBorder(image, 0, image.shape[0] % 2, 0, image.shape[1] % 2, cv2.BORDER_REPLICATE)
        size = (image.shape[1], image.shape[0])
        if self._video is None:
            self.size = size
            self._video = cv2.VideoWriter(str(self._temporary), cv2.VideoWriter.fourcc(*self.codec), self.fps, size)
            if not self._video.isOpened():
                raise LowposeError(f"{self.path}: a video of {size[0]} x {size[1]} at {self.fps:g} frames/s cannot be written")
        if size != self.size:
            raise LowposeError(f"{self.path}: a frame of {size[0]} x {size[1]} in a video of {self.size[0]} x {self.size[1]}")
        self._video.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        self.count += 1

    def __exit__(self, kind, error, trace) -> None:
        if self._video is not None:
            self._video.release()
        if error is None:
            try:
                self._check()
            except LowposeError as e:
                kind, error, trace = type(e), e, e.__traceback__
                self._file.__exit__(kind, error, trace)
                raise
        self._file.__exit__(kind, error, trace)

    def _check(self) -> None:
        """OpenCV says nothing when the disk is full: count what arrived."""
        if self.count == 0:
            raise LowposeError(f"{self.path}: no frames to write")
        video = cv2.VideoCapture(str(self._temporary))
        arrived = int(video.get(cv2.CAP_PROP_FRAME_COUNT)) if video.isOpened() else 0
        video.release()
        if arrived < self.count:
            raise LowposeError(f"{self.path}: only {arrived} of {self.count} frames could be written (is the disk full?)")
