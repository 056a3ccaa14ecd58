"""Plain logit distillation, where both models have the same classes.

G. Hinton, O. Vinyals, J. Dean: Distilling the Knowledge in a Neural Network, arXiv:1503.02531. With a student whose split
factor gives it the teacher's number of bins, this is the row 'Same Class Number' of CDKD's Table V.
"""

from __future__ import annotations

from torch import Tensor

from lowpose.errors import LowposeError
from lowpose.nn.distill.base import Distiller, Side, Tempered, Term, output_shapes
from lowpose.nn.distill.cca import tempered_divergence
from lowpose.nn.heads.base import Outputs
from lowpose.registry import register


@register("distill", "kd", Tempered)
class KD(Distiller):
    """Logit distillation between heads with the same bins."""

    student_needs = teacher_needs = ("x", "y")
    every_bin = True

    def __init__(self, config: Tempered, student: Side, teacher: Side):
        """Raises: LowposeError if the numbers of bins differ."""
        super().__init__(config.weight)
        self.hyper("temperature", config.temperature)
        for axis, side in zip("xy", student.input_size, strict=True):
            ours, theirs = (shape[-1] for shape in output_shapes(axis, "kd", student, teacher))
            if ours != theirs:
                raise LowposeError(
                    f"distill.kd: the student has {ours} bins in {axis}, the teacher {theirs}; "
                    f"use head.split={theirs / side:g}, or distill.cca, which aligns them"
                )

    def forward(self, student: Outputs, teacher: Outputs, weight: Tensor) -> dict[str, Term]:
        """'kd': tau^2 KL(teacher || student) of both axes, over labelled joints."""
        values = (tempered_divergence(teacher[axis], student[axis], self.temperature) for axis in "xy")
        return {"kd": Term.over(sum(values), weight)}
