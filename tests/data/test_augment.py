"""Random views: pure functions of (seed, epoch, sample, view), with the distributions that are configured."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from lowpose.config import AugmentConfig, InputConfig
from lowpose.data.augment import Draw, draw_view, generator, half_body_box, largest_region, recolour, view_keypoints
from lowpose.data.crops import CropReader
from lowpose.geometry import crop_matrix, invert, transform
from lowpose.samples import PersonSample, PoseData
from lowpose.skeletons import COCO17


def person(seed=0, seen=None):
    rng = np.random.default_rng(seed)
    points = rng.uniform([40, 30], [100, 150], (17, 2)).astype(np.float32)
    visibility = np.full(17, 2, np.uint8)
    if seen is not None:
        visibility[~np.isin(COCO17.keypoints, seen)] = 0
    return PersonSample("a", np.array([40.0, 30, 60, 120]), np.where(visibility[:, None], points, 0), visibility, seed + 1, 1)


def draws(config, n=4000, sample=None, padding=1.25):
    sample = sample or person()
    return [draw_view(sample, COCO17, config, padding, generator(0, 0, i)) for i in range(n)]


def test_generators_differ_in_every_number_and_repeat():
    keys = [
        (0, 0, 0, 0, "view"),
        (1, 0, 0, 0, "view"),
        (0, 1, 0, 0, "view"),
        (0, 0, 1, 0, "view"),
        (0, 0, 0, 1, "view"),
        (0, 0, 0, 0, "pixels"),
    ]
    firsts = [generator(*key).random() for key in keys]
    assert len(set(firsts)) == len(keys)
    np.random.seed(3)
    np.random.rand(100)
    assert [generator(*key).random() for key in reversed(keys)] == firsts[::-1]


def test_scale_and_rotation_follow_their_distributions():
    config = AugmentConfig(scale=0.25, rotation=30, rotation_probability=0.6, flip=0.3)
    found = draws(config)
    scale, rotation = np.array([d.scale for d in found]), np.array([d.rotation for d in found])
    assert scale.min() == 0.75 and scale.max() == 1.25
    inner = scale[(scale > 0.75) & (scale < 1.25)]
    assert abs(len(inner) / len(scale) - 0.6827) < 0.03  # within one standard deviation
    assert stats.kstest(inner, stats.truncnorm(-1, 1, 1, 0.25).cdf).pvalue > 0.001
    turned = rotation[rotation != 0]
    assert abs(len(turned) / len(rotation) - 0.6) < 0.03
    assert rotation.min() == -60 and rotation.max() == 60
    inner = turned[np.abs(turned) < 60]
    assert stats.kstest(inner, stats.truncnorm(-2, 2, 0, 30).cdf).pvalue > 0.001
    assert abs(np.mean([d.flip for d in found]) - 0.3) < 0.03
    assert abs(np.corrcoef(scale, rotation)[0, 1]) < 0.06


def test_shift_and_colour_are_uniform():
    found = draws(AugmentConfig(shift=0.1, colour=0.2), 2000)
    shift, colour = np.array([d.shift for d in found]), np.array([d.colour for d in found])
    for column in shift.T:
        assert stats.kstest(column, stats.uniform(-0.1, 0.2).cdf).pvalue > 0.001
    for column in colour.T:
        assert stats.kstest(column, stats.uniform(0.8, 0.4).cdf).pvalue > 0.001


def test_a_setting_does_not_change_the_other_draws():
    """All numbers are drawn in a fixed order, so runs that differ in one setting see the same rest."""
    plain = draws(AugmentConfig(flip=0, half_body=0, colour=0), 20)
    other = draws(AugmentConfig(flip=1, half_body=0, colour=0.5, shift=0.1), 20)
    assert [(d.scale, d.rotation) for d in plain] == [(d.scale, d.rotation) for d in other]


def test_numbers_are_drawn_in_a_fixed_order():
    """Which half, whether half a body, scale, rotation, whether to turn, whether to flip, shifts, colours: trained weights and
    kept answers of teachers rest on it. Restated with NumPy alone."""
    config = AugmentConfig(scale=0.2, rotation=20, rotation_probability=0.5, flip=0.4, shift=0.1, colour=0.3, half_body=0.5)
    for i in range(200):
        draw = draw_view(person(), COCO17, config, 1.25, generator(7, 3, i, 1))
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((7, 3, i, 1, 0))))
        upper, half = rng.random() < 0.69, rng.random() < 0.5
        box = half_body_box(person(), COCO17, upper, 1.25) if half else person().box
        scale, rotation = 1 + 0.2 * rng.standard_normal(), 20 * rng.standard_normal()
        turned, flipped = rng.random() < 0.5, rng.random() < 0.4
        shift, colour = 0.1 * rng.uniform(-1, 1, 2), 1 + 0.3 * rng.uniform(-1, 1, 3)
        assert np.array_equal(draw.box, box) and draw.flip == flipped
        assert draw.scale == min(max(scale, 0.8), 1.2) and draw.rotation == (min(max(rotation, -40), 40) if turned else 0)
        assert np.allclose(draw.shift, shift, rtol=1e-15) and np.allclose(draw.colour, colour, rtol=1e-15)


def test_nothing_is_changed_without_augmentation():
    none = AugmentConfig(scale=0, rotation=0, flip=0)
    assert {(d.scale, d.rotation, d.flip, d.shift, d.colour) for d in draws(none, 50)} == {
        (1.0, 0.0, False, (0.0, 0.0), (1.0, 1.0, 1.0))
    }


def test_shift_moves_the_crop_by_a_share_of_it():
    draw = Draw(person().box, shift=(0.1, -0.05))
    moved = transform(draw.matrix((40, 80), 1.25), [[50.0, 60]]) - transform(crop_matrix(person().box, (40, 80)), [[50.0, 60]])
    assert np.allclose(moved, [[4, -4]])


UPPER = ["nose", "left_shoulder", "right_shoulder", "left_elbow", "right_wrist"]
LOWER = ["left_hip", "right_hip", "left_knee"]


@pytest.mark.parametrize("upper", [True, False])
def test_half_body_box(upper):
    """Centred on the mean of the half's labelled joints; after padding 1.5 times their outline."""
    sample = person(seen=UPPER + LOWER)
    points = sample.keypoints[np.isin(COCO17.keypoints, UPPER if upper else LOWER)]
    x, y, w, h = half_body_box(sample, COCO17, upper, padding=1.25)
    assert np.allclose([x + w / 2, y + h / 2], points.mean(0), atol=1e-4)
    assert np.allclose(np.array([w, h]) * 1.25, 1.5 * np.ptp(points, 0), atol=1e-4)


