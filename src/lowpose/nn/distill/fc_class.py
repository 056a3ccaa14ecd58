"""Class alignment by a linear layer: the student's logits are carried to the teacher's number of bins, then compared.

The row 'Fully Connected Layer' of CDKD's Table V for logits, after S. Ge, S. Zhao, C. Li, Y. Zhang, J. Li: Efficient
Low-Resolution Face Recognition via Bridge Distillation, IEEE TIP 2020. The layer stands on the student's side, so that the
teacher's answer cannot be changed by training; one layer per axis, shared by the joints, as the head's own.
"""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from lowpose.nn.distill.base import Distiller, Side, Term, Weighted, output_shape
from lowpose.nn.distill.cca import divergence
from lowpose.nn.heads.base import Outputs
from lowpose.registry import register


class FCClassConfig(Weighted):
    temperature: float = Field(1.0, gt=0)


@register("distill", "fc_class", FCClassConfig)
class FCClass(Distiller):
    """Logits aligned by a linear layer per axis."""

    student_needs = teacher_needs = ("x", "y")
    every_bin = True

    def __init__(self, config: FCClassConfig, student: Side, teacher: Side):
        """Raises: LowposeError if a head does not classify coordinates."""
        super().__init__(config.weight)
        self.hyper("temperature", config.temperature)
        bins = [
            [output_shape(s, axis, "fc_class", w)[-1] for s, w in ((student, "student"), (teacher, "teacher"))] for axis in "xy"
        ]
        self.align = nn.ModuleDict({axis: nn.Linear(*pair) for axis, pair in zip("xy", bins, strict=True)})

    def forward(self, student: Outputs, teacher: Outputs, weight: Tensor) -> dict[str, Term]:
        """'fc_class': tau^2 KL(teacher || aligned student) of both axes, over labelled joints."""
        tau = self.temperature
        total = 0.0
        for axis in "xy":
            answer = F.log_softmax(self.align[axis](student[axis]).float() / tau, -1)
            target = F.log_softmax(teacher[axis].float() / tau, -1)
            total = total + (tau**2 * divergence(target, answer) * weight).sum()
        return {"fc_class": Term(total, weight.sum())}
