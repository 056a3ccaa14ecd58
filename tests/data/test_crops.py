"""Persons -> crops: the picture's content lies where the keypoints say, for every policy and size."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from lowpose.config import AugmentConfig, CameraConfig, InputConfig
from lowpose.data.crops import CropReader
from lowpose.errors import LowposeError
from lowpose.geometry import crop_matrix
from lowpose.samples import PersonSample, PoseData
from lowpose.skeletons import COCO17, Skeleton

SPOT = Skeleton("spot", ("left_spot", "right_spot"), pairs=((0, 1),))
POINTS = np.array([[118.3, 92.6], [150.4, 140.2]], np.float32)


def spots(which=0):
    """One bright spot, at keypoint `which`, on black."""
    xs, ys = np.arange(260) + 0.5, np.arange(240) + 0.5
    x, y = POINTS[which]
    image = 255 * np.exp(-((xs[None] - x) ** 2 + (ys[:, None] - y) ** 2) / 2 / 5**2)
    sample = PersonSample("a", np.array([90.0, 60, 80, 110]), POINTS, np.array([2, 2], np.uint8), 1, 1)
    data = PoseData("made", "train", ".", SPOT, [sample], lambda key: image.round().astype(np.uint8)[..., None].repeat(3, 2))
    return data


@pytest.mark.parametrize("resample,within", [("area", 0.06), ("paper", 0.15), ("camera", 0.35)])
@pytest.mark.parametrize("size", [(48, 64), (96, 128)])
def test_keypoints_lie_on_the_pixels(resample, within, size):
    settings = InputConfig(size=size, resample=resample)
    if resample == "camera":
        settings = settings.model_copy(update={"camera": settings.camera.model_copy(update={"noise": (0, 0)})})
    sides = set()
    for which in (0, 1):
        reader = CropReader(spots(which), settings, AugmentConfig(scale=0.2, rotation=30))
        for epoch in range(8):
            crop = reader.crop(0, epoch)
            grey = np.maximum(crop.image.astype(float).mean(2) - 8, 0)
            ys, xs = np.indices(grey.shape) + 0.5
            found = [(grey * xs).sum() / grey.sum(), (grey * ys).sum() / grey.sum()]
            drawn = reader.draw(0, epoch)
            name = which if not drawn.flip else 1 - which
            assert np.abs(crop.keypoints[name] - found).max() < within
            sides.add(drawn.flip)
    assert sides == {True, False}


def test_flip_is_the_mirror_of_the_crop():
    data = spots()
    plain = CropReader(data, InputConfig(size=(48, 64)), AugmentConfig(scale=0, rotation=0, flip=0)).crop(0)
    mirror = CropReader(data, InputConfig(size=(48, 64)), AugmentConfig(scale=0, rotation=0, flip=1)).crop(0)
    assert np.abs(mirror.image.astype(int) - plain.image[:, ::-1]).max() <= 1
    assert np.allclose(mirror.keypoints[::-1] * [-1, 1] + [48, 0], plain.keypoints, atol=1e-4)


def test_the_plain_crop_is_that_of_the_box():
    crop = CropReader(spots(), InputConfig(size=(48, 64), padding=1.5)).crop(0, epoch=7)
    assert np.allclose(crop.matrix, crop_matrix([90, 60, 80, 110], (48, 64), 1.5))
    assert crop.image.shape == (64, 48, 3) and crop.image.dtype == np.uint8 and crop.weight.tolist() == [1, 1]


def test_colour_changes_the_picture_alone():
    plain, coloured = (CropReader(spots(), InputConfig(size=(48, 64)), AugmentConfig(colour=c)).crop(0, 1) for c in (0, 0.4))
    assert np.array_equal(plain.keypoints, coloured.keypoints) and not np.array_equal(plain.image, coloured.image)


@pytest.mark.parametrize("resample", ["area", "camera"])
def test_declared_views_return(resample):
    """Epoch e and e + V show the same crop to the bit, neighbours do not, and fewer views are the first of more."""

    def reader(views, **more):
        augment = AugmentConfig(scale=0.2, rotation=30, colour=0.3, half_body=0.5, shift=0.1, views=views, **more)
        return CropReader(spots(), InputConfig(size=(48, 64), resample=resample), augment, seed=3)

    def same(a, b):
        return (
            np.array_equal(a.image, b.image) and np.array_equal(a.keypoints, b.keypoints) and np.array_equal(a.matrix, b.matrix)
        )

    three, five = reader(3), reader(5)
    shown = [three.crop(0, epoch) for epoch in range(9)]
    for e in range(9):
        assert [same(shown[e], other) for other in shown] == [(f - e) % 3 == 0 for f in range(9)]
        assert same(shown[e], five.crop(0, e % 3))
    assert len({reader(None).crop(0, e).matrix.tobytes() for e in range(9)}) == 9
    assert same(reader(3, seed=3).crop(0, 1), shown[1]) and not same(reader(3, seed=4).crop(0, 1), shown[1])


def test_a_share_of_views_is_a_far_cameras():
    """These have another crop's pixels and its keypoints; all others are as they were, to the bit."""

    def crops(share, **more):
        augment = AugmentConfig(scale=0.2, rotation=30, colour=0.3, camera=share, **more)
        settings = InputConfig(size=(48, 64), camera=CameraConfig(height=(16, 24)))
        return [CropReader(spots(), settings, augment, seed=3).crop(0, epoch) for epoch in range(400)]

    plain, some, every = crops(0.0), crops(0.25), crops(1.0)
    far = np.array([not np.array_equal(a.image, b.image) for a, b in zip(plain, some, strict=True)])
    assert 70 <= far.sum() <= 130  # 100 expected, three deviations are 26
    for i, (a, b, c) in enumerate(zip(plain, some, every, strict=True)):
        assert np.array_equal(a.keypoints, b.keypoints) and np.array_equal(a.matrix, c.matrix)
        assert np.array_equal(b.image, c.image if far[i] else a.image) and not np.array_equal(a.image, c.image)
    sharpness = [np.mean([np.abs(np.diff(c.image.astype(float), axis=1)).max() for c in group]) for group in (plain, every)]
    assert sharpness[1] < 0.8 * sharpness[0]
    assert len({c.image.tobytes() for c in crops(1.0, views=2)}) == 2


