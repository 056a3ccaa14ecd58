"""Simulated heatmaps: a regressed joint and its spread, drawn as a Gaussian, shall look like the teacher's heatmap.

S. Ye et al.: DistilPose, CVPR 2023, arXiv:2303.02455, Sec. 3.3; L_hm of K. B. Sivangi, F. Deligianni, BMVC 2024.

The Gaussian has peak 1 and covers the teacher's whole map; squared error, mean over cells. A joint is left out where it has
no label, or where its 3-sigma box misses the map. Joint and spread are shares of the crop, so that they fit a teacher of
every size. Departures: cells are half-pixel aligned; joints without a label teach nothing (the published code lets weights
meet the wrong axis, so that all joints do).
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowpose.nn.distill.base import Distiller, Side, Term, Weighted, check_heatmap_teaches
from lowpose.nn.heads.base import Outputs
from lowpose.registry import register


@register("distill", "simulated_heatmap", Weighted)
class SimulatedHeatmap(Distiller):
    """Regressed joints, drawn as Gaussians, like the teacher's heatmaps (DistilPose, KDGF L_hm)."""

    student_needs = ("xy", "sigma")
    teacher_needs = ("map",)

    def __init__(self, config: Weighted, student: Side, teacher: Side):
        """Raises: LowposeError if the student does not regress coordinates, or the teacher has no heatmap."""
        super().__init__(config.weight)
        check_heatmap_teaches("simulated_heatmap", self.student_needs, student, teacher)
        _, height, width = teacher.shapes["map"]
        self.cells = (width, height)

    def forward(self, student: Outputs, teacher: Outputs, weight: Tensor) -> dict[str, Term]:
        """'simulated_heatmap': squared error, mean over cells, over joints."""
        sides, held = [], weight
        for axis, n in enumerate(self.cells):
            centre = student["xy"][..., axis].float() * n
            sigma = student["sigma"][..., axis].float() * n
            held = held * ((centre + 3 * sigma >= 0) & (centre - 3 * sigma <= n))
            cell = torch.arange(n, device=centre.device) + 0.5
            sides.append(torch.exp(-0.5 * (cell - centre.unsqueeze(-1)).square() / (sigma.square() + 1e-9).unsqueeze(-1)))
        drawn = sides[1].unsqueeze(-1) * sides[0].unsqueeze(-2)
        return {"simulated_heatmap": Term.over((drawn - teacher["map"]).square().mean((-2, -1)), held)}
