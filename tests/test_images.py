import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from lowpose.errors import LowposeError
from lowpose.images import decode_image, read_image, write_image

RNG = np.random.default_rng(7)
SMOOTH = cv2.resize(RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8), (60, 40), interpolation=cv2.INTER_CUBIC)
SMOOTH.setflags(write=False)


def encoded(array, mode=None, form="PNG", **options) -> bytes:
    picture = array if isinstance(array, Image.Image) else Image.fromarray(array)
    stream = io.BytesIO()
    (picture if mode is None else picture.convert(mode)).save(stream, form, **options)
    return stream.getvalue()


def png(values: np.ndarray, depth: int, colour: int, extra: bytes = b"") -> bytes:
    """A PNG file made by hand from (H, W, C) values (PNG specification, third edition, chapters 5 to 11)."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = values.astype(">u2" if depth == 16 else "u1")
    body = b"".join(b"\x00" + row.tobytes() for row in rows)
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def over_white(colour, opacity):
    """Float64 reference: c a + 255 (1 - a)."""
    a = np.asarray(opacity, float)[..., None] / 255
    return np.asarray(colour, float) * a + 255 * (1 - a)


def near(image, expected, tolerance):
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape == np.shape(expected)
    assert image.flags.c_contiguous and image.flags.writeable
    assert np.abs(image.astype(float) - expected).max() <= tolerance


def same(image, expected):
    near(image, expected, 0)


def alike(image, expected):
    """For JPEG, which blurs colours: 4 grey levels in the mean."""
    near(image, expected, 40)
    assert np.abs(image.astype(float) - expected).mean() < 4


# --- eight-bit colour and grey --------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["PNG", "BMP", "PPM", "TIFF"])
def test_lossless_colour(tmp_path, form):
    (tmp_path / "a.x").write_bytes(encoded(SMOOTH, form=form))
    near(read_image(tmp_path / "a.x"), SMOOTH, 0)


def test_lossless_webp():
    near(decode_image(encoded(SMOOTH, form="WEBP", lossless=True)), SMOOTH, 0)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_blocks": 2}])
def test_jpeg_colour(options):
    alike(decode_image(encoded(SMOOTH, form="JPEG", quality=98, **options)), SMOOTH)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF"])
def test_grey_becomes_three_equal_channels(form):
    grey = SMOOTH[..., 1]
    options = {"quality": 100} if form == "JPEG" else {}
    image = decode_image(encoded(np.ascontiguousarray(grey), form=form, **options))
    near(image, np.repeat(grey[..., None], 3, 2), 2 if form == "JPEG" else 0)
    assert (image[..., 0] == image[..., 2]).all()


def test_one_bit():
    bits = RNG.random((9, 11)) > 0.5
    near(decode_image(encoded(Image.fromarray(bits), form="PNG")), np.repeat(bits[..., None] * 255, 3, 2), 0)


def test_palette():
    indices = RNG.integers(0, 4, (8, 9), dtype=np.uint8)
    colours = np.array([[255, 0, 0], [0, 128, 0], [1, 2, 3], [250, 251, 252]], np.uint8)
    picture = Image.frombytes("P", (9, 8), indices.tobytes())
    picture.putpalette(colours.ravel().tolist())
    near(decode_image(encoded(picture, form="PNG")), colours[indices], 0)
    near(decode_image(encoded(picture, form="GIF")), colours[indices], 0)
    transparent = np.where((indices == 2)[..., None], 255, colours[indices])
    near(decode_image(encoded(picture, form="PNG", transparency=2)), transparent, 0)
    near(decode_image(encoded(picture, form="GIF", transparency=2)), transparent, 0)


# --- transparency ---------------------------------------------------------------------------------------------------


def test_transparent_parts_stand_over_white():
    opacity = RNG.integers(0, 256, SMOOTH.shape[:2], dtype=np.uint8)
    opacity[:10], opacity[10:20] = 0, 255
    rgba = np.dstack([SMOOTH, opacity])
    expected = over_white(SMOOTH, opacity)
    for image in (decode_image(encoded(rgba)), decode_image(encoded(rgba, form="WEBP", lossless=True, exact=True))):
        near(image, expected, 0.5 + 1e-9)
        assert (image[:10] == 255).all() and (image[10:20] == SMOOTH[10:20]).all()


def test_grey_with_opacity():
    opacity = RNG.integers(0, 256, SMOOTH.shape[:2], dtype=np.uint8)
    grey = SMOOTH[..., 0]
    expected = over_white(np.repeat(grey[..., None], 3, 2), opacity)
    near(decode_image(png(np.dstack([grey, opacity]), 8, 4)), expected, 0.5 + 1e-9)
    near(decode_image(png(np.dstack([grey, opacity]).astype(np.uint16) * 257, 16, 4)), expected, 0.5 + 1e-9)


def test_colour_key():
    values = np.array([[[10, 20, 30], [10, 20, 31]]], np.uint8)
    key = b"tRNS" + struct.pack(">HHH", 10, 20, 30)
    chunk = struct.pack(">I", 6) + key + struct.pack(">I", zlib.crc32(key))
    near(decode_image(png(values, 8, 2, chunk)), [[[255, 255, 255], [10, 20, 31]]], 0)


# --- sixteen bits ---------------------------------------------------------------------------------------------------

DEEP = RNG.integers(0, 65536, (12, 10, 4), dtype=np.uint16)
DEEP[0, :3] = [[0] * 4, [65535] * 4, [4095] * 4]


def test_16_bit_grey_png():
    near(decode_image(png(DEEP[..., :1], 16, 0)), np.repeat(DEEP[..., :1] / 257, 3, 2), 0.5)


def test_16_bit_colour_png():
    image = decode_image(png(DEEP[..., :3], 16, 2))
    near(image, DEEP[..., :3] / 257, 0.5)
    assert image[0, 1, 0] == 255 and image[0, 2, 0] == 16  # 12-bit white stays dark: values are never stretched


def test_16_bit_colour_with_opacity_png():
    expected = over_white((DEEP[..., :3] / 257).round(), (DEEP[..., 3] / 257).round())
    near(decode_image(png(DEEP, 16, 6)), expected, 0.5 + 1e-9)


def test_16_bit_tiff():
    near(decode_image(encoded(Image.fromarray(DEEP[..., 0].copy()), form="TIFF")), np.repeat(DEEP[..., :1] / 257, 3, 2), 0.5)
    done, data = cv2.imencode(".tiff", DEEP[..., 2::-1])
    assert done
    near(decode_image(data.tobytes()), DEEP[..., :3] / 257, 0.5)


def test_16_bit_pgm():
    body = b"P5 10 12 65535\n" + DEEP[..., 0].astype(">u2").tobytes()
    near(decode_image(body), np.repeat(DEEP[..., :1] / 257, 3, 2), 0.5)


@pytest.mark.parametrize("array", [np.full((4, 5), 0.5, np.float32), np.full((4, 5), 70000, np.int32)])
def test_values_without_a_known_range_are_refused(array):
    with pytest.raises(LowposeError, match=r"^scan.tif: .*save it with 8 or 16 bits$"):
        decode_image(encoded(Image.fromarray(array), form="TIFF"), "scan.tif")


# --- CMYK -----------------------------------------------------------------------------------------------------------


def cmyk() -> tuple[np.ndarray, np.ndarray]:
    inks = cv2.resize(RNG.integers(0, 256, (4, 5, 4), dtype=np.uint8), (40, 32), interpolation=cv2.INTER_LINEAR)
    part = inks.astype(float) / 255
    return inks, 255 * (1 - part[..., :3]) * (1 - part[..., 3:])


def test_cmyk_jpeg_of_adobe_is_stored_inverted():
    inks, expected = cmyk()
    data = encoded(Image.frombytes("CMYK", (40, 32), inks.tobytes()), form="JPEG", quality=100, subsampling=0)
    assert b"Adobe" in data
    near(decode_image(data), expected, 6)


def test_cmyk_jpeg_without_adobe_mark_is_read_as_browsers_do():
    inks, expected = cmyk()
    data = encoded(Image.frombytes("CMYK", (40, 32), inks.tobytes()), form="JPEG", quality=100, subsampling=0)
    at = data.index(b"\xff\xee\x00\x0eAdobe")
    near(decode_image(data[:at] + data[at + 16 :]), expected, 6)


def test_ycck_jpeg():
    inks, expected = cmyk()
    ycc = np.asarray(Image.fromarray(np.ascontiguousarray(inks[..., :3])).convert("YCbCr"))
    stored = np.dstack([255 - ycc, inks[..., 3]])  # Pillow inverts all four; Adobe stores YCbCr of the inks, and black inverted
    data = bytearray(encoded(Image.frombytes("CMYK", (40, 32), stored.tobytes()), form="JPEG", quality=100, subsampling=0))
    data[data.index(b"\xff\xee\x00\x0eAdobe") + 15] = 2  # the transform: YCCK
    near(decode_image(bytes(data)), expected, 8)


def test_cmyk_tiff():
    inks, expected = cmyk()
    near(decode_image(encoded(Image.frombytes("CMYK", (40, 32), inks.tobytes()), form="TIFF")), expected, 0.5)


# --- rotation -------------------------------------------------------------------------------------------------------

UPRIGHT = {  # from the stored picture to the upright one, in NumPy's words (TIFF 6.0, tag 274)
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "PNG16"])
def test_exif_rotation(orientation, form):
    exif = Image.Exif()
    exif[0x0112] = orientation
    if form == "PNG16":
        body = exif.tobytes().removeprefix(b"Exif\x00\x00")
        chunk = struct.pack(">I", len(body)) + b"eXIf" + body + struct.pack(">I", zlib.crc32(b"eXIf" + body))
        data = png(SMOOTH.astype(np.uint16) * 257, 16, 2, chunk)
    else:
        data = encoded(SMOOTH, form=form, exif=exif, **({"quality": 98} if form == "JPEG" else {}))
    (alike if form == "JPEG" else same)(decode_image(data), UPRIGHT[orientation](SMOOTH))


# --- animations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP"])
def test_first_frame_of_an_animation(form):
    frames = [Image.new("RGB", (12, 10), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    options = {"lossless": True} if form == "WEBP" else {}
    data = encoded(frames[0], form=form, save_all=True, append_images=frames[1:], duration=100, **options)
    with Image.open(io.BytesIO(data)) as check:
        assert check.n_frames == 3
    near(decode_image(data), np.broadcast_to([255, 0, 0], (10, 12, 3)), 0)


def test_first_picture_of_several_in_one_jpeg():
    pictures = [Image.new("RGB", (16, 16), c) for c in ((200, 30, 30), (30, 200, 30))]
    data = encoded(pictures[0], form="MPO", save_all=True, append_images=pictures[1:])
    near(decode_image(data), np.broadcast_to([200, 30, 30], (16, 16, 3)), 4)


# --- what is no whole picture ---------------------------------------------------------------------------------------

JPEG = encoded(SMOOTH, form="JPEG", quality=95)


@pytest.mark.parametrize("form", ["JPEG", "progressive", "grey", "CMYK", "PNG", "PNG16", "WEBP", "TIFF", "GIF"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.97])
def test_truncated_picture_is_an_error(tmp_path, form, part):
    noise = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = {
        "progressive": lambda: encoded(noise, form="JPEG", progressive=True),
        "grey": lambda: encoded(noise, mode="L", form="JPEG"),
        "CMYK": lambda: encoded(noise, mode="CMYK", form="JPEG"),
        "PNG16": lambda: png(noise.astype(np.uint16) * 257, 16, 2),
    }.get(form, lambda: encoded(noise, form=form))()
    decode_image(data)
    path = tmp_path / "cut.jpg"
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(LowposeError) as e:
        read_image(path)
    expected = "truncated" if form in ("JPEG", "progressive", "grey", "CMYK") else ""
    assert str(e.value).startswith(f"{path}: {expected}") and "\n" not in str(e.value)


def test_jpeg_truncated_everywhere():
    for length in range(2, len(JPEG) - 1):
        with pytest.raises(LowposeError, match=r"^x.jpg: truncated picture$"):
            decode_image(JPEG[:length], "x.jpg")


def test_truncated_jpeg_with_a_whole_thumbnail():
    thumbnail = encoded(SMOOTH[::4, ::4].copy(), form="JPEG")
    segment = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 8) + b"Exif\x00\x00" + thumbnail
    data = JPEG[:2] + segment + JPEG[2:]
    near(decode_image(data), SMOOTH, 25)
    with pytest.raises(LowposeError, match="truncated"):
        decode_image(data[:-200])


def test_bytes_behind_the_end_of_a_jpeg_do_no_harm():
    plain = decode_image(JPEG)
    for tail in (b"\x00" * 100, b"maker's notes", JPEG[: len(JPEG) // 2]):
        assert (decode_image(JPEG + tail) == plain).all()


def test_fill_bytes_before_a_jpeg_marker():
    assert (decode_image(JPEG[:2] + b"\xff\xff" + JPEG[2:]) == decode_image(JPEG)).all()


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "the file is empty"),
        (b"hello, this is text\n", "not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not a picture"),
        (b"\x89PNG\r\n\x1a\n", "picture"),
        (b"\x00\x00\x00\x18ftypheic" + bytes(40), "HEIC pictures cannot be read"),
        (b"\xff\xd8" + bytes(50), "truncated picture"),
        (JPEG.replace(b"\xff\xdb", b"\xff\xfe"), "damaged picture"),  # quantisation tables made comments
    ],
)
def test_no_picture(tmp_path, content, message):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(LowposeError) as e:
        read_image(path)
    assert str(e.value).startswith(f"{path}: ") and message in str(e.value) and "\n" not in str(e.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(LowposeError) as e:
        read_image(tmp_path / "none.jpg")
    assert str(e.value) == f"{tmp_path / 'none.jpg'}: no such file or directory"
    with pytest.raises(LowposeError, match="is a directory"):
        read_image(tmp_path)


def test_damaged_png():
    data = bytearray(encoded(SMOOTH))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(LowposeError, match=r"^a.png: damaged picture$"):
        decode_image(bytes(data), "a.png")


def test_too_many_pixels(monkeypatch):
    data = encoded(SMOOTH)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(LowposeError, match="million pixels"):
        decode_image(data)


@pytest.mark.photographs
def test_photographs_equal_pillow(shared):
    for path in sorted((shared / "lspet" / "images").glob("*.jpg"))[:20] + sorted((shared / "mpii-5").rglob("*.jpg")):
        with Image.open(path) as picture:
            expected = np.asarray(picture.convert("RGB")).astype(float)
        image = read_image(path)
        assert image.shape == expected.shape and np.abs(image - expected).mean() < 0.5


# --- writing --------------------------------------------------------------------------------------------------------


def test_written_picture_comes_back(tmp_path):
    write_image(tmp_path / "a.png", SMOOTH)
    write_image(tmp_path / "b.JPG", SMOOTH)
    with Image.open(tmp_path / "a.png") as a, Image.open(tmp_path / "b.JPG") as b:
        assert (a.format, b.format) == ("PNG", "JPEG")
        near(np.array(a), SMOOTH, 0)
        near(np.array(b), SMOOTH, 25)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.JPG"]


def test_what_cannot_be_written(tmp_path):
    with pytest.raises(LowposeError, match=r"a.gif: pictures are written as .png, .jpg, .jpeg"):
        write_image(tmp_path / "a.gif", SMOOTH)
    with pytest.raises(LowposeError, match=r"\(40, 60\) uint8"):
        write_image(tmp_path / "a.png", SMOOTH[..., 0])
    with pytest.raises(LowposeError, match="float64"):
        write_image(tmp_path / "a.png", SMOOTH / 255)
    assert list(tmp_path.iterdir()) == []