def test_the_views_have_a_seed_of_their_own():
    one, two = (CropReader(spots(), InputConfig(), AugmentConfig(seed=7), seed) for seed in (0, 1))
    other = CropReader(spots(), InputConfig(), AugmentConfig(), 0)
    found, again, not_it = (reader.draw(0, 4).matrix((64, 64), 1.25) for reader in (one, two, other))
    assert np.array_equal(found, again) and not np.array_equal(found, not_it)


def test_reads_each_picture_once_for_neighbours():
    calls = []

    def read(key):
        calls.append(key)
        return np.zeros((50, 50, 3), np.uint8)

    row = [
        PersonSample(k, np.array([5.0, 5, 20, 30]), np.zeros((17, 2), np.float32), np.zeros(17, np.uint8), 1, 1) for k in "aabba"
    ]
    reader = CropReader(PoseData("made", "train", ".", COCO17, row, read), InputConfig())
    for i in range(5):
        reader.crop(i)
    assert calls == ["a", "b", "a"]


def test_an_unreadable_picture_is_black_without_weight():
    def read(key):
        raise LowposeError(f"{key}: truncated picture")

    data = spots()
    broken = PoseData("made", "train", ".", SPOT, data.samples, read)
    crop = CropReader(broken, InputConfig(size=(48, 64), resample="camera"), AugmentConfig()).crop(0)
    assert crop.error == "a: truncated picture" and not crop.image.any() and not crop.weight.any()


def test_opencv_threads_do_not_change_bits():
    reader, threads = CropReader(spots(), InputConfig(size=(96, 96), resample="camera")), cv2.getNumThreads()
    try:
        cv2.setNumThreads(1)
        one = reader.crop(0).image
        cv2.setNumThreads(4)
        assert np.array_equal(one, reader.crop(0).image)
    finally:
        cv2.setNumThreads(threads)
