"""Backbones: image -> one feature map. Shapes are found by running the network, never configured."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from lowpose.config import ModelConfig
from lowpose.errors import LowposeError
from lowpose.nn.backbones.timm_features import create_body, first_line
from lowpose.nn.backbones.weights import load_weights
from lowpose.nn.downsampling import DownsamplingConfig, Replaced, replace
from lowpose.nn.layers.deconv import deconv_neck
from lowpose.nn.meta import meta_call, meta_forward
from lowpose.strict import validate

TARGET_STRIDE = 4  # where the neck stops: the stride of the published pose networks


class Backbone(nn.Module):
    """`body` (a timm trunk), then `neck` (deconvolutions, or nothing), for pictures of one size.

    Pictures are enlarged bilinearly by the factor `enlarge` first.

    Attributes: `channels` of the feature map, `feature_size` (w, h), `stride` (x, y) in input pixels per feature step,
    `not_loaded`: entries of the weights file that the network has no place for (classifier, trimmed parts); `replaced`: layers
    that a lossless block took the place of.

    Where a side is no multiple of the body's stride, the body pads it at the right or bottom and the neck enlarges the
    padding too; steps that lie wholly in the padding are cut off, so that feature step i stays over input pixel
    i * stride: 48x64 through a ResNet and three deconvolutions is 12x16, not 16x16.
    """

    def __init__(self, body: nn.Module, neck: nn.Module, size: tuple[int, int], enlarge: int = 1):
        super().__init__()
        self.body, self.neck, self.enlarge = body, neck, enlarge
        inside = enlarged(size, enlarge)
        channels, *inner = output_shape(body, inside)
        _, self.channels, height, width = meta_call(neck, (1, channels, *inner[::-1])).shape
        outer = [width, height]
        covered = [_covered(*sides, body.reduction) for sides in zip(inside, inner, outer, strict=True)]
        self.feature_size = (covered[0], covered[1])
        self._cut = covered != outer
        self.stride = (size[0] / covered[0], size[1] / covered[1])
        self.not_loaded: list[str] = []
        self.replaced: list[Replaced] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) float, normalised -> (B, channels, h, w)."""
        if self.enlarge > 1:
            images = F.interpolate(images, scale_factor=self.enlarge, mode="bilinear", align_corners=False)
        features = self.neck(self.body(images))
        if self._cut:
            w, h = self.feature_size
            features = features[..., :h, :w]
        return features


def enlarged(size: tuple[int, int], factor: int) -> tuple[int, int]:
    """The size (width, height) of pictures in front of the first layer."""
    return size[0] * factor, size[1] * factor


def _covered(side: int, inner: int, outer: int, reduction: int) -> int:
    """Steps of the neck's `outer` that begin inside the picture; all, where the body does not pad but stretches."""
    if inner != math.ceil(side / reduction):
        return outer
    return min(outer, math.ceil(side * outer / (inner * reduction)))


def build_backbone(config: ModelConfig, size: tuple[int, int]) -> Backbone:
    """The backbone of `config` for crops of `size` (width, height), with its weights and its neck.

    `config.enlarge` makes pixels larger, not coordinates: `stride` and all that follows stay in pixels of the crop.

    Raises: LowposeError for an unknown model, a size that does not fit it, a neck that makes no sense, weights that
    cannot be had or do not fit.
    """
    inside = enlarged(size, config.enlarge)
    body = create_body(config, inside)
    _check_fit(config, body, size)
    not_loaded = [] if config.pretrained in ("imagenet", "none") else load_weights(body, config.backbone, config.pretrained)
    replaced = []
    if config.downsampling is not None:  # after the weights: the replaced layers' own are dropped
        replaced = replace(body, validate(DownsamplingConfig, config.downsampling, "model.downsampling"), inside)
    backbone = Backbone(body, _build_neck(config, body, inside), size, config.enlarge)
    backbone.not_loaded, backbone.replaced = not_loaded, replaced
    return backbone


def _build_neck(config: ModelConfig, body: nn.Module, size: tuple[int, int]) -> nn.Module:
    stride, needed = body.reduction, 0
    while stride / 2**needed > TARGET_STRIDE:
        needed += 1
    if config.neck == "none" or (config.neck == "auto" and needed == 0):
        return nn.Identity()
    if needed == 0:
        raise LowposeError(f"model.neck=deconv: {config.backbone} ends at stride {stride} already; give auto or none")
    if config.neck == "deconv" and not config.deconv:
        raise LowposeError("model.neck=deconv: model.deconv is empty; give the width of each deconvolution")
    if config.neck == "auto" and len(config.deconv) < needed:
        raise LowposeError(
            f"model.deconv has {len(config.deconv)} widths; {config.backbone} ends at stride {stride} "
            f"and needs {needed} to reach stride {TARGET_STRIDE}"
        )
    widths = config.deconv[:needed] if config.neck == "auto" else config.deconv
    return deconv_neck(output_shape(body, size)[0], widths)


def output_shape(module: nn.Module, size: tuple[int, int]) -> tuple[int, int, int]:
    """(channels, width, height) of what `module` makes of one picture of `size`; nothing is computed (meta tensors)."""
    features = meta_forward(module, size)
    _, channels, height, width = features.shape
    return channels, width, height


def _misfit(body: nn.Module, size: tuple[int, int]) -> str:
    """Why the network does not run at this size or leaves a part of the picture out; '' if it fits."""
    try:
        _, width, height = output_shape(body, size)
    except (RuntimeError, AssertionError, ValueError) as e:
        return first_line(e)
    if min(width, height) == 0 or width * body.reduction < size[0] or height * body.reduction < size[1]:
        return f"its {width}x{height} feature map of stride {body.reduction} does not cover the picture"
    return ""


def _check_fit(config: ModelConfig, body: nn.Module, size: tuple[int, int]) -> None:
    width, height = inside = enlarged(size, config.enlarge)
    reason = _misfit(body, inside)
    if not reason:
        return
    for multiple in (2, 4, 8, 16, 32, 64):
        # odd multiples: a size that happens to be divisible further would prove nothing
        if any(side % multiple for side in inside) and not any(_misfit(body, (k * multiple, k * multiple)) for k in (1, 3, 5)):
            reason = f"width and height must be multiples of {multiple}"
            break
    how = f" ({size[0]}x{size[1]} enlarged {config.enlarge} times)" if config.enlarge > 1 else ""
    raise LowposeError(f"input {width}x{height}{how} does not fit {config.backbone}: {reason}")
