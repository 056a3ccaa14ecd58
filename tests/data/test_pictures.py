"""Views of pictures in classes: the picture itself, windows of it in a black border, mirror images; pure functions of a draw."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from lowpose.config import AugmentConfig, InputConfig, parse_config
from lowpose.data.augment import draw_of, generator
from lowpose.data.pictures import PictureReader
from lowpose.errors import LowposeError
from lowpose.loader import evaluation_batches
from lowpose.samples import ClassData, PictureSample

WINDOWS = {"scale": 0.0, "rotation": 0.0, "shift": 0.125, "whole_pixels": True}


def read(key: str) -> np.ndarray:
    """Noise; a key is NUMBER:WIDTHxHEIGHT."""
    seed, _, size = key.partition(":")
    width, height = map(int, size.split("x"))
    return np.random.default_rng(int(seed)).integers(0, 256, (height, width, 3), np.uint8)


def data(n: int = 6, size: str = "32x32", read=read) -> ClassData:
    samples = [PictureSample(f"{i}:{size}", i % 3) for i in range(n)]
    return ClassData("made", "train", ".", ("a", "b", "c"), samples, read)


def settings(width: int = 32, height: int = 32, **more) -> InputConfig:
    return InputConfig(size=(width, height), padding=1.0, **more)


def test_the_plain_view_is_the_picture_itself():
    for size in ("32x32", "24x40"):
        width, height = map(int, size.split("x"))
        reader = PictureReader(data(size=size), settings(width, height))
        for i in range(6):
            view = reader.crop(i)
            assert np.array_equal(view.image, read(f"{i}:{size}")) and view.image.dtype == np.uint8
            assert (view.label, view.index, view.error) == (i % 3, i, None)


def test_a_classification_recipe_shows_the_picture_itself_when_measured():
    config = parse_config({"task": "classification", "input": {"size": [32, 32]}}, "recipe")
    assert np.array_equal(PictureReader(data(), config.input).crop(2).image, read("2:32x32"))


def test_a_larger_picture_is_averaged():
    view = PictureReader(data(1, "64x96"), settings(32, 48)).crop(0).image
    wanted = read("0:64x96").astype(np.float64).reshape(48, 2, 32, 2, 3).mean((1, 3))
    assert np.abs(view - wanted).max() <= 0.51  # rounded


def test_a_picture_of_another_shape_is_whole_between_black_bars():
    view = PictureReader(data(1, "64x32"), settings()).crop(0).image
    wanted = read("0:64x32").astype(np.float64).reshape(16, 2, 32, 2, 3).mean((1, 3))
    assert np.abs(view[8:24] - wanted).max() <= 0.51
    assert view[:8].max() == view[24:].max() == 0


def windows(picture: np.ndarray, n: tuple[int, int]) -> dict[bytes, tuple[int, int]]:
    """Content -> (x, y): the picture moved right by x and down by y, black where nothing is."""
    height, width = picture.shape[:2]
    framed = np.pad(picture, ((n[1], n[1]), (n[0], n[0]), (0, 0)))
    return {
        framed[n[1] - y : n[1] - y + height, n[0] - x : n[0] - x + width].tobytes(): (x, y)
        for x in range(-n[0], n[0] + 1)
        for y in range(-n[1], n[1] + 1)
    }


@pytest.mark.parametrize(("size", "n"), [("32x32", (4, 4)), ("24x40", (3, 5))])
def test_whole_pixels_give_windows_of_the_framed_picture_all_equally_often(size, n):
    width, height = map(int, size.split("x"))
    picture = read(f"0:{size}")
    known = windows(picture, n)
    mirrored = windows(picture[:, ::-1], n)
    reader = PictureReader(data(1, size), settings(width, height), AugmentConfig(**WINDOWS, flip=0.3))
    found, flips, count = Counter(), 0, 40 * len(known)
    for epoch in range(count):
        content = reader.crop(0, epoch).image.tobytes()
        assert (content in known) != (content in mirrored)
        flips += content in mirrored
        found[{**known, **mirrored}[content]] += 1
    assert len(found) == (2 * n[0] + 1) * (2 * n[1] + 1)
    assert stats.chisquare(list(found.values())).pvalue > 0.001
    assert stats.binomtest(flips, count, 0.3).pvalue > 0.001


def test_shifts_below_half_a_pixel_and_none_leave_the_picture():
    for shift in (0.0, 0.01):
        reader = PictureReader(data(), settings(), AugmentConfig(**WINDOWS | {"shift": shift}, flip=0))
        assert all(np.array_equal(reader.crop(i, 3).image, read(f"{i}:32x32")) for i in range(6))


def test_shifts_that_are_not_whole_are_shares():
    """Without `whole_pixels` a view is as of persons: half a pixel is a mean of two."""
    config = AugmentConfig(**WINDOWS | {"whole_pixels": False}, flip=0)
    draw = draw_of(np.array([0.0, 0, 32, 32]), config, generator(0, 0, 0))
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((0, 0, 0, 0, 0))))
    rng.standard_normal(2), rng.random(2)
    assert np.allclose(draw.matrix((32, 32), 1.0), np.column_stack([np.eye(2), 32 * 0.125 * rng.uniform(-1, 1, 2)]))


def test_numbers_are_drawn_in_the_documented_order():
    """Scale, rotation, whether to turn, whether to flip, shifts, colours: restated here with NumPy alone."""
    config = AugmentConfig(scale=0.2, rotation=20, rotation_probability=0.5, flip=0.4, shift=0.1, colour=0.3, whole_pixels=True)
    for i in range(200):
        draw = draw_of(np.array([0.0, 0, 20, 10]), config, generator(7, 3, i))
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((7, 3, i, 0, 0))))
        scale, rotation = 1 + 0.2 * rng.standard_normal(), 20 * rng.standard_normal()
        turned, flipped = rng.random() < 0.5, rng.random() < 0.4
        shift, colour = rng.uniform(-1, 1, 2), 1 + 0.3 * rng.uniform(-1, 1, 3)
        assert draw.scale == min(max(scale, 0.8), 1.2)
        assert draw.rotation == (min(max(rotation, -40), 40) if turned else 0) and draw.flip == flipped
        assert np.allclose(draw.shift, 0.1 * shift, rtol=1e-15) and np.allclose(draw.colour, colour, rtol=1e-15)
        # of 2 n + 1 equal parts of -1 to 1 the one that the shift fell into: n is 6 of 64 and 5 of 48 pixels
        moved = draw.matrix((64, 48), 1.0)[:, 2] - replace(draw, shift=(0.0, 0.0)).matrix((64, 48), 1.0)[:, 2]
        assert np.allclose(moved, [np.floor((shift[0] + 1) / 2 * 13) - 6, np.floor((shift[1] + 1) / 2 * 11) - 5], atol=1e-9)


EVERYTHING = AugmentConfig(scale=0.2, rotation=20, shift=0.1, whole_pixels=True, colour=0.2)


@pytest.mark.parametrize("resample", ["area", "paper", "camera"])
def test_views_do_not_depend_on_the_order_or_on_others(resample):
    made, same = settings(resample=resample), data(read=lambda key: read("0:40x30"))  # six times the same picture
    one, two = (PictureReader(same, made, EVERYTHING, seed=4) for _ in "ab")
    keys = [(i, e) for e in (0, 1) for i in range(6)]
    first = {key: one.crop(*key).image for key in keys}
    assert all(np.array_equal(first[key], two.crop(*key).image) for key in reversed(keys))
    assert len({image.tobytes() for image in first.values()}) == 12  # epochs and samples differ
    other = PictureReader(same, made, EVERYTHING, seed=5)
    assert not np.array_equal(first[0, 0], other.crop(0, 0).image)


def test_workers_change_nothing():
    reader = PictureReader(data(), settings(), EVERYTHING)
    alone, together = ([b.images for b in evaluation_batches(reader, 2, workers, epoch=1)] for workers in (0, 2))
    assert len(alone) == 3 and all((a == b).all() for a, b in zip(alone, together, strict=True))


def test_declared_views_are_taken_in_turn():
    reader = PictureReader(data(), settings(), EVERYTHING.model_copy(update={"views": 3, "seed": 9}), seed=1)
    views = [[reader.crop(i, epoch).image.tobytes() for i in range(6)] for epoch in range(6)]
    assert views[:3] == views[3:] and len({v for epoch in views[:3] for v in epoch}) == 18
    again = PictureReader(data(), settings(), EVERYTHING.model_copy(update={"views": 3, "seed": 9}), seed=2)
    assert again.crop(0, 1).image.tobytes() == views[1][0]  # augment.seed, not the training's


def test_a_picture_that_cannot_be_read_is_black_and_named():
    def broken(key):
        if key.startswith("1:"):
            raise LowposeError("train/b/1.png: truncated picture")
        return read(key)

    reader = PictureReader(data(read=broken), settings(24, 16), EVERYTHING)
    view = reader.crop(1)
    assert view.image.shape == (16, 24, 3) and not view.image.any()
    assert (view.label, view.index, view.error) == (1, 1, "train/b/1.png: truncated picture")
    (batch,) = evaluation_batches(reader, 6)
    assert batch.weight.tolist() == [1, 0, 1, 1, 1, 1] and batch.errors == [view.error]
    assert batch.labels.tolist() == [0, 1, 2, 0, 1, 2] and batch.index.tolist() == list(range(6))
    assert batch.images.shape == (6, 3, 16, 24) and not batch.images[1].any() and batch.images[2].any()
