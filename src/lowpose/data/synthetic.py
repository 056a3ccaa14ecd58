"""Synthetic people: pictures made by a program, with exact joints, for demonstrations and tests without a download.

An articulated body of solids (`_poses`, `_quadrics`) in clothes (`_people`) stands, runs, sits or jumps in a made-up
place (`_scenes`), seen from any side, sometimes behind something, with other people around. A picture is a function
of (seed, split, index) and is drawn only when it is read; where its joints lie is computed without drawing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, model_validator

from lowpose.data._paint import paint
from lowpose.data._people import Person, make_person
from lowpose.data._scenes import Occluder, camera, draw_background, draw_occluder, shadow
from lowpose.errors import LowposeError, did_you_mean
from lowpose.registry import register
from lowpose.samples import PersonSample, PoseData
from lowpose.skeletons import COCO17, Skeleton
from lowpose.strict import Strict, validate

SPLITS = {"train": 4000, "val": 500, "test": 500}
PROTOCOLS = {"lsp14": "lsp", "mpii16": "mpii", "crowdpose14": "crowdpose"}
AREA = 0.53  # of a person's box that the person fills, as COCO's evaluators take it where there is no mask
_PERSON, _AROUND, _PIXELS = range(3)  # independent random streams of one picture


class SyntheticConfig(Strict):
    """Options of the synthetic data. Sizes in pixels."""

    count: int | None = Field(None, ge=1, le=999_999)  # persons, one a picture; default 4000 train, 500 val and test
    seed: int = Field(0, ge=0, lt=2**32)
    height: tuple[float, float] = (90, 200)  # least and most stature, as if upright; uniform in the logarithm
    size: tuple[int, int] = (256, 256)  # width, height of a picture

    @model_validator(mode="after")
    def _fits(self):
        if min(self.size) < 32 or max(self.size) > 2048:
            raise ValueError(f"size must be 32 to 2048 pixels wide and high, not {self.size[0]} x {self.size[1]}")
        least, most = self.height
        if not 16 <= least <= most <= min(self.size):
            raise ValueError(
                f"height must be [least, most] within 16 to {min(self.size)} (the picture), not [{least:g}, {most:g}]"
            )
        return self


@dataclass
class Scene:
    """One picture before it is drawn: the labelled person, what stands in front, and how many others are around."""

    person: Person
    occluders: list[Occluder]
    others: int


def _random(config: SyntheticConfig, split: str, index: int, stream: int) -> np.random.Generator:
    return np.random.default_rng((config.seed, list(SPLITS).index(split), index, stream))


def _place(size: tuple[int, int], extent: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """Within the picture; one person in eight is cut off by an edge."""
    at = []
    cut = int(rng.integers(4)) if rng.random() < 0.12 else -1  # left, top, right or bottom edge
    for axis in (0, 1):
        low, high = extent[axis], extent[axis + 2]
        first, last = 3 - low, size[axis] - 3 - high
        value = first + (last - first) * (rng.random() + rng.random()) / 2 if first < last else (first + last) / 2
        beyond = rng.uniform(0.05, 0.35) * (high - low)
        if cut == axis:
            value = -low - beyond
        elif cut == axis + 2:
            value = size[axis] - high + beyond
        at.append(float(value))
    return at[0], at[1]


def make_scene(config: SyntheticConfig, split: str, index: int) -> Scene:
    """The scene of one picture, without pixels."""
    person = make_person(_random(config, split, index, _PERSON), config.height, partial(_place, config.size))
    rng = _random(config, split, index, _AROUND)
    occluders = [draw_occluder(rng, person.extent)] if rng.random() < 0.25 else []
    return Scene(person, occluders, int(np.searchsorted((0.6, 0.82, 0.94), rng.random())))


def draw(config: SyntheticConfig, split: str, index: int) -> np.ndarray:
    """(H, W, 3) uint8 RGB of one picture."""
    scene = make_scene(config, split, index)
    rng = _random(config, split, index, _PIXELS)
    w, h = config.size
    canvas = draw_background(rng, config.size, scene.person.ground - rng.uniform(0.08, 0.9) * scene.person.stature)
    light = np.array([rng.normal(0, 0.6), -0.5, 0.75])
    light = (light / np.linalg.norm(light)).astype(np.float32)
    dark = rng.uniform(0.15, 0.5)

    def beside(extent, rng):
        return rng.uniform(-0.05, 1.05) * w, scene.person.ground - extent[3] - rng.uniform(0, 0.12) * scene.person.stature

    statures = np.sort(rng.uniform(0.45, 0.95, scene.others)) * scene.person.stature
    people = [make_person(rng, (s, s), beside) for s in statures]  # farther away, so behind
    for person in [*people, scene.person]:
        shadow(canvas, (person.extent[0] + person.extent[2]) / 2, person.ground, 0.28 * person.stature, dark)
        paint(canvas, person, light, rng)
    for occluder in scene.occluders:
        occluder.paint(canvas)
    return camera(rng, canvas)


def read_picture(config: SyntheticConfig, key: str) -> np.ndarray:
    """(H, W, 3) uint8 RGB of the picture `key`, as train/000123. Raises: LowposeError for any other key."""
    split, _, number = key.partition("/")
    if split not in SPLITS or not number.isdecimal():
        raise LowposeError(f"synthetic: no picture '{key}'; keys are SPLIT/NUMBER, as train/000123")
    return draw(config, split, int(number))


def _sample(
    config: SyntheticConfig, split: str, index: int, keypoints: tuple[str, ...], head: tuple[int, int] | None, crowd: bool
) -> PersonSample:
    scene = make_scene(config, split, index)
    person = scene.person
    points = np.array([person.joints[name][:2] for name in keypoints])
    inside = ((points >= 0) & (points < config.size)).all(1)
    covered = [any(occluder.covers(*point) for occluder in scene.occluders) for point in points]
    hidden = np.array([person.hidden[name] for name in keypoints]) | covered
    visibility = np.where(inside, np.where(hidden, 1, 2), 0).astype(np.uint8)
    low, high = np.clip(person.extent[:2], 0, config.size), np.clip(person.extent[2:], 0, config.size)
    head_size = None
    if head is not None and inside[list(head)].all():
        head_size = float(np.linalg.norm(points[head[0]] - points[head[1]]))
    return PersonSample(
        f"{split}/{index:06d}",
        np.concatenate([low, high - low]),
        np.where(inside[:, None], points, 0).astype(np.float32),
        visibility,
        index + 1,
        index + 1,
        area=AREA * float(np.prod(high - low)),
        head_size=head_size,
        crowd=scene.others / 3 if crowd else None,
    )


@lru_cache(maxsize=4)  # a demonstration asks for each split a dozen times, at some seconds a time
def _samples(
    config: SyntheticConfig, split: str, keypoints: tuple[str, ...], head: tuple[int, int] | None, crowd: bool
) -> tuple[PersonSample, ...]:
    return tuple(_sample(config, split, i, keypoints, head, crowd) for i in range(config.count or SPLITS[split]))


@register("data", "synthetic", config=SyntheticConfig)
def synthetic(root: Path, split: str, *, boxes: str, skeleton: Skeleton | None, options: dict[str, Any]) -> PoseData:
    """Drawn people, any number of them, with exact joints; needs no files."""
    config = validate(SyntheticConfig, options, "synthetic")
    if boxes != "gt":
        raise LowposeError(f"synthetic has no detector boxes; boxes must be 'gt', not '{boxes}'")
    if split not in SPLITS:
        raise LowposeError(f"synthetic: unknown split '{split}'{did_you_mean(split, SPLITS)}")
    skeleton = skeleton or COCO17
    known = make_person(np.random.default_rng(0), config.height, partial(_place, config.size)).hidden
    unknown = [name for name in skeleton.keypoints if name not in known]
    if unknown:
        raise LowposeError(
            f"skeleton '{skeleton.name}': synthetic people have no joint {', '.join(unknown)}; known: {', '.join(known)}"
        )
    w, h = config.size
    name = f"seed {config.seed}, {w} x {h}, {config.height[0]:g} to {config.height[1]:g} px"
    protocol = PROTOCOLS.get(skeleton.name, "coco")
    samples = list(_samples(config, split, skeleton.keypoints, skeleton.head, protocol == "crowdpose"))
    return PoseData("synthetic", split, name, skeleton, samples, partial(read_picture, config), (), "gt", protocol, areas="boxes")
