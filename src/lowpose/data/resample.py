"""Named down-sampling policies: how the pixels of a crop are made from those of the picture.

At 32 pixels this decides the result, so it is a setting that cards state:

- `area`: anti-aliased. A warp to r times the crop size (r: the reduction rounded up), then the mean of
  each r x r block, since OpenCV's warp has no area mode.
- `paper`: one bilinear warp from the full picture, as published code does. It aliases.
- `camera`: the person is first brought down to a chosen height with the blur, noise and JPEG of a far
  camera, then resized to the crop.

The operators of that camera (`motion_blurred`, `blurred`, `noisy`, `compressed`) are those that `lowpose robustness` measures.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np

from lowpose.config import CameraConfig, InputConfig
from lowpose.geometry import Size, compose, covered, reduction, scaling, to_opencv, translation

Window = tuple[int, int, int, int]  # x0, y0, x1, y1 in picture pixels
Source = Callable[[Window], np.ndarray]  # window -> (y1 - y0, x1 - x0, 3) uint8, 0 outside the picture


def cut(image: np.ndarray, window: Window, origin: tuple[int, int] = (0, 0)) -> np.ndarray:
    """The pixels of a window of the picture; 0 where it reaches outside `image`, which starts at `origin`."""
    x0, y0, x1, y1 = window[0] - origin[0], window[1] - origin[1], window[2] - origin[0], window[3] - origin[1]
    h, w = image.shape[:2]
    if x0 >= 0 and y0 >= 0 and x1 <= w and y1 <= h:
        return image[y0:y1, x0:x1]
    out = np.zeros((y1 - y0, x1 - x0, 3), np.uint8)
    a, b, c, d = max(x0, 0), max(y0, 0), min(x1, w), min(y1, h)
    if a < c and b < d:
        out[b - y0 : d - y0, a - x0 : c - x0] = image[b:d, a:c]
    return out


def render(
    source: Source, matrix: np.ndarray, settings: InputConfig, size: Size, person_height: float, rng: np.random.Generator | None
) -> np.ndarray:
    """(h, w, 3) uint8 RGB crop.

    Args:
        source: gives pixels of the picture. matrix: (2, 3) picture -> crop of `size` (width, height).
        person_height: of the box, picture pixels (for `camera`). rng: draws the camera's settings; only `camera` needs it.
    """
    if settings.resample == "paper":
        return _warp(source, matrix, size)
    if settings.resample == "area":
        return _area(source, matrix, size)
    return _camera(source, matrix, size, settings.camera, person_height, rng)


def _warp(source: Source, matrix: np.ndarray, size: Size) -> np.ndarray:
    # the window depends on the crop alone, so that a cache and the picture give the same bits
    window = covered(matrix, size)
    local = compose(matrix, translation(window[0], window[1]))
    return cv2.warpAffine(source(window), to_opencv(local), size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)


def _area(source: Source, matrix: np.ndarray, size: Size) -> np.ndarray:
    r = max(1, math.ceil(reduction(matrix) - 1e-6))
    if r == 1:
        return _warp(source, matrix, size)
    # OpenCV warps four channels more than twice as fast as three
    large = _warp(
        lambda w: cv2.cvtColor(source(w), cv2.COLOR_RGB2RGBA), compose(scaling(r, r), matrix), (size[0] * r, size[1] * r)
    )
    small = cv2.resize(large, size, interpolation=cv2.INTER_AREA)  # integer factor: the exact block mean
    return cv2.cvtColor(small, cv2.COLOR_RGBA2RGB)


def _camera(source: Source, matrix: np.ndarray, size: Size, camera: CameraConfig, person_height: float, rng) -> np.ndarray:
    low, high = np.log(camera.height)
    height = float(np.exp(rng.uniform(low, high)))
    blur, noise = rng.uniform(*camera.blur), rng.uniform(*camera.noise)
    quality = int(rng.integers(camera.jpeg[0], camera.jpeg[1] + 1))
    motion = (rng.uniform(*camera.motion), rng.uniform(0, 180)) if camera.motion[1] > 0 else (0.0, 0.0)
    shrink = min(1.0, height / max(person_height, 1.0))  # a person who is smaller already stays as small
    k = max(shrink * reduction(matrix), 4 / min(size))  # far-camera pixels per crop pixel
    far_size = (math.ceil(size[0] * k), math.ceil(size[1] * k))
    far = _area(source, compose(scaling(k, k), matrix), far_size)
    far = degrade(far, blur, noise, quality, rng, motion)
    if k <= 1:
        return enlarge(far, k, size)
    edge = 4  # as far as a window can reach over the border; there is no black frame around the far picture
    wide = np.pad(far, ((edge, edge), (edge, edge), (0, 0)), mode="edge")
    return _area(lambda window: cut(wide, window, (-edge, -edge)), scaling(1 / k, 1 / k), size)


def coarse_size(size: Size, k: float) -> Size:
    """Of the picture that holds a crop of `size` at k of its resolution: pixels that begin in it."""
    return math.ceil(size[0] * k - 1e-9), math.ceil(size[1] * k - 1e-9)


def enlarge(image: np.ndarray, k: float, size: Size) -> np.ndarray:
    """A crop rendered at k <= 1 of its resolution, to its `size` (width, height), bilinearly; the crop's x is k x there."""
    back = to_opencv(scaling(1 / k, 1 / k))
    return cv2.warpAffine(image, back, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def degrade(
    image: np.ndarray,
    blur: float,
    noise: float,
    quality: int,
    rng: np.random.Generator,
    motion: tuple[float, float] = (0.0, 0.0),
) -> np.ndarray:
    """A far camera: its movement (length, angle), its blur, its noise and its JPEG, in this order; (h, w, 3) uint8."""
    return compressed(noisy(blurred(motion_blurred(image, *motion), blur), noise, rng), quality)


def blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian of `sigma` pixels."""
    return cv2.GaussianBlur(image, (0, 0), sigma) if sigma > 0 else image


def motion_blurred(image: np.ndarray, length: float, angle: float) -> np.ndarray:
    """An even movement of `length` pixels while the shutter is open, `angle` degrees clockwise from the x axis as seen."""
    return cv2.filter2D(image, -1, motion_kernel(length, angle)) if length > 0 else image


def motion_kernel(length: float, angle: float) -> np.ndarray:
    """(n, n) float32, sum 1, n odd: a line through the middle, each of its points shared among the four nearest pixels."""
    reach = math.ceil(length / 2) + 1
    along = (np.arange(64 * reach) + 0.5) / (64 * reach) - 0.5
    x, y = along * length * np.cos(np.deg2rad(angle)), along * length * np.sin(np.deg2rad(angle))
    pixels = np.arange(-reach, reach + 1)
    share_x, share_y = (np.maximum(1 - np.abs(at[:, None] - pixels), 0) for at in (x, y))
    return (share_y.T @ share_x / len(along)).astype(np.float32)


def noisy(image: np.ndarray, deviation: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise, grey levels, drawn for each pixel and colour."""
    if deviation <= 0:
        return image
    return np.clip(image + rng.normal(0, deviation, image.shape), 0, 255).round().astype(np.uint8)


def compressed(image: np.ndarray, quality: int) -> np.ndarray:
    """Through JPEG, quality 1 to 100."""
    ok, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert ok, "OpenCV writes JPEG"
    return cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1]
