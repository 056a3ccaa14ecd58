"""Down-sampling policies against bilinear sampling and block means computed here in float64."""

from __future__ import annotations

import io
import math

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from scipy.integrate import quad

from lowpose.config import CameraConfig, InputConfig
from lowpose.data.resample import (
    blurred,
    coarse_size,
    compressed,
    cut,
    degrade,
    enlarge,
    motion_blurred,
    motion_kernel,
    noisy,
    render,
)
from lowpose.geometry import compose, crop_matrix, reduction, scaling, to_opencv, transform


def natural(size=(220, 170), seed=0):
    """A smooth random picture with some edges, (H, W, 3) uint8."""
    rng = np.random.default_rng(seed)
    noise = cv2.GaussianBlur(rng.normal(0, 1, (size[1], size[0], 3)), (0, 0), 3)
    image = 128 + 55 * noise / noise.std()
    image[40:90, 60:130] += 60
    return np.clip(image, 0, 255).astype(np.uint8)


def crop(image, matrix, size, rng=None, person=100.0, **settings):
    return render(lambda window: cut(image, window), matrix, InputConfig(size=size, **settings), size, person, rng)


def bilinear(image, matrix, size):
    """(h, w, 3) float64: the value at the picture position of every crop pixel's centre; 0 outside the picture."""
    xs, ys = np.meshgrid(np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5)
    inverse = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))
    there = np.stack([xs, ys, np.ones_like(xs)], -1) @ inverse.T
    u, v = there[..., 0] - 0.5, there[..., 1] - 0.5
    left, top = np.floor(u).astype(int), np.floor(v).astype(int)
    out = np.zeros((size[1], size[0], 3))
    for dx in (0, 1):
        for dy in (0, 1):
            x, y = left + dx, top + dy
            share = np.abs(1 - dx - (u - left)) * np.abs(1 - dy - (v - top))
            ok = (x >= 0) & (y >= 0) & (x < image.shape[1]) & (y < image.shape[0])
            out += np.where(ok, share, 0)[..., None] * image[np.clip(y, 0, image.shape[0] - 1), np.clip(x, 0, image.shape[1] - 1)]
    return out


VIEWS = [
    dict(box=[60, 30, 60, 100], size=(32, 32)),
    dict(box=[60, 30, 60, 100], size=(24, 32), rotation=33, scale=1.2, flip=True),
    dict(box=[-20.3, 60.6, 120, 150], size=(32, 48), rotation=-50),  # reaches outside the picture
    dict(box=[80.2, 50.7, 20, 26], size=(64, 64)),  # enlarges
    dict(box=[20, 10, 140, 120], size=(16, 16)),  # 11 times smaller
]


@pytest.mark.parametrize("view", VIEWS)
def test_area_is_a_warp_to_r_times_and_block_means(view):
    image, size = natural(), view["size"]
    matrix = crop_matrix(**view)
    r = max(1, math.ceil(reduction(matrix)))
    large = bilinear(image, np.diag([r, r]) @ matrix, (size[0] * r, size[1] * r))
    wanted = large.reshape(size[1], r, size[0], r, 3).mean((1, 3))
    assert np.abs(crop(image, matrix, size, resample="area") - wanted).max() <= 1 + 0.5  # half a level of rounding twice


@pytest.mark.parametrize("shrink,r", [(0.8, 1), (1.0, 1), (1.05, 2), (2.0, 2), (2.01, 3), (3.7, 4)])
def test_r_is_the_reduction_rounded_up(shrink, r):
    """Seen in the window that is read: its crop is r times as large, so impulses r apart fall into single crop pixels."""
    size, matrix = (8, 8), scaling(1 / shrink, 1 / shrink)
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    large = bilinear(image, scaling(r / shrink, r / shrink), (8 * r, 8 * r))
    wanted = large.reshape(8, r, 8, r, 3).mean((1, 3))
    assert np.abs(crop(image, matrix, size, resample="area") - wanted).max() <= 1.5


