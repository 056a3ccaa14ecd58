"""The operators of `lowpose robustness`: what a detector, a camera or another pipeline does to crops, at five severities each.

| operator | severities 1 to 5 | |
|---|---|---|
| `area` | 1, 3/4, 1/2, 3/8, 1/4 | anti-aliased, with so many pixels per crop pixel along each axis, then enlarged bilinearly |
| `paper` | the same | one bilinear warp, which aliases, to so many pixels, then enlarged |
| `camera` | the same | the recipe's far camera with so many pixels, but no more than the picture has, then enlarged |
| `motion` | 2, 4, 6, 8, 12 | length of an even movement, crop pixels, in a random direction |
| `blur` | 0.5, 1, 1.5, 2, 3 | sigma of a Gaussian, crop pixels |
| `noise` | 5, 10, 20, 30, 50 | standard deviation of Gaussian noise, grey levels |
| `jpeg` | 60, 40, 20, 10, 5 | quality |
| `shift` | 0.05, 0.1, 0.15, 0.2, 0.3 | the box is off by so much of its width and height, in a random direction |
| `scale` | 1.1, 1.2, 1.3, 1.4, 1.6 | the box is so many times as large or, as likely, as small |

`motion`, `blur`, `noise` and `jpeg` work on the pixels of the crop, before it enters the network, and are those of `resample:
camera` in training (`lowpose.data.resample`); `area`, `paper` and `camera` are its policies; `shift` and `scale` change the box
that the crop is cut by. What is random (direction, sign, pattern of the noise) is drawn once for each person and operator, so
severities of one operator differ in nothing but their strength.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from lowpose.config import InputConfig
from lowpose.data.augment import generator
from lowpose.data.crops import CropReader
from lowpose.data.resample import blurred, coarse_size, compressed, enlarge, motion_blurred, noisy
from lowpose.geometry import compose, reduction, scaling
from lowpose.samples import PoseData

Values = tuple[float, float, float, float, float]
SHARES: Values = (1, 0.75, 0.5, 0.375, 0.25)


@dataclass(frozen=True)
class Operator:
    """Attributes: name; group: what stands in one panel of the figure; unit: of `values`, which are the severities 1 to 5."""

    name: str
    group: str
    unit: str
    values: Values


OPERATORS = (
    Operator("area", "down-sampling", "of the crop's resolution", SHARES),
    Operator("paper", "down-sampling", "of the crop's resolution", SHARES),
    Operator("camera", "down-sampling", "of the crop's resolution", SHARES),
    Operator("motion", "pixels of the crop", "pixels", (2, 4, 6, 8, 12)),
    Operator("blur", "pixels of the crop", "pixels", (0.5, 1, 1.5, 2, 3)),
    Operator("noise", "pixels of the crop", "grey levels", (5, 10, 20, 30, 50)),
    Operator("jpeg", "pixels of the crop", "quality", (60, 40, 20, 10, 5)),
    Operator("shift", "box", "of the box", (0.05, 0.1, 0.15, 0.2, 0.3)),
    Operator("scale", "box", "times", (1.1, 1.2, 1.3, 1.4, 1.6)),
)
PIXELS: dict[str, Callable[[np.ndarray, float, np.random.Generator], np.ndarray]] = {
    "motion": lambda image, length, rng: motion_blurred(image, length, rng.uniform(0, 180)),
    "blur": lambda image, sigma, rng: blurred(image, sigma),
    "noise": noisy,
    "jpeg": lambda image, quality, rng: compressed(image, int(quality)),
}


class _SharedReader(CropReader):
    """Plain crops with `share` (0 to 1) of their resolution along each axis."""

    def __init__(self, data: PoseData, settings: InputConfig, seed: int, share: float):
        super().__init__(data, settings, None, seed)
        self.share = share


class CoarseReader(_SharedReader):
    """Crops that are rendered at `share` of their resolution and then enlarged bilinearly.

    Positions stay those of the crop: the two scalings cancel exactly.
    """

    def pixels(self, index, matrix, size, rng, settings):
        k = self.share
        if k == 1:
            return super().pixels(index, matrix, size, rng, settings)
        return enlarge(super().pixels(index, compose(scaling(k, k), matrix), coarse_size(size, k), rng, settings), k, size)


class FarReader(_SharedReader):
    """Crops of a far camera that has `share` of their resolution, whatever the person's height."""

    def pixels(self, index, matrix, size, rng, settings):
        height = self.share * float(self.data.samples[index].box[3]) / reduction(matrix)
        far = settings.camera.model_copy(update={"height": (height, height)})
        return super().pixels(index, matrix, size, rng, settings.model_copy(update={"camera": far}))


class DegradedCrops:
    """The crops of a split's persons: plain, and under each operator at each severity.

    Args: settings: of the plain crop. seed: of all that is random.
    """

    def __init__(self, data: PoseData, settings: InputConfig, seed: int = 0):
        self.seed, self.plain = seed, CropReader(data, settings, None, seed)
        self._readers = {(o.name, v): self._reader(o.name, number, v) for number, o in enumerate(OPERATORS) for v in o.values}
        for reader in filter(None, self._readers.values()):
            reader.share_pictures(self.plain)

    def person(self, index: int) -> tuple[np.ndarray, np.ndarray, str | None]:
        """(C, h, w, 3) uint8 crops, (C, 2, 3) picture -> crop, and why the picture could not be read (then all are black).

        The plain one stands first, then the severities of each operator in the order of OPERATORS: C = 1 + 5 operators.
        """
        plain = self.plain.crop(index)
        crops = [(plain.image, plain.matrix)]
        for number, operator in enumerate(OPERATORS):
            for value in operator.values:
                reader = self._readers[operator.name, value]
                if reader is not None:
                    crop = reader.crop(index)
                    crops.append((crop.image, crop.matrix))
                elif plain.error:
                    crops.append(crops[0])
                else:
                    changed = PIXELS[operator.name](plain.image, value, self._generator(index, number))
                    crops.append((changed, plain.matrix))
        images, matrices = zip(*crops, strict=True)
        return np.stack(images), np.stack(matrices), plain.error

    def _reader(self, name: str, number: int, value: float) -> CropReader | None:
        """What cuts the crops of an operator; None for those that change the pixels of the plain crop."""
        if name in PIXELS:
            return None
        data, settings = self.plain.data, self.plain.settings
        if name in ("area", "paper"):
            return CoarseReader(data, settings.model_copy(update={"resample": name}), self.seed, value)
        if name == "camera":
            return FarReader(data, settings.model_copy(update={"resample": name}), self.seed, value)
        boxes = (jittered(s.box, name, value, self._generator(i, number)) for i, s in enumerate(data.samples))
        moved = [replace(s, box=box) for s, box in zip(data.samples, boxes, strict=True)]
        return CropReader(replace(data, samples=moved), settings, None, self.seed)

    def _generator(self, index: int, number: int) -> np.random.Generator:
        return generator(self.seed, 0, index, 1 + number, "pixels")  # view 0 is the far camera's


def jittered(box: np.ndarray, name: str, value: float, rng: np.random.Generator) -> np.ndarray:
    """(4,) the box (x, y, width, height) as `shift` or `scale` of OPERATORS has it."""
    x, y, w, h = np.asarray(box, np.float64)
    if name == "shift":
        angle = rng.uniform(0, 2 * np.pi)
        return np.array([x + value * w * np.cos(angle), y + value * h * np.sin(angle), w, h])
    factor = value if rng.random() < 0.5 else 1 / value
    return np.array([x + w * (1 - factor) / 2, y + h * (1 - factor) / 2, w * factor, h * factor])
