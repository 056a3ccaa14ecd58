"""FitNets across resolutions: the teacher's map is brought down to the student's size by a convolution, then compared.

A. Romero, N. Ballas, S. E. Kahou, A. Chassang, C. Gatta, Y. Bengio: FitNets: Hints for Thin Deep Nets, arXiv:1412.6550, as the
row 'Conv Downsample' of CDKD's Table V uses it. One convolution of kernel and stride m. Both maps are scaled to unit norm per
person, so that the trained convolution cannot make the distance small by making both maps small.
"""

from __future__ import annotations

from torch import Tensor, nn

from lowpose.errors import LowposeError
from lowpose.nn.distill.base import Distiller, Side, Term, Weighted, visible_persons
from lowpose.nn.distill.fc_feature import map_distance, same_channels
from lowpose.nn.heads.base import Outputs
from lowpose.registry import register


@register("distill", "fitnets", Weighted)
class FitNets(Distiller):
    """The teacher's keypoint map, brought down by a convolution, as a hint."""

    student_needs = teacher_needs = ("map",)

    def __init__(self, config: Weighted, student: Side, teacher: Side):
        """Raises: LowposeError if a model has no keypoint map, or the teacher's is no whole multiple of the student's."""
        super().__init__(config.weight)
        given, wanted = same_channels("fitnets", student, teacher)
        if any(theirs % ours for ours, theirs in zip(given[1:], wanted[1:], strict=True)):
            raise LowposeError(
                f"distill.fitnets: the teacher's map of {wanted[2]} x {wanted[1]} is no whole multiple of the student's "
                f"{given[2]} x {given[1]}; distill.sape aligns any sizes"
            )
        step = (wanted[1] // given[1], wanted[2] // given[2])
        self.down = nn.Conv2d(wanted[0], given[0], step, stride=step)

    def forward(self, student: Outputs, teacher: Outputs, weight: Tensor) -> dict[str, Term]:
        """'fitnets': squared distance of the maps, over persons."""
        distance = map_distance(student["map"], self.down(teacher["map"]))
        return {"fitnets": Term.over(distance, visible_persons(weight))}
