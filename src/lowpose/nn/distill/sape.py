"""SAPE: projectors carry the student's map to the teacher's size; a unit that sees several scales weighs them.

Z. Gu, Z.-Q. Zhao, H. Ding, H. Shen, Z. Zhang, D.-S. Huang: Cross-Domain Knowledge Distillation for Low-Resolution Human Pose
Estimation, Sec. III-A, eq. 1 to 5, Table IV, Table VI, Fig. 6.

K projectors (one linear layer and ReLU each) map the student's keypoint map to the teacher's size. The scale-adaptive unit
(SAU) convolves the student's map with kernels of several sizes (eq. 1), fuses the branches (linear layer, global average, sum:
eq. 2) and gives each projector a weight per channel (K linear layers, softmax over projectors: eq. 3); the weighted sum (eq. 4)
is compared with the teacher's map by cosine distance over a person's whole map (eq. 5).

Open in the paper and chosen here. `spatial` projectors share one h w -> h' w' layer between channels (0.07M weights from 32 to
128 pixels); `flatten` mixes joints and positions in one layer, as the released code does (12.8M there). The linear layer of eq.
2 is shared by the branches and stands after the average, with which it commutes. `deep` (Fig. 6) adds a linear layer and ReLU
behind the average ('gap') or a linear layer before the softmax ('softmax'). A branch is convolution, batch norm, ReLU. Where a
backbone feature is aligned and channels differ, a 1x1 convolution comes before a spatial projector.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from lowpose.errors import LowposeError
from lowpose.nn.distill.base import FEATURE, Distiller, Side, Term, Weighted, output_shapes, visible_persons
from lowpose.nn.heads.base import Outputs
from lowpose.registry import register

Shape = tuple[int, int, int]  # C, h, w


def _kernels(value: tuple[int, ...]) -> tuple[int, ...]:
    if not value or any(k < 1 or k % 2 == 0 for k in value):
        raise ValueError("kernels are odd numbers of cells, at least one of them: [3, 5, 7, 7]")
    return value


class SAPEConfig(Weighted):
    source: Literal["map", "feature"] = "map"  # the keypoint map before the classifier, or the backbone's feature
    projectors: int = Field(3, ge=1)
    projector: Literal["spatial", "flatten"] = "spatial"
    fusion: Literal["sum", "sau", "deep"] = "sau"
    deep: Literal["gap", "softmax"] = "gap"  # where 'fusion: deep' has its second layer
    kernels: Annotated[tuple[int, ...], AfterValidator(_kernels)] = (3, 5, 7, 7)
    width: int = Field(32, ge=1)  # of the fused vector
    per: Literal["person", "joint"] = "person"  # cosine over a person's whole map, or over each labelled joint's


@register("distill", "sape", SAPEConfig)
class SAPE(Distiller):
    """Scale-adaptive projector ensemble of CDKD: the student's map, projected, points where the teacher's does."""

    def __init__(self, config: SAPEConfig, student: Side, teacher: Side):
        """Raises: LowposeError if a model lacks the map, joints are to be compared in a backbone's feature,
        or the scale-adaptive unit would see a map of one cell."""
        super().__init__(config.weight)
        self.config = config
        name = FEATURE if config.source == "feature" else "map"
        self.student_needs = self.teacher_needs = (name,)
        given, wanted = output_shapes(name, "sape", student, teacher)
        if config.per == "joint" and config.source == "feature":
            raise LowposeError("distill.sape.per=joint: a backbone's feature has no joints; use source=map or per=person")
        if config.fusion != "sum" and given[1] * given[2] == 1:
            raise LowposeError(f"distill.sape.fusion={config.fusion}: a map of one cell has no scales; use fusion=sum")
        make = Flatten if config.projector == "flatten" else Spatial
        self.projectors = nn.ModuleList(make(given, wanted) for _ in range(config.projectors))
        self.unit = None if config.fusion == "sum" else SAU(given[0], wanted[0], config)

    def project(self, feature: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', h', w') (eq. 4)."""
        projected = [p(feature) for p in self.projectors]
        if self.unit is None:
            return sum(projected)
        weights = self.unit(feature).to(projected[0].dtype).unbind(1)
        return sum(w[..., None, None] * p for w, p in zip(weights, projected, strict=True))

    def forward(self, student: Outputs, teacher: Outputs, weight: Tensor) -> dict[str, Term]:
        """'sape': one minus the cosine (eq. 5), over persons or joints."""
        (name,) = self.student_needs
        start = 1 if self.config.per == "person" else 2
        ours, theirs = (f.float().flatten(start) for f in (self.project(student[name]), teacher[name]))
        distance = 1 - F.cosine_similarity(ours, theirs, dim=-1)  # torch bounds the norms from below: dead projectors give 1
        mask = visible_persons(weight) if self.config.per == "person" else weight
        return {"sape": Term.over(distance, mask)}


class Flatten(nn.Module):
    """All channels and positions of one map to all of the other: linear layer and ReLU."""

    def __init__(self, given: Shape, wanted: Shape):
        super().__init__()
        self.wanted = wanted
        self.linear = nn.Linear(given[0] * given[1] * given[2], wanted[0] * wanted[1] * wanted[2])
        nn.init.xavier_uniform_(self.linear.weight)

    def forward(self, feature: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', h', w')."""
        return F.relu(self.linear(feature.flatten(1))).unflatten(1, self.wanted)


class Spatial(nn.Module):
    """Positions of one map to those of the other, the same layer for every channel: linear layer and ReLU."""

    def __init__(self, given: Shape, wanted: Shape):
        super().__init__()
        self.wanted = wanted
        self.channels = nn.Conv2d(given[0], wanted[0], 1) if given[0] != wanted[0] else nn.Identity()
        self.linear = nn.Linear(given[1] * given[2], wanted[1] * wanted[2])
        nn.init.xavier_uniform_(self.linear.weight)

    def forward(self, feature: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', h', w')."""
        return F.relu(self.linear(self.channels(feature).flatten(2))).unflatten(2, self.wanted[1:])


class SAU(nn.Module):
    """Scale-adaptive unit: the low-resolution map -> a weight for each projector and channel."""

    def __init__(self, given: int, wanted: int, config: SAPEConfig):
        super().__init__()
        self.branches = nn.ModuleList(_branch(given, k) for k in config.kernels).to(memory_format=torch.channels_last)
        self.fuse = nn.Linear(given, config.width)
        deep = config.deep if config.fusion == "deep" else None
        self.after = nn.Sequential(nn.Linear(config.width, config.width), nn.ReLU()) if deep == "gap" else nn.Identity()
        self.select = nn.ModuleList(_selector(config.width, wanted, deep == "softmax") for _ in range(config.projectors))

    def forward(self, feature: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, K, C'), summing to one over the K projectors."""
        feature = feature.contiguous(memory_format=torch.channels_last)  # twice as quick on a CPU
        scales = torch.stack([branch(feature).mean((-2, -1)) for branch in self.branches])  # eq. 1
        fused = self.after(self.fuse(scales).sum(0))  # eq. 2
        return torch.softmax(torch.stack([s(fused) for s in self.select], dim=1).float(), dim=1)  # eq. 3


def _branch(channels: int, kernel: int) -> nn.Module:
    conv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU())


def _selector(width: int, channels: int, deep: bool) -> nn.Module:
    first = nn.Linear(width, channels)
    return nn.Sequential(first, nn.ReLU(), nn.Linear(channels, channels)) if deep else first
