"""Reading and writing pictures: what a person expects of a file, as (H, W, 3) uint8 RGB.

Ordinary JPEG goes through OpenCV, everything else through Pillow (pictures of 16 bits in several
channels through OpenCV again, because Pillow keeps only their upper byte).

What is expected: EXIF rotation is applied; grey becomes three equal channels; transparent parts stand over
white; 16-bit values are divided by 257, whatever part of the range a camera uses (12-bit data in a 16-bit file
looks dark, as in any viewer); CMYK becomes RGB by (255 - ink)(255 - black) / 255, without colour profiles, and in
JPEG is taken as stored inverted, as Adobe and browsers do; of an animation the first frame counts.
"""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from lowpose.errors import LowposeError
from lowpose.files import os_problem, write_bytes

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".apng", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm", ".pbm", ".jp2", ".avif"}
)
_WRITE = {".png": [], ".jpg": [cv2.IMWRITE_JPEG_QUALITY, 95], ".jpeg": [cv2.IMWRITE_JPEG_QUALITY, 95]}
_STANDALONE = {0x00, 0xFF, 0x01, *range(0xD0, 0xD8)}  # bytes after 0xFF that start no JPEG segment with a length
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # JPEG markers that start a frame


def one_thread(*_: object) -> None:
    """The first thing that a process begun by a fork does.

    OpenCV's threads do not outlive a fork, and a lock that one of them held would never be given back.
    """
    cv2.setNumThreads(0)


def read_image(path: str | Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB. Raises: LowposeError naming a file that is missing, empty, truncated or no picture."""
    try:
        data = Path(path).read_bytes()
    except OSError as e:
        raise os_problem(path, e) from None
    return decode_image(data, str(path))


def decode_image(data: bytes, name: str = "picture") -> np.ndarray:
    """(H, W, 3) uint8 RGB of the content of a picture file; errors call it `name`.

    Raises: LowposeError for data that is empty, truncated or no picture.
    """
    if not data:
        raise LowposeError(f"{name}: the file is empty")
    if data.startswith(b"\xff\xd8"):
        if _jpeg_channels(data, name) in (1, 3):
            return _opencv_jpeg(data, name)
    elif data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"hevc", b"mif1"):
        raise LowposeError(f"{name}: HEIC pictures cannot be read; convert it to JPEG or PNG")
    try:
        with Image.open(io.BytesIO(data), formats=_formats()) as picture:
            return _from_pillow(picture, data, name)
    except LowposeError:
        raise
    except UnidentifiedImageError:
        raise LowposeError(f"{name}: not a picture (or of a kind that cannot be read; JPEG and PNG can)") from None
    except Image.DecompressionBombError:
        raise LowposeError(f"{name}: has more than {2 * Image.MAX_IMAGE_PIXELS // 10**6} million pixels") from None
    except Exception as e:  # Pillow's decoders raise many kinds for a damaged file
        cut = "truncated" in str(e) or isinstance(e, EOFError)
        raise LowposeError(f"{name}: {'truncated' if cut else 'damaged'} picture") from None


def write_image(path: str | Path, image: np.ndarray) -> None:
    """Write (H, W, 3) uint8 RGB as .png or .jpg (quality 95), whole or not at all.

    Raises: LowposeError for another suffix, an array of another form, or a path that cannot be written.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _WRITE:
        raise LowposeError(f"{path}: pictures are written as {', '.join(_WRITE)}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise LowposeError(f"{path}: expected (H, W, 3) uint8 RGB to write, got {image.shape} {image.dtype}")
    done, data = cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), _WRITE[suffix])
    if not done:
        raise LowposeError(f"{path}: a picture of {image.shape[1]} x {image.shape[0]} cannot be written as {suffix}")
    write_bytes(path, data.tobytes())


def _jpeg_channels(data: bytes, name: str) -> int:
    """Number of channels of a JPEG, after a look at its structure.

    Decoders fill the lost part of a truncated JPEG with grey and say nothing; the missing end marker tells it. It is searched
    behind the first scan, as the thumbnail in the metadata has its own, and may be followed by other data.
    """
    at, channels = 2, 0
    while 0 <= (at := data.find(b"\xff", at)) < len(data) - 3:
        marker = data[at + 1]
        if marker in _STANDALONE:
            at += 1
            continue
        if marker in _FRAMES and at + 9 < len(data):
            channels = data[at + 9]
        if marker == 0xDA:
            if data.find(b"\xff\xd9", at) < 0:
                break
            return channels
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    raise LowposeError(f"{name}: truncated picture")


def _opencv_jpeg(data: bytes, name: str) -> np.ndarray:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)  # applies the EXIF rotation
    except cv2.error:
        image = None
    if image is None:
        raise LowposeError(f"{name}: damaged picture")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    """The picture formats that are read; Pillow would hand others to outside programs (EPS to Ghostscript)."""
    Image.init()
    wanted = ("JPEG", "MPO", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
    return tuple(f for f in wanted if f in Image.OPEN)


def _from_pillow(picture: Image.Image, data: bytes, name: str) -> np.ndarray:
    deep = _deep(picture, data, name)
    if deep is not None:
        orientation = picture.getexif().get(0x0112, 1)
        return np.ascontiguousarray(_turned(_over_white(deep), orientation))
    picture = ImageOps.exif_transpose(picture)
    if picture.mode == "CMYK":
        inks = np.asarray(picture).astype(np.uint16)
        return ((255 - inks[..., :3]) * (255 - inks[..., 3:]) / 255).round().astype(np.uint8)
    if "transparency" in picture.info or picture.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        return _over_white(np.asarray(picture.convert("RGBA")))
    return np.array(picture.convert("RGB"))


def _deep(picture: Image.Image, data: bytes, name: str) -> np.ndarray | None:
    """(H, W, C) uint8 of a picture with more than 8 bits a channel, not rotated; None for ordinary ones."""
    if picture.mode == "F":
        raise LowposeError(f"{name}: a picture of floating-point numbers; save it with 8 or 16 bits")
    if picture.mode.startswith("I"):
        values = np.asarray(picture)[..., None]
    elif (picture.format == "PNG" and data[24] == 16) or (picture.format == "TIFF" and max(picture.tag_v2.get(258, (8,))) > 8):
        values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if values is None:
            raise LowposeError(f"{name}: damaged picture")
        values = values[..., [2, 1, 0, 3][: values.shape[2]]] if values.ndim == 3 else values[..., None]
    else:
        return None
    if values.dtype != np.uint8 and (values.dtype.kind == "f" or values.min() < 0 or values.max() > 65535):
        raise LowposeError(f"{name}: values from {values.min()} to {values.max()}; save it with 8 or 16 bits")
    return values if values.dtype == np.uint8 else ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _over_white(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 of (H, W, 1), (H, W, 3) or (H, W, 4) uint8 whose last channel is opacity."""
    if pixels.shape[2] == 1:
        return np.repeat(pixels, 3, axis=2)
    if pixels.shape[2] == 3:
        return pixels
    opacity = pixels[..., 3:].astype(np.uint32)
    return ((pixels[..., :3] * opacity + 255 * (255 - opacity) + 127) // 255).astype(np.uint8)


def _turned(image: np.ndarray, orientation: int) -> np.ndarray:
    """The picture upright: EXIF orientation 1 to 8 says where the stored first row and column belong (TIFF 6.0)."""
    if orientation in (5, 6, 7, 8):
        image = image.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return image[::-1] if orientation in (3, 4, 7, 8) else image