@pytest.mark.parametrize("view", VIEWS)
def test_paper_is_one_warp_from_the_full_picture(view):
    image, matrix = natural(), crop_matrix(**view)
    ours = crop(image, matrix, view["size"], resample="paper")
    theirs = cv2.warpAffine(image, to_opencv(matrix), view["size"], flags=cv2.INTER_LINEAR)
    assert np.abs(ours.astype(int) - theirs).max() <= 1
    assert np.abs(ours - bilinear(image, matrix, view["size"])).max() <= 3  # OpenCV rounds positions to 1/32 pixel


def test_area_removes_what_paper_lets_through():
    """A checkerboard of single pixels, four times smaller: grey by area; single squares by paper."""
    board = (np.indices((128, 128)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, 2)
    matrix = compose(scaling(1 / 4.2, 1 / 4.2))
    area = crop(board, matrix, (24, 24), resample="area").astype(int)
    paper = crop(board, matrix, (24, 24), resample="paper").astype(int)
    assert np.abs(area - 127.5).max() < 32 and paper.std() > 3 * area.std() and np.ptp(paper) > 200


def test_area_keeps_the_mean_and_the_place():
    image = np.zeros((200, 200, 3), np.uint8)
    image[:] = blob((103.4, 88.9), (200, 200), 8)[..., None]
    for view in (dict(rotation=0), dict(rotation=40, flip=True)):
        matrix = crop_matrix([60, 50, 80, 80], (32, 32), **view)
        found = centre_of(crop(image, matrix, (32, 32), resample="area"))
        assert np.abs(found - transform(matrix, [[103.4, 88.9]])[0]).max() < 0.03


def blob(at, size, sigma):
    xs, ys = np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5
    return (255 * np.exp(-((xs[None] - at[0]) ** 2 + (ys[:, None] - at[1]) ** 2) / 2 / sigma**2)).round().astype(np.uint8)


def centre_of(image, floor=0):
    grey = np.maximum(image.astype(float).mean(2) - floor, 0)
    ys, xs = np.indices(grey.shape) + 0.5
    return np.array([(grey * xs).sum(), (grey * ys).sum()]) / grey.sum()


CLEAN = CameraConfig(height=(24, 24), blur=(0.5, 0.5), noise=(0, 0), jpeg=(100, 100))


def test_camera_is_a_function_of_its_generator():
    image, matrix = natural(), crop_matrix([60, 30, 60, 100], (64, 64))
    camera = CameraConfig(height=(16, 64))

    def make(seed):
        return crop(image, matrix, (64, 64), np.random.default_rng(seed), resample="camera", camera=camera)

    assert np.array_equal(make(1), make(1)) and not np.array_equal(make(1), make(2))
    np.random.seed(0)
    first = make(1)
    np.random.seed(5)
    assert np.array_equal(first, make(1))


@pytest.mark.parametrize("size", [(32, 32), (96, 96), (48, 64)])
@pytest.mark.parametrize("height", [24, 60])
def test_camera_keeps_the_geometry(size, height):
    image = np.zeros((200, 200, 3), np.uint8)
    image[:] = blob((96.4, 108.9), (200, 200), 9)[..., None]
    matrix = crop_matrix([60, 50, 80, 100], size, rotation=25, flip=True)
    camera = CLEAN.model_copy(update={"height": (height, height)})
    found = centre_of(crop(image, matrix, size, np.random.default_rng(0), resample="camera", camera=camera), floor=8)
    assert np.abs(found - transform(matrix, [[96.4, 108.9]])[0]).max() < 0.3


def test_camera_leaves_only_the_detail_of_its_height():
    """A grating of 10 px a period on a person of 100 px: at 60 px it is seen, at 10 px (one pixel a period) it is gone."""
    grating = np.tile((127.5 + 120 * np.sin(np.arange(200) * 2 * np.pi / 10))[None, :, None], (200, 1, 3)).astype(np.uint8)
    matrix = crop_matrix([60, 50, 100, 100], (128, 128), padding=1)
    contrast = {}
    for height in (10, 60):
        camera = CLEAN.model_copy(update={"height": (height, height)})
        contrast[height] = float(
            crop(grating, matrix, (128, 128), np.random.default_rng(0), resample="camera", camera=camera)[16:-16, 16:-16].std()
        )
    assert contrast[60] > 40 and contrast[10] < 8


def test_camera_does_not_enlarge_a_small_person():
    """A person of 20 px stays a person of 20 px whatever the height asked for: `height` is at most the person's own."""
    image, matrix = natural(), crop_matrix([60, 30, 20, 20], (64, 64))
    settings = [CLEAN.model_copy(update={"height": (h, h)}) for h in (20, 200)]
    one, two = (crop(image, matrix, (64, 64), np.random.default_rng(0), 20.0, resample="camera", camera=c) for c in settings)
    assert np.array_equal(one, two)


@pytest.mark.parametrize("height", [20, 50, 70, 100, 160])
def test_camera_has_no_dark_frame(height):
    """An even grey picture stays even up to the crop's edge, whether the far picture is larger or smaller than the crop."""
    image, matrix = np.full((400, 400, 3), 200, np.uint8), crop_matrix([150, 150, 100, 160], (32, 48), rotation=10)
    camera = CLEAN.model_copy(update={"height": (height, height)})
    out = crop(image, matrix, (32, 48), np.random.default_rng(0), 160.0, resample="camera", camera=camera)
    assert np.abs(out.astype(int) - 200).max() <= 2


def test_degrade_blurs_adds_noise_and_compresses():
    image = np.full((64, 64, 3), 100, np.uint8)
    image[32, 32] = 255
    blurred = degrade(image, 2.0, 0, 100, np.random.default_rng(0))
    assert blurred[32, 32, 0] < 115 and abs(float(blurred.mean()) - image.mean()) < 1
    noisy = degrade(np.full((64, 64, 3), 100, np.uint8), 0, 10.0, 100, np.random.default_rng(0))
    assert 8 < noisy.astype(float).mean(2).std() * math.sqrt(3) < 12.5
    picture = natural((64, 64))
    errors = [np.abs(degrade(picture, 0, 0, q, np.random.default_rng(0)).astype(int) - picture).mean() for q in (5, 60, 100)]
    assert errors[0] > 2 * errors[1] > 2 * errors[2]


def test_cut_fills_with_zeros():
    image = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)
    out = cut(image, (-2, -1, 6, 7))
    assert out.shape == (8, 8, 3) and np.array_equal(out[1:6, 2:6], image) and int(out.sum()) == int(image.sum())
    assert np.array_equal(cut(image, (11, 21, 13, 23), (10, 20)), image[1:3, 1:3])
    assert not cut(image, (50, 50, 53, 52)).any()