def test_half_body_falls_back_where_joints_are_few():
    few = person(seen=UPPER + ["left_hip"])
    assert np.array_equal(half_body_box(few, COCO17, False, 1.25), half_body_box(few, COCO17, True, 1.25))
    neither = person(seen=["nose", "left_eye", "left_hip"])
    assert np.array_equal(half_body_box(neither, COCO17, True, 1.25), neither.box)


def test_half_body_probability_and_least_joints():
    config = AugmentConfig(half_body=0.4, half_body_joints=8)
    changed = [not np.array_equal(d.box, person().box) for d in draws(config, 2000)]
    assert abs(np.mean(changed) - 0.4) < 0.04
    eight = person(seen=UPPER + LOWER)
    assert all(np.array_equal(d.box, eight.box) for d in draws(config, 200, eight))


def test_flips_exchange_names_and_weights():
    sample = person(seen=["left_wrist", "right_hip", "nose"])
    matrix = crop_matrix(sample.box, (48, 64), flip=True)
    keypoints, weight = view_keypoints(sample, matrix, True, COCO17)
    assert {COCO17.keypoints[i] for i in np.flatnonzero(weight)} == {"right_wrist", "left_hip", "nose"}
    was = transform(crop_matrix(sample.box, (48, 64)), sample.keypoints[COCO17.index("left_wrist")][None])[0]
    assert np.allclose(keypoints[COCO17.index("right_wrist")], [48 - was[0], was[1]], atol=1e-3)
    assert not keypoints[weight == 0].any() and keypoints.dtype == weight.dtype == np.float32


