"""The pixels that a crop cache stores of every person, from pictures that several processes read where there are many."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

import numpy as np

from lowpose.config import AugmentConfig, InputConfig
from lowpose.data.augment import largest_region
from lowpose.errors import LowposeError
from lowpose.geometry import crop_region
from lowpose.images import one_thread
from lowpose.samples import PersonSample, PoseData

MANY = 500  # pictures; fewer are read before processes have begun
AHEAD = 32  # pictures of each process whose pixels may wait in memory
MOST = 8  # processes; a container may see more cores than it may use


@dataclass
class Stored:
    """Of one picture: position of a person, the place of its pixels as `cache.Row` names it, the contiguous pixels (H, W, 3);
    or why the picture could not be read."""

    key: str
    persons: list[tuple[int, dict[str, int], np.ndarray]]
    error: str | None = None


@dataclass
class Regions:
    """What is stored of the persons of a picture, given its key. `reduced`: block means instead of pixels."""

    data: PoseData
    settings: InputConfig
    augment: AugmentConfig | None
    reduced: bool

    def __post_init__(self) -> None:
        self.persons: dict[str, list[int]] = {}  # by picture, in the order of their names: each is decoded once
        for i in sorted(range(len(self.data)), key=lambda i: self.data.samples[i].image):
            self.persons.setdefault(self.data.samples[i].image, []).append(i)

    def __call__(self, key: str) -> Stored:
        try:
            image = self.data.read(key)
        except LowposeError as e:
            return Stored(key, [], str(e))
        return Stored(key, [(i, *self._region(image, self.data.samples[i])) for i in self.persons[key]])

    def _region(self, image: np.ndarray, sample: PersonSample) -> tuple[dict[str, int], np.ndarray]:
        s = self.settings
        f = reduction_factor(sample, s, self.augment) if self.reduced else 1
        image = block_mean(image, f)
        height, width = image.shape[:2]
        region = largest_region(sample, self.data.skeleton, s.size, s.padding, self.augment) / f
        x0, y0 = (int(v) for v in np.clip(np.floor(region[:2]), 0, [max(width - 1, 0), max(height - 1, 0)]))
        x1, y1 = (int(v) for v in np.clip(np.ceil(region[2:]), [x0 + 1, y0 + 1], [max(width, x0 + 1), max(height, y0 + 1)]))
        pixels = np.ascontiguousarray(image[y0:y1, x0:x1])
        place = {"x0": x0, "y0": y0, "width": pixels.shape[1], "height": pixels.shape[0], "factor": f}
        return place | {"picture_width": width, "picture_height": height}, pixels

    def read_all(self) -> Iterator[Stored]:
        """Every picture, in the order of their names.

        Raises: LowposeError if a process that read pictures was ended.
        """
        keys = list(self.persons)
        # only by a fork: a script without a guard of its main part could not start processes otherwise
        processes = min(len(os.sched_getaffinity(0)), MOST) if sys.platform == "linux" else 1
        if len(keys) < MANY or processes == 1 or multiprocessing.current_process().daemon:
            yield from map(self, keys)
            return
        context = multiprocessing.get_context("fork")
        with ProcessPoolExecutor(processes, context, initializer=_begin, initargs=(self,)) as pool:
            block = AHEAD * processes
            try:
                for first in range(0, len(keys), block):
                    yield from pool.map(_region_of, keys[first : first + block], chunksize=4)
            except BrokenProcessPool:
                raise LowposeError("crop cache: a process that read pictures was ended, perhaps for want of memory") from None


_regions: Callable[[str], Stored]  # of a process that reads pictures


def _begin(regions: Regions) -> None:
    global _regions
    one_thread()
    _regions = regions


def _region_of(key: str) -> Stored:
    return _regions(key)


def reduction_factor(sample: PersonSample, settings: InputConfig, augment: AugmentConfig | None) -> int:
    """Picture pixels per stored pixel: as coarse as leaves two stored pixels per crop pixel at the largest magnification."""
    _, extent = crop_region(sample.box, settings.size, settings.padding)
    closest = 1 - (augment.scale if augment else 0)
    return max(1, int(extent[0] * closest / settings.size[0] / 2))


def block_mean(image: np.ndarray, f: int) -> np.ndarray:
    """(ceil(H / f), ceil(W / f), 3) uint8 means of f x f pixels; border blocks repeat the last pixel."""
    if f == 1:
        return image
    h, w = image.shape[:2]
    padded = np.pad(image, ((0, -h % f), (0, -w % f), (0, 0)), mode="edge")
    blocks = padded.reshape(padded.shape[0] // f, f, padded.shape[1] // f, f, 3)
    return (blocks.mean((1, 3)) + 0.5).astype(np.uint8)