# --- the camera's operators -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("length,angle", [(4.0, 0.0), (7.0, 90.0), (5.5, 30.0), (12.0, 140.0)])
def test_motion_blur_is_the_mean_of_moved_pictures(length, angle):
    image = natural((80, 70), seed=3)
    steps = (np.arange(400) + 0.5) / 400 - 0.5
    dx, dy = length * math.cos(math.radians(angle)), length * math.sin(math.radians(angle))
    moved = [ndimage.shift(image.astype(float), (t * dy, t * dx, 0), order=1, mode="mirror") for t in steps]
    inside = (slice(10, -10), slice(10, -10))
    assert np.abs(motion_blurred(image, length, angle)[inside] - np.mean(moved, axis=0)[inside]).max() <= 0.6
    assert motion_blurred(image, 0.0, angle) is image


def test_motion_kernel_in_closed_form():
    """Along an axis a pixel's share is the integral of its hat function over the line."""
    for length in (2.0, 4.0, 5.0):
        kernel = motion_kernel(length, 0.0)
        middle = len(kernel) // 2
        hat = [quad(lambda t, i=i: max(1 - abs(t - i), 0), -length / 2, length / 2, points=range(-4, 5))[0] for i in range(-4, 5)]
        wanted = np.array(hat)[4 - middle : 5 + middle] / length
        assert np.abs(kernel[middle] - wanted).max() < 2e-4 and kernel.sum() == pytest.approx(1)
        assert np.abs(np.delete(kernel, middle, axis=0)).max() < 1e-6


