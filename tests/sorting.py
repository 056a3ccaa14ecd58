"""Drawn pictures in classes, and a recipe that sorts them in a second."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch

from lowpose.config import RunConfig, parse_config

CLASSES = ("bars", "disc", "rows")


def draw(name: str, rng: np.random.Generator, size: int = 32) -> np.ndarray:
    """(size, size, 3) uint8: a disc, upright bars or rows of one colour on noise."""
    y, x = np.mgrid[:size, :size] + 0.5
    centre, radius = rng.uniform(0.4, 0.6, 2) * size, rng.uniform(0.25, 0.35) * size
    shape = {
        "disc": np.hypot(x - centre[0], y - centre[1]) < radius,
        "bars": (x + rng.integers(8)) % 8 < 4,
        "rows": (y + rng.integers(8)) % 8 < 4,
    }[name]
    noise = rng.integers(0, 120, (size, size, 3))
    return np.where(shape[..., None], rng.integers(150, 255, 3), noise).astype(np.uint8)


def write_pictures(root: Path, train: int = 4, val: int = 2, classes: tuple[str, ...] = CLASSES) -> Path:
    """ROOT/train and ROOT/val with so many pictures of each class."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                cv2.imwrite(str(root / split / name / f"{i}.png"), draw(name, rng))
    return root


def sorting(root: Path, **sections) -> RunConfig:
    """A recipe for these pictures; `train={"epochs": 6}` and the like change parts of it."""
    torch.set_num_threads(1)
    values = {
        "name": "sorting",
        "task": "classification",
        "data": {"root": str(root)},
        "input": {"size": [32, 32]},
        "model": {"backbone": "test_resnet", "pretrained": "none"},
        "train": {
            "epochs": 3,
            "batch_size": 6,
            "optimizer": "sgd",
            "lr": 0.02,
            "schedule": "constant",
            "log_every": 1,
            "save_every": 3,
        },
    }
    for name, value in sections.items():
        old = values.get(name)
        values[name] = {**old, **value} if isinstance(old, dict) else value
    return parse_config(values, "sorting")
