"""Downsampling that loses nothing: space-to-depth and what learns from it (SPD, MGIL).

Z. Gu, Z.-Q. Zhao, H. Shen, Z. Zhang: Focus on Low-Resolution Information: Multi-Granular Information-Lossless Model for
Low-Resolution Human Pose Estimation. ACM MM 2024, Sec. 3 (MGIL); R. Sunkara, T. Luo: No More Strided Convolutions or Pooling:
A New CNN Building Block for Low-Resolution Images and Small Objects. ECML PKDD 2022, arXiv:2208.03641 (SPD).

What MGIL's paper leaves open, and how it is settled here: convolutions are 3 x 3; coarse and fine path both start from the
space-to-depth map (nothing else has it all); rates 2 and 3, each giving half of the channels, so that they cost one
convolution; batch normalisation and ReLU follow every convolution but the last of a path, which has the normalisation only
where two paths are to be fused: what followed the replaced layer follows the fused map. The first layer of the fusion has
C'/8 outputs, at least 8.

Letters: B batch, C channels in, C' channels out, H W size in, h w size out, s stride.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Fusion = Literal["mgaf", "eca", "add"]
Light = Literal["none", "reduce", "depthwise"]


class SpaceToDepth(nn.Module):
    """(B, C, h s, w s) -> (B, C s s, h, w), lossless (eq. 2 to 7); the s s phases of a channel stay side by side.

    `pixel_shuffle` is its inverse.
    """

    def __init__(self, stride: int = 2):
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_unshuffle(x, self.stride)


def fitted(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, H, W) -> (B, C, *size): rows and columns are repeated, or cut off, at the bottom and the right."""
    more = [max(0, wanted - given) for wanted, given in zip(size, x.shape[-2:], strict=True)]
    if any(more):
        x = F.pad(x, (0, more[1], 0, more[0]), mode="replicate")
    return x[..., : size[0], : size[1]]


