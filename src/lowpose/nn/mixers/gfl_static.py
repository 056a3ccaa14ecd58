"""Global filter layer with static weights: one learned filter per channel, in the frequency domain.

Y. Rao, W. Zhao, Z. Zhu, J. Lu, J. Zhou: Global Filter Networks for Image Classification. NeurIPS 2021, arXiv:2107.00645; K.
B. Sivangi, F. Deligianni: Knowledge Distillation with Global Filters for Efficient Human Pose Estimation. BMVC 2024
(GFL-Static, GS).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from lowpose.nn.mixers.base import Mixer, TokenGrid
from lowpose.nn.mixers.layout import Arrangement, Layout
from lowpose.nn.mixers.spectra import Spectrum, Way, make_spectrum, resize_filter
from lowpose.registry import register
from lowpose.strict import Strict


class FilterConfig(Strict):
    transform: Literal["fft", "dct"] = "fft"
    layout: Arrangement = "columns"
    way: Way = "auto"  # how the FFT is computed: torch's (fft), by matrices, or the quicker one for size and device


class GFLStaticConfig(FilterConfig):
    name: Literal["gfl-static"] = "gfl-static"


class Filtered(Mixer):
    """What mixers with filters share: the grid, the transform, and filters that follow another grid."""

    filters: tuple[str, ...] = ()  # names of parameters (P, h, v, ...)

    def __init__(self, config: FilterConfig, grid: TokenGrid):
        super().__init__(grid)
        self.config = config
        self.layout = Layout(grid, config.layout)
        # in the weights file: a filter's shape does not tell whether its grid was even or odd
        self.register_buffer("size", torch.tensor([self.layout.height, self.layout.width]))

    def make_spectrum(self, channels: int) -> Spectrum:
        return make_spectrum(self.config.transform, self.layout.height, self.layout.width, channels, self.config.way)

    def adapt(self, state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
        """Filters of other weights (their entries begin with `prefix`), resized to this grid, and its size; by name."""
        given = state.get(f"{prefix}size")
        if given is None or torch.equal(given, self.size.cpu()):
            return {}
        sizes: Any = tuple(given.tolist()), tuple(self.size.tolist())
        names = [f"{prefix}{n}" for n in self.filters if f"{prefix}{n}" in state]
        resized = {name: resize_filter(state[name], self.config.transform, *sizes) for name in names}
        return {f"{prefix}size": self.size, **resized}


def new_filter(spectrum: Spectrum, channels: int) -> nn.Parameter:
    """(P, h, v, channels), N(0, 0.02^2) as published."""
    return nn.Parameter(0.02 * torch.randn(*spectrum.shape, channels))


@register("mixer", "gfl-static", GFLStaticConfig)
class GFLStatic(Filtered):
    """Global filter layer, static weights (FFT or DCT)."""

    filters = ("filter",)

    def __init__(self, config: GFLStaticConfig, grid: TokenGrid, width: int):
        super().__init__(config, grid)
        self.spectrum = self.make_spectrum(width)
        self.filter = new_filter(self.spectrum, width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.layout.restore(self.spectrum(self.layout.arrange(tokens), self.filter))
