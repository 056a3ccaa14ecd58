"""What every keypoint representation answers, and the score that all of them share.

Letters: B batch, K keypoints, C channels, h w feature size, J bins. Coordinates are continuous crop
pixels, (x, y).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from lowpose.skeletons import Skeleton

if TYPE_CHECKING:
    from lowpose.loader import PoseBatch

Outputs = dict[str, Tensor]


class Term(NamedTuple):
    """A loss term: its sum over a batch and over how many joints, persons or pictures; the loop divides by the global one."""

    total: Tensor
    count: Tensor

    @classmethod
    def over(cls, values: Tensor, mask: Tensor) -> Term:
        """Of one value per joint (B, K) or person (B,), those that `mask` names."""
        return cls((values * mask).sum(), mask.sum())


class Decoded(NamedTuple):
    """keypoints (B, K, 2) float32, crop pixels, (x, y); scores (B, K) in 0..1; published (B, K)."""

    keypoints: Tensor
    scores: Tensor
    published: Tensor


class PoseHead(nn.Module):
    """Feature map, or keypoint tokens, -> keypoints.

    Attributes:
        input_size: (width, height) of the crop in pixels.
        feature_shape: (C, h, w) of the feature map that it takes, or (D,): one token of width D per keypoint.
        reads_tokens: whether it can take tokens.
        gaussian: of heads whose output 'map' holds heatmaps: whether it is taught to be a Gaussian of peak 1.
        published_threshold: keypoint scores above it count in the published instance score.
        per_keypoint: parameter name -> n, for parameters whose first axis is (n, K) flattened; weights
            for another skeleton are carried over along it by keypoint name.
    """

    published_threshold: float = 0.2
    reads_tokens = False
    gaussian = True
    per_keypoint: dict[str, int] = {}

    def __init__(self, feature_shape: tuple[int, ...], input_size: tuple[int, int], skeleton: Skeleton):
        super().__init__()
        self.feature_shape, self.input_size, self.skeleton = feature_shape, input_size, skeleton
        self.num_keypoints = len(skeleton)
        self.register_buffer("flip_index", torch.from_numpy(skeleton.flip_index), persistent=False)

    def forward(self, feature: Tensor) -> Outputs:
        """(B, C, h, w), or tokens (B, K, D), -> named outputs."""
        raise NotImplementedError("abstract")

    def targets(self, keypoints: Tensor, weight: Tensor) -> tuple[Outputs, Tensor]:
        """Training targets of keypoints (B, K, 2), crop pixels, and the weight (B, K) with joints that
        the representation cannot hold (outside the crop) set to 0."""
        raise NotImplementedError("abstract")

    def loss(self, outputs: Outputs, targets: Outputs, weight: Tensor) -> Outputs:
        """Named loss terms, each the SUM over batch and joints weighted by `weight` (B, K).

        The training loop divides by the number of visible joints of the whole (global) batch.
        """
        raise NotImplementedError("abstract")

    def terms(self, outputs: Outputs, batch: PoseBatch) -> tuple[dict[str, Term], Tensor]:
        """The loss of a batch as terms over its joints, and the weight (B, K) that they have."""
        targets, weight = self.targets(batch.keypoints, batch.weight)
        joints = weight.sum()
        return {name: Term(total, joints) for name, total in self.loss(outputs, targets, weight).items()}, weight

    def decode(self, outputs: Outputs) -> Decoded:
        """Keypoints and scores; exportable (no data-dependent Python branches)."""
        raise NotImplementedError("abstract")

    def flip(self, outputs: Outputs) -> Outputs:
        """The outputs for a crop, from those for its mirror image: exact, no shift of any bin or cell."""
        raise NotImplementedError("abstract")

    def merge(self, first: Outputs, second: Outputs) -> Outputs:
        """Average of two answers for the same crop, as the flip test takes it."""
        return {name: (first[name] + second[name]) / 2 for name in first}


def mass_near(weights: Tensor, centre: Tensor, cell: float, radius: float = 1.0) -> Tensor:
    """Share of a 1-D piecewise constant density within `radius` of `centre`.

    Args:
        weights: (..., J) mass of each cell; cell i covers [i, i + 1) * cell. centre: (...), input pixels.
        cell: size of a cell, input pixels.
    Returns: (...) mass in [centre - radius, centre + radius].
    """
    return (weights * overlap(centre, weights.shape[-1], cell, radius)).sum(-1)


def overlap(centre: Tensor, count: int, cell: float, radius: float = 1.0) -> Tensor:
    """(..., count): share of each cell [i, i + 1) * cell that lies within `radius` of `centre` (...)."""
    low = torch.arange(count, device=centre.device, dtype=torch.float32) * cell
    c = centre.float().unsqueeze(-1)
    covered = torch.minimum(low + cell, c + radius) - torch.maximum(low, c - radius)
    return covered.clamp(min=0) / cell
