"""A transformer over visual tokens (cells of a picture or feature map) and one token per keypoint.

Y. Li, S. Zhang, Z. Wang, S. Yang, W. Yang, S.-T. Xia, E. Zhou: TokenPose: Learning Keypoint Tokens for Human Pose Estimation.
ICCV 2021, arXiv:2104.03516. The way in which tokens learn of each other is a mixer (`lowpose.nn.mixers`).

Pre-norm layers of a mixer and an MLP (GELU), each with a residual (`residual: single`: one around both, as in GFNet). Fixed
2D sine positions are added to the visual tokens before every layer, never to keypoint tokens. `taps` (TokenPose-L): keypoint
tokens after these layers are joined side by side, and the layer after a tap gets no positions, since published it begins a
new encoder.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lowpose import registry
from lowpose.config import TokensConfig
from lowpose.errors import LowposeError
from lowpose.nn.layers.token_output import initialise_tokens
from lowpose.nn.mixers.base import Mixer, TokenGrid
from lowpose.strict import validate

CPU_TOKENS = 2176  # of width 192: about as many stay in a CPU's cache from layer to layer (8 pictures of 272 tokens, 2 of 1,040)


class TokenEncoder(nn.Module):
    """(B, C, H, W) -> keypoint tokens (B, K, D or, tapped, D times taps), visual tokens as a map (B, D, h, w).

    Attributes: grid, width (of the keypoint tokens that it gives), per_keypoint (as PoseHead's).
    """

    per_keypoint = {"keypoint": 1}

    def __init__(self, config: TokensConfig, channels: int, size: tuple[int, int], keypoints: int):
        """For feature maps of `channels` and `size` (width, height).

        Raises: LowposeError if the patches do not tile the map, or the mixer's settings are wrong.
        """
        super().__init__()
        if any(side % patch for side, patch in zip(size, config.patch, strict=True)):
            raise LowposeError(
                f"model.tokens.patch={list(config.patch)} does not tile the map of {size[0]} x {size[1]} (width, height)"
            )
        columns, rows = (side // patch for side, patch in zip(size, config.patch, strict=True))
        self.grid = TokenGrid(keypoints, rows, columns)
        step = config.patch[::-1]
        self.embed = nn.Conv2d(channels, config.width, step, stride=step)
        self.keypoint = nn.Parameter(torch.zeros(keypoints, config.width))
        self.layers = nn.ModuleList(
            Layer(config, make_mixer(config, self.grid), config.residual == "single") for _ in range(config.depth)
        )
        self.taps = config.taps or (config.depth,)
        self.width = config.width * len(self.taps)
        positions = sine_positions(rows, columns, config.width)
        nothing = torch.zeros(keypoints, config.width)
        self.register_buffer("positions", torch.cat([nothing, positions])[None], persistent=False)
        nn.init.trunc_normal_(self.keypoint, std=0.02)
        self.apply(initialise_tokens)

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        patch, grid = self.embed.stride, (self.grid.height, self.grid.width)
        wanted = tuple(cells * side for cells, side in zip(grid, patch, strict=True))
        if tuple(feature.shape[-2:]) != wanted:
            found, wanted, grid = (f"{w} x {h}" for h, w in (feature.shape[-2:], wanted, grid))
            raise LowposeError(f"a map of {found} (width, height); the model's grid of {grid} tokens takes {wanted}")
        visual = self.embed(feature)
        visual = visual.flatten(2).transpose(1, 2)
        tokens = torch.cat([self.keypoint.expand(visual.shape[0], -1, -1).to(visual.dtype), visual], 1)
        keypoint, visual = self._run(tokens)
        return keypoint, visual.transpose(1, 2).unflatten(2, (self.grid.height, self.grid.width))

    def _run(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """All layers; on a CPU that only predicts, a few pictures at a time, twice as quick where there are many tokens."""
        few = max(1, CPU_TOKENS // self.grid.count)
        together = tokens.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling()
        if together or len(tokens) <= few:
            return self._run_layers(tokens)
        keypoint, visual = zip(*map(self._run_layers, tokens.split(few)), strict=True)
        return torch.cat(keypoint), torch.cat(visual)

    def _run_layers(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        k, tapped = self.grid.keypoints, []
        for i, layer in enumerate(self.layers):
            if i not in self.taps:
                tokens = tokens + self.positions
            tokens = layer(tokens)
            if i + 1 in self.taps:
                tapped.append(tokens[:, :k])
        return torch.cat(tapped, -1), tokens[:, k:]


class Layer(nn.Module):
    """x + mixer(norm x), then x + MLP(norm x); `single`: x + MLP(norm(mixer(norm x)))."""

    def __init__(self, config: TokensConfig, mixer: Mixer, single: bool):
        super().__init__()
        width, hidden = config.width, round(config.width * config.mlp_ratio)
        self.single = single
        self.norm1, self.mixer = nn.LayerNorm(width), mixer
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, tokens: Tensor) -> Tensor:
        mixed = self.mixer(self.norm1(tokens))
        if self.single:
            return tokens + self.mlp(self.norm2(mixed))
        tokens = tokens + mixed
        return tokens + self.mlp(self.norm2(tokens))


def make_mixer(config: TokensConfig, grid: TokenGrid) -> Mixer:
    name = config.mixer.get("name")
    if not isinstance(name, str):
        raise LowposeError(f"'model.tokens.mixer.name' is missing; known mixers: {', '.join(registry.names('mixer'))}")
    entry = registry.find("mixer", name)
    return entry.make(validate(entry.config, config.mixer, "model.tokens.mixer"), grid, config.width)


def sine_positions(rows: int, columns: int, width: int) -> Tensor:
    """(rows * columns, width): half of the channels say the row, half the column; sines and cosines in turn."""
    half = width // 2
    frequency = 10000 ** (2 * (torch.arange(half, dtype=torch.float64) // 2) / half)
    sides = []
    for count in (rows, columns):
        position = torch.arange(1, count + 1, dtype=torch.float64) / (count + 1e-6) * 2 * math.pi
        angle = position[:, None] / frequency
        sides.append(torch.where(torch.arange(half) % 2 == 0, angle.sin(), angle.cos()))
    y, x = sides[0][:, None].expand(-1, columns, -1), sides[1][None].expand(rows, -1, -1)
    return torch.cat([y, x], -1).flatten(0, 1).float()
