"""Pictures of classes -> what a classifier sees: the whole picture through the same affine, resampling and draws as persons."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lowpose.config import AugmentConfig, InputConfig
from lowpose.data.augment import Draw, declared, draw_of, generator, recolour
from lowpose.data.resample import cut, render
from lowpose.errors import LowposeError
from lowpose.samples import ClassData


@dataclass
class Picture:
    """One view of one picture.

    Attributes:
        image: (h, w, 3) uint8 RGB. label: its class. index: of the sample in its split.
        error: why the picture could not be read (then it is black and counts for nothing), or None.
    """

    image: np.ndarray
    label: int
    index: int
    error: str | None = None


class PictureReader:
    """Views of one split of pictures in classes; every draw is a function of (seed, epoch, sample).

    Args:
        settings: size, padding, resampling. augment: random views, or None for the plain picture.
        seed: of all random draws that `augment.seed` does not name.
    """

    def __init__(self, data: ClassData, settings: InputConfig, augment: AugmentConfig | None = None, seed: int = 0):
        self.data, self.settings, self.augment = data, settings, augment
        self.seed = seed if augment is None or augment.seed is None else augment.seed

    def __len__(self) -> int:
        return len(self.data)

    def crop(self, index: int, epoch: int = 0) -> Picture:
        """A view of a picture. One that cannot be read is black and named."""
        sample, size = self.data.samples[index], self.settings.size
        try:
            picture = self.data.read(sample.image)
        except LowposeError as e:
            return Picture(np.zeros((size[1], size[0], 3), np.uint8), sample.label, index, str(e))
        height, width = picture.shape[:2]
        draw = self._draw(np.array([0.0, 0.0, width, height]), index, epoch)
        matrix = draw.matrix(size, self.settings.padding)
        rng = (
            generator(self.seed, *declared(self.augment, epoch, index), "pixels") if self.settings.resample == "camera" else None
        )
        image = render(lambda window: cut(picture, window), matrix, self.settings, size, float(height), rng)
        return Picture(recolour(image, draw.colour), sample.label, index)

    def _draw(self, box: np.ndarray, index: int, epoch: int) -> Draw:
        if self.augment is None:
            return Draw(box)
        return draw_of(box, self.augment, generator(self.seed, *declared(self.augment, epoch, index)))
