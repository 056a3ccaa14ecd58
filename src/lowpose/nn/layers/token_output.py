"""From keypoint tokens to what a head needs of each keypoint, as TokenPose's output layers."""

from __future__ import annotations

from torch import nn


def token_output(width: int, hidden: int, out: int) -> list[nn.Module]:
    """Layers (B, K, width) -> (B, K, out), shared by all keypoints.

    Normalisation, a layer of `hidden` and again normalisation, and the last layer; the middle ones only where `hidden` is at
    least twice the token's width, as published.
    """
    if width > hidden / 2:
        layers = [nn.LayerNorm(width), nn.Linear(width, out)]
    else:
        layers = [nn.LayerNorm(width), nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.Linear(hidden, out)]
    for layer in layers:
        initialise_tokens(layer)
    return layers


def initialise_tokens(module: nn.Module) -> None:
    """As published: weights N(0, 0.02^2), biases zero."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
