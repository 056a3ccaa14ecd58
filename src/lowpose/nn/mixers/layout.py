"""How keypoint tokens and visual tokens share one grid, so that a 2D transform mixes all of them.

`columns`: the visual grid keeps its rows and columns; keypoint tokens stand in extra columns at its right, the last ones
padded with
    zeros. 16 x 16 visual and 16 keypoint tokens: a grid of 16 x 17, as KDGF's published counts require.
`view`: the sequence, keypoint tokens first, is read row by row as a grid of h rows. Same counts, but the keypoints fill the
    first rows and each row of the picture is shifted against the one above.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowpose.errors import LowposeError
from lowpose.nn.mixers.base import TokenGrid

Arrangement = Literal["columns", "view"]


class Layout(nn.Module):
    """Attributes: height, width of the shared grid."""

    def __init__(self, grid: TokenGrid, arrangement: Arrangement = "columns"):
        """Raises: LowposeError if `view` cannot fill whole rows."""
        super().__init__()
        self.tokens, self.arrangement = grid, arrangement
        self.height = grid.height
        self.extra = -(-grid.keypoints // grid.height)  # columns
        self.width = grid.width + self.extra
        if arrangement == "view":
            if grid.count % grid.height:
                raise LowposeError(
                    f"model.tokens.mixer.layout=view: {grid.keypoints} keypoint tokens and {grid.height} x {grid.width} visual "
                    f"tokens do not fill {grid.height} rows; use layout=columns"
                )
            self.width = grid.count // grid.height
        held = torch.ones(1, grid.count, 1)
        full = self.height * self.width == grid.count
        self.register_buffer("held", None if full else self.arrange(held), persistent=False)

    def arrange(self, tokens: Tensor) -> Tensor:
        """(B, K + N, C) -> (B, h, w, C)."""
        if self.arrangement == "view":
            return tokens.unflatten(1, (self.height, self.width))
        keypoint, visual = tokens.split([self.tokens.keypoints, tokens.shape[1] - self.tokens.keypoints], 1)
        spare = self.height * self.extra - self.tokens.keypoints
        if spare:
            keypoint = F.pad(keypoint, (0, 0, 0, spare))
        parts = visual.unflatten(1, (self.height, self.tokens.width)), keypoint.unflatten(1, (self.height, self.extra))
        return torch.cat(parts, 2)

    def blank(self, cells: Tensor) -> Tensor:
        """(B, h, w, C) with zeros where no token stands, after a layer that may have put something there."""
        return cells if self.held is None else cells * self.held

    def restore(self, cells: Tensor) -> Tensor:
        """(B, h, w, C) -> (B, K + N, C)."""
        if self.arrangement == "view":
            return cells.flatten(1, 2)
        visual, keypoint = cells.split([self.tokens.width, self.extra], 2)
        return torch.cat([keypoint.flatten(1, 2)[:, : self.tokens.keypoints], visual.flatten(1, 2)], 1)