def conv3x3(given: int, wanted: int, groups: int, rate: int = 1, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(given, wanted, 3, padding=rate, dilation=rate, groups=groups, bias=bias)


def conv1x1(given: int, wanted: int, groups: int, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(given, wanted, 1, groups=groups, bias=bias)


def normalised(conv: nn.Module, channels: int, act: bool) -> list[nn.Module]:
    return [conv, nn.BatchNorm2d(channels), *([nn.ReLU(inplace=True)] if act else [])]


class LIE(nn.Sequential):
    """Lossless information extraction: `count` convolutions to C' channels.

    `last`: what ends the last one: 'bias' (nothing is fused), 'norm' (a path among others) or 'act'. `pointwise`: the first is
    1 x 1.
    """

    def __init__(
        self,
        given: int,
        wanted: int,
        count: int,
        groups: int = 1,
        last: Literal["bias", "norm", "act"] = "act",
        pointwise: bool = False,
    ):
        layers: list[nn.Module] = []
        for i in range(count):
            end = last if i == count - 1 else "act"
            make = conv1x1 if pointwise and i == 0 else conv3x3
            conv = make(given if i == 0 else wanted, wanted, groups, bias=end == "bias")
            layers += [conv] if end == "bias" else normalised(conv, wanted, end == "act")
        super().__init__(*layers)


class MRIE(nn.Module):
    """Multi-receptive information extraction: dilated convolutions side by side, each giving its share of C' channels.

    In a grouped layer whose groups cannot be shared out among the rates' channels, the groups themselves are shared out.
    """

    def __init__(self, given: int, wanted: int, rates: tuple[int, ...] = (2, 3), groups: int = 1):
        super().__init__()
        shares = [len(range(i, wanted, len(rates))) for i in range(len(rates))]
        self.split: list[int] | None = None
        if groups == 1 or all(share % groups == 0 for share in shares):
            branches = [conv3x3(given, share, groups, rate) for share, rate in zip(shares, rates, strict=True) if share]
        else:
            parts = [n for n in (len(range(i, groups, len(rates))) for i in range(len(rates))) if n]
            self.split = [given // groups * n for n in parts]
            branches = [
                conv3x3(given // groups * n, wanted // groups * n, n, rate)
                for n, rate in zip(parts, rates[: len(parts)], strict=True)
            ]
        self.branches = nn.ModuleList(branches)
        self.norm, self.act = nn.BatchNorm2d(wanted), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', h, w)."""
        parts = [x] * len(self.branches) if self.split is None else x.split(self.split, 1)
        return self.act(self.norm(torch.cat([branch(part) for branch, part in zip(self.branches, parts, strict=True)], 1)))


class MGAF(nn.Module):
    """Multi-granular adaptive fusion: a weight for each path, from what both see in this picture (eq. 8 to 11)."""

    def __init__(self, channels: int, paths: int = 2, variant: Literal["mgaf", "eca"] = "mgaf"):
        super().__init__()
        given = paths * channels
        if variant == "eca":  # efficient channel attention: a short kernel over neighbouring channels
            kernel = int(abs(math.log2(given) / 2 + 0.5))
            kernel += 1 - kernel % 2
            self.conv: nn.Module = nn.Conv1d(1, 1, kernel, padding=kernel // 2, bias=False)
            self.fc = nn.Linear(given, paths)
        else:
            hidden = max(given // 16, 8)
            self.conv = nn.Linear(given, hidden)  # a 1 x 1 convolution of a 1 x 1 map
            self.fc = nn.Linear(hidden, paths)
        self.variant = variant

    def weights(self, paths: list[Tensor]) -> Tensor:
        """(B, C', h, w) each -> (B, number of paths), summing to one."""
        context = torch.cat([path.mean((-2, -1)) for path in paths], 1)
        context = self.conv(context.unsqueeze(1)).squeeze(1) if self.variant == "eca" else self.conv(context)
        return torch.softmax(self.fc(F.relu(context)).float(), dim=1)

    def forward(self, paths: list[Tensor]) -> Tensor:
        weights = self.weights(paths).to(paths[0].dtype)
        return sum(w[:, None, None, None] * path for w, path in zip(weights.unbind(1), paths, strict=True))


class FLIE(nn.Sequential):
    """Fine-grained lossless information extraction: space-to-depth, then LIE. With one convolution it is SPD."""

    def __init__(self, given: int, wanted: int, count: int = 2, stride: int = 2, groups: int = 1):
        super().__init__(SpaceToDepth(stride), LIE(given * stride * stride, wanted, count, groups, "bias"))


class SPD(FLIE):
    """Space-to-depth and one convolution."""

    def __init__(self, given: int, wanted: int, stride: int = 2, groups: int = 1):
        super().__init__(given, wanted, 1, stride, groups)


class CII(nn.Sequential):
    """Coarse-grained information interaction: MRIE, then LIE; from a space-to-depth map."""

    def __init__(self, given: int, wanted: int, count: int = 2, rates: tuple[int, ...] = (2, 3), groups: int = 1):
        lie = [LIE(wanted, wanted, count, groups, "norm")] if count else []
        super().__init__(MRIE(given, wanted, rates, groups), *lie)


class MGIL(nn.Module):
    """Multi-granular information-lossless block: (B, C, h s, w s) -> (B, C', h, w).

    Args:
        given, wanted: C and C'. stride: s. groups: of every convolution.
        fine, coarse: convolutions in the LIE blocks of the fine and the coarse path (headline row: 2 and 2).
        rates: dilation rates of the coarse path. fusion: 'mgaf', 'eca' or 'add'.
        light: 'reduce' brings the space-to-depth map to C' channels by 1 x 1 convolutions, the first one of the fine path and one
            before the coarse path; 'depthwise' makes every 3 x 3 convolution depthwise, with a 1 x 1 one after it.
    """

    def __init__(
        self,
        given: int,
        wanted: int,
        fine: int = 2,
        coarse: int = 2,
        rates: tuple[int, ...] = (2, 3),
        fusion: Fusion = "mgaf",
        light: Light = "none",
        stride: int = 2,
        groups: int = 1,
    ):
        super().__init__()
        self.unshuffle = SpaceToDepth(stride)
        inner = given * stride * stride
        self.fine = LIE(inner, wanted, fine, groups, "norm", pointwise=light == "reduce")
        if light == "reduce":
            self.coarse: nn.Module = nn.Sequential(
                *normalised(conv1x1(inner, wanted, groups), wanted, True), CII(wanted, wanted, coarse, rates, groups)
            )
        else:
            self.coarse = CII(inner, wanted, coarse, rates, groups)
        if light == "depthwise":
            _separate(self.fine)
            _separate(self.coarse)
        self.fuse = None if fusion == "add" else MGAF(wanted, variant=fusion)

    def forward(self, x: Tensor) -> Tensor:
        x = self.unshuffle(x)
        paths = [self.fine(x), self.coarse(x)]
        return paths[0] + paths[1] if self.fuse is None else self.fuse(paths)


def _separate(module: nn.Module) -> None:
    """Every 3 x 3 convolution inside that mixes channels becomes a depthwise one and a 1 x 1 one."""
    for name, child in module.named_children():
        if isinstance(child, nn.Conv2d) and child.groups < child.in_channels and child.kernel_size == (3, 3):
            c = child.in_channels
            depthwise = nn.Conv2d(c, c, 3, padding=child.padding, dilation=child.dilation, groups=c, bias=False)
            setattr(module, name, nn.Sequential(depthwise, conv1x1(c, child.out_channels, child.groups, child.bias is not None)))
        else:
            _separate(child)
