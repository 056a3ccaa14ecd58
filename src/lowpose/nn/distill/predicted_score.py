"""Predicted scores: a regressed joint's score is the value of the teacher's heatmap where the joint was put.

S. Ye et al.: DistilPose, CVPR 2023, arXiv:2303.02455, Sec. 3.3; L_cs of K. B. Sivangi, F. Deligianni, BMVC 2024. The value is
that of the cell in which the prediction lies (published: of the nearest cell by corners, x (W - 1)). The position gets no
gradient from it.
"""

from __future__ import annotations

from torch import Tensor

from lowpose.nn.distill.base import Distiller, Side, Term, Weighted, check_heatmap_teaches
from lowpose.nn.heads.base import Outputs
from lowpose.nn.heads.heatmap import pick
from lowpose.registry import register


@register("distill", "predicted_score", Weighted)
class PredictedScore(Distiller):
    """Scores of regressed joints like the teacher's heatmap there (DistilPose, KDGF L_cs)."""

    student_needs = ("xy", "score")
    teacher_needs = ("map",)

    def __init__(self, config: Weighted, student: Side, teacher: Side):
        """Raises: LowposeError if the student does not regress coordinates, or the teacher has no heatmap."""
        super().__init__(config.weight)
        check_heatmap_teaches("predicted_score", self.student_needs, student, teacher)

    def forward(self, student: Outputs, teacher: Outputs, weight: Tensor) -> dict[str, Term]:
        """'predicted_score': absolute difference, over labelled joints."""
        maps = teacher["map"]
        x, y = (student["xy"].detach() * maps.new_tensor(maps.shape[:-3:-1])).floor().long().unbind(-1)
        return {"predicted_score": Term.over((student["score"] - pick(maps, x, y)).abs(), weight)}
