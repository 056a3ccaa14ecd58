"""The operators of `lowpose robustness` against NumPy, SciPy and Pillow, on crops of drawn pictures."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from lowpose.config import InputConfig
from lowpose.data import load_data
from lowpose.data.crops import CropReader
from lowpose.data.degradations import OPERATORS, CoarseReader, DegradedCrops, jittered
from lowpose.errors import LowposeError
from lowpose.geometry import crop_matrix, invert, transform

SETTINGS = InputConfig(size=(48, 64))


@pytest.fixture(scope="module")
def people():
    return load_data("synthetic", options={"count": 6, "size": [160, 160], "height": [60, 120]})


def blob(at, size=(200, 200), sigma=9.0):
    ys, xs = np.indices((size[1], size[0])) + 0.5
    grey = 30 + 200 * np.exp(-((xs - at[0]) ** 2 + (ys - at[1]) ** 2) / 2 / sigma**2)
    return grey.round().astype(np.uint8)[..., None].repeat(3, 2)


def of(name: str, severity: int) -> int:
    """Where the crop of an operator at a severity (1 to 5) stands."""
    return 1 + 5 * [o.name for o in OPERATORS].index(name) + severity - 1


def severities(name: str):
    return next(o.values for o in OPERATORS if o.name == name)


def test_every_operator_has_five_severities_and_a_line_of_the_table():
    import lowpose.data.degradations as module

    for operator in OPERATORS:
        assert len(operator.values) == 5 and len(set(operator.values)) == 5
        line = next(text for text in module.__doc__.splitlines() if text.startswith(f"| `{operator.name}`"))
        told = line.split("|")[2].strip()
        if told == "the same":
            assert operator.values == severities("area")
        else:
            parts = [part.split("/") for part in told.split(", ")]
            assert tuple(float(p[0]) / float(p[1]) if len(p) == 2 else float(p[0]) for p in parts) == operator.values


def test_plain_comes_first_and_operators_on_pixels_are_those_of_other_libraries(people):
    images, matrices, error = DegradedCrops(people, SETTINGS).person(2)
    plain = CropReader(people, SETTINGS).crop(2)
    assert error is None and len(images) == len(matrices) == 1 + 5 * len(OPERATORS)
    assert np.array_equal(images[0], plain.image) and np.array_equal(matrices[0], plain.matrix)
    for i in range(5):
        blur = ndimage.gaussian_filter(plain.image.astype(float), (severities("blur")[i],) * 2 + (0,), mode="mirror", truncate=6)
        assert np.abs(images[of("blur", i + 1)] - blur).max() <= 2
        held = io.BytesIO()
        Image.fromarray(plain.image).save(held, "JPEG", quality=severities("jpeg")[i])
        assert np.abs(images[of("jpeg", i + 1)] - np.asarray(Image.open(held)).astype(int)).max() <= 2
    for name in ("motion", "blur", "noise", "jpeg"):
        differences = [np.abs(images[of(name, s)].astype(int) - plain.image).mean() for s in range(1, 6)]
        assert differences == sorted(differences) and differences[0] > 0.2, name
        assert all(np.array_equal(matrices[of(name, s)], plain.matrix) for s in range(1, 6))


def test_severities_share_their_noise(people):
    grey = replace(people, read=lambda key: np.full((160, 160, 3), 128, np.uint8), samples=[
        replace(s, box=np.array([50.0, 50.0, 40.0, 60.0])) for s in people.samples
    ])  # fmt: skip
    images = DegradedCrops(grey, SETTINGS).person(0)[0].astype(float)
    grains = [images[of("noise", s)] - 128 for s in (1, 2, 3)]
    assert [g.std() for g in grains] == pytest.approx(severities("noise")[:3], rel=0.05)
    assert np.corrcoef(grains[0].ravel(), grains[2].ravel())[0, 1] > 0.99
    other = DegradedCrops(grey, SETTINGS).person(1)[0][of("noise", 1)].astype(float) - 128
    assert abs(np.corrcoef(grains[0].ravel(), other.ravel())[0, 1]) < 0.1, "another person, another pattern"


def test_every_crop_maps_back_to_the_picture(people):
    """A spot of the picture is found in each crop where that crop's matrix says."""
    at = np.array([103.4, 88.9])
    boxed = replace(people.samples[0], box=np.array([70.0, 50.0, 60.0, 80.0]))
    spotted = replace(people, read=lambda key: blob(at), samples=[boxed])
    images, matrices, _ = DegradedCrops(spotted, SETTINGS).person(0)
    for image, matrix in zip(images, matrices, strict=True):
        weight = np.maximum(image.astype(float).mean(2) - 130, 0)  # above the noise
        ys, xs = np.indices(weight.shape) + 0.5
        found = np.array([(weight * xs).sum(), (weight * ys).sum()]) / weight.sum()
        assert np.abs(found - transform(matrix, at[None])[0]).max() < 0.7


