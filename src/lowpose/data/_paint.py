"""Paints synthetic people into a picture: shading, patterns of cloth, soft contact shadows, smooth edges."""

from __future__ import annotations

import cv2
import numpy as np

from lowpose.data._people import Person
from lowpose.data._quadrics import BALL


def paint(canvas: np.ndarray, person: Person, light: np.ndarray, rng: np.random.Generator, fine: int = 2) -> None:
    """Draws the person over `canvas` (H, W, 3) float32 RGB 0..255, in place.

    Args:
        light: (3,) unit vector towards the light. fine: samples per pixel and direction.
    """
    boxes = person.solids.boxes()
    low, high = np.floor(boxes[:, :2].min(0)).astype(int), np.ceil(boxes[:, 2:].max(0)).astype(int)
    x0, y0 = np.maximum(low - 1, 0).tolist()
    x1, y1 = np.minimum(high + 1, canvas.shape[1::-1]).tolist()
    if x1 <= x0 or y1 <= y0:
        return
    depth, front = person.solids.cast((x0, y0, x1, y1), fine)
    flat = np.flatnonzero(front.ravel() >= 0)
    if not len(flat):
        return
    which = front.ravel()[flat]
    rows, columns = np.divmod(flat, front.shape[1])
    points = np.empty((3, len(flat)), np.float32)
    points[0] = (columns + 0.5) / fine + x0
    points[1] = (rows + 0.5) / fine + y0
    points[2] = depth.ravel()[flat]
    bright = _shade(person, which, points, light)
    bright *= (_depth_shadow(depth, person.stature * fine) * _folds(rng, front.shape)).ravel()[flat]
    colour = _base_colour(person, which, points)
    colour[:, :3] *= bright[:, None]
    np.minimum(colour, 255, out=colour)
    layer = np.zeros((*front.shape, 4), np.float32)
    layer.reshape(-1, 4)[flat] = colour
    layer = cv2.resize(layer, (x1 - x0, y1 - y0), interpolation=cv2.INTER_AREA)
    through = cv2.cvtColor(1 - layer[..., 3], cv2.COLOR_GRAY2RGB)
    canvas[y0:y1, x0:x1] = canvas[y0:y1, x0:x1] * through + layer[..., :3]


def _base_colour(person: Person, which: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(N, 4) float32 colours of cloth, skin and hair at surface points, and 1."""
    look, solids = person.look, person.solids
    materials = solids.material[which]
    colour = np.pad(look.colours, ((0, 0), (0, 1)), constant_values=1).astype(np.float32)[materials]
    for material, (kind, repeats, second) in look.patterns.items():
        spot = np.flatnonzero(materials == material)
        if len(spot):
            u, v = _cloth_coordinates(person, which[spot], points[:, spot])
            on = _pattern(kind, u * repeats, v * repeats)
            colour[spot[on], :3] = second
    return colour


def _cloth_coordinates(person: Person, which: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(2, N) across and along each solid, in statures, counted from the waist so that the parts of a shirt agree."""
    solids = person.solids
    along = np.where((solids.kind == BALL)[:, None], solids.axes[:, :, 1], solids.axes[:, :, 2])
    frame = np.stack([solids.axes[:, :, 0], along], axis=1)
    frame = (frame / np.linalg.norm(frame, axis=2, keepdims=True) / person.stature).astype(np.float32)
    rest = points - person.joints["waist"].astype(np.float32)[:, None]
    return np.stack([sum(frame[:, i, k][which] * rest[k] for k in range(3)) for i in range(2)])


def _pattern(kind: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """(N,) bool: where the second colour is."""
    if kind == "across":
        return v % 1 < 0.45
    if kind == "along":
        return u % 1 < 0.4
    if kind == "checks":
        return (u % 1 < 0.5) ^ (v % 1 < 0.5)
    if kind == "dots":
        return (u % 1 - 0.5) ** 2 + (v % 1 - 0.5) ** 2 < 0.09
    return u > 0  # halves


def _shade(person: Person, which: np.ndarray, points: np.ndarray, light: np.ndarray) -> np.ndarray:
    """(N,) float32 brightness: light from one side, sky from above, darker where the surface turns away."""
    nx, ny, nz = person.solids.normals(which, points)
    lit = np.maximum(nx * light[0] + ny * light[1] + nz * light[2], 0)
    value = 0.52 + 0.5 * lit - 0.12 * ny
    return value * (0.72 + 0.28 * np.sqrt(np.clip(nz, 0, 1)))


def _depth_shadow(depth: np.ndarray, stature: float) -> np.ndarray:
    """Darker beside parts that stand in front: the mean depth around a pixel, less its own."""
    filled = np.where(np.isfinite(depth), depth, depth[np.isfinite(depth)].min())
    size = max(3, int(0.035 * stature) | 1)
    over = (cv2.blur(filled, (size, size)) - filled) / (0.06 * stature)
    return 1 - 0.55 * np.clip(over, 0, 0.8)


def _folds(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    grid = rng.random((10, 8), dtype=np.float32)
    return 0.9 + 0.2 * cv2.resize(grid, shape[::-1], interpolation=cv2.INTER_LINEAR)
