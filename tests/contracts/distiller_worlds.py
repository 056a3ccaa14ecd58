"""Kinds of students and teachers, what they answer, and which of them each distillation method fits."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from lowpose import registry
from lowpose.nn.distill.base import FEATURE, TOKENS, Side, build_distillers
from lowpose.skeletons import Skeleton

NAMES = registry.names("distill")
HEADS = registry.names("head")
ON_TOKENS = [f"{name}-tokens" for name in HEADS if registry.find("head", name).make.reads_tokens]
KINDS = [*HEADS, *ON_TOKENS]  # of models: a head, and what it reads
SETTINGS = {  # beyond the defaults
    "cca": [{"temperature": 4.0}, {"order": "temper-first", "temperature": 2.0}],
    "kd": [{"temperature": 3.0}],
    "fc_class": [{"temperature": 3.0}],
    "heatmap_marginals": [{"temperature": 3.0}],
    "sape": [{"projector": "flatten", "fusion": "deep"}, {"fusion": "sum", "per": "joint"}, {"source": "feature"}],
}
METHODS = [(name, settings) for name in NAMES for settings in [{}, *SETTINGS.get(name, [])]]
CASES = [(name, settings, kind) for name, settings in METHODS for kind in KINDS]
FIVE = Skeleton("five", tuple("abcde"), pairs=((0, 3),))
K, BATCH = 5, 4
SPLIT = {"kd": 4.0}  # of the student, so that both have as many classes; 2 elsewhere
TEACHERS = dict.fromkeys(("heatmap_marginals", "predicted_score", "simulated_heatmap"), "heatmap")  # elsewhere the same head
TAUGHT = {"predicted_score": ["score"]}  # of what is read; elsewhere all of it


class World(NamedTuple):
    """Crop (width, height); the backbone's feature (C, h, w); visual tokens (D, h, w)."""

    size: tuple[int, int]
    feature: tuple[int, int, int]
    visual: tuple[int, int, int]


SMALL, LARGE = World((32, 24), (6, 6, 8), (8, 3, 4)), World((64, 48), (7, 12, 16), (12, 6, 8))


def build_head(kind: str, world: World, split: float = 2.0) -> nn.Module:
    name = kind.removesuffix("-tokens")
    entry = registry.find("head", name)
    config = entry.config(**({"split": split} if name == "simcc" else {}))
    return entry.make(config, world.visual[:1] if kind in ON_TOKENS else world.feature, world.size, FIVE)


def inner(kind: str, world: World) -> dict[str, tuple[int, ...]]:
    """Shapes of what a model has before its head; the last is what the head reads."""
    return {FEATURE: world.visual, TOKENS: (K, world.visual[0])} if kind in ON_TOKENS else {FEATURE: world.feature}


@cache
def side(kind: str, world: World, split: float = 2.0) -> Side:
    """What a model answers, found by asking its head."""
    shapes = inner(kind, world)
    with torch.no_grad():
        outputs = build_head(kind, world, split)(torch.zeros(1, *list(shapes.values())[-1]))
    return Side({**{n: tuple(v.shape[1:]) for n, v in outputs.items()}, **shapes}, world.size)


def sides(name: str, kind: str) -> tuple[Side, Side]:
    """A student of this kind and the teacher that it has with this method; both read maps, or both tokens."""
    theirs = f"{TEACHERS[name]}{'-tokens' * (kind in ON_TOKENS)}" if name in TEACHERS else kind
    return side(kind, SMALL, SPLIT.get(name, 2.0)), side(theirs, LARGE)


def needs(name: str, settings: dict, whose: str = "student") -> list[str]:
    """Outputs that a method reads; those of `sape` depend on its settings."""
    return list(getattr(registry.find("distill", name).make, f"{whose}_needs")) or [settings.get("source", "map")]


def lacking(name: str, settings: dict, whose: str, found: Side) -> list[str]:
    """What a method asks for and a model does not have. A feature alone is no token model."""
    asked = [TOKENS] * (name == "visual_tokens") + needs(name, settings, whose)
    return [n for n in asked if n not in found.shapes]


def applies(name: str, kind: str, settings: dict) -> bool:
    return not lacking(name, settings, "student", side(kind, SMALL))


def label(case: tuple[str, dict, str]) -> str:
    name, settings, kind = case
    return "-".join([name, kind, *map(str, settings.values())])


def every_case(fits: bool, merged=()):
    """Methods and kinds of students that go together, or that do not; `merged`: outputs that the teacher must give."""
    chosen = [case for case in CASES if applies(case[0], case[2], case[1]) == fits]
    chosen = [case for case in chosen if set(merged) <= set(needs(*case[:2], "teacher"))]
    return pytest.mark.parametrize("name,settings,head", chosen, ids=map(label, chosen))


def make(name: str, settings: dict, head: str, **more):
    found = sides(name, head)  # asks for random numbers the first time
    torch.manual_seed(0)
    return build_distillers({name: {**settings, **more}}, *found)[0]


RANGES = {"xy": torch.sigmoid, "sigma": lambda v: torch.sigmoid(v) / 4}  # shares of the crop; all else is any number


def some(found: Side, generator: torch.Generator, batch: int = BATCH) -> dict[str, torch.Tensor]:
    """Answers of a model, as random as its head lets them be."""
    draws = {n: 2 * torch.randn(batch, *shape, generator=generator) for n, shape in found.shapes.items()}
    return {n: RANGES.get(n, nn.Identity())(v) for n, v in draws.items()}


def answers(name: str, head: str, seed: int = 0, batch: int = BATCH) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [some(found, generator, batch) for found in sides(name, head)]


def labels(seed: int = 0) -> torch.Tensor:
    """(B, K) some joints have none, and the second person has no joint at all."""
    weight = torch.from_numpy(np.random.default_rng(seed).integers(0, 2, (BATCH, K))).float()
    weight[0, 0], weight[1] = 1.0, 0.0
    return weight


def follow(outputs: dict[str, torch.Tensor], names) -> dict[str, torch.Tensor]:
    for n in names:
        outputs[n].requires_grad_()
    return outputs


def taught(name: str, method: nn.Module) -> list[str]:
    """What of a student's answers gets a gradient."""
    return TAUGHT.get(name, method.needs("student"))
