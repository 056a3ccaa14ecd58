"""Class alignment by a linear layer: the student's logits are carried to the teacher's number of bins, then compared.

The row 'Fully Connected Layer' of CDKD's Table V for logits, after S. Ge, S. Zhao, C. Li, Y. Zhang, J. Li: Efficient
Low-Resolution Face Recognition via Bridge Distillation, IEEE TIP 2020. The layer stands on the student's side, so that the
teacher's answer cannot be changed by training; one layer per axis, shared by the joints, as the head's own.
"""

from __future__ import annotations

from torch import Tensor, nn

from lowpose.nn.distill.base import Distiller, Side, Tempered, Term, output_shapes
from lowpose.nn.distill.cca import tempered_divergence
from lowpose.nn.heads.base import Outputs
from lowpose.registry import register


@register("distill", "fc_class", Tempered)
class FCClass(Distiller):
    """Logits aligned by a linear layer per axis."""

    student_needs = teacher_needs = ("x", "y")
    every_bin = True

    def __init__(self, config: Tempered, student: Side, teacher: Side):
        """Raises: LowposeError if a head does not classify coordinates."""
        super().__init__(config.weight)
        self.hyper("temperature", config.temperature)
        bins = [[shape[-1] for shape in output_shapes(axis, "fc_class", student, teacher)] for axis in "xy"]
        self.align = nn.ModuleDict({axis: nn.Linear(*pair) for axis, pair in zip("xy", bins, strict=True)})

    def forward(self, student: Outputs, teacher: Outputs, weight: Tensor) -> dict[str, Term]:
        """'fc_class': tau^2 KL(teacher || aligned student) of both axes, over labelled joints."""
        aligned = {axis: align(student[axis]) for axis, align in self.align.items()}
        values = (tempered_divergence(teacher[axis], aligned[axis], self.temperature) for axis in "xy")
        return {"fc_class": Term.over(sum(values), weight)}
