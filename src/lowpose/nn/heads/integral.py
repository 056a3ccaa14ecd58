"""Integral pose regression, without its bias: the keypoint is the mean position under the map, background taken out.

X. Sun, B. Xiao, F. Wei, S. Liang, Y. Wei: Integral Human Pose Regression. ECCV 2018, arXiv:1711.08229 (soft-argmax).
K. Gu, L. Yang, A. Yao: Removing the Bias of Integral Pose Regression. ICCV 2021 (BCIR); equations of its supplementary material.

J_r = sum softmax(beta H) p (eq. 1, 4) is pulled to the middle c of the map by its N = h w cells: eq. 9, J_r = (1 - N/C) J_o +
(N/C) c with C = sum exp(beta H) (eq. 2), for any map whose excess over an empty background is centred on J_o. Two ways back:
- `closed`: J_o = (C J_r - N c) / (C - N), eq. 10 with its two constants exchanged (as printed, x along h gets the constant of w:
  right for square maps only), and c in continuous cells.
- `compensated`: J_o = sum expm1(beta H) p / sum expm1(beta H). The same number without the difference of two large ones, since
  C = N + M and C J_r = N c + M J_o with M = sum expm1(beta H).

The layers, the prior (a Gaussian of peak 1, squared error) and the readings as detection (argmax, quarter, dark, udp) are those
of head `heatmap`, so one trained network can be read either way: `head.decode=argmax` here, and for a heatmap's network
`head.name=integral head.decode=compensated`.

Loss: L1 on coordinates as shares of the crop, mean over x and y, and `prior` times the heatmap loss on the same map (2023:
Gaussian prior loss, arXiv:2301.10431; its weight there is not known to us). Departures: cells below 0 count as 0 in the integral
(the derivation wants an empty background; `rectify: false` is the plain soft-argmax of 2018), the prior sees them as they are. A
map without a positive cell answers with its middle and score 0. Joints outside the crop teach nothing: no mean lies there. A blob
that the border cuts has its mean farther inside, compensated or not: the derivation wants it whole.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from lowpose.nn.heads.base import Decoded, Outputs
from lowpose.nn.heads.heatmap import Heatmap, HeatmapConfig, find_peak, relative_mass, to_pixels
from lowpose.registry import register

READINGS = ("compensated", "closed", "plain")
EMPTY = 1e-6  # an excess of less in all counts as none: gradients go with its inverse


class IntegralConfig(HeatmapConfig):
    name: Literal["integral"] = "integral"
    beta: float = Field(10.0, gt=0)  # inverse temperature of the softmax
    learn_beta: bool = False
    train: Literal["compensated", "closed", "plain"] = "compensated"  # the coordinates that the loss sees
    decode: Literal["compensated", "closed", "plain", "argmax", "quarter", "dark", "udp"] = "compensated"  # default: as trained
    prior: float = Field(10.0, ge=0)  # weight of the Gaussian prior; 0: coordinates alone teach the map, and its height is free
    target: Literal["rounded", "continuous"] = "continuous"  # of the prior
    rectify: bool = True  # cells below 0 count as 0

    @model_validator(mode="before")
    @classmethod
    def _read_as_trained(cls, values: Any) -> Any:
        if isinstance(values, dict) and "train" in values and "decode" not in values:
            return {**values, "decode": values["train"]}
        return values

    @model_validator(mode="after")
    def _empty_background(self) -> IntegralConfig:
        for key, value in (("train", self.train), ("decode", self.decode)):
            if not self.rectify and value in ("compensated", "closed"):
                raise ValueError(
                    f"{key}: {value} takes out an empty background, and rectify: false leaves none; "
                    f"give {key}: plain or rectify: true"
                )
        return self


@register("head", "integral", IntegralConfig)
class Integral(Heatmap):
    """Soft-argmax of a map, its bias compensated; taught by coordinates."""

    def __init__(self, config: IntegralConfig, feature_shape, input_size, skeleton):
        """Raises: as `Heatmap`."""
        super().__init__(config, feature_shape, input_size, skeleton)
        if config.learn_beta:
            self.log_beta = nn.Parameter(torch.tensor(math.log(config.beta)))
        self.gaussian = config.prior > 0
        if not config.prior:
            self.published_threshold = 0.0  # of the score, which takes the place of the peak

    @property
    def beta(self) -> Tensor | float:
        return self.log_beta.float().exp() if self.config.learn_beta else self.config.beta

    def targets(self, keypoints: Tensor, weight: Tensor) -> tuple[Outputs, Tensor]:
        """'xy' (B, K, 2), shares of the crop, and with a prior 'map'; joints outside the crop get weight 0."""
        xy = keypoints.float() / keypoints.new_tensor(self.input_size)
        weight = weight * ((xy >= 0) & (xy < 1)).all(-1)
        return {"xy": xy} | (super().targets(keypoints, weight)[0] if self.config.prior else {}), weight

    def loss(self, outputs: Outputs, targets: Outputs, weight: Tensor) -> Outputs:
        """'integral', and 'prior' where it has a weight; summed over joints."""
        cells = self._read(outputs["map"].float(), self.config.train)
        error = (cells / cells.new_tensor(self.map_size) - targets["xy"]).abs().mean(-1)
        terms = {"integral": (error * weight).sum()}
        if self.config.prior:
            terms["prior"] = self.config.prior * super().loss(outputs, targets, weight)["heatmap"]
        return terms

    def decode(self, outputs: Outputs) -> Decoded:
        """Published score: the value of the peak, at least 0. Without a prior, which alone gives a peak its height, the score."""
        if self.config.decode in READINGS:
            maps = outputs["map"].float()
            position = to_pixels(self, *self._read(maps, self.config.decode).unbind(-1))
            found = Decoded(position, self._score(maps, position), find_peak(maps)[0].clamp(min=0))
        else:
            found = super().decode(outputs)
        return found if self.config.prior else found._replace(published=found.scores)

    def _read(self, maps: Tensor, reading: str) -> Tensor:
        """(B, K, 2), cells, (x, y)."""
        maps = F.relu(maps) if self.config.rectify else maps
        return {"compensated": compensated, "closed": closed_form, "plain": soft_argmax}[reading](maps, self.beta)

    def _score(self, maps: Tensor, position: Tensor) -> Tensor:
        """As `Heatmap`; without a prior by the masses of the integral, which count as a perfect target's in all."""
        inside = [position[..., axis].clamp(max=self.input_size[axis] * (1 - 1e-6)) for axis in (0, 1)]
        gx, gy = (self._gaussian(inside[axis], axis) for axis in (0, 1))
        perfect = gy.unsqueeze(-1) * gx.unsqueeze(-2)
        if not self.config.prior:
            mass = excess(F.relu(maps), self.beta) if self.config.rectify else softmax(maps, self.beta)
            total = mass.sum((-2, -1))
            factor = perfect.sum((-2, -1)) / total.clamp(min=EMPTY) * (total > EMPTY)
            maps = mass * factor[..., None, None]
        return relative_mass(self, maps, perfect, position)

    def flip(self, outputs: Outputs) -> Outputs:
        """Of outputs, and of targets with their 'xy'."""
        out = super().flip(outputs)
        if "xy" in outputs:
            x, y = outputs["xy"][:, self.flip_index].unbind(-1)
            out["xy"] = torch.stack([1 - x, y], -1)
        return out


