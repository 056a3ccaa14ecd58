"""The head of a classifier: the mean of the feature map and one linear layer (M. Lin, Q. Chen, S. Yan, Network in network,
2014, section 3.2, with the linear layer of K. He et al., Deep residual learning for image recognition, 2016)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from lowpose.nn.heads.base import Outputs, Term
from lowpose.registry import register
from lowpose.strict import Strict

if TYPE_CHECKING:
    from lowpose.loader import PictureBatch


class LinearConfig(Strict):
    name: Literal["linear"] = "linear"
    smoothing: float = Field(0.0, ge=0, lt=1)  # of the labels: share that goes to all classes alike
    dropout: float = Field(0.0, ge=0, lt=1)  # of the mean features, while training


@register("classifier", "linear", LinearConfig)
class LinearHead(nn.Module):
    """Classes from the mean feature: one linear layer, cross-entropy.

    Attributes: per_label: parameter name -> n, as `PoseHead.per_keypoint`.
    """

    per_label = {"fc.weight": 1, "fc.bias": 1}

    def __init__(self, config: LinearConfig, channels: int, classes: int):
        super().__init__()
        self.smoothing = config.smoothing
        self.drop = nn.Dropout(config.dropout)
        self.fc = nn.Linear(channels, classes)

    def forward(self, feature: Tensor) -> Outputs:
        """(B, C, h, w) -> 'logits' (B, classes)."""
        return {"logits": self.fc(self.drop(feature.mean((2, 3))))}

    def terms(self, outputs: Outputs, batch: PictureBatch) -> tuple[dict[str, Term], Tensor]:
        """Cross-entropy, summed over the pictures that could be read, and the weight (B,) that they have."""
        each = F.cross_entropy(outputs["logits"], batch.labels, reduction="none", label_smoothing=self.smoothing)
        return {"cross_entropy": Term.over(each, batch.weight)}, batch.weight

    def probabilities(self, outputs: Outputs) -> Tensor:
        """(B, classes), each row of sum 1."""
        return torch.softmax(outputs["logits"].float(), 1)
