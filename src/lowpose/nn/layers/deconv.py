"""The deconvolution neck of "Simple Baselines for Human Pose Estimation and Tracking" (Xiao, Wu, Wei, ECCV 2018)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn


def deconv_neck(channels: int, widths: Sequence[int]) -> nn.Sequential:
    """One [4x4 transposed convolution of stride 2, BatchNorm, ReLU] per entry of `widths`.

    (B, channels, h, w) -> (B, widths[-1], h * 2^n, w * 2^n), n = len(widths). Section 2 of the paper; weights start
    at N(0, 0.001^2) as published.
    """
    layers: list[nn.Module] = []
    for width in widths:
        deconv = nn.ConvTranspose2d(channels, width, kernel_size=4, stride=2, padding=1, bias=False)
        nn.init.normal_(deconv.weight, std=0.001)
        layers += [deconv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        channels = width
    return nn.Sequential(*layers)
