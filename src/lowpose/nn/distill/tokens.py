"""Token distillation: the student's tokens after the last layer come to lie where the teacher's do.

S. Ye et al.: DistilPose, CVPR 2023, arXiv:2303.02455, Sec. 3.2 (token-distilling encoder); K. B. Sivangi, F. Deligianni:
Knowledge Distillation with Global Filters for Efficient Human Pose Estimation. BMVC 2024 (L_kt, L_vt, weights 0.0005 each).

Mean squared error per token; keypoint tokens of joints without a label are left out. Tokens of another width go through a
linear layer of the student's side (`projection: auto`), which is dropped at inference; with equal widths there is none, as
published. Grids of visual tokens that differ meet at the student's: the teacher's is averaged over what each student token
covers (exact where the ratio is whole, by overlap elsewhere); a finer student's is averaged likewise. `sape` with `source:
feature` is the other way, a learned one.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowpose.nn.distill.base import FEATURE, TOKENS, Distiller, Side, Term, Weighted, output_shapes, visible_persons
from lowpose.nn.distill.cca import shares
from lowpose.nn.heads.base import Outputs
from lowpose.nn.layers.precision import full_precision
from lowpose.registry import register


class TokenConfig(Weighted):
    projection: Literal["auto", "linear"] = "auto"  # auto: only where widths differ


@register("distill", "keypoint_tokens", TokenConfig)
class KeypointTokens(Distiller):
    """Keypoint tokens like the teacher's (DistilPose, KDGF L_kt)."""

    student_needs = teacher_needs = (TOKENS,)

    def __init__(self, config: TokenConfig, student: Side, teacher: Side):
        """Raises: LowposeError if a model has no keypoint tokens."""
        super().__init__(config.weight)
        (_, ours), (_, theirs) = output_shapes(TOKENS, "keypoint_tokens", student, teacher)
        self.project = nn.Linear(ours, theirs) if config.projection == "linear" or ours != theirs else nn.Identity()

    def forward(self, student: Outputs, teacher: Outputs, weight: Tensor) -> dict[str, Term]:
        """'keypoint_tokens': squared error, mean over channels, over labelled joints."""
        error = (self.project(student[TOKENS]).float() - teacher[TOKENS]).square().mean(-1)
        return {"keypoint_tokens": Term.over(error, weight)}


@register("distill", "visual_tokens", TokenConfig)
class VisualTokens(Distiller):
    """Visual tokens like the teacher's, across grids too (DistilPose, KDGF L_vt)."""

    student_needs = teacher_needs = (FEATURE,)

    def __init__(self, config: TokenConfig, student: Side, teacher: Side):
        """Raises: LowposeError if a model has no tokens."""
        super().__init__(config.weight)
        output_shapes(TOKENS, "visual_tokens", student, teacher)  # a feature map alone is no token model
        ours, theirs = output_shapes(FEATURE, "visual_tokens", student, teacher)
        needed = config.projection == "linear" or ours[0] != theirs[0]
        self.project = nn.Conv2d(ours[0], theirs[0], 1) if needed else nn.Identity()
        self.grid = tuple(min(sides) for sides in zip(ours[1:], theirs[1:], strict=True))

    def forward(self, student: Outputs, teacher: Outputs, weight: Tensor) -> dict[str, Term]:
        """'visual_tokens': squared error, mean over tokens and channels, over persons."""
        ours, theirs = (_average(f.float(), self.grid) for f in (self.project(student[FEATURE]), teacher[FEATURE]))
        error = F.mse_loss(ours, theirs, reduction="none").mean((1, 2, 3))
        return {"visual_tokens": Term.over(error, visible_persons(weight))}


def _average(feature: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, C, h', w') -> (B, C, h, w): the mean over what each cell of the coarser grid covers, by overlap."""
    with full_precision(feature.device):
        for axis, wanted in zip((-2, -1), grid, strict=True):
            given = feature.shape[axis]
            if given != wanted:
                share = shares(given, wanted, feature.device) * (wanted / given)
                feature = torch.tensordot(feature, share, dims=([axis], [0])).movedim(-1, axis)
    return feature
