"""Self-attention among all tokens, as in TokenPose.

A. Vaswani et al.: Attention Is All You Need, arXiv:1706.03762; Y. Li, S. Zhang, Z. Wang, S. Yang, W. Yang, S.-T. Xia,
E. Zhou: TokenPose: Learning Keypoint Tokens for Human Pose Estimation. ICCV 2021, arXiv:2104.03516.

Queries, keys and values without bias, as published. Products are scaled by the square root of a head's width
(`scale: head`; TokenPose-T, B, L and DistilPose) or of the token's (`scale: token`; TokenPose-S).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from lowpose.errors import LowposeError
from lowpose.nn.layers.precision import full_precision
from lowpose.nn.mixers.base import Mixer, TokenGrid
from lowpose.registry import register
from lowpose.strict import Strict


class AttentionConfig(Strict):
    name: Literal["attention"] = "attention"
    heads: int = Field(8, ge=1)
    scale: Literal["head", "token"] = "head"


@register("mixer", "attention", AttentionConfig)
class Attention(Mixer):
    """Multi-head self-attention (torch's fused scaled dot product)."""

    def __init__(self, config: AttentionConfig, grid: TokenGrid, width: int):
        """Raises: LowposeError if the heads do not divide the width."""
        super().__init__(grid)
        if width % config.heads:
            raise LowposeError(f"model.tokens.mixer.heads={config.heads} does not divide the width of {width}")
        self.heads = config.heads
        self.scale = (width if config.scale == "token" else width // config.heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(self._attend(q, k, v).transpose(1, 2).flatten(2))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if q.is_cpu and q.requires_grad and q.dtype != torch.float64:
            # torch's fused backward takes up to five times as long in bf16 as in float32 on a CPU
            with full_precision(q.device):
                return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), scale=self.scale).to(v.dtype)
        return F.scaled_dot_product_attention(q, k, v, scale=self.scale)
