"""Feature alignment by a linear layer: positions of the student's map to those of the teacher's, then their squared distance.

The row 'Fully Connected Layer' of CDKD's Table V for features, after Y. Zhu et al.: ScaleKD: Distilling Scale-Aware Knowledge in
Small Object Detector, CVPR 2023. One layer, no ReLU, shared by the channels. Both maps are scaled to unit norm per person, as
their sizes differ between networks and their pattern is what is taught.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from lowpose.errors import LowposeError
from lowpose.nn.distill.base import Distiller, Side, Term, Weighted, output_shapes, visible_persons
from lowpose.nn.heads.base import Outputs
from lowpose.registry import register


@register("distill", "fc_feature", Weighted)
class FCFeature(Distiller):
    """Keypoint maps aligned by one linear layer over positions."""

    student_needs = teacher_needs = ("map",)

    def __init__(self, config: Weighted, student: Side, teacher: Side):
        """Raises: LowposeError if a model has no keypoint map, or they differ in channels."""
        super().__init__(config.weight)
        given, wanted = same_channels("fc_feature", student, teacher)
        self.align = nn.Linear(given[1] * given[2], wanted[1] * wanted[2])

    def forward(self, student: Outputs, teacher: Outputs, weight: Tensor) -> dict[str, Term]:
        """'fc_feature': squared distance of the maps, over persons."""
        distance = map_distance(self.align(student["map"].flatten(2)), teacher["map"].flatten(2))
        return {"fc_feature": Term.over(distance, visible_persons(weight))}


def same_channels(method: str, student: Side, teacher: Side) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of both keypoint maps. Raises: LowposeError if one has none, or they differ in channels."""
    given, wanted = output_shapes("map", method, student, teacher)
    if given[0] != wanted[0]:
        raise LowposeError(f"distill.{method}: maps of {given[0]} and {wanted[0]} channels; they must be of the same keypoints")
    return given, wanted


def map_distance(ours: Tensor, theirs: Tensor) -> Tensor:
    """(B,) squared distance of two maps, each scaled to unit norm per person."""
    a, b = (F.normalize(m.float().flatten(1), dim=1) for m in (ours, theirs))
    return (a - b).square().sum(1)
