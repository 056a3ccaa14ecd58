"""Random views of a person. Every draw is a pure function of (seed, epoch, sample, view).

No global or worker generator is used, so the number of workers, ranks or restarts changes nothing, and a
teacher sees the same view as its student at another size. Distributions follow the SimpleBaseline and HRNet
code family: scale clip(N(1, s), 1 - s, 1 + s), rotation clip(N(0, r), -2 r, 2 r) with probability 0.6,
flip 0.5, and the crop of the upper or lower half of the body.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from lowpose.config import AugmentConfig
from lowpose.geometry import Size, box_of_points, compose, crop_matrix, crop_region, transform, translation
from lowpose.samples import PersonSample
from lowpose.skeletons import Skeleton

STREAMS = {"view": 0, "pixels": 1, "order": 2}


def generator(seed: int, epoch: int, sample: int, view: int = 0, stream: str = "view") -> np.random.Generator:
    """The random numbers of one view of one sample in one epoch."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, epoch, sample, view, STREAMS[stream]))))


def declared(config: AugmentConfig | None, epoch: int, index: int, view: int = 0) -> tuple[int, int, int]:
    """(epoch, index, view) of the random numbers: with `augment.views`, epochs take turns among the views of epoch 0."""
    views = config.views if config else None
    return (epoch, index, view) if views is None else (0, index, epoch % views)


@dataclass(frozen=True)
class Draw:
    """What was drawn for one view; the crop size is not part of it."""

    box: np.ndarray
    scale: float = 1.0
    rotation: float = 0.0  # degrees
    flip: bool = False
    shift: tuple[float, float] = (0.0, 0.0)  # share of the padded box
    colour: tuple[float, float, float] = (1.0, 1.0, 1.0)  # brightness, contrast, saturation
    reach: float | None = None  # the largest shift that could be drawn, where shifts are by whole crop pixels

    def matrix(self, size: Size, padding: float) -> np.ndarray:
        """(2, 3) picture -> crop of this view at any size."""
        matrix = crop_matrix(self.box, size, padding, self.scale, self.rotation, self.flip)
        if self.shift == (0.0, 0.0):
            return matrix
        return compose(translation(*(self._pixels(*of) for of in zip(self.shift, size, strict=True))), matrix)

    def _pixels(self, share: float, side: int) -> float:
        """A shift in crop pixels; whole ones are equally likely from -n to n."""
        if self.reach is None:
            return share * side
        n = round(self.reach * side)
        return min(math.floor((share / self.reach + 1) / 2 * (2 * n + 1)), 2 * n) - n


def draw_view(sample: PersonSample, skeleton: Skeleton, config: AugmentConfig, padding: float, rng: np.random.Generator) -> Draw:
    """One random view. All numbers are drawn in a fixed order, used or not."""
    upper, half = rng.random(), rng.random()
    box = sample.box
    if half < config.half_body and sample.labelled.sum() > config.half_body_joints:
        box = half_body_box(sample, skeleton, upper < 0.69, padding)
    return draw_of(box, config, rng)


def draw_of(box: np.ndarray, config: AugmentConfig, rng: np.random.Generator) -> Draw:
    """One random view of what lies in a box (4,), picture pixels."""
    scale, rotation, turn, flip = rng.standard_normal(), rng.standard_normal(), rng.random(), rng.random()
    shift = rng.uniform(-1, 1, 2) * config.shift
    colour = 1 + rng.uniform(-1, 1, 3) * config.colour
    return Draw(
        box=box,
        scale=float(np.clip(1 + config.scale * scale, 1 - config.scale, 1 + config.scale)),
        rotation=float(np.clip(config.rotation * rotation, -2 * config.rotation, 2 * config.rotation))
        if turn < config.rotation_probability
        else 0.0,
        flip=bool(flip < config.flip),
        shift=(float(shift[0]), float(shift[1])),
        colour=(float(colour[0]), float(colour[1]), float(colour[2])),
        reach=config.shift if config.whole_pixels and config.shift else None,
    )


def half_body_box(sample: PersonSample, skeleton: Skeleton, upper: bool, padding: float) -> np.ndarray:
    """(4,) box around the labelled joints of the upper or lower body, 1.5 times as large after padding.

    The half that was not asked for serves where the other has fewer than 3 labelled joints; the whole
    box where both have.
    """
    is_upper = np.isin(np.arange(len(skeleton)), skeleton.upper)
    for part in (is_upper, ~is_upper) if upper else (~is_upper, is_upper):
        points = sample.keypoints[part & sample.labelled]
        if len(points) >= 3:
            x, y, w, h = box_of_points(points)
            mean, side = points.mean(0), np.array([w, h]) * 1.5 / padding
            return np.concatenate([mean - side / 2, side])
    return sample.box


def view_keypoints(sample: PersonSample, matrix: np.ndarray, flip: bool, skeleton: Skeleton) -> tuple[np.ndarray, np.ndarray]:
    """(K, 2) float32 crop pixels and (K,) float32 weights (1 labelled, 0 not) of a view.

    `matrix` already mirrors the position; a mirrored person's left is the picture's right, so names exchange.
    """
    keypoints = transform(matrix, sample.keypoints).astype(np.float32)
    weight = sample.labelled.astype(np.float32)
    if flip:
        keypoints, weight = keypoints[skeleton.flip_index], weight[skeleton.flip_index]
    return np.where(weight[:, None] > 0, keypoints, 0).astype(np.float32), weight


def recolour(crop: np.ndarray, colour: tuple[float, float, float]) -> np.ndarray:
    """Brightness, contrast (about the mean grey) and saturation factors on (h, w, 3) uint8."""
    brightness, contrast, saturation = colour
    if colour == (1.0, 1.0, 1.0):
        return crop
    out = crop.astype(np.float32) * brightness
    grey = cv2.cvtColor(out, cv2.COLOR_RGB2GRAY)[..., None]
    out = grey + (out - grey) * saturation
    mean = grey.mean()
    return np.clip(mean + (out - mean) * contrast, 0, 255).round().astype(np.uint8)


def largest_region(
    sample: PersonSample, skeleton: Skeleton, size: Size, padding: float, config: AugmentConfig | None
) -> np.ndarray:
    """(4,) x0, y0, x1, y1 in picture pixels: what any view of this sample can show (a circle's square per box).

    Without `config` only the plain crop counts. A cache keeps this region.
    """
    centre, extent = crop_region(sample.box, size, padding)
    if config is None:
        half = extent / 2
    else:
        turned = config.rotation > 0 and config.rotation_probability > 0
        half = extent * (1 + config.scale) / 2
        half = np.full(2, np.hypot(*half)) if turned else half
        half = half + extent * (1 + config.scale) * config.shift
    return np.concatenate([centre - half - 3, centre + half + 3])
