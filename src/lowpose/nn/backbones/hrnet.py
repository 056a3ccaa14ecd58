"""HRNet as a pose network.

"Deep High-Resolution Representation Learning for Human Pose Estimation" (Sun, Xiao, Liu, Wang, CVPR 2019,
arXiv:1902.09212). timm has the classification network of the same authors (arXiv:1908.07919). The pose network is its
trunk: stem, layer1 (its stage 1) and stages 2 to 4, where the last module of stage 4 fuses only into the branch of the highest
resolution, and no classification parts. Token models end after an earlier stage, which then fuses into that branch only.
"""

from __future__ import annotations

import torch
from torch import nn


class HRNetPose(nn.Module):
    """The first `stages` of timm's `HighResolutionNet`; parameter names are those of timm and of the published pose network.

    (B, 3, H, W) -> (B, C, H / 4, W / 4). H and W must be multiples of 32, or the branches cannot be added.
    """

    reduction = 4

    def __init__(self, net: nn.Module, stages: int = 4):
        super().__init__()
        self.stages = stages
        if stages > 1:
            last = getattr(net, f"stage{stages}")[-1]
            last.fuse_layers = nn.ModuleList([last.fuse_layers[0]])
        for part in ("conv1", "bn1", "act1", "conv2", "bn2", "act2", "layer1"):
            setattr(self, part, getattr(net, part))
        for stage in range(2, stages + 1):
            setattr(self, f"transition{stage - 1}", getattr(net, f"transition{stage - 1}"))
            setattr(self, f"stage{stage}", getattr(net, f"stage{stage}"))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.act1(self.bn1(self.conv1(images)))
        x = self.layer1(self.act2(self.bn2(self.conv2(x))))
        if self.stages == 1:
            return x
        branches = self.stage2([move(x) for move in self.transition1])
        for stage in range(3, self.stages + 1):
            branches = getattr(self, f"stage{stage}")(_moved(getattr(self, f"transition{stage - 1}"), branches))
        return branches[0]


def _moved(transition: nn.ModuleList, branches: list[torch.Tensor]) -> list[torch.Tensor]:
    """Old branches go on as they are; a new one comes from the last, which has the lowest resolution."""
    return [branches[i] if isinstance(move, nn.Identity) else move(branches[-1]) for i, move in enumerate(transition)]
