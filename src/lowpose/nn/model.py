"""PoseModel = backbone + head: crops in, keypoints out. The model normalises its pictures itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lowpose import registry
from lowpose.config import RunConfig, validate
from lowpose.errors import LowposeError
from lowpose.nn.backbones import build_backbone
from lowpose.nn.heads.base import Decoded, Outputs, PoseHead
from lowpose.skeletons import Skeleton

MEAN = (123.675, 116.28, 103.53)  # ImageNet, RGB, grey levels
STD = (58.395, 57.12, 57.375)


class PoseModel(nn.Module):
    """Attributes: backbone, head, input_size (width, height) pixels, skeleton."""

    def __init__(self, backbone: nn.Module, head: PoseHead, skeleton: Skeleton):
        super().__init__()
        self.backbone, self.head, self.skeleton = backbone, head, skeleton
        self.input_size = head.input_size
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor, feature: bool = False) -> Outputs:
        """(B, 3, H, W) uint8 or float 0..255, RGB -> the head's named outputs; `feature` adds the backbone's, by that name."""
        found = self.backbone((images - self.mean) / self.std)
        outputs = self.head(found)
        return {**outputs, "feature": found} if feature else outputs

    @torch.no_grad()
    def predict(self, images: Tensor, flip: bool = True) -> Decoded:
        """Keypoints of crops (B, 3, H, W), 0..255: crop pixels, (x, y). `flip` averages with the mirror image."""
        outputs = self(images)
        if flip:
            outputs = self.head.merge(outputs, self.head.flip(self(images.flip(-1))))
        return self.head.decode(outputs)


def build_model(config: RunConfig, skeleton: Skeleton) -> PoseModel:
    """The model of a recipe for a skeleton; feature shapes are found by running the backbone once.

    Raises: LowposeError for unknown backbones or heads, wrong head settings, sizes that do not fit.
    """
    backbone = build_backbone(config.model, config.input.size)
    return PoseModel(backbone, build_head(config, backbone, skeleton), skeleton)


def build_head(config: RunConfig, backbone: nn.Module, skeleton: Skeleton) -> PoseHead:
    name = config.head.get("name")
    if not isinstance(name, str):
        raise LowposeError(f"'head.name' is missing; known heads: {', '.join(registry.names('head'))}")
    entry = registry.find("head", name)
    settings = validate(entry.config, config.head, "head")
    w, h = backbone.feature_size
    return entry.make(settings, (backbone.channels, h, w), config.input.size, skeleton)
