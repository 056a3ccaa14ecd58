"""Skeletons over pictures, and contact sheets of labelled tiles.

The person's left side is warm, the right side cool, the middle pale; persons of tracks have lines in the track's colour, joints
as ever, and the track's number. Lines are drawn on an enlarged layer that is brought down
again, so that they are smooth, may be thinner than one pixel, and scale with the person.
"""

from __future__ import annotations

import colorsys
from functools import lru_cache

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lowpose.errors import LowposeError
from lowpose.samples import PoseResult
from lowpose.skeletons import Skeleton

LEFT, RIGHT, MIDDLE = (255, 128, 20), (40, 170, 255), (240, 240, 215)  # RGB
TRUTH, OUTLINE, BOX = (255, 255, 255), (20, 20, 25), (120, 255, 120)
PAPER, INK, PALE = (250, 250, 248), (35, 35, 40), (120, 120, 125)  # of sheets
GOLDEN = 0.6180339887498949  # of the circle, from one track's colour to the next
_SHIFT = 4  # binary places of the coordinates that OpenCV draws with


def draw_poses(
    image: np.ndarray, result: PoseResult, *, threshold: float = 0.05, boxes: bool = False, scale: float | None = None
) -> np.ndarray:
    """A copy of the picture with every person's skeleton, and with the numbers of tracks where there is room beside the boxes.

    Args:
        image: (H, W, 3) uint8 RGB. threshold: joints with a lower score, and the lines to them, are left out.
        boxes: draws the boxes as thin frames. scale: enlarges the picture first, so that small persons can be seen.

    Returns: (round(scale H), round(scale W), 3) uint8 RGB.
    """
    scale = 1.0 if scale is None else float(scale)
    out = _enlarge(image, scale, cv2.INTER_CUBIC) if scale != 1 else image.copy()
    factor = np.array([out.shape[1] / image.shape[1], out.shape[0] / image.shape[0]])
    frames = np.asarray(result.boxes, float).reshape(-1, 4) * np.tile(factor, 2)
    ids = [-1] * len(result) if result.ids is None else [int(i) for i in result.ids]
    if boxes:
        thickness = max(1, round(max(out.shape[:2]) / 1000))
        for (x, y, w, h), track in zip(frames, ids, strict=True):
            colour = BOX if track < 0 else track_colour(track)
            cv2.rectangle(out, _fixed([x, y]), _fixed([x + w, y + h]), colour, thickness, cv2.LINE_AA, _SHIFT)
    for points, scores, track in zip(result.keypoints, result.scores, ids, strict=True):
        own = None if track < 0 else track_colour(track)
        _draw_person(out, np.asarray(points, float) * factor, np.asarray(scores) >= threshold, result.skeleton, own=own)
    _numbers(out, frames, ids)
    return out


def track_colour(track: int) -> tuple[int, int, int]:
    """RGB of a track, the same in every frame; ids that follow each other are far apart on the colour circle."""
    r, g, b = colorsys.hsv_to_rgb(track * GOLDEN % 1, 0.62, 1.0)
    return round(255 * r), round(255 * g), round(255 * b)


def draw_crop(
    crop: np.ndarray,
    keypoints: np.ndarray | None,
    scores: np.ndarray | None,
    skeleton: Skeleton,
    size: int = 192,
    gt: np.ndarray | None = None,
    threshold: float = 0.05,
    smooth: bool = False,
) -> np.ndarray:
    """A crop, enlarged until its longer side is `size`, with the predicted skeleton and the true one (dashed, white).

    Args:
        crop: (h, w, 3) uint8 RGB. keypoints: (K, 2) crop pixels, (x, y), or None. scores: (K,), or None to draw all joints.
        gt: (K, 2) crop pixels, NaN for joints that are not labelled.
        smooth: enlarges by cubic interpolation; otherwise one sees the pixels that the model gets.

    Returns: (h', w', 3) uint8 RGB.
    """
    factor = size / max(crop.shape[:2])
    out = _enlarge(crop, factor, cv2.INTER_CUBIC if smooth else cv2.INTER_NEAREST)
    if gt is not None:
        _draw_person(out, np.asarray(gt, float) * factor, np.ones(len(skeleton), bool), skeleton, truth=True)
    if keypoints is not None:
        shown = np.ones(len(skeleton), bool) if scores is None else np.asarray(scores) >= threshold
        _draw_person(out, np.asarray(keypoints, float) * factor, shown, skeleton)
    return out


