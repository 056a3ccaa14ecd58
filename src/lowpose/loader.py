"""Crops -> batches of tensors. Which persons stand in which batch is a pure function of (seed, step)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lowpose.data.augment import generator
from lowpose.data.crops import Crop, CropReader
from lowpose.data.pictures import Picture, PictureReader
from lowpose.errors import LowposeError
from lowpose.images import one_thread


@dataclass
class PoseBatch:
    """images (B, 3, H, W) uint8 RGB, channels last in memory; keypoints (B, K, 2) float32, crop pixels, (x, y);
    weight (B, K) float32; index (B,) positions in the split; errors: one line per picture that could not be read;
    teacher: what a teacher needs of the same views: its own 'images', or its kept answers by name."""

    images: Tensor
    keypoints: Tensor
    weight: Tensor
    index: Tensor
    matrices: np.ndarray
    errors: list[str]
    teacher: dict[str, Tensor] = field(default_factory=dict)

    def to(self, device) -> PoseBatch:
        move = (getattr(self, name).to(device, non_blocking=True) for name in ("images", "keypoints", "weight", "index"))
        teacher = {name: value.to(device, non_blocking=True) for name, value in self.teacher.items()}
        return PoseBatch(*move, self.matrices, self.errors, teacher)

    def pin_memory(self) -> PoseBatch:
        pinned = (getattr(self, name).pin_memory() for name in ("images", "keypoints", "weight", "index"))
        return PoseBatch(*pinned, self.matrices, self.errors, {k: v.pin_memory() for k, v in self.teacher.items()})


@dataclass
class PictureBatch:
    """images (B, 3, H, W) uint8 RGB, channels last in memory; labels (B,) int64; weight (B,) float32: 0 for a picture that
    could not be read; index (B,) positions in the split; errors: one line per picture that could not be read."""

    images: Tensor
    labels: Tensor
    weight: Tensor
    index: Tensor
    errors: list[str]

    def _tensors(self) -> tuple[Tensor, ...]:
        return self.images, self.labels, self.weight, self.index

    def to(self, device) -> PictureBatch:
        return PictureBatch(*(t.to(device, non_blocking=True) for t in self._tensors()), self.errors)

    def pin_memory(self) -> PictureBatch:
        return PictureBatch(*(t.pin_memory() for t in self._tensors()), self.errors)


Batch = PoseBatch | PictureBatch
Reader = CropReader | PictureReader


def collate_pictures(items: list[tuple[Picture, dict]]) -> PictureBatch:
    pictures = [picture for picture, _ in items]
    return PictureBatch(
        torch.from_numpy(np.stack([p.image for p in pictures])).permute(0, 3, 1, 2),
        torch.tensor([p.label for p in pictures]),
        torch.tensor([float(p.error is None) for p in pictures]),
        torch.tensor([p.index for p in pictures]),
        [p.error for p in pictures if p.error],
    )


def collate(items: list[tuple[Crop, dict[str, np.ndarray]]]) -> PoseBatch:
    crops = [crop for crop, _ in items]
    teacher = {name: torch.from_numpy(np.stack([given[name] for _, given in items])) for name in items[0][1]}
    if "images" in teacher:
        teacher["images"] = teacher["images"].permute(0, 3, 1, 2)
    return PoseBatch(
        torch.from_numpy(np.stack([c.image for c in crops])).permute(0, 3, 1, 2),
        torch.from_numpy(np.stack([c.keypoints for c in crops])),
        torch.from_numpy(np.stack([c.weight for c in crops])),
        torch.tensor([c.index for c in crops]),
        np.stack([c.matrix for c in crops]),
        [c.error for c in crops if c.error],
        teacher,
    )


Beside = Callable[[int, int], dict[str, np.ndarray]]  # (index, epoch) -> arrays for `PoseBatch.teacher`


class _Views(Dataset):
    def __init__(self, reader: Reader, beside: Beside | None):
        self.reader, self.beside = reader, beside

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Crop | Picture, dict[str, np.ndarray]]:
        epoch, index = key
        teacher = self.beside(index, epoch) if self.beside else {}
        return self.reader.crop(index, epoch), teacher


class TrainingOrder:
    """Batches of (epoch, index) keys from `start` to `total` steps; every rank takes its part of each global batch.

    An epoch is a permutation of the persons (or pictures); what does not fill a batch is left out of that epoch.
    """

    def __init__(self, persons: int, batch_size: int, seed: int, start: int, total: int, rank: int = 0, ranks: int = 1):
        if batch_size % ranks:
            raise LowposeError(f"train.batch_size = {batch_size} cannot be divided by {ranks} processes")
        if persons < ranks:
            raise LowposeError(f"{persons} persons cannot be shared by {ranks} processes")
        self.persons, self.batch_size, self.seed = persons, min(batch_size, persons - persons % ranks), seed
        self.start, self.total, self.rank, self.ranks = start, total, rank, ranks

    @property
    def steps_per_epoch(self) -> int:
        return max(1, self.persons // self.batch_size)

    def __len__(self) -> int:
        return self.total - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        part = self.batch_size // self.ranks
        epoch, order = -1, None
        for step in range(self.start, self.total):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                order = generator(self.seed, epoch, 0, stream="order").permutation(self.persons)
            first = step % self.steps_per_epoch * self.batch_size + self.rank * part
            yield [(epoch, int(i)) for i in order[first : first + part]]


def training_loader(
    reader: Reader, order: TrainingOrder, workers: int, pin: bool, beside: Beside | None = None
) -> DataLoader[Batch]:
    """Batches of the views that `order` names; `beside` gives what a teacher needs of each."""
    return _loader(reader, order, workers, pin, beside)


def _loader(reader: Reader, batches, workers: int, pin: bool = False, beside: Beside | None = None) -> DataLoader:
    # a generator of its own: starting a loader would else take a number from torch's, which a resumed run starts once more
    own = torch.Generator()
    together = collate_pictures if isinstance(reader, PictureReader) else collate
    return DataLoader(
        _Views(reader, beside),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=together,
        pin_memory=pin,
        worker_init_fn=one_thread,
        generator=own,
    )


def evaluation_batches(reader: Reader, batch_size: int, workers: int = 0, epoch: int = 0) -> DataLoader:
    """The crops of a split in order: plain ones, or those of an epoch if the reader draws views."""
    starts = range(0, len(reader), batch_size)
    keys = [[(epoch, i) for i in range(first, min(first + batch_size, len(reader)))] for first in starts]
    return _loader(reader, keys, workers)
