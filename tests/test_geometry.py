"""Box <-> crop: against homogeneous matrices composed here, and against the pixels that OpenCV makes."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from lowpose import geometry as g


def views(n=40, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(n):
        box = np.array([*rng.uniform(-50, 900, 2), *rng.uniform(3, 500, 2)])
        size = tuple(int(v) for v in rng.integers(16, 300, 2))
        yield (
            box,
            size,
            dict(
                padding=rng.uniform(0.8, 2), scale=rng.uniform(0.5, 1.6), rotation=rng.uniform(-120, 120), flip=rng.random() < 0.5
            ),
        )


def homogeneous(box, size, padding, scale, rotation, flip):
    """Centre to the origin, turn, enlarge, to the middle of the crop, mirror: five 3 x 3 matrices."""
    x, y, w, h = box
    wide = max(w, h * size[0] / size[1]) * padding * scale
    a = np.deg2rad(rotation)
    to_origin = np.array([[1, 0, -(x + w / 2)], [0, 1, -(y + h / 2)], [0, 0, 1]])
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    enlarge = np.diag([size[0] / wide, size[0] / wide, 1])
    to_middle = np.array([[1, 0, size[0] / 2], [0, 1, size[1] / 2], [0, 0, 1]])
    mirror = np.array([[-1, 0, size[0]], [0, 1, 0], [0, 0, 1]]) if flip else np.eye(3)
    return mirror @ to_middle @ enlarge @ turn @ to_origin


def test_equals_homogeneous_matrices_and_returns():
    rng = np.random.default_rng(1)
    for box, size, options in views():
        matrix = g.crop_matrix(box, size, **options)
        assert np.allclose(matrix, homogeneous(box, size, **options)[:2], rtol=1e-12, atol=1e-9)
        points = rng.uniform(-200, 1200, (17, 2))
        there = (homogeneous(box, size, **options) @ np.column_stack([points, np.ones(17)]).T).T[:, :2]
        assert np.abs(g.transform(matrix, points) - there).max() < 1e-9
        assert np.abs(g.transform(g.invert(matrix), g.transform(matrix, points)) - points).max() < 1e-9
        assert g.reduction(matrix) == pytest.approx(1 / np.sqrt(abs(np.linalg.det(matrix[:, :2]))))


def test_box_corners_are_crop_corners():
    """Without padding, a box of the crop's aspect fills the crop from edge to edge."""
    matrix = g.crop_matrix([10.25, 20.5, 48, 64], (36, 48), padding=1)
    corners = [[10.25, 20.5], [58.25, 20.5], [10.25, 84.5], [58.25, 84.5]]
    assert np.allclose(g.transform(matrix, corners), [[0, 0], [36, 0], [0, 48], [36, 48]], atol=1e-9)


@pytest.mark.parametrize("box,inside", [([0, 0, 10, 40], [20, 40]), ([0, 0, 40, 10], [40, 80])])
def test_box_grows_to_the_crop_aspect(box, inside):
    """(32, 64) is 1 to 2: the shorter side grows about the centre, then both by the padding."""
    centre, extent = g.crop_region(box, (32, 64), padding=1.5)
    assert centre.tolist() == [box[2] / 2, box[3] / 2]
    assert np.allclose(extent, np.array(inside) * 1.5)


def test_flip_is_the_mirrored_crop_and_clockwise_is_clockwise():
    box, points = [30, 40, 20, 60], np.random.default_rng(0).uniform(0, 100, (9, 2))
    plain = g.transform(g.crop_matrix(box, (48, 64), rotation=25), points)
    flipped = g.transform(g.crop_matrix(box, (48, 64), rotation=25, flip=True), points)
    assert np.allclose(flipped, plain * [-1, 1] + [48, 0])
    above = [[40, 60]]  # 10 px above the box's centre; turned clockwise by 90 degrees it lies to the right
    ((x, y),) = g.transform(g.crop_matrix(box, (64, 64), rotation=90), above)
    assert x > 32 and y == pytest.approx(32)


