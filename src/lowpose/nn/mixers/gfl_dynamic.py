"""Global filter layer with dynamic weights: each picture and channel mixes its filter from F learned ones.

K. B. Sivangi, F. Deligianni: Knowledge Distillation with Global Filters for Efficient Human Pose Estimation. BMVC 2024,
supplement, eq. 4 to 8 (GFL-Dynamic, GD), after Y. Tatsunami, M. Taki: FFT-based Dynamic Token Mixer for Vision. AAAI 2024,
arXiv:2303.03932 (DFFormer).

    x -> point-wise expansion -> StarReLU -> T -> filter of this picture -> T^-1 -> point-wise reduction

The expansion stands in the parent and in the published costs, not in the supplement's equations. Routing, from the mean of x
over its tokens: `supplement`: the mean is cut into F rows, each goes through the same two layers (eq. 4, 5), softmax over
rows; `dfformer`: two layers on the whole mean, as many outputs as filters times channels, softmax over filters. With the
widths here both have the same number of weights.

`static`: a static filter works before the dynamic one. The published counts of GD include one (facts of the reconstruction:
docs/paper-map.md), the equations do not; so it is off unless a recipe asks for it.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lowpose.errors import LowposeError
from lowpose.nn.layers.precision import at_least_float32, full_precision
from lowpose.nn.mixers.base import TokenGrid
from lowpose.nn.mixers.gfl_static import FilterConfig, Filtered, new_filter
from lowpose.registry import register


class GFLDynamicConfig(FilterConfig):
    name: Literal["gfl-dynamic"] = "gfl-dynamic"
    filters: int = Field(4, ge=2)  # F
    expansion: int = Field(2, ge=1)
    routing: Literal["supplement", "dfformer"] = "supplement"
    static: bool = False


@register("mixer", "gfl-dynamic", GFLDynamicConfig)
class GFLDynamic(Filtered):
    """Global filter layer, weights that follow the picture (FFT or DCT)."""

    filters = ("basis", "static")

    def __init__(self, config: GFLDynamicConfig, grid: TokenGrid, width: int):
        """Raises: LowposeError if the filters do not divide the width."""
        super().__init__(config, grid)
        inner = config.expansion * width
        self.spectrum = self.make_spectrum(inner)
        self.basis = new_filter(self.spectrum, config.filters)  # its last axis: filters, not channels
        if config.static:
            self.before = self.make_spectrum(width)
            self.static = new_filter(self.before, width)
        make = SupplementRouting if config.routing == "supplement" else DFFormerRouting
        self.routing = make(width, inner, config.filters)
        self.expand = nn.Linear(width, inner, bias=False)
        self.act = StarReLU()
        self.reduce = nn.Linear(inner, width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        weights = self.routing(tokens.mean(1))  # the keypoint tokens are tokens of the picture too
        if self.config.static:
            tokens = self.layout.restore(self.before(self.layout.arrange(tokens), self.static))
        x = self.layout.blank(self.act(self.expand(self.layout.arrange(tokens))))
        return self.layout.restore(self.reduce(self.spectrum(x, self.mixed(weights))))

    def mixed(self, weights: Tensor) -> Tensor:
        """(B, F, C) -> the pictures' filters (B, P, h, v, C) (eq. 6)."""
        with full_precision(weights.device):
            return (self.basis.flatten(0, 2).unsqueeze(0) @ at_least_float32(weights)).unflatten(1, self.spectrum.shape)


class StarReLU(nn.Module):
    """s relu(x)^2 + b; both start so that N(0, 1) keeps mean and variance (W. Yu et al., arXiv:2210.13452)."""

    def __init__(self, bias: bool = True):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.8944))
        self.bias = nn.Parameter(torch.tensor(-0.4472)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(x)
        scaled = x * self.scale.to(x.dtype)
        return scaled * x if self.bias is None else torch.addcmul(self.bias.to(x.dtype), scaled, x)


class SupplementRouting(nn.Module):
    """(B, C) -> (B, F, C'), softmax over F: rows of C / F channels through one shared pair of layers (eq. 4, 5)."""

    def __init__(self, width: int, inner: int, filters: int):
        super().__init__()
        if width % filters:
            raise LowposeError(f"model.tokens.mixer.filters={filters} does not divide the width of {width}; use routing=dfformer")
        self.filters = filters
        self.first = nn.Linear(width // filters, width, bias=False)
        self.act = StarReLU(bias=False)  # it would add the same to every row, which the softmax does not see
        self.second = nn.Linear(width, inner, bias=False)

    def forward(self, mean: Tensor) -> Tensor:
        rows = mean.unflatten(1, (self.filters, -1))
        return torch.softmax(at_least_float32(self.second(self.act(self.first(rows)))), dim=1)


class DFFormerRouting(nn.Module):
    """(B, C) -> (B, F, C'), softmax over F: one pair of layers, hidden width C / 4."""

    def __init__(self, width: int, inner: int, filters: int):
        super().__init__()
        self.filters = filters
        self.first = nn.Linear(width, max(1, width // 4), bias=False)
        self.act = StarReLU()
        self.second = nn.Linear(max(1, width // 4), filters * inner, bias=False)

    def forward(self, mean: Tensor) -> Tensor:
        logits = self.second(self.act(self.first(mean))).unflatten(1, (self.filters, -1))
        return torch.softmax(at_least_float32(logits), dim=1)