def test_motion_goes_clockwise_as_seen():
    spot = np.zeros((41, 41, 3), np.uint8)
    spot[20, 20] = 255
    ys, xs = np.nonzero(motion_blurred(spot, 20.0, 30.0)[..., 0])
    assert np.rad2deg(np.arctan2((ys - 20) @ (xs - 20), (xs - 20) @ (xs - 20))) == pytest.approx(30, abs=3)


@pytest.mark.parametrize("motion", [(0.0, 0.0), (3.0, 6.0)])
def test_numbers_that_a_camera_draws(motion):
    """Height, blur, noise and quality, then length and direction only of a camera that moves, then the noise."""
    image, size = natural(), (64, 64)
    settings = CameraConfig(height=(20, 20), motion=motion)
    used, by_hand = np.random.default_rng(5), np.random.default_rng(5)
    out = crop(image, crop_matrix([60, 30, 60, 100], size), size, used, resample="camera", camera=settings)
    by_hand.uniform(), by_hand.uniform(), by_hand.uniform(), by_hand.integers(60, 96)
    if motion[1]:
        by_hand.uniform(), by_hand.uniform()
    side = math.ceil(64 * 0.2 * 125 / 64)  # a fifth of the person's height, of a crop that shows 125 picture pixels
    by_hand.normal(0, 1, (side, side, 3))
    assert used.bit_generator.state == by_hand.bit_generator.state
    still = crop(image, crop_matrix([60, 30, 60, 100], size), size, np.random.default_rng(5), resample="camera",
                 camera=settings.model_copy(update={"motion": (0.0, 0.0)}))  # fmt: skip
    assert np.array_equal(out, still) == (motion[1] == 0)


@pytest.mark.parametrize("quality", [5, 40, 90])
def test_jpeg_is_that_of_another_library(quality):
    image, held = natural((64, 48)), io.BytesIO()
    Image.fromarray(image).save(held, "JPEG", quality=quality)
    theirs = np.asarray(Image.open(held)).astype(int)
    assert np.abs(compressed(image, quality) - theirs).max() <= 2


def test_operators_against_scipy_and_their_order():
    image, rng = natural((64, 48)), np.random.default_rng(1)
    wanted = ndimage.gaussian_filter(image.astype(float), (1.5, 1.5, 0), mode="mirror", truncate=6)
    assert np.abs(blurred(image, 1.5) - wanted).max() <= 1.5
    grain = noisy(np.full((90, 90, 3), 128, np.uint8), 20.0, rng).astype(float) - 128
    assert grain.std() == pytest.approx(20, rel=0.03) and abs(grain.mean()) < 0.5
    at_once = degrade(image, 1.0, 9.0, 50, np.random.default_rng(2), (5.0, 70.0))
    in_turn = compressed(noisy(blurred(motion_blurred(image, 5.0, 70.0), 1.0), 9.0, np.random.default_rng(2)), 50)
    assert np.array_equal(at_once, in_turn)


@pytest.mark.parametrize("k", [1.0, 0.75, 0.5, 0.3])
def test_enlarging_keeps_positions(k):
    size = (48, 40)
    small = natural(coarse_size(size, k), seed=2)
    assert small.shape[:2] == (math.ceil(40 * k), math.ceil(48 * k))
    ys, xs = np.meshgrid((np.arange(40) + 0.5) * k - 0.5, (np.arange(48) + 0.5) * k - 0.5, indexing="ij")
    wanted = [ndimage.map_coordinates(small[..., c].astype(float), [ys, xs], order=1, mode="nearest") for c in range(3)]
    assert np.abs(enlarge(small, k, size) - np.stack(wanted, -1)).max() <= 3  # OpenCV rounds positions to 1/32 pixel
