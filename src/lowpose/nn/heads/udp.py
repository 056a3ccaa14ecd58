"""UDP's offset form: per keypoint a disc that says where it is about, and offsets that say where exactly.

J. Huang, Z. Zhu, F. Guo, G. Huang: The Devil is in the Details: Delving into Unbiased Data Processing for Human Pose
Estimation. CVPR 2020, arXiv:1911.07524, Sec. 3.3; after G. Papandreou et al., arXiv:1701.01779.

Disc: 1 in the cells whose centre lies within `radius` of the joint, 0 elsewhere. Offsets: (joint - cell centre) /
radius, taught inside the disc only. Loss: half the squared error of the disc, and of both offsets times the disc, mean over
cells. Decoding: the blurred disc's highest cell, plus the offsets that are read there. UDP's other half, unbiased transforms and
flips, is how this library counts pixels everywhere; its Gaussian form is head `heatmap` with `target: continuous, decode: udp`.

Departures. The published radius, 0.0546875 of the longer side of the map (3.5 of 64 cells), is kept at 0.75 cells or more:
below sqrt(1/2) a joint between cells has no disc at all, as on 8 x 8 maps. The blur, 15 cells at radius 3.5, goes with the
radius, and its border is zero instead of reflected, since a reflected one can move the peak of a small disc out of it.
Offsets are not blurred, keypoints do not leave the crop, and joints whose disc holds no cell of the map have weight 0.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lowpose.nn.heads.base import Decoded, Outputs, PoseHead
from lowpose.nn.heads.heatmap import blur, find_peak, pick, relative_mass, to_pixels
from lowpose.registry import register
from lowpose.strict import Strict


class UDPConfig(Strict):
    name: Literal["udp"] = "udp"
    radius: float | None = Field(None, ge=0.75)  # cells; default 0.0546875 of the map's longer side, at least 0.75


@register("head", "udp", UDPConfig)
class UDP(PoseHead):
    """A disc per keypoint and the offsets to it inside the disc (UDP, offset form)."""

    per_keypoint = {"final.weight": 3, "final.bias": 3}

    def __init__(self, config: UDPConfig, feature_shape, input_size, skeleton):
        super().__init__(feature_shape, input_size, skeleton)
        self.config = config
        channels, h, w = feature_shape
        self.map_size = (w, h)
        self.radius = config.radius or max(0.75, 0.0546875 * max(w, h))
        self.final = nn.Conv2d(channels, 3 * self.num_keypoints, 1)
        nn.init.normal_(self.final.weight, std=0.001)
        nn.init.zeros_(self.final.bias)

    @property
    def blur(self) -> int:
        """Kernel of the disc's blur, cells."""
        return 2 * int(2 * self.radius) + 1

    def forward(self, feature: Tensor) -> Outputs:
        """'map' (the disc), 'dx' and 'dy' (offsets in radii), (B, K, h, w) each."""
        return dict(zip(("map", "dx", "dy"), self.final(feature).chunk(3, dim=1), strict=True))

    def targets(self, keypoints: Tensor, weight: Tensor) -> tuple[Outputs, Tensor]:
        """'map' 0 or 1, 'dx', 'dy' (0 outside the disc); (B, K, h, w) each."""
        dx, dy = (self._offset(keypoints[..., axis].float(), axis) for axis in (0, 1))
        dx, dy = torch.broadcast_tensors(dx.unsqueeze(-2), dy.unsqueeze(-1))
        disc = (dx.square() + dy.square() <= 1).float()
        return {"map": disc, "dx": dx * disc, "dy": dy * disc}, weight * disc.amax((-2, -1))

    def _offset(self, position: Tensor, axis: int) -> Tensor:
        """(..., n) radii from each cell's centre to the joint at `position` (...), crop pixels."""
        n = self.map_size[axis]
        u = position * (n / self.input_size[axis])
        return (u.unsqueeze(-1) - (torch.arange(n, device=u.device) + 0.5)) / self.radius

    def loss(self, outputs: Outputs, targets: Outputs, weight: Tensor) -> Outputs:
        """'udp_disc' and 'udp_offset', summed over joints."""
        disc = targets["map"]
        error = {name: (outputs[name].float() - targets[name]).square() for name in ("map", "dx", "dy")}
        offset = (disc * (error["dx"] + error["dy"])).mean((-2, -1))
        return {
            "udp_disc": 0.5 * (error["map"].mean((-2, -1)) * weight).sum(),
            "udp_offset": 0.5 * (offset * weight).sum(),
        }

    def decode(self, outputs: Outputs) -> Decoded:
        """Published score: the peak of the blurred disc."""
        disc, dx, dy = (outputs[name].float() for name in ("map", "dx", "dy"))
        peak, x, y = find_peak(blur(disc, self.blur))
        u, v = (cell + 0.5 + pick(offset, x, y) * self.radius for cell, offset in ((x, dx), (y, dy)))
        position = to_pixels(self, u, v)
        perfect = self.targets(position, torch.ones_like(peak))[0]["map"]
        return Decoded(position, relative_mass(self, disc, perfect, position), peak)

    def flip(self, outputs: Outputs) -> Outputs:
        out = {name: value[:, self.flip_index].flip(-1) for name, value in outputs.items()}
        return {**out, "dx": -out["dx"]}
