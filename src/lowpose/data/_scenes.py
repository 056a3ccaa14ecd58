"""What surrounds synthetic people: backgrounds, things behind and in front of them, and the camera's look."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from lowpose.data._people import cloth_colour

SHIFT = 4  # OpenCV draws with 4 fractional bits


def polygon(image: np.ndarray, points: np.ndarray, colour) -> None:
    """Fills a convex polygon (N, 2), continuous pixels, with smooth edges, in place."""
    fixed = np.round((np.asarray(points, float) - 0.5) * (1 << SHIFT)).astype(np.int32)
    cv2.fillConvexPoly(image, fixed, [float(c) for c in colour], cv2.LINE_AA, SHIFT)


def rectangle(x: float, y: float, w: float, h: float, degrees: float = 0.0) -> np.ndarray:
    """(4, 2) corners of a rectangle about its centre x, y."""
    a = np.deg2rad(degrees)
    corners = np.array([[-w, -h], [w, -h], [w, h], [-w, h]]) / 2
    return corners @ np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]]) + (x, y)


def ellipse(x: float, y: float, a: float, b: float, n: int = 20) -> np.ndarray:
    """(n, 2) points around an ellipse of half axes a, b."""
    t = np.arange(n) * (2 * np.pi / n)
    return np.column_stack([x + a * np.cos(t), y + b * np.sin(t)])


def noise(rng: np.random.Generator, size: tuple[int, int], cells: tuple[int, int], octaves: int = 3) -> np.ndarray:
    """(H, W) float32 in about -1..1: smooth noise, each octave twice as fine and half as strong. cells: across, down."""
    out = np.zeros(size[::-1], np.float32)
    for k in range(octaves):
        across, down = min(cells[0] << k, size[0]), min(cells[1] << k, size[1])
        grid = rng.random((max(down, 2), max(across, 2)), dtype=np.float32) - 0.5
        out += cv2.resize(grid, size, interpolation=cv2.INTER_CUBIC if k == 0 else cv2.INTER_LINEAR) * (1.3 * 0.55**k)
    return out


def _pick(rng, *colours) -> np.ndarray:
    return np.array(colours[int(len(colours) * rng.random())], float) * rng.uniform(0.85, 1.12) + rng.normal(0, 5, 3)


def _ramp(image: np.ndarray, top: int, bottom: int, first, last) -> None:
    t = np.linspace(0, 1, max(bottom - top, 1), dtype=np.float32)[: max(bottom - top, 0), None, None]
    image[top:bottom] = np.clip((1 - t) * np.asarray(first, np.float32) + t * np.asarray(last, np.float32), 0, 255)


def _tree(rng, image, x: float, foot: float, tall: float) -> None:
    polygon(image, rectangle(x, foot - tall * 0.25, tall * 0.07, tall * 0.5), _pick(rng, (92, 70, 50), (70, 56, 44)))
    leaf = _pick(rng, (60, 92, 44), (84, 112, 52), (44, 78, 50), (150, 112, 50))
    for k in range(14):  # from dark and low to light and high
        dx, dy = rng.normal(0, 0.16, 2) * tall
        r = tall * rng.uniform(0.08, 0.2) * (1 - 0.03 * k)
        tone = 0.7 + 0.035 * k + rng.normal(0, 0.05)
        polygon(image, ellipse(x + dx, foot - (0.64 + 0.008 * k) * tall + dy, r, r), np.clip(leaf * tone, 0, 255))


def _building(rng, image, x: float, foot: float, w: float, h: float) -> None:
    wall = _pick(rng, (168, 150, 132), (140, 144, 150), (178, 110, 84), (206, 198, 182), (112, 116, 124))
    polygon(image, rectangle(x, foot - h / 2, w, h), np.clip(wall, 0, 255))
    pane = np.clip(wall * rng.uniform(0.4, 0.65) + (0, 5, 16), 0, 255)
    nx, ny = max(int(w / rng.uniform(11, 20)), 1), max(int(h / rng.uniform(14, 24)), 1)
    for i in range(nx):
        for k in range(ny):
            middle = x - w / 2 + (i + 0.5) * w / nx, foot - h + (k + 0.5) * h / ny
            polygon(image, rectangle(*middle, 0.5 * w / nx, 0.55 * h / ny), pane)


_SKIES = (
    ((96, 148, 208), (196, 216, 232)),
    ((168, 176, 186), (212, 214, 214)),
    ((120, 130, 170), (238, 190, 150)),
    ((60, 110, 180), (150, 190, 220)),
)  # zenith, horizon
_GROUNDS = (104, 128, 66), (124, 122, 118), (196, 178, 138), (84, 112, 60), (140, 118, 90), (226, 228, 232), (90, 92, 98)


def _outdoors(rng, image, size, line: int) -> np.ndarray:
    w, h = size
    _ramp(image, 0, line, *_SKIES[int(len(_SKIES) * rng.random())])
    ground = _pick(rng, *_GROUNDS)
    _ramp(image, line, h, ground * 0.86, ground)
    kind = rng.random()
    for x in np.sort(rng.uniform(-0.05, 1.05, int(rng.integers(1, 7)))) * w:
        if kind < 0.45:
            _tree(rng, image, x, line + h * rng.uniform(0, 0.06), h * rng.uniform(0.25, 0.6))
        elif kind < 0.8:
            _building(rng, image, x, line + 1, w * rng.uniform(0.15, 0.4), h * rng.uniform(0.15, 0.6))
        else:
            hill = _pick(rng, (96, 116, 96), (116, 122, 140), (86, 100, 66))
            shape = ellipse(x, line + 2, w * rng.uniform(0.2, 0.5), h * rng.uniform(0.05, 0.22), 32)
            polygon(image, shape[16:], np.clip(hill, 0, 255))
    if rng.random() < 0.35:
        _fence(rng, image, size, line)
    grain = noise(rng, size, (3, 3), 3)
    grain[line:] = 1.4 * noise(rng, (w, h - line), (5, 14), 4)
    return grain


def _fence(rng, image, size, line: int) -> None:
    w, h = size
    colour = np.clip(_pick(rng, (190, 186, 180), (96, 76, 56), (60, 64, 70)), 0, 255)
    step, tall = rng.uniform(0.04, 0.14) * w, rng.uniform(0.06, 0.2) * h
    for x in np.arange(rng.uniform(0, step), w, step):
        polygon(image, rectangle(x, line - tall * 0.3, 0.012 * w, tall), colour)
    for y in (line - tall * 0.65, line - tall * 0.1):
        polygon(image, rectangle(w / 2, y, w, 0.012 * h), colour)


def _indoors(rng, image, size, line: int) -> np.ndarray:
    w, h = size
    wall = _pick(rng, (206, 198, 184), (184, 196, 200), (212, 188, 160), (150, 166, 150), (120, 124, 134), (196, 160, 150))
    _ramp(image, 0, line, wall * 1.04, wall * 0.92)
    if rng.random() < 0.4:
        step = rng.uniform(0.03, 0.12) * w
        for x in np.arange(rng.uniform(0, step), w, step):
            polygon(image, rectangle(x, line / 2, step * 0.45, line), np.clip(wall * 0.92, 0, 255))
    _floor(rng, image, size, line)
    for _ in range(int(rng.integers(1, 6))):
        x, colour = rng.uniform(0, w), cloth_colour(rng)
        kind = int(5 * rng.random())
        if kind == 0:  # a picture on the wall
            a, b, y = w * rng.uniform(0.06, 0.14), h * rng.uniform(0.06, 0.14), line * rng.uniform(0.2, 0.5)
            polygon(image, rectangle(x, y, 2 * a, 2 * b), (50, 40, 34))
            polygon(image, rectangle(x, y, 1.75 * a, 1.75 * b), colour)
            polygon(image, ellipse(x, y, 0.5 * a, 0.6 * b), cloth_colour(rng))
        elif kind == 1:  # a window
            a, y = w * rng.uniform(0.15, 0.3), line * 0.4
            polygon(image, rectangle(x, y, a, line * 0.6), (236, 236, 230))
            for dx in (-0.23, 0.23):
                polygon(image, rectangle(x + dx * a, y, 0.4 * a, line * 0.54), (176, 206, 228))
        elif kind == 2:
            _shelf(rng, image, x, line, w * rng.uniform(0.16, 0.34), h * rng.uniform(0.25, 0.5))
        elif kind == 3:  # a door
            polygon(image, rectangle(x, line - 0.24 * h, 0.2 * w, 0.5 * h), np.clip(wall * 0.72, 0, 255))
            polygon(image, ellipse(x + 0.08 * w, line - 0.22 * h, 2, 2), (220, 200, 120))
        else:  # a cupboard or sofa
            a, b = w * rng.uniform(0.15, 0.4), h * rng.uniform(0.1, 0.25)
            polygon(image, rectangle(x, line + 0.2 * b, a, 1.6 * b), np.clip(colour * 0.8, 0, 255))
            polygon(image, rectangle(x, line + 0.6 * b, a, 0.8 * b), colour)
    return 0.5 * noise(rng, size, (3, 3), 4)


def _floor(rng, image, size, line: int) -> None:
    w, h = size
    a = _pick(rng, (160, 122, 84), (190, 182, 170), (110, 96, 84), (140, 144, 150))
    b = a * rng.uniform(0.72, 0.95)
    y = (np.arange(line, h) + 0.5 - line)[:, None]
    far = h * rng.uniform(0.1, 0.3) / (y + 0.04 * h)  # rows of the floor lie ever farther apart towards the viewer
    u = (np.arange(w) + 0.5 - w * rng.uniform(0.2, 0.8))[None] * far / (w * rng.uniform(0.03, 0.1))
    v = far * rng.uniform(2, 7)
    on = (u % 1 < 0.5) ^ (v % 1 < 0.5) if rng.random() < 0.4 else (u % 1 < 0.5) & (far < 2)
    image[line:] = np.clip(np.where(on[..., None], a, b), 0, 255)
    polygon(image, rectangle(w / 2, line, w, 0.02 * h), np.clip(b * 0.8 + 30, 0, 255))


def _shelf(rng, image, x: float, foot: float, w: float, h: float) -> None:
    wood = _pick(rng, (120, 84, 52), (200, 190, 176), (70, 52, 40))
    polygon(image, rectangle(x, foot - h / 2, w, h), np.clip(wood, 0, 255))
    rows = int(rng.integers(2, 5))
    for k in range(rows):
        polygon(image, rectangle(x, foot - h + (k + 0.5) * h / rows, 0.92 * w, 0.86 * h / rows), np.clip(wood * 0.5, 0, 255))
        for left in np.arange(-0.44, 0.42, 0.09):
            if rng.random() < 0.8:
                tall, board = rng.uniform(0.4, 0.75) * h / rows, foot - h + (k + 0.93) * h / rows
                polygon(image, rectangle(x + (left + 0.04) * w, board - tall / 2, 0.075 * w, tall), cloth_colour(rng))


def _field(rng, image, size, line: int) -> np.ndarray:
    """A sports ground with mown stripes, painted lines and a stand full of people."""
    w, h = size
    line, cell = min(line, int(0.55 * h)), max(h // 50, 2)
    shape = line // cell + 2, w // cell + 2
    grid = rng.integers(0, 60, (*shape, 1), dtype=np.uint8) + rng.integers(0, 110, (*shape, 3), dtype=np.uint8)
    image[:line] = cv2.resize(grid, (w, line), interpolation=cv2.INTER_LINEAR) + 20
    turf = _pick(rng, (76, 128, 62), (170, 92, 64), (66, 110, 140), (96, 140, 76))
    _ramp(image, line, h, turf * 0.9, turf)
    middle, step, fan = w * rng.uniform(0.2, 0.8), rng.uniform(0.08, 0.2) * w, rng.uniform(1.5, 4)
    for k in range(-7, 8):
        x = np.array([k, k + 0.5]) * step
        stripe = np.array([[middle + x[0], line], [middle + x[1], line], [middle + fan * x[1], h], [middle + fan * x[0], h]])
        polygon(image, stripe, np.clip(turf * 1.09, 0, 255))
    polygon(image, rectangle(w / 2, line, w * 1.2, 0.05 * h, rng.normal(0, 1)), cloth_colour(rng))
    for _ in range(int(rng.integers(1, 4))):
        polygon(image, rectangle(w * rng.random(), h * rng.uniform(0.5, 1), 2 * w, 0.015 * h, rng.normal(0, 25)), (228, 230, 226))
    return 0.8 * noise(rng, size, (6, 12), 4)


def _abstract(rng, image, size, line: int) -> np.ndarray:
    """Blobs and patches of a few colours: anything out of focus."""
    w, h = size
    first, second, third = ((0.6 * cloth_colour(rng) + 50).astype(np.float32) for _ in range(3))
    t = np.clip(noise(rng, size, (2, 2), 4) * 1.2 + 0.5, 0, 1)[..., None]
    s = np.clip(noise(rng, size, (3, 3), 3) * 1.5, 0, 1)[..., None]
    mixed = (1 - t) * first + t * second
    image[:] = np.clip(mixed + s * (third - mixed), 0, 255)
    for _ in range(int(rng.integers(0, 10))):
        x, y, a, b = rng.uniform(0, w), rng.uniform(0, h), *(rng.uniform(0.02, 0.2, 2) * h)
        shape = rectangle(x, y, a, b, rng.uniform(0, 180)) if rng.random() < 0.5 else ellipse(x, y, a / 2, b / 2)
        polygon(image, shape, cloth_colour(rng))
    return 0.7 * noise(rng, size, (8, 8), 4)


_PLACES = ((0.38, _outdoors), (0.72, _indoors), (0.9, _field), (1.0, _abstract))  # cumulative shares


def draw_background(rng: np.random.Generator, size: tuple[int, int], horizon: float) -> np.ndarray:
    """(H, W, 3) float32 RGB 0..255 of a place without people. size: (width, height); horizon: y of where the ground begins."""
    image = np.zeros((size[1], size[0], 3), np.uint8)
    line, pick = int(np.clip(horizon, 0.12 * size[1], 0.85 * size[1])), rng.random()
    grain = next(place for share, place in _PLACES if pick < share)(rng, image, size, line)
    for _ in range(int(5 * rng.random() ** 2)):
        _clutter(rng, image, size)
    if rng.random() < 0.5:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.5, 2.0))
    grain = cv2.cvtColor(1 + np.float32(rng.uniform(0.08, 0.22)) * grain, cv2.COLOR_GRAY2RGB)
    return cv2.multiply(image, grain, dtype=cv2.CV_32F)


def _clutter(rng, image, size) -> None:
    """Poles, boxes, balls, and bent sticks in the colours of limbs."""
    w, h = size
    x, y, kind = rng.uniform(0, w), rng.uniform(0.2, 1) * h, int(4 * rng.random())
    colour = cloth_colour(rng) if rng.random() < 0.6 else _pick(rng, (222, 176, 144), (140, 94, 66), (90, 60, 44))
    if kind == 0:
        thick, tall = rng.uniform(0.008, 0.03) * w, rng.uniform(0.3, 0.9) * h
        for k, tone in ((1.0, 0.7), (0.6, 1.0), (0.25, 1.15)):
            polygon(image, rectangle(x, y - tall / 2, thick * k, tall, 0), np.clip(colour * tone, 0, 255))
    elif kind == 1:
        a, b = rng.uniform(0.06, 0.2, 2) * h
        lid = np.array([[-a, -b], [a, -b], [a * 0.8, -b - 0.3 * a], [-a * 0.8, -b - 0.3 * a]]) / 2 + (x, y)
        polygon(image, rectangle(x, y, a, b), np.clip(colour, 0, 255))
        polygon(image, lid, np.clip(colour * 1.2, 0, 255))
    elif kind == 2:
        r = rng.uniform(0.015, 0.05) * h
        polygon(image, ellipse(x, y, r, r), np.clip(colour * 0.8, 0, 255))
        polygon(image, ellipse(x - 0.2 * r, y - 0.25 * r, 0.65 * r, 0.65 * r), np.clip(colour * 1.1, 0, 255))
    else:
        steps = rng.normal(0, 0.12, (3, 2)) * h
        path = np.round((np.cumsum(np.vstack([[x, y], steps]), 0) - 0.5) * (1 << SHIFT)).astype(np.int32)
        for thick, tone in ((0.028, 0.75), (0.017, 1.0)):
            tint = np.clip(colour * tone, 0, 255).tolist()
            cv2.polylines(image, [path], False, tint, max(int(thick * h), 1), cv2.LINE_AA, SHIFT)


@dataclass
class Occluder:
    """Something in front of the person: convex polygons (N, 2), continuous pixels, each of one colour (3,)."""

    parts: list[tuple[np.ndarray, np.ndarray]]

    def covers(self, x: float, y: float) -> bool:
        return any(cv2.pointPolygonTest(p.astype(np.float32), (float(x), float(y)), False) >= 0 for p, _ in self.parts)

    def paint(self, canvas: np.ndarray) -> None:
        for points, colour in self.parts:
            polygon(canvas, points, colour)


def draw_occluder(rng: np.random.Generator, extent: np.ndarray) -> Occluder:
    """A pole, crate, bush or board that covers a part of a person whose silhouette spans `extent` (x0, y0, x1, y1)."""
    x0, y0, x1, y1 = extent
    w, h = x1 - x0, y1 - y0
    long = max(w, h)
    x, kind, colour = rng.uniform(x0 + 0.1 * w, x1 - 0.1 * w), int(4 * rng.random()), cloth_colour(rng) * 0.8 + 25
    if kind == 0:
        thick, tilt, bands = (
            long * rng.uniform(0.02, 0.06),
            rng.normal(0, 4),
            ((0, 1, 0.75), (-0.08, 0.6, 1.0), (-0.15, 0.2, 1.1)),
        )
        return Occluder([(rectangle(x + d * thick, y0, thick * k, 3 * long, tilt), colour * t) for d, k, t in bands])
    if kind == 1:
        a, b = long * rng.uniform(0.2, 0.5), long * rng.uniform(0.15, 0.35)
        y = y1 - b * rng.uniform(0, 0.4)
        top = np.array([[-a / 2, -b / 2], [a / 2, -b / 2], [a * 0.43, -b * 0.68], [-a * 0.43, -b * 0.68]]) + (x, y)
        return Occluder([(top, colour * 1.15), (rectangle(x, y, a, b), colour), (rectangle(x, y, a, b * 0.1), colour * 0.8)])
    if kind == 2:
        leaf, parts = _pick(rng, (66, 98, 48), (90, 110, 56), (48, 80, 52)), []
        for _ in range(12):
            dx, dy, r = long * rng.normal(0, 0.12), long * abs(rng.normal(0, 0.09)), long * rng.uniform(0.04, 0.1)
            parts.append((ellipse(x + dx, y1 - dy, r, 0.8 * r, 14), np.clip(leaf * rng.uniform(0.65, 1.3), 0, 255)))
        return Occluder(parts)
    y, turn = rng.uniform(y0 + 0.2 * h, y1), rng.normal(0, 30)
    a, b = long * rng.uniform(0.2, 0.6), long * rng.uniform(0.05, 0.14)
    return Occluder([(rectangle(x, y, a, b, turn), colour), (rectangle(x, y, a * 0.97, b * 0.4, turn), colour * 0.88)])


def shadow(canvas: np.ndarray, x: float, y: float, reach: float, strength: float) -> None:
    """A soft dark ellipse on the ground about x, y, `reach` pixels to each side, in place."""
    h, w = canvas.shape[:2]
    top, bottom = np.clip((y - 0.4 * reach, y + 0.4 * reach), 0, h).astype(int)
    left, right = np.clip((x - 1.3 * reach, x + 1.3 * reach), 0, w).astype(int)
    across = (np.arange(left, right, dtype=np.float32) + 0.5 - x) / reach
    down = (np.arange(top, bottom, dtype=np.float32) + 0.5 - y) / (0.26 * reach)
    dark = np.exp(-1.6 * (across**2)[None] - 1.6 * (down**2)[:, None])
    canvas[top:bottom, left:right] *= (1 - strength * dark)[..., None]


def camera(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8: the picture with a lens's blur, exposure, colour cast and sensor noise."""
    out = cv2.GaussianBlur(canvas, (5, 5), rng.uniform(0.3, 0.9)) if rng.random() < 0.7 else canvas
    gain, contrast = rng.uniform(0.78, 1.18) * rng.normal(1, 0.04, 3), rng.uniform(0.85, 1.1)
    offset = rng.uniform(-8, 12) + 118 * (1 - contrast)
    out = cv2.transform(out, np.column_stack([np.diag(gain * contrast), np.full(3, offset)]))
    grain, strength = rng.integers(0, 256, out.shape, dtype=np.uint8), rng.uniform(0.005, 0.06)
    return cv2.addWeighted(out, 1.0, grain.astype(np.float32), strength, -127.5 * strength, dtype=cv2.CV_8U)
