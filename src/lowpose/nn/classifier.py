"""Classifier = backbone + head: pictures in, classes out. The model normalises its pictures itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lowpose.config import RunConfig
from lowpose.nn.backbones import build_backbone
from lowpose.nn.heads.base import Outputs
from lowpose.nn.model import Normalised, find_head


class Classifier(Normalised):
    """Attributes: backbone, head, classes (names), input_size (width, height) pixels."""

    def __init__(self, backbone: nn.Module, head: nn.Module, classes: tuple[str, ...], input_size: tuple[int, int]):
        super().__init__()
        self.backbone, self.head, self.classes, self.input_size = backbone, head, classes, input_size

    def forward(self, images: Tensor) -> Outputs:
        """(B, 3, H, W) uint8 or float 0..255, RGB -> the head's named outputs."""
        return self.head(self.backbone(self.normalised(images)))

    @torch.no_grad()
    def predict(self, images: Tensor, flip: bool = False) -> Tensor:
        """(B, classes) probabilities. `flip` averages with those of the mirror image."""
        found = self.head.probabilities(self(images))
        return (found + self.head.probabilities(self(images.flip(-1)))) / 2 if flip else found


def build_classifier(config: RunConfig, classes: tuple[str, ...]) -> Classifier:
    """The model of a recipe with `task: classification`.

    Raises: LowposeError for unknown backbones or heads, wrong settings, sizes that do not fit.
    """
    backbone = build_backbone(config.model, config.input.size)
    entry, settings = find_head("classifier", config)
    return Classifier(backbone, entry.make(settings, backbone.channels, len(classes)), classes, config.input.size)
