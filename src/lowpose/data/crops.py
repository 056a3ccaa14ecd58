"""Persons -> crops: the one pre-processing path of training, evaluation and prediction."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lowpose.config import AugmentConfig, InputConfig
from lowpose.data._stored import block_mean
from lowpose.data.augment import Draw, declared, draw_view, generator, recolour, view_keypoints
from lowpose.data.cache import CropCache
from lowpose.data.resample import cut, render
from lowpose.errors import LowposeError
from lowpose.geometry import Size, compose, scaling
from lowpose.samples import PoseData


@dataclass
class Crop:
    """One view of one person.

    Attributes:
        image: (h, w, 3) uint8 RGB. keypoints: (K, 2) float32, crop pixels, (x, y). weight: (K,) float32.
        matrix: (2, 3) float64, picture -> crop. index: of the sample in its split.
        error: why the picture could not be read (then the image is black and all weights are 0), or None.
    """

    image: np.ndarray
    keypoints: np.ndarray
    weight: np.ndarray
    matrix: np.ndarray
    index: int
    error: str | None = None


class CropReader:
    """Crops of one split, from its pictures or a cache.

    Args:
        settings: size, padding, resampling. augment: random views, or None for the plain crop.
        seed: of all random draws that `augment.seed` does not name. cache: optional; crops are the same with and without it.
    """

    def __init__(
        self,
        data: PoseData,
        settings: InputConfig,
        augment: AugmentConfig | None = None,
        seed: int = 0,
        cache: CropCache | None = None,
    ):
        self.data, self.settings, self.augment, self.cache = data, settings, augment, cache
        self.seed = seed if augment is None or augment.seed is None else augment.seed
        self._last: dict[str, np.ndarray] = {}  # the picture that was read last

    def __len__(self) -> int:
        return len(self.data)

    def draw(self, index: int, epoch: int = 0, view: int = 0) -> Draw:
        """The view's random draw, independent of the crop size."""
        sample = self.data.samples[index]
        if self.augment is None:
            return Draw(sample.box)
        rng = generator(self.seed, *declared(self.augment, epoch, index, view))
        return draw_view(sample, self.data.skeleton, self.augment, self.settings.padding, rng)

    def crop(self, index: int, epoch: int = 0, view: int = 0, size: Size | None = None) -> Crop:
        """A view of a person at `size` (default: the settings'). A picture that cannot be read gives weight 0."""
        sample, size = self.data.samples[index], size or self.settings.size
        draw = self.draw(index, epoch, view)
        matrix = draw.matrix(size, self.settings.padding)
        keypoints, weight = view_keypoints(sample, matrix, draw.flip, self.data.skeleton)
        try:
            image = self.pixels(index, matrix, size, *self._rendering(index, epoch, view))
        except LowposeError as e:
            black = np.zeros((size[1], size[0], 3), np.uint8)
            return Crop(black, keypoints, np.zeros_like(weight), matrix, index, str(e))
        return Crop(recolour(image, draw.colour), keypoints, weight, matrix, index)

    def _rendering(self, index: int, epoch: int, view: int) -> tuple[np.random.Generator | None, InputConfig]:
        """What makes a view's pixels: the far camera's draws, where one does, and the settings."""
        share = self.augment.camera if self.augment is not None else 0
        if self.settings.resample != "camera" and not share:
            return None, self.settings
        rng = generator(self.seed, *declared(self.augment, epoch, index, view), "pixels")
        if self.settings.resample == "camera":
            return rng, self.settings
        far = rng.random() < share
        return (rng, self.settings.model_copy(update={"resample": "camera"})) if far else (None, self.settings)

    def pixels(
        self, index: int, matrix: np.ndarray, size: Size, rng: np.random.Generator | None, settings: InputConfig
    ) -> np.ndarray:
        """(h, w, 3) uint8: what `matrix`, picture -> crop of `size`, shows of a person's picture.

        Args: rng: of the far camera. settings: whose resampling it is.
        """
        factor = self.cache.factor(index) if self.cache is not None else 1
        height = float(self.data.samples[index].box[3]) / max(factor, 1)
        if factor > 1:
            matrix = compose(matrix, scaling(factor, factor))
        return render(lambda window: self._window(index, window, factor), matrix, settings, size, height, rng)

    def _window(self, index: int, window, factor: int) -> np.ndarray:
        held = self.cache.window(index, window) if self.cache is not None else None
        if held is not None:
            return held
        return cut(block_mean(self._picture(self.data.samples[index].image), max(factor, 1)), window)

    def _picture(self, key: str) -> np.ndarray:
        if key not in self._last:  # neighbours in a split often share a picture
            picture = self.data.read(key)
            self._last.clear()
            self._last[key] = picture
        return self._last[key]

    def share_pictures(self, other: CropReader) -> None:
        """Read each picture once for both: another reader that cuts the same persons in turn with this one."""
        self._last = other._last
