"""What a token mixer gets and gives, and where its tokens lie.

Letters: B batch, K keypoint tokens, N visual tokens on a grid of h rows and w columns, D width of a token.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn


class TokenGrid(NamedTuple):
    """`keypoints` tokens, then `height` x `width` visual tokens, row by row."""

    keypoints: int
    height: int
    width: int

    @property
    def count(self) -> int:
        return self.keypoints + self.height * self.width


class Mixer(nn.Module):
    """(B, K + N, D) -> (B, K + N, D), keypoint tokens first.

    Attributes: tokens (TokenGrid). `make(config, grid, width)` builds one; its config class holds its settings.
    """

    def __init__(self, grid: TokenGrid):
        super().__init__()
        self.tokens = grid

    def forward(self, tokens: Tensor) -> Tensor:
        raise NotImplementedError("abstract")