def split(n=6):
    def read(key):
        return np.random.default_rng(int(key)).integers(0, 255, (200, 160, 3), np.uint8)

    samples = [PersonSample(str(i), s.box, s.keypoints, s.visibility, i + 1, i) for i in range(n) for s in [person(i)]]
    return PoseData("made", "train", ".", COCO17, samples, read)


EVERYTHING = AugmentConfig(half_body=0.5, shift=0.1, colour=0.2)


@pytest.mark.parametrize("resample", ["area", "camera"])
def test_views_do_not_depend_on_the_order_or_on_others(resample):
    settings = InputConfig(size=(32, 48), resample=resample)
    one, two = CropReader(split(), settings, EVERYTHING, seed=4), CropReader(split(), settings, EVERYTHING, seed=4)
    keys = [(i, e) for e in (0, 1) for i in range(6)]
    first = {key: one.crop(*key) for key in keys}
    for key in reversed(keys):
        again = two.crop(*key)
        assert np.array_equal(first[key].image, again.image) and np.array_equal(first[key].keypoints, again.keypoints)
        assert np.array_equal(first[key].matrix, again.matrix)
    assert not np.array_equal(first[0, 0].matrix, first[0, 1].matrix)  # epochs differ
    assert not np.array_equal(first[0, 0].matrix, one.crop(0, 0, view=1).matrix)
    assert not np.array_equal(first[0, 0].matrix, CropReader(split(), settings, EVERYTHING, seed=5).crop(0, 0).matrix)


def test_a_teacher_sees_the_same_view_larger():
    reader = CropReader(split(), InputConfig(size=(32, 48)), EVERYTHING)
    for i in range(6):
        small, large = reader.crop(i, 3), reader.crop(i, 3, size=(128, 192))
        assert large.image.shape == (192, 128, 3)
        assert np.allclose(large.keypoints, small.keypoints * 4, rtol=1e-4, atol=1e-3) and np.array_equal(
            large.weight, small.weight
        )
        assert np.allclose(large.matrix, small.matrix * 4, rtol=1e-9)


def test_recolour():
    picture = np.random.default_rng(0).integers(60, 160, (8, 8, 3), np.uint8)
    assert recolour(picture, (1.0, 1.0, 1.0)) is picture
    assert np.abs(recolour(picture, (1.2, 1.0, 1.0)) - picture * 1.2).max() <= 0.51
    grey = recolour(picture, (1.0, 1.0, 0.0)).astype(int)
    assert np.ptp(grey, axis=2).max() == 0
    assert np.abs(grey[..., 0] - picture @ [0.299, 0.587, 0.114]).max() <= 0.6
    flat = recolour(picture, (1.0, 0.0, 1.0)).astype(int)
    assert np.ptp(flat, axis=(0, 1)).max() <= 1
    assert recolour(np.full((4, 4, 3), 250, np.uint8), (1.5, 1.0, 1.0)).max() == 255  # clipped, not wrapped


@pytest.mark.parametrize(
    "config", [None, AugmentConfig(scale=0.35, rotation=45, rotation_probability=1), AugmentConfig(rotation=0, shift=0.1)]
)
def test_largest_region_holds_every_view_of_the_box(config):
    sample, size = person(), (36, 48)
    low_x, low_y, high_x, high_y = largest_region(sample, COCO17, size, 1.25, config)
    for i in range(300 if config else 1):
        draw = draw_view(sample, COCO17, config, 1.25, generator(0, 0, i)) if config else Draw(sample.box)
        corners = transform(invert(draw.matrix(size, 1.25)), [[0, 0], [36, 0], [0, 48], [36, 48]])
        assert (corners > [low_x, low_y]).all() and (corners < [high_x, high_y]).all()
