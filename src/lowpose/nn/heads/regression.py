"""Direct regression of coordinates, with a score and a spread for each keypoint.

S. Ye, Y. Zhang, J. Hu, L. Cao, S. Zhang, L. Shen, J. Wang, S. Ding, R. Ji: DistilPose: Tokenized Pose Regression with Heatmap
Distillation. CVPR 2023, arXiv:2303.02455, Sec. 3. From feature maps it is the regression of A. Toshev, C. Szegedy: DeepPose, CVPR
2014, arXiv:1312.4659: the mean of the map and one linear layer.

Five numbers per keypoint: x and y (sigmoid; shares of the crop), score (as it is), spread in x and y (softplus cells of a
heatmap of `stride` input pixels, given as shares of the crop). Loss: smooth L1 on the shares, mean over x and y, which squares
errors below `beta` (published: 1, hence every error in the crop). Score and spread are taught by distillation
(`simulated_heatmap`, `predicted_score`). Without it the spread stays untaught, and so would the score; so `score` teaches the
value that the joint's Gaussian (sigma 2 cells) has at the prediction. Published rows leave that out.

Departures. Invisible joints teach nothing (published: weights meet the wrong axis in the heatmap term); the flip test exchanges
left and right scores too.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from lowpose.errors import LowposeError
from lowpose.nn.heads.base import Decoded, Outputs, PoseHead
from lowpose.nn.layers.precision import at_least_float32, full_precision
from lowpose.nn.layers.token_output import token_output
from lowpose.registry import register
from lowpose.strict import Strict

SIGMA = 2.0  # cells, of the Gaussian that teaches the score


class RegressionConfig(Strict):
    name: Literal["regression"] = "regression"
    hidden: int | None = Field(None, ge=0)  # of tokens only: width of the layer between; default 384
    stride: int = Field(4, ge=1)  # input pixels per cell of the heatmap in which the spread is counted
    beta: float = Field(1.0, ge=0)  # share of the crop; smaller errors are squared, over 2 beta; 0: L1
    score: float = Field(0.01, ge=0)  # weight of the score's own term


@register("head", "regression", RegressionConfig)
class Regression(PoseHead):
    """Coordinates, a score and a spread per keypoint, regressed from tokens or a pooled feature map."""

    reads_tokens = True

    def __init__(self, config: RegressionConfig, feature_shape, input_size, skeleton):
        """Raises: LowposeError if settings do not belong to its input."""
        super().__init__(feature_shape, input_size, skeleton)
        self.config = config
        if len(feature_shape) == 1:
            self.final = nn.Sequential(*token_output(feature_shape[0], 384 if config.hidden is None else config.hidden, 5))
        else:
            if config.hidden is not None:
                raise LowposeError("'head.hidden' is for keypoint tokens; this head reads a feature map")
            self.per_keypoint = {"final.weight": 5, "final.bias": 5}
            self.final = nn.Linear(feature_shape[0], 5 * self.num_keypoints)

    def forward(self, feature: Tensor) -> Outputs:
        """'xy' and 'sigma' (B, K, 2), shares of the crop; 'score' (B, K)."""
        with full_precision(feature.device):  # bfloat16 holds shares of a crop to 1/256 only
            feature = at_least_float32(feature)
            if len(self.feature_shape) == 1:
                values = self.final(feature)
            else:
                values = self.final(feature.mean((-2, -1))).unflatten(1, (5, -1)).transpose(1, 2)
        sigma = F.softplus(values[..., 3:]) * (self.config.stride / values.new_tensor(self.input_size))
        return {"xy": torch.sigmoid(values[..., :2]), "score": values[..., 2], "sigma": sigma}

    def targets(self, keypoints: Tensor, weight: Tensor) -> tuple[Outputs, Tensor]:
        """'xy' (B, K, 2), shares of the crop; joints outside the crop get weight 0: a sigmoid cannot reach them."""
        xy = keypoints.float() / keypoints.new_tensor(self.input_size)
        return {"xy": xy}, weight * ((xy >= 0) & (xy < 1)).all(-1)

    def loss(self, outputs: Outputs, targets: Outputs, weight: Tensor) -> Outputs:
        """'regression', and 'score' where it has a weight; summed over joints."""
        error = F.smooth_l1_loss(outputs["xy"], targets["xy"], reduction="none", beta=self.config.beta).mean(-1)
        terms = {"regression": (error * weight).sum()}
        if self.config.score:
            cells = (outputs["xy"].detach() - targets["xy"]) * outputs["xy"].new_tensor(self.input_size) / self.config.stride
            value = torch.exp(-0.5 * (cells / SIGMA).square().sum(-1))
            terms["score"] = self.config.score * ((outputs["score"] - value).abs() * weight).sum()
        return terms

    def decode(self, outputs: Outputs) -> Decoded:
        """Published score: the predicted one."""
        position = outputs["xy"].float() * outputs["xy"].new_tensor(self.input_size)
        score = outputs["score"].float()
        return Decoded(position, score.clamp(0, 1), score)

    def flip(self, outputs: Outputs) -> Outputs:
        out = {name: value[:, self.flip_index] for name, value in outputs.items()}
        x, y = out["xy"].unbind(-1)
        return {**out, "xy": torch.stack([1 - x, y], -1)}
