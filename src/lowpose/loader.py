"""Crops -> batches of tensors. Which persons stand in which batch is a pure function of (seed, step)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lowpose.data.augment import generator
from lowpose.data.crops import Crop, CropReader
from lowpose.errors import LowposeError


@dataclass
class PoseBatch:
    """images (B, 3, H, W) uint8 RGB, channels last in memory; keypoints (B, K, 2) float32, crop pixels, (x, y);
    weight (B, K) float32; index (B,) positions in the split; errors: one line per picture that could not be read."""

    images: Tensor
    keypoints: Tensor
    weight: Tensor
    index: Tensor
    matrices: np.ndarray
    errors: list[str]

    def to(self, device) -> PoseBatch:
        move = (getattr(self, name).to(device, non_blocking=True) for name in ("images", "keypoints", "weight", "index"))
        return PoseBatch(*move, self.matrices, self.errors)

    def pin_memory(self) -> PoseBatch:
        pinned = (getattr(self, name).pin_memory() for name in ("images", "keypoints", "weight", "index"))
        return PoseBatch(*pinned, self.matrices, self.errors)


def collate(crops: list[Crop]) -> PoseBatch:
    images = torch.from_numpy(np.stack([c.image for c in crops])).permute(0, 3, 1, 2)
    return PoseBatch(
        images,
        torch.from_numpy(np.stack([c.keypoints for c in crops])),
        torch.from_numpy(np.stack([c.weight for c in crops])),
        torch.tensor([c.index for c in crops]),
        np.stack([c.matrix for c in crops]),
        [c.error for c in crops if c.error],
    )


class _Views(Dataset):
    def __init__(self, reader: CropReader):
        self.reader = reader

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, key: tuple[int, int]) -> Crop:
        epoch, index = key
        return self.reader.crop(index, epoch)


class TrainingOrder:
    """Batches of (epoch, index) keys from `start` to `total` steps; every rank takes its part of each global batch.

    An epoch is a permutation of the persons; what does not fill a batch is left out of that epoch.
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


def training_loader(reader: CropReader, order: TrainingOrder, workers: int, pin: bool) -> DataLoader:
    return _loader(reader, order, workers, pin)


def _loader(reader: CropReader, batches, workers: int, pin: bool = False) -> DataLoader:
    # a generator of its own: starting a loader would else take a number from torch's, which a resumed run starts once more
    own = torch.Generator()
    return DataLoader(
        _Views(reader), batch_sampler=batches, num_workers=workers, collate_fn=collate, pin_memory=pin, generator=own
    )


def evaluation_batches(reader: CropReader, batch_size: int, workers: int = 0) -> DataLoader:
    """The plain crops of a split in order."""
    keys = [[(0, i) for i in range(first, min(first + batch_size, len(reader)))] for first in range(0, len(reader), batch_size)]
    return _loader(reader, keys, workers)
