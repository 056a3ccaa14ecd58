"""SimCC: x and y as two classifications over bins finer than pixels.

Y. Li, S. Yang, P. Liu, S. Zhang, Y. Wang, Z. Wang, W. Yang, S.-T. Xia: SimCC: A Simple Coordinate
Classification Perspective for Human Pose Estimation. ECCV 2022, arXiv:2107.03332.

A 1x1 convolution gives one map per keypoint, which is flattened and classified by two linear layers that all keypoints share,
into W k and H k bins (k: the split factor); keypoint tokens are normalised and classified likewise. Targets: the bin (hard),
the bin with uniform label smoothing (smooth, Sec. 3.2), or a Gaussian over bins (gaussian). Loss: KL divergence of both axes.
Departures: bins are half-pixel aligned (bin j covers [j, j + 1) / k, its centre is (j + 0.5) / k), so that flips and the
merging of bins are exact, where the published code rounds x k and shifts flipped bins by one; the Gaussian target is
renormalised to sum to one at the border; the default Gaussian sigma is sqrt(pixels / 8) bins.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from lowpose.errors import LowposeError
from lowpose.nn.heads.base import Decoded, Outputs, PoseHead, mass_near
from lowpose.nn.layers.token_output import initialise_tokens
from lowpose.registry import register
from lowpose.strict import Strict


class SimCCConfig(Strict):
    name: Literal["simcc"] = "simcc"
    split: float = Field(2.0, gt=0)  # bins per input pixel
    target: Literal["hard", "smooth", "gaussian"] = "gaussian"
    smoothing: float | None = Field(None, ge=0, lt=1)  # share that 'smooth' spreads over the other bins; default 0.1
    sigma: float | None = Field(None, gt=0)  # of 'gaussian', bins; default sqrt(pixels / 8) per axis

    @model_validator(mode="after")
    def _check(self) -> SimCCConfig:
        if self.smoothing is not None and self.target != "smooth":
            raise ValueError(f"'smoothing' belongs to target 'smooth'; with '{self.target}' leave it null")
        if self.sigma is not None and self.target != "gaussian":
            raise ValueError(f"'sigma' belongs to target 'gaussian'; with '{self.target}' leave it null")
        return self


@register("head", "simcc", SimCCConfig)
class SimCC(PoseHead):
    """Coordinate classification: two softmaxes over bins of 1/split pixel."""

    published_threshold = 0.02
    reads_tokens = True

    def __init__(self, config: SimCCConfig, feature_shape, input_size, skeleton):
        """Raises: LowposeError if the split leaves fewer than two bins."""
        super().__init__(feature_shape, input_size, skeleton)
        self.config = config
        self.bins = tuple(int(side * config.split) for side in input_size)
        if min(self.bins) < 2:
            raise LowposeError(
                f"'head.split: {config.split}' leaves {min(self.bins)} bins of {min(input_size)} pixels; at least 2"
            )
        if len(feature_shape) == 1:
            width = feature_shape[0]
            self.norm = nn.LayerNorm(width)
        else:
            width = feature_shape[1] * feature_shape[2]
            self.per_keypoint = {"final.weight": 1, "final.bias": 1}
            self.final = nn.Conv2d(feature_shape[0], self.num_keypoints, 1)
            nn.init.normal_(self.final.weight, std=0.001)
            nn.init.zeros_(self.final.bias)
        self.to_x = nn.Linear(width, self.bins[0])
        self.to_y = nn.Linear(width, self.bins[1])
        if len(feature_shape) == 1:
            initialise_tokens(self.to_x)
            initialise_tokens(self.to_y)
        self._perfect = [self._perfect_mass(axis) for axis in (0, 1)]

    def forward(self, feature: Tensor) -> Outputs:
        """'x' (B, K, Jx) and 'y' (B, K, Jy) logits; from a feature map also 'map' (B, K, h, w)."""
        if len(self.feature_shape) == 1:
            tokens = self.norm(feature)
            return {"x": self.to_x(tokens), "y": self.to_y(tokens)}
        maps = self.final(feature)
        flat = maps.flatten(2)
        return {"map": maps, "x": self.to_x(flat), "y": self.to_y(flat)}

    def cell(self, axis: int) -> float:
        """Size of a bin in input pixels."""
        return self.input_size[axis] / self.bins[axis]

    def sigma(self, axis: int) -> float:
        """Of the Gaussian target, in bins."""
        return self.config.sigma or math.sqrt(self.input_size[axis] / 8)

    def targets(self, keypoints: Tensor, weight: Tensor) -> tuple[Outputs, Tensor]:
        """'x' (B, K, Jx) and 'y' (B, K, Jy), each summing to one; joints outside the crop get weight 0."""
        limit = keypoints.new_tensor(self.input_size)
        inside = ((keypoints >= 0) & (keypoints < limit)).all(-1)
        out = {name: self._axis_target(keypoints[..., axis], axis) for axis, name in enumerate("xy")}
        return out, weight * inside

    def _axis_target(self, position: Tensor, axis: int) -> Tensor:
        bins = self.bins[axis]
        u = position.float() * (bins / self.input_size[axis])  # in bins; the centre of bin j is j + 0.5
        if self.config.target == "gaussian":
            centres = torch.arange(bins, device=u.device, dtype=torch.float32) + 0.5
            squared = ((centres - u.clamp(0, bins).unsqueeze(-1)) / self.sigma(axis)).square()
            return torch.softmax(-0.5 * squared, dim=-1)
        hot = F.one_hot(u.floor().long().clamp(0, bins - 1), bins).float()
        if self.config.target == "hard":
            return hot
        eps = 0.1 if self.config.smoothing is None else self.config.smoothing
        return hot * (1 - eps) + (1 - hot) * eps / (bins - 1)

    def loss(self, outputs: Outputs, targets: Outputs, weight: Tensor) -> Outputs:
        """'simcc': KL(target || softmax) over the bins of x plus those of y, summed over joints."""
        total = weight.new_zeros(())
        for axis in "xy":
            log_p = F.log_softmax(outputs[axis].float(), dim=-1)
            kl = F.kl_div(log_p, targets[axis], reduction="none").sum(-1)
            total = total + (kl * weight).sum()
        return {"simcc": total}

    def decode(self, outputs: Outputs) -> Decoded:
        """Centre of the likeliest bin. Published score: the larger of the two peaks ('gaussian': the smaller)."""
        position, mass, peak = zip(*(self._decode_axis(outputs[a], i) for i, a in enumerate("xy")), strict=True)
        published = torch.minimum(*peak) if self.config.target == "gaussian" else torch.maximum(*peak)
        return Decoded(torch.stack(position, -1), mass[0] * mass[1], published)

    def _decode_axis(self, logits: Tensor, axis: int) -> tuple[Tensor, Tensor, Tensor]:
        p = torch.softmax(logits.float(), dim=-1)
        peak, index = p.max(-1)
        position = (index + 0.5) * self.cell(axis)
        mass = mass_near(p, position, self.cell(axis)) / self._perfect[axis]
        return position, mass.clamp(0, 1), peak

    def _perfect_mass(self, axis: int) -> float:
        """Mass within one input pixel of the peak when the answer is the target itself, at a bin in the middle."""
        middle = torch.tensor((self.bins[axis] // 2 + 0.5) * self.cell(axis))
        return float(mass_near(self._axis_target(middle, axis), middle, self.cell(axis)))

    def flip(self, outputs: Outputs) -> Outputs:
        swapped = {name: value[:, self.flip_index] for name, value in outputs.items()}
        return {name: value if name == "y" else value.flip(-1) for name, value in swapped.items()}

    def merge(self, first: Outputs, second: Outputs) -> Outputs:
        """Logits whose softmax is the mean of both softmaxes."""
        out = super().merge(first, second)
        for axis in "xy":
            both = torch.stack([F.log_softmax(o[axis].float(), -1) for o in (first, second)])
            out[axis] = torch.logsumexp(both, 0) - math.log(2)
        return out
