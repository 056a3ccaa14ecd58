"""Box <-> crop affines and flips: the only coordinate code.

Points are continuous pixels, (x, y): pixel i covers [i, i + 1). A matrix is (2, 3) float64 and maps
picture pixels to crop pixels. Under this convention a resize is x' = s x, a flip is x' = W - x and
a heatmap cell is [i s, (i + 1) s): nothing needs a shift of one pixel.
"""

from __future__ import annotations

import numpy as np

Size = tuple[int, int]  # (width, height)


def crop_region(box, size: Size, padding: float = 1.25) -> tuple[np.ndarray, np.ndarray]:
    """Centre (2,) and extent (2,) (width, height), in picture pixels, of the crop for a box.

    The box grows to the aspect of `size` in its shorter direction, then by `padding` in both.
    """
    x, y, w, h = np.asarray(box, np.float64)
    aspect = size[0] / size[1]
    w, h = max(w, h * aspect), max(h, w / aspect)
    centre = np.array([x + box[2] / 2, y + box[3] / 2], np.float64)
    return centre, np.array([w, h]) * padding


def crop_matrix(
    box, size: Size, padding: float = 1.25, scale: float = 1.0, rotation: float = 0.0, flip: bool = False
) -> np.ndarray:
    """(2, 3) picture -> crop: the padded box, `scale` times as large, fills `size`.

    Args:
        box: (x, y, width, height), picture pixels.
        size: (width, height) of the crop in pixels.
        scale: > 1 shows more of the picture. rotation: degrees, turns the content clockwise as seen.
        flip: mirrors the crop left to right, after the rotation.
    """
    centre, extent = crop_region(box, size, padding)
    s = size[0] / (extent[0] * scale)
    angle = np.deg2rad(rotation)
    c, d = s * np.cos(angle), s * np.sin(angle)
    linear = np.array([[c, -d], [d, c]])
    matrix = np.column_stack([linear, np.array(size) / 2 - linear @ centre])
    return compose(flip_matrix(size[0]), matrix) if flip else matrix


def flip_matrix(width: float) -> np.ndarray:
    """(2, 3): x' = width - x."""
    return np.array([[-1.0, 0.0, width], [0.0, 1.0, 0.0]])


def translation(x: float, y: float) -> np.ndarray:
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y]])


def scaling(x: float, y: float) -> np.ndarray:
    return np.array([[x, 0.0, 0.0], [0.0, y, 0.0]])


def compose(*matrices: np.ndarray) -> np.ndarray:
    """The (2, 3) map that applies the last matrix first: compose(A, B)(x) = A(B(x))."""
    out = matrices[0]
    for m in matrices[1:]:
        last = out[:, 2]
        out = out[:, :2] @ m
        out[:, 2] += last
    return out


def invert(matrix: np.ndarray) -> np.ndarray:
    """The exact inverse of a (2, 3) affine; (B, 2, 3) works as well."""
    linear = np.linalg.inv(matrix[..., :2])
    return np.concatenate([linear, -linear @ matrix[..., 2:]], axis=-1)


def transform(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (..., N, 2) through a (2, 3) or a matching (..., 2, 3) matrix; float64."""
    matrix = np.asarray(matrix, np.float64)
    return np.asarray(points, np.float64) @ np.swapaxes(matrix[..., :2], -1, -2) + matrix[..., None, :, 2]


def to_opencv(matrix: np.ndarray) -> np.ndarray:
    """T(-1/2) M T(1/2): the same map for OpenCV, whose coordinates are pixel indices."""
    return compose(translation(-0.5, -0.5), matrix, translation(0.5, 0.5))


def reduction(matrix: np.ndarray) -> float:
    """Picture pixels per crop pixel, the square root of the area ratio."""
    return 1.0 / float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))


def covered(matrix: np.ndarray, size: Size, margin: float = 2.0) -> tuple[int, int, int, int]:
    """Integer window (x0, y0, x1, y1) of the picture that holds all pixels which a crop reads."""
    w, h = size
    corners = transform(invert(matrix), np.array([[0, 0], [w, 0], [0, h], [w, h]], float))
    x0, y0 = np.floor(corners.min(0) - margin).astype(int)
    x1, y1 = np.ceil(corners.max(0) + margin).astype(int)
    return int(x0), int(y0), int(x1), int(y1)


def box_of_points(points: np.ndarray, least: float = 1.0) -> np.ndarray:
    """(4,) smallest (x, y, width, height) around (N, 2) points, at least `least` wide and high."""
    low, high = points.min(0).astype(np.float64), points.max(0).astype(np.float64)
    grow = np.maximum(least - (high - low), 0) / 2
    return np.concatenate([low - grow, high - low + 2 * grow])
