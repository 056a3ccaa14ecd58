"""Heatmaps: one map per keypoint with a Gaussian at the joint, and four ways to read it.

argmax, quarter: B. Xiao, H. Wu, Y. Wei: Simple Baselines for Human Pose Estimation and Tracking. ECCV 2018,
    arXiv:1804.06208; K. Sun, B. Xiao, D. Liu, J. Wang: Deep High-Resolution Representation Learning for Human Pose
    Estimation. CVPR 2019, arXiv:1902.09212.
dark: F. Zhang, X. Zhu, H. Dai, M. Ye, C. Zhu: Distribution-Aware Coordinate Representation for Human Pose Estimation.
    CVPR 2020, arXiv:1910.06278, eq. 3 to 10.
udp: J. Huang, Z. Zhu, F. Guo, G. Huang: The Devil is in the Details: Delving into Unbiased Data Processing for Human
    Pose Estimation. CVPR 2020, arXiv:1911.07524 (its Gaussian form; head `udp` is the offset form).

Cell (i, j) of a map covers [j, j + 1) x [i, i + 1) strides of the crop. A rounded target stands at the centre of the
joint's cell and ends at 3 sigma; a continuous one (DARK, UDP) stands at the joint and covers the whole map. Peak 1.
A joint whose 3 sigma box holds no cell centre of the map has weight 0; one just outside the crop is still taught.

Departures. Continuous pixels: no shift in flips, and neither DARK's nor UDP's corrections of the affine are needed. `quarter`
moves wherever both neighbours exist (published: one cell farther from the left border than from the right). `udp` works
up to the border: its differences are taken around the nearest cell that is not on it, and without blur where the
kernel would leave the map (published: the border is padded with itself, which moves every peak there onto the border
line). Newton steps are taken only at a maximum (negative definite Hessian) and end one cell from the peak per axis;
no keypoint leaves the crop. Published low-resolution rows of DARK blur 8 x 8 maps by 11 cells (`blur: 11`); the default here
goes with the Gaussian: 3, 11, 17 for sigma 1, 2, 3.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from lowpose.errors import LowposeError
from lowpose.nn.heads.base import Decoded, Outputs, PoseHead, overlap
from lowpose.nn.layers.token_output import token_output
from lowpose.registry import register
from lowpose.strict import Strict


def _odd(value: int | None) -> int | None:
    if value is not None and value % 2 == 0:
        raise ValueError("a blur is an odd number of cells: 1 (none), 3, 5 ...")
    return value


class HeatmapConfig(Strict):
    name: Literal["heatmap"] = "heatmap"
    target: Literal["rounded", "continuous"] = "rounded"
    sigma: float | None = Field(None, ge=0.25)  # cells; default longer side / 32, at least 1 (published: 64 cells 2, 96 cells 3)
    decode: Literal["argmax", "quarter", "dark", "udp"] = "quarter"
    blur: Annotated[int | None, AfterValidator(_odd)] = Field(None, ge=1, le=63)  # cells, dark and udp; default above
    stride: int | None = Field(None, ge=1)  # of tokens only: input pixels per cell; default 4
    hidden: int | None = Field(None, ge=0)  # of tokens only: width of the layer between; default an eighth of the cells


@register("head", "heatmap", HeatmapConfig)
class Heatmap(PoseHead):
    """Gaussian heatmaps, read by argmax, quarter offset, DARK or UDP."""

    reads_tokens = True

    def __init__(self, config: HeatmapConfig, feature_shape, input_size, skeleton):
        """Raises: LowposeError if the map is too small for the decoding or its blur, or settings do not belong to its input."""
        super().__init__(feature_shape, input_size, skeleton)
        self.config = config
        tokens = len(feature_shape) == 1
        w, h = self.map_size = cells_of(config.stride, input_size) if tokens else feature_shape[:0:-1]
        if not tokens and (config.stride, config.hidden) != (None, None):
            raise LowposeError("'head.stride' and 'head.hidden' are for keypoint tokens; this head reads a feature map")
        self.sigma = config.sigma or max(1.0, max(w, h) / 32)
        self.blur = config.blur or default_blur(self.sigma, (w, h))
        least = {"dark": 5, "udp": 3}.get(config.decode, 1)
        if min(w, h) < least:
            raise LowposeError(
                f"'head.decode: {config.decode}' needs maps of {least} x {least} cells or more, these are {w} x {h}"
            )
        if config.blur and config.decode not in ("dark", "udp"):
            raise LowposeError(f"'head.blur' is for 'decode: dark' and 'decode: udp'; 'decode: {config.decode}' has no blur")
        if config.decode == "udp" and self.blur > max(1, min(w, h) - 2):
            raise LowposeError(f"'head.blur: {self.blur}' fits nowhere on maps of {w} x {h} cells; at most {min(w, h) - 2}")
        if tokens:
            hidden = w * h // 8 if config.hidden is None else config.hidden
            self.final = nn.Sequential(*token_output(feature_shape[0], hidden, w * h), nn.Unflatten(2, (h, w)))
        else:
            self.per_keypoint = {"final.weight": 1, "final.bias": 1}
            self.final = nn.Conv2d(feature_shape[0], self.num_keypoints, 1)
            nn.init.normal_(self.final.weight, std=0.001)
            nn.init.zeros_(self.final.bias)

    def forward(self, feature: Tensor) -> Outputs:
        """'map' (B, K, h, w), about 0..1."""
        return {"map": self.final(feature)}

    def targets(self, keypoints: Tensor, weight: Tensor) -> tuple[Outputs, Tensor]:
        """'map' (B, K, h, w), peak 1 at the joint's cell centre ('continuous': at the joint itself)."""
        sides = [self._gaussian(keypoints[..., axis].float(), axis) for axis in (0, 1)]
        held = torch.ones_like(weight)
        for axis, n in enumerate(self.map_size):
            u = self._centre(keypoints[..., axis].float(), axis)
            held = held * ((u + 3 * self.sigma >= 0.5) & (u - 3 * self.sigma <= n - 0.5))
        return {"map": sides[1].unsqueeze(-1) * sides[0].unsqueeze(-2)}, weight * held

    def _centre(self, position: Tensor, axis: int) -> Tensor:
        """Where the Gaussian of a joint at `position` (...), crop pixels, stands: (...), cells."""
        u = position * (self.map_size[axis] / self.input_size[axis])
        return u if self.config.target == "continuous" else u.floor() + 0.5

    def _gaussian(self, position: Tensor, axis: int) -> Tensor:
        """(..., n) one side of the separable target of a joint at `position` (...), crop pixels."""
        n = self.map_size[axis]
        d = torch.arange(n, device=position.device) + 0.5 - self._centre(position, axis).unsqueeze(-1)
        g = torch.exp(-0.5 * (d / self.sigma).square())
        return g if self.config.target == "continuous" else g * (d.abs() <= 3 * self.sigma)

    def loss(self, outputs: Outputs, targets: Outputs, weight: Tensor) -> Outputs:
        """'heatmap': half the squared error, mean over cells, summed over joints."""
        error = (outputs["map"].float() - targets["map"]).square().mean((-2, -1))
        return {"heatmap": 0.5 * (error * weight).sum()}

    def decode(self, outputs: Outputs) -> Decoded:
        """Published score: the value of the peak."""
        maps = outputs["map"].float()
        peak, x, y = find_peak(maps)
        dx, dy = self._step(maps, x, y)
        position = to_pixels(self, x + 0.5 + dx, y + 0.5 + dy)
        return Decoded(position, self._score(maps, position), peak)

    def _step(self, maps: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """From the centre of the peak's cell (x, y) to the keypoint, (B, K) cells each."""
        h, w = maps.shape[-2:]
        if self.config.decode == "quarter":
            return 0.25 * _uphill(maps, x, y, (1, 0), w), 0.25 * _uphill(maps, x, y, (0, 1), h)
        if self.config.decode == "dark":
            return _dark_step(blur(maps, self.blur).clamp(min=1e-10).log(), x, y)
        if self.config.decode == "udp":
            return _udp_step(maps, x, y, self.blur)
        return torch.zeros_like(x, dtype=torch.float32), torch.zeros_like(y, dtype=torch.float32)

    def _score(self, maps: Tensor, position: Tensor) -> Tensor:
        inside = [position[..., axis].clamp(max=self.input_size[axis] * (1 - 1e-6)) for axis in (0, 1)]
        gx, gy = (self._gaussian(inside[axis], axis) for axis in (0, 1))
        return relative_mass(self, maps, gy.unsqueeze(-1) * gx.unsqueeze(-2), position)

    def flip(self, outputs: Outputs) -> Outputs:
        return {"map": outputs["map"][:, self.flip_index].flip(-1)}


def default_blur(sigma: float, size: tuple[int, int]) -> int:
    """DARK's kernel (cells) for a target of this sigma (cells), smaller where the map is.

    3, 11, 17 for sigma 1, 2, 3, and at most the odd number that leaves a cell to spare on either side of the map.
    """
    kernel = 3 if sigma < 1.5 else 11 if sigma < 2.5 else 17
    room = min(size) - 2
    return max(1, min(kernel, room - 1 + room % 2))


def cells_of(stride: int | None, input_size: tuple[int, int]) -> tuple[int, int]:
    """(width, height), cells, of a map that no feature map gives; `stride`: input pixels per cell, default 4.

    Raises: LowposeError if the stride does not divide the crop.
    """
    stride = 4 if stride is None else stride
    if any(side % stride for side in input_size):
        raise LowposeError(f"'head.stride' = {stride} does not divide the crop of {input_size[0]} x {input_size[1]}")
    return input_size[0] // stride, input_size[1] // stride


def find_peak(maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Value (B, K) of the highest cell of maps (B, K, h, w), and its column and row, (B, K) int64."""
    value, index = maps.flatten(2).max(-1)
    return value, index % maps.shape[-1], index // maps.shape[-1]


def to_pixels(head: PoseHead, x: Tensor, y: Tensor) -> Tensor:
    """(B, K) cells each -> (B, K, 2) crop pixels, (x, y), within the crop."""
    axes = zip((x, y), head.input_size, head.map_size, strict=True)
    return torch.stack([(u * (pixels / cells)).clamp(0, pixels) for u, pixels, cells in axes], -1)


def blur(maps: Tensor, kernel: int) -> Tensor:
    """Gaussian blur of maps (B, K, h, w) with OpenCV's sigma for this kernel (cells); zero outside the map.

    OpenCV itself takes rounded tables up to 7 cells: 0.25 instead of 0.239 at 3. These are sums of shifted maps,
    because a convolution would fall to bfloat16 under autocast.
    """
    r = kernel // 2
    if r == 0:
        return maps
    sigma = 0.3 * ((kernel - 1) * 0.5 - 1) + 0.8
    taps = [math.exp(-0.5 * ((i - r) / sigma) ** 2) for i in range(kernel)]
    h, w = maps.shape[-2:]
    padded = F.pad(maps, (r, r, r, r))
    rows = sum(t / sum(taps) * padded[..., i : i + h, :] for i, t in enumerate(taps))
    return sum(t / sum(taps) * rows[..., i : i + w] for i, t in enumerate(taps))


def relative_mass(head: PoseHead, maps: Tensor, perfect: Tensor, position: Tensor) -> Tensor:
    """Score of keypoints at `position` (B, K, 2), crop pixels: their share of the map's mass.

    The mass of the map (B, K, h, w; negative cells count as 0) within one input pixel, divided by the mass of the
    whole map or of the whole `perfect` target at that place (B, K, h, w), whichever is more: a weak blob of height p
    scores about p, and clutter lowers it. Relative to the share that the perfect target has there. (B, K) in 0..1.
    """
    maps = maps.clamp(min=0)
    strides = [pixels / cells for pixels, cells in zip(head.input_size, head.map_size, strict=True)]
    near = [overlap(position[..., a], head.map_size[a], strides[a]) for a in (0, 1)]
    window = near[1].unsqueeze(-1) * near[0].unsqueeze(-2)
    total = perfect.sum((-2, -1))
    share = (window * maps).sum((-2, -1)) / torch.maximum(maps.sum((-2, -1)), total)
    return (share * total / (window * perfect).sum((-2, -1))).clamp(0, 1)


def pick(maps: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """(B, K) values of maps (B, K, h, w) at column x and row y, (B, K) each; outside: of the nearest cell."""
    h, w = maps.shape[-2:]
    index = y.clamp(0, h - 1) * w + x.clamp(0, w - 1)
    return maps.flatten(2).gather(-1, index.unsqueeze(-1)).squeeze(-1)


def _uphill(maps: Tensor, x: Tensor, y: Tensor, direction: tuple[int, int], n: int) -> Tensor:
    """-1, 0 or 1 (B, K): on which side of the peak the higher neighbour is; 0 at the border."""
    i, j = direction
    centre = x * i + y * j
    side = torch.sign(pick(maps, x + i, y + j) - pick(maps, x - i, y - j))
    return side * ((centre > 0) & (centre < n - 1))


def _dark_step(f: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """DARK eq. 6 to 9 on log maps; differences over two cells, so none within two cells of the border."""

    def at(i: int, j: int) -> Tensor:
        return pick(f, x + i, y + j)

    gx, gy = (at(1, 0) - at(-1, 0)) / 2, (at(0, 1) - at(0, -1)) / 2
    hxx = (at(2, 0) - 2 * at(0, 0) + at(-2, 0)) / 4
    hyy = (at(0, 2) - 2 * at(0, 0) + at(0, -2)) / 4
    hxy = (at(1, 1) - at(-1, 1) - at(1, -1) + at(-1, -1)) / 4
    dx, dy, valid = _newton(gx, gy, hxx, hyy, hxy)
    h, w = f.shape[-2:]
    valid = valid & (x > 1) & (x < w - 2) & (y > 1) & (y < h - 2)
    return dx.clamp(-1, 1) * valid, dy.clamp(-1, 1) * valid


def _udp_step(maps: Tensor, x: Tensor, y: Tensor, kernel: int) -> tuple[Tensor, Tensor]:
    """Newton step with differences over one cell, around the peak or its neighbour that is not on the border."""
    h, w = maps.shape[-2:]
    cx, cy = x.clamp(1, w - 2), y.clamp(1, h - 2)
    r = kernel // 2 + 1
    fits = (cx >= r) & (cx <= w - 1 - r) & (cy >= r) & (cy <= h - 1 - r)
    f = torch.where(fits[..., None, None], blur(maps, kernel), maps)
    top = f.amax((-2, -1), keepdim=True)
    f = torch.maximum(f, (1e-3 * top).clamp(min=1e-10)).log()

    def at(i: int, j: int) -> Tensor:
        return pick(f, cx + i, cy + j)

    gx, gy = (at(1, 0) - at(-1, 0)) / 2, (at(0, 1) - at(0, -1)) / 2
    hxx = at(1, 0) - 2 * at(0, 0) + at(-1, 0)
    hyy = at(0, 1) - 2 * at(0, 0) + at(0, -1)
    hxy = (at(1, 1) - at(1, 0) - at(0, 1) + 2 * at(0, 0) - at(-1, 0) - at(0, -1) + at(-1, -1)) / 2
    dx, dy, valid = _newton(gx, gy, hxx, hyy, hxy)
    return (cx - x + dx).clamp(-1, 1) * valid, (cy - y + dy).clamp(-1, 1) * valid


def _newton(gx: Tensor, gy: Tensor, hxx: Tensor, hyy: Tensor, hxy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """-H^-1 g (DARK eq. 8), x and y, and whether H is that of a maximum: where not, the step means nothing."""
    det = hxx * hyy - hxy * hxy
    maximum = (hxx < 0) & (hyy < 0) & (det > 1e-12)
    det = torch.where(maximum, det, torch.ones_like(det))
    return (hxy * gy - hyy * gx) / det, (hxy * gx - hxx * gy) / det, maximum
