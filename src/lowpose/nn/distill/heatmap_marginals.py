"""Marginals of the teacher's heatmap teach a classification of coordinates.

A term that KDGF's poster leaves open (L_hm of its classification students; weight 1): how a heatmap teacher speaks to a
student that classifies coordinates. Here: the teacher's map, negative cells as zero, is summed over rows and over columns;
both sides are merged to the coarser of cells and bins (as in CDKD's eq. 6: exact for whole ratios, by overlap elsewhere); KL
divergence at a temperature, both axes added. Joints without a label, and maps without mass, teach nothing.
"""

from __future__ import annotations

from torch import Tensor

from lowpose.nn.distill.base import Distiller, Side, Tempered, Term, check_heatmap_teaches
from lowpose.nn.distill.cca import merge_bins, tempered_divergence
from lowpose.nn.heads.base import Outputs
from lowpose.registry import register

LEAST = 1e-6  # mass of a map that has something to say; and of a cell, relative to it


@register("distill", "heatmap_marginals", Tempered)
class HeatmapMarginals(Distiller):
    """Bins like the sums over the rows and columns of the teacher's heatmap."""

    student_needs = ("x", "y")
    teacher_needs = ("map",)

    def __init__(self, config: Tempered, student: Side, teacher: Side):
        """Raises: LowposeError if the student does not classify coordinates, or the teacher has no heatmap."""
        super().__init__(config.weight)
        self.hyper("temperature", config.temperature)
        check_heatmap_teaches("heatmap_marginals", self.student_needs, student, teacher)

    def forward(self, student: Outputs, teacher: Outputs, weight: Tensor) -> dict[str, Term]:
        """'heatmap_marginals': tau^2 KL(teacher || student) of both axes, over labelled joints."""
        maps = teacher["map"].clamp(min=0)
        mass = maps.sum((-2, -1))
        total = 0
        for axis, over in (("x", -2), ("y", -1)):
            marginal = maps.sum(over) / mass.clamp(min=LEAST).unsqueeze(-1)
            target, logits = marginal.clamp(min=LEAST).log(), student[axis]
            bins = min(target.shape[-1], logits.shape[-1])
            total = total + tempered_divergence(merge_bins(target, bins), merge_bins(logits, bins), self.temperature)
        return {"heatmap_marginals": Term.over(total, weight * (mass > LEAST))}