def contact_sheet(
    tiles: list[np.ndarray | None],
    columns: int,
    titles: list[str] | None = None,
    caption: str | None = None,
    tile: int = 192,
    rows: list[str] | None = None,
    legend: bool = False,
) -> np.ndarray:
    """Tiles in rows on pale paper, each in the middle of a square of `tile` pixels.

    Args:
        tiles: (h, w, 3) uint8 RGB each, row by row; larger ones are brought down to fit; None leaves a place empty.
        titles: one short line under each tile. caption: above all, wrapped at the sheet's width.
        rows: one label to the left of each row. legend: explains the colours at the bottom.

    Returns: (H, W, 3) uint8 RGB. Raises: LowposeError if titles or rows do not fit the number of tiles.
    """
    count = -(-len(tiles) // columns) if columns > 0 else 0
    for what, given, wanted in (("titles", titles, len(tiles)), ("row labels", rows, count)):
        if given is not None and len(given) != wanted:
            raise LowposeError(f"contact sheet: {len(given)} {what} for {wanted} {'tiles' if what == 'titles' else 'rows'}")
    if count == 0:
        raise LowposeError("contact sheet: no tiles, or no columns")
    gap, text = max(6, tile // 24), max(12, round(tile / 13))
    font = ImageFont.load_default(text)
    big = ImageFont.load_default(round(text * 1.25))
    left = gap + (max(int(font.getlength(r)) for r in rows) + 2 * gap if rows else 0)
    width = left + columns * (tile + gap)
    step = tile + gap + (text + gap if titles else 0)
    lines = _wrap(caption, big, width - 2 * gap) if caption else []
    top = gap + (len(lines) * round(text * 1.6) + gap if lines else 0)
    height = top + count * step + (round(text * 1.2) + gap if legend else 0)
    page = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(page)
    for i, line in enumerate(lines):
        pen.text((gap, gap + i * round(text * 1.6)), line, INK, big)
    for i, picture in enumerate(tiles):
        x, y = left + i % columns * (tile + gap), top + i // columns * step
        if picture is not None:
            fitted = _fit(picture, tile)
            page.paste(Image.fromarray(fitted), (x + (tile - fitted.shape[1]) // 2, y + (tile - fitted.shape[0]) // 2))
        if titles:
            pen.text((x + tile // 2, y + tile + gap // 3), _shorten(titles[i], font, tile), INK, font, anchor="ma")
    for i, label in enumerate(rows or []):
        pen.text((gap, top + i * step + tile // 2), label, INK, font, anchor="lm")
    if legend:
        _legend(pen, left, height - gap - text // 2, text, font)
    return np.array(page)


# --- one person -----------------------------------------------------------------------------------------------------


def _sides(skeleton: Skeleton) -> list[tuple[int, int, int] | None]:
    """Colour of each joint; None in the middle."""
    colours: list[tuple[int, int, int] | None] = [None] * len(skeleton)
    for a, b in skeleton.pairs:
        colours[a], colours[b] = LEFT, RIGHT
    return colours


def _draw_person(
    out: np.ndarray,
    points: np.ndarray,
    shown: np.ndarray,
    skeleton: Skeleton,
    truth: bool = False,
    own: tuple[int, int, int] | None = None,
) -> None:
    """Draw one skeleton into `out`. points: (K, 2) pixels of `out`; shown: (K,) bool; own: colour of all its lines."""
    height, width = out.shape[:2]
    reach = 4.0 * max(height, width)  # points farther away than that cannot be drawn in whole numbers
    with np.errstate(invalid="ignore"):
        shown = shown & np.isfinite(points).all(1) & (np.abs(points) < reach).all(1)
    if not shown.any():
        return
    seen = points[shown]
    length = float(np.linalg.norm(np.ptp(seen, axis=0))) if len(seen) > 1 else 0.05 * max(height, width)
    thick = float(np.clip(0.017 * length / (1 + length / 900), 0.7, 9.0)) * (0.55 if truth else 1.0)
    margin = 4 * thick + 2
    x0, y0 = np.maximum(np.floor(seen.min(0) - margin), 0).astype(int)
    x1, y1 = np.minimum(np.ceil(seen.max(0) + margin), [width, height]).astype(int)
    if x0 >= x1 or y0 >= y1:
        return
    finer = 4 if thick < 3 else 2
    layer = np.zeros(((y1 - y0) * finer, (x1 - x0) * finer, 4), np.uint8)
    _strokes(layer, (points - [x0, y0]) * finer, shown, skeleton, thick * finer, truth, own)
    small = cv2.resize(layer, (x1 - x0, y1 - y0), interpolation=cv2.INTER_AREA).astype(np.float32)
    window = out[y0:y1, x0:x1]
    # the layer is empty where nothing is drawn, so its mean is already the colour times the covered part
    window[:] = np.clip(np.rint(small[..., :3] + window * (1 - small[..., 3:] / 255)), 0, 255).astype(np.uint8)


def _strokes(
    layer: np.ndarray,
    points: np.ndarray,
    shown: np.ndarray,
    skeleton: Skeleton,
    thick: float,
    truth: bool,
    own: tuple[int, int, int] | None,
) -> None:
    """Lines and joints on an empty (h, w, 4) layer of colour and coverage: first a dark rim, then the colours."""
    sides = _sides(skeleton)
    lines = []
    for a, b in skeleton.edges:
        if shown[a] and shown[b]:
            one = {side for side in (sides[a], sides[b]) if side is not None}
            lines.append((points[a], points[b], own or (one.pop() if len(one) == 1 else MIDDLE)))
    joints = [(points[k], sides[k] or MIDDLE) for k in np.flatnonzero(shown)]
    rim = max(0.35 * thick, 1.0)
    for extra, colour in ((2 * rim, OUTLINE), (0.0, None)):
        for a, b, its in lines:
            for p, q in _dashes(a, b, thick) if truth else [(a, b)]:
                ink = (*(colour or (TRUTH if truth else its)), 255)
                _bar(layer, p, q, thick + extra, ink)
        for p, its in joints:
            radius = (1.15 if truth else 1.25) * thick + extra / 2
            ink = (*(colour or (TRUTH if truth else its)), 255)
            cv2.circle(layer, _fixed(p), round(radius * 2**_SHIFT), ink, -1, cv2.LINE_8, _SHIFT)


def _bar(layer: np.ndarray, a: np.ndarray, b: np.ndarray, thick: float, ink: tuple[int, ...]) -> None:
    """A line as a polygon: OpenCV's own lines come in odd whole widths only."""
    along = (b - a) / max(float(np.linalg.norm(b - a)), 1e-9)
    across = np.array([-along[1], along[0]]) * max(thick - 1, 0) / 2  # filling adds the pixels of the rim, half on each side
    corners = np.array([_fixed(p) for p in (a + across, b + across, b - across, a - across)], np.int32)
    cv2.fillConvexPoly(layer, corners, ink, cv2.LINE_8, _SHIFT)


def _dashes(a: np.ndarray, b: np.ndarray, thick: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """Short pieces of the line from a to b, as long as the gaps between them."""
    count = int(np.linalg.norm(b - a) / (5 * thick))
    ends = np.linspace(0, 1, 2 * count + 2)
    return [(a + (b - a) * s, a + (b - a) * t) for s, t in zip(ends[::2], ends[1::2], strict=True)]


def _fixed(point) -> tuple[int, int]:
    """OpenCV's coordinates (pixel indices, _SHIFT binary places) of a point in continuous pixels."""
    x, y = np.rint((np.asarray(point, float) - 0.5) * 2**_SHIFT).astype(int)
    return int(x), int(y)


# --- tracks ---------------------------------------------------------------------------------------------------------


def _numbers(out: np.ndarray, boxes: np.ndarray, ids: list[int]) -> None:
    """The number of each track above, below or beside its box, where it covers neither a box nor another number."""
    taken = [(x, y, x + w, y + h) for x, y, w, h in boxes]
    for (x, y, w, h), track in zip(boxes, ids, strict=True):
        if track < 0:
            continue
        font = _font(round(float(np.clip(0.2 * h, 11, 28))))
        width, height = int(font.getlength(str(track))) + 5, round(font.size) + 4
        middle = x + (w - width) / 2
        for left, top in ((middle, y - height), (middle, y + h), (x - width, y), (x + w, y)):
            left, top = round(left), round(top)
            place = (left, top, left + width, top + height)
            inside = left >= 0 and top >= 0 and place[2] <= out.shape[1] and place[3] <= out.shape[0]
            if inside and not any(_overlap(place, other) for other in taken):
                taken.append(place)
                patch = Image.fromarray(out[top : place[3], left : place[2]])
                pen = ImageDraw.Draw(patch)
                at = (width / 2, height / 2)
                pen.text(at, str(track), track_colour(track), font, anchor="mm", stroke_width=1, stroke_fill=OUTLINE)
                out[top : place[3], left : place[2]] = patch
                break


@lru_cache(maxsize=32)
def _font(size: int) -> ImageFont.FreeTypeFont:
    """Reading the font takes longer than drawing a number with it."""
    return ImageFont.load_default(size)


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    """Whether two rectangles, x0, y0, x1, y1, share more than half a pixel in both directions."""
    return min(a[2], b[2]) - max(a[0], b[0]) > 0.5 and min(a[3], b[3]) - max(a[1], b[1]) > 0.5


# --- sheets ---------------------------------------------------------------------------------------------------------


def _enlarge(image: np.ndarray, factor: float, method: int) -> np.ndarray:
    size = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
    return cv2.resize(image, size, interpolation=method if factor > 1 else cv2.INTER_AREA)


def _fit(picture: np.ndarray, tile: int) -> np.ndarray:
    longest = max(picture.shape[:2])
    return picture if longest <= tile else _enlarge(picture, tile / longest, cv2.INTER_AREA)


def _shorten(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text.rstrip() + "..."


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    lines: list[str] = []
    for paragraph in text.splitlines():
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}".strip()
            if line and font.getlength(longer) > width:
                lines.append(line)
                longer = word
            line = longer
        lines.append(_shorten(line, font, width))
    return lines


def _legend(pen: ImageDraw.ImageDraw, x: int, y: int, text: int, font: ImageFont.FreeTypeFont) -> None:
    for label, colour in (("left", LEFT), ("right", RIGHT), ("middle", MIDDLE), ("truth (dashed)", TRUTH)):
        pen.rounded_rectangle((x, y - text // 3, x + 2 * text, y + text // 3), text // 4, colour, PALE)
        pen.text((x + 2.5 * text, y), label, INK, font, anchor="lm")
        x += int(4.5 * text + font.getlength(label))