@pytest.mark.parametrize("value", [0.05, 0.3])
def test_a_shifted_box_is_off_by_its_share(value):
    box, rng = np.array([20.0, 30.0, 40.0, 100.0]), np.random.default_rng(0)
    moved = np.array([jittered(box, "shift", value, rng) for _ in range(400)])
    off = (moved[:, :2] - box[:2]) / box[2:]
    assert np.allclose(np.hypot(*off.T), value) and np.allclose(moved[:, 2:], box[2:])
    assert np.abs(off.mean(0)).max() < 0.15 * value, "in every direction"


def test_a_scaled_box_keeps_its_middle_and_is_larger_or_smaller():
    box, rng = np.array([20.0, 30.0, 40.0, 100.0]), np.random.default_rng(0)
    moved = np.array([jittered(box, "scale", 1.6, rng) for _ in range(400)])
    assert np.allclose(moved[:, :2] + moved[:, 2:] / 2, box[:2] + box[2:] / 2)
    factor = moved[:, 2] / box[2]
    assert np.allclose(factor, moved[:, 3] / box[3]) and {round(float(f), 4) for f in factor} == {1.6, 0.625}
    assert 0.4 < (factor > 1).mean() < 0.6


def test_crops_of_wrong_boxes(people):
    images, matrices, _ = DegradedCrops(people, SETTINGS, seed=3).person(1)
    x, y, w, h = people.samples[1].box
    middle = np.array([x + w / 2, y + h / 2])
    for i, value in enumerate(severities("shift")):
        seen = transform(invert(matrices[of("shift", i + 1)]), np.array([[24.0, 32.0]]))[0]  # middle of the crop
        assert np.hypot(*((seen - middle) / (w, h))) == pytest.approx(value)
    for i, value in enumerate(severities("scale")):
        factor = matrices[0][0, 0] / matrices[of("scale", i + 1)][0, 0]
        assert max(factor, 1 / factor) == pytest.approx(value)
    moved = replace(people.samples[1], box=None)  # the pixels are those of a plain crop of the wrong box
    seen = transform(invert(matrices[of("shift", 5)]), np.array([[24.0, 32.0]]))[0]
    moved = replace(people.samples[1], box=np.array([*(seen - (w / 2, h / 2)), w, h]))
    there = CropReader(replace(people, samples=[moved]), SETTINGS).crop(0)
    assert np.abs(there.image.astype(int) - images[of("shift", 5)]).max() <= 1


@pytest.mark.parametrize("share", [1.0, 0.5, 0.25])
@pytest.mark.parametrize("policy", ["area", "paper"])
def test_coarse_crops_are_small_crops_enlarged(people, share, policy):
    settings = SETTINGS.model_copy(update={"resample": policy})
    found = CoarseReader(people, settings, 0, share).crop(3)
    small = CropReader(people, settings.model_copy(update={"size": (int(48 * share), int(64 * share))})).crop(3).image
    ys, xs = np.meshgrid((np.arange(64) + 0.5) * share - 0.5, (np.arange(48) + 0.5) * share - 0.5, indexing="ij")
    wanted = [ndimage.map_coordinates(small[..., c].astype(float), [ys, xs], order=1, mode="nearest") for c in range(3)]
    assert np.abs(found.image - np.stack(wanted, -1)).max() <= 4
    assert np.array_equal(found.matrix, crop_matrix(people.samples[3].box, (48, 64)))
    s = OPERATORS[0].values.index(share) + 1
    assert np.array_equal(DegradedCrops(people, SETTINGS).person(3)[0][of(policy, s)], found.image)


def test_the_far_camera_is_that_of_the_recipe_at_a_height(people):
    """A share of the crop's resolution is the height of the person in the crop, times the share."""
    settings = SETTINGS.model_copy(update={"resample": "camera"})
    images, matrices, _ = DegradedCrops(people, SETTINGS, seed=4).person(0)
    tall = people.samples[0].box[3] * matrices[0][0, 0]
    height = 0.375 * tall
    camera = settings.camera.model_copy(update={"height": (height, height)})
    there = CropReader(people, settings.model_copy(update={"camera": camera}), seed=4).crop(0)
    assert np.array_equal(images[of("camera", 4)], there.image)


def test_a_picture_that_cannot_be_read(people):
    def broken(key):
        raise LowposeError(f"{key}: truncated picture")

    images, matrices, error = DegradedCrops(replace(people, read=broken), SETTINGS).person(0)
    assert error.endswith("truncated picture") and not images.any() and np.isfinite(matrices).all()
