"""PoseModel = backbone (+ tokens) + head: crops in, keypoints out. The model normalises its pictures itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lowpose import registry
from lowpose.config import RunConfig
from lowpose.errors import LowposeError
from lowpose.nn.backbones import build_backbone
from lowpose.nn.heads.base import Decoded, Outputs, PoseHead
from lowpose.nn.tokens import TokenEncoder
from lowpose.skeletons import Skeleton
from lowpose.strict import validate

MEAN = (123.675, 116.28, 103.53)  # ImageNet, RGB, grey levels
STD = (58.395, 57.12, 57.375)


class Normalised(nn.Module):
    """A model that normalises its pictures itself."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def normalised(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 or float 0..255, RGB -> float32."""
        return (images - self.mean) / self.std


class PoseModel(Normalised):
    """Attributes: backbone, tokens (TokenEncoder or None), head, input_size (width, height) pixels, skeleton."""

    def __init__(self, backbone: nn.Module, head: PoseHead, skeleton: Skeleton, tokens: TokenEncoder | None = None):
        super().__init__()
        self.backbone, self.tokens, self.head, self.skeleton = backbone, tokens, head, skeleton
        self.input_size = head.input_size

    def forward(self, images: Tensor, inner: bool = False) -> Outputs:
        """(B, 3, H, W) uint8 or float 0..255, RGB -> the head's named outputs.

        `inner` adds what the head reads: 'feature', the backbone's map (B, C, h, w); of a token model 'keypoint_tokens' (B,
        K, D), and 'feature' is the map of its visual tokens (B, D, h, w).
        """
        feature = self.backbone(self.normalised(images))
        if self.tokens is None:
            found = {"feature": feature}
            outputs = self.head(feature)
        else:
            keypoint, visual = self.tokens(feature)
            found = {"feature": visual, "keypoint_tokens": keypoint}
            outputs = self.head(keypoint)
        return {**outputs, **found} if inner else outputs

    def answer(self, images: Tensor, flip: bool) -> Outputs:
        """What `forward` gives for crops (B, 3, H, W), 0..255; `flip` averages it with that for the mirror image."""
        if not flip:
            return self(images)
        both = self(torch.cat([images, images.flip(-1)]))  # one pass: half as many operations to start, and to export
        n = images.shape[0]  # len() would fix the number in an exported file
        plain, mirrored = ({name: value[part] for name, value in both.items()} for part in (slice(n), slice(n, None)))
        return self.head.merge(plain, self.head.flip(mirrored))

    @torch.no_grad()
    def predict(self, images: Tensor, flip: bool = True) -> Decoded:
        """Keypoints of crops (B, 3, H, W), 0..255: crop pixels, (x, y). `flip` averages with the mirror image."""
        return self.head.decode(self.answer(images, flip))


def build_model(config: RunConfig, skeleton: Skeleton) -> PoseModel:
    """The model of a recipe for a skeleton; feature shapes are found by running the backbone once.

    Raises: LowposeError for unknown backbones or heads, wrong head settings, sizes that do not fit.
    """
    backbone = build_backbone(config.model, config.input.size)
    return assemble(config, backbone, skeleton)


def assemble(config: RunConfig, backbone: nn.Module, skeleton: Skeleton) -> PoseModel:
    """What a recipe puts after its backbone, around it."""
    settings, size = config.model.tokens, backbone.feature_size
    if settings is None:
        shape: tuple[int, ...] = (backbone.channels, size[1], size[0])
        return PoseModel(backbone, build_head(config, shape, skeleton), skeleton)
    tokens = TokenEncoder(settings, backbone.channels, size, len(skeleton))
    return PoseModel(backbone, build_head(config, (tokens.width,), skeleton), skeleton, tokens)


def build_head(config: RunConfig, shape: tuple[int, ...], skeleton: Skeleton) -> PoseHead:
    """The head of a recipe for feature maps of shape (C, h, w), or for keypoint tokens of width D: (D,)."""
    entry, settings = find_head("head", config)
    if len(shape) == 1 and not entry.make.reads_tokens:
        able = [n for n in registry.names("head") if registry.find("head", n).make.reads_tokens]
        raise LowposeError(
            f"head '{entry.name}' reads feature maps, and model.tokens gives keypoint tokens; use {', '.join(able)}"
        )
    return entry.make(settings, shape, config.input.size, skeleton)


def find_head(kind: str, config: RunConfig) -> tuple[registry.Entry, Any]:
    """The head that a recipe names among those registered as `kind`, and its settings. Raises: LowposeError."""
    name = config.head.get("name")
    if not isinstance(name, str):
        raise LowposeError(f"'head.name' is missing; known heads: {', '.join(registry.names(kind))}")
    entry = registry.find(kind, name)
    return entry, validate(entry.config, config.head, "head")