def mean_position(weights: Tensor) -> Tensor:
    """(..., 2), cells, (x, y): mean of the cell centres under weights (..., h, w) >= 0; the middle where they sum to nothing."""
    h, w = weights.shape[-2:]
    total = weights.sum((-2, -1))
    some = total > EMPTY
    out = []
    for n, side in ((w, weights.sum(-2)), (h, weights.sum(-1))):
        centres = torch.arange(n, device=weights.device, dtype=weights.dtype) + 0.5 - n / 2  # about the middle: smaller numbers
        mean = (side * centres).sum(-1) / torch.where(some, total, torch.ones_like(total))
        out.append(torch.where(some, mean, torch.zeros_like(mean)) + n / 2)
    return torch.stack(out, -1)


def softmax(maps: Tensor, beta: Tensor | float) -> Tensor:
    """Eq. 1: maps (..., h, w) -> the same shape, each map's sum 1."""
    return torch.softmax((beta * maps).flatten(-2), -1).view_as(maps)


def soft_argmax(maps: Tensor, beta: Tensor | float) -> Tensor:
    """J_r, eq. 4: maps (..., h, w) -> (..., 2), cells, (x, y)."""
    return mean_position(softmax(maps, beta))


def excess(maps: Tensor, beta: Tensor | float) -> Tensor:
    """expm1(beta H) (..., h, w) of maps >= 0, divided by the largest exp(beta H) of each map, so that nothing overflows.

    As exp(s - max) (1 - exp(-s)), with 1 - exp(-s) = 2 t / (1 + t) and t = tanh(s / 2): exact for weak maps, also in exported
    files, where expm1 would be exp - 1.
    """
    scaled = beta * maps
    top = scaled.amax((-2, -1), keepdim=True).detach()
    t = torch.tanh(scaled / 2)
    return torch.exp(scaled - top) * (2 * t / (1 + t))


def compensated(maps: Tensor, beta: Tensor | float) -> Tensor:
    """J_o in the exact and stable form: maps (..., h, w) >= 0 -> (..., 2), cells, (x, y)."""
    return mean_position(excess(maps, beta))


def background(maps: Tensor, beta: Tensor | float) -> Tensor:
    """N / C (...), C of eq. 2, of maps (..., h, w): 1 where a map is 0 everywhere."""
    scaled = beta * maps
    top = scaled.amax((-2, -1), keepdim=True).detach()
    n = maps.shape[-2] * maps.shape[-1]
    return n * torch.exp(-top).squeeze((-2, -1)) / torch.exp(scaled - top).sum((-2, -1))


def biased(position: Tensor, size: tuple[int, int], share: Tensor) -> Tensor:
    """Eq. 9: where soft-argmax puts a joint at `position` (..., 2), cells; maps of `size` (w, h), N / C = `share` (...)."""
    middle = position.new_tensor([size[0] / 2, size[1] / 2])
    return (1 - share.unsqueeze(-1)) * position + share.unsqueeze(-1) * middle


def unbiased(position: Tensor, size: tuple[int, int], share: Tensor) -> Tensor:
    """The inverse of eq. 9, which eq. 10 means: from J_r (..., 2), cells, to J_o; the middle where `share` is 1."""
    middle = position.new_tensor([size[0] / 2, size[1] / 2])
    kept = (1 - share).unsqueeze(-1)
    some = kept > 8 * torch.finfo(kept.dtype).eps
    moved = (position - middle) / torch.where(some, kept, torch.ones_like(kept))
    return middle + torch.where(some, moved, torch.zeros_like(moved))


def closed_form(maps: Tensor, beta: Tensor | float) -> Tensor:
    """J_o from J_r and C: maps (..., h, w) >= 0 -> (..., 2), cells, (x, y).

    Its rounding grows with C / (C - N): in float32 it is up to 2e-7 C / (C - N) of the map's longer side, and where N / C is 1 to
    six digits the answer is the middle. `compensated` keeps to 1e-6 of the side.
    """
    return unbiased(soft_argmax(maps, beta), (maps.shape[-1], maps.shape[-2]), background(maps, beta))