def test_compose_applies_the_last_first_and_batches_invert():
    a, b, c = (g.crop_matrix(box, size, **options) for box, size, options in views(3, seed=5))
    square = [np.vstack([m, [0, 0, 1]]) for m in (a, b, c)]
    assert np.allclose(g.compose(a, b, c), (square[0] @ square[1] @ square[2])[:2])
    before = a.copy()
    g.compose(a, b)
    assert np.array_equal(a, before)
    many = np.stack([a, b, c])
    assert np.allclose(g.invert(many), np.stack([np.linalg.inv(s)[:2] for s in square]))
    points = np.random.default_rng(0).uniform(0, 9, (3, 5, 2))
    assert np.allclose(g.transform(many, points)[1], g.transform(b, points[1]))


def blob(x, y, size=(160, 120), sigma=4.0):
    """A Gaussian whose centre of mass, in continuous pixels, is (x, y): pixel i stands at i + 0.5."""
    xs, ys = np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5
    return np.exp(-((xs[None] - x) ** 2 + (ys[:, None] - y) ** 2) / 2 / sigma**2).astype(np.float32)


def mass_centre(image):
    ys, xs = np.indices(image.shape) + 0.5
    return np.array([(image * xs).sum(), (image * ys).sum()]) / image.sum()


@pytest.mark.parametrize("rotation,scale,flip", [(0, 1.0, False), (0, 1.0, True), (30, 1.3, False), (-75, 0.8, True)])
def test_opencv_puts_pixels_where_transform_says(rotation, scale, flip):
    matrix = g.crop_matrix([60, 40, 40, 40], (96, 96), rotation=rotation, scale=scale, flip=flip)
    for point in ([80.0, 60.0], [75.3, 63.8]):
        warped = cv2.warpAffine(blob(*point), g.to_opencv(matrix), (96, 96), flags=cv2.INTER_LINEAR)
        assert np.abs(mass_centre(warped) - g.transform(matrix, [point])[0]).max() < 0.02


def test_opencv_keeps_a_gradient():
    """A ramp whose value at continuous x is x keeps that value under a sub-pixel shift and enlargement."""
    ramp = np.tile(np.arange(100, dtype=np.float32) + 0.5, (50, 1))
    matrix = g.compose(g.scaling(2, 2), g.translation(-20.25, -10.5))
    warped = cv2.warpAffine(ramp, g.to_opencv(matrix), (80, 40), flags=cv2.INTER_LINEAR)
    xs = (np.arange(80) + 0.5) / 2 + 20.25
    assert np.abs(warped - xs[None]).max() < 0.02


def test_resize_and_flip_need_no_correction():
    """cv2.resize to half and np.flip move the mass exactly to x / 2 and W - x."""
    image = blob(70.4, 55.7)
    half = cv2.resize(image, (80, 60), interpolation=cv2.INTER_AREA)
    assert np.abs(mass_centre(half) - [35.2, 27.85]).max() < 1e-3
    assert np.abs(mass_centre(image[:, ::-1]) - [160 - 70.4, 55.7]).max() < 1e-3
    as_affine = cv2.warpAffine(image, g.to_opencv(g.flip_matrix(160)), (160, 120), flags=cv2.INTER_LINEAR)
    assert np.array_equal(as_affine, image[:, ::-1])


def test_covered_window_holds_every_pixel_that_is_read():
    """What lies outside the window does not change the crop."""
    rng = np.random.default_rng(3)
    for box, size, options in views(15, seed=7):
        matrix = g.crop_matrix(box, size, **options)
        x0, y0, x1, y1 = g.covered(matrix, size)
        corners = g.transform(g.invert(matrix), [[0, 0], [size[0], 0], [0, size[1]], size])
        assert (corners >= [x0 + 1, y0 + 1]).all() and (corners <= [x1 - 1, y1 - 1]).all()
        picture = rng.integers(0, 255, (700, 900, 3), np.uint8)
        other = np.full_like(picture, 255)
        a, b, c, d = (int(v) for v in np.clip([x0, y0, x1, y1], 0, [900, 700, 900, 700]))
        other[b:d, a:c] = picture[b:d, a:c]
        one, two = (cv2.warpAffine(p, g.to_opencv(matrix), size, flags=cv2.INTER_LINEAR) for p in (picture, other))
        assert np.array_equal(one, two)


def test_box_of_points():
    assert g.box_of_points(np.array([[3.0, 4], [7, 9]])).tolist() == [3, 4, 4, 5]
    assert g.box_of_points(np.array([[3.0, 4]]), least=2).tolist() == [2, 3, 2, 2]
