"""CCA: the probabilities of adjacent teacher bins are summed until both models have the same classes.

Z. Gu, Z.-Q. Zhao, H. Ding, H. Shen, Z. Zhang, D.-S. Huang: Cross-Domain Knowledge Distillation for Low-Resolution Human Pose
Estimation, Sec. III-B, eq. 6 and 7.

Bins of both models are half-pixel aligned, so a student bin is exactly the union of m teacher bins; where the ratio is no whole
number, a teacher bin that straddles a border is shared out by overlap. Departures: eq. 6 is applied to probabilities at
temperature one and its result is tempered (`order: merge-first`), since tempering first and merging then pushes even a perfect
student flatter; `temper-first` is the released order. Joints without a label are left out; x and y are added and the loop divides
by the number of joints, as for the task loss, so the weight means the same at every size, batch and number of joints.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lowpose.nn.distill.base import Distiller, Side, Tempered, Term, output_shapes, visible_persons
from lowpose.nn.heads.base import Outputs
from lowpose.registry import register


class CCAConfig(Tempered):
    order: Literal["merge-first", "temper-first"] = "merge-first"
    masked: bool = True  # false: joints without a label are taught too, as released


@register("distill", "cca", CCAConfig)
class CCA(Distiller):
    """Cross-class alignment of CDKD: teacher bins merged to the student's, then KL divergence."""

    student_needs = teacher_needs = ("x", "y")

    def __init__(self, config: CCAConfig, student: Side, teacher: Side):
        """Raises: LowposeError if a head does not classify coordinates."""
        super().__init__(config.weight)
        self.config = config
        self.every_bin = config.order == "temper-first"
        self.hyper("temperature", config.temperature)
        for axis in "xy":
            output_shapes(axis, "cca", student, teacher)

    def forward(self, student: Outputs, teacher: Outputs, weight: Tensor) -> dict[str, Term]:
        """'cca': tau^2 KL(teacher || student) of both axes (eq. 7)."""
        mask = weight if self.config.masked else visible_persons(weight).unsqueeze(1).expand_as(weight)
        return {"cca": Term.over(sum(self._axis(student[axis], teacher[axis]) for axis in "xy"), mask)}

    def _axis(self, student: Tensor, teacher: Tensor) -> Tensor:
        """(B, K) from logits (B, K, J) and (B, K, J')."""
        tau, bins = self.temperature, student.shape[-1]
        if self.config.order == "merge-first":
            return tempered_divergence(merge_bins(teacher, bins), student, tau)
        return tau**2 * divergence(merge_bins(teacher.float() / tau, bins), F.log_softmax(student.float() / tau, dim=-1))


def tempered_divergence(teacher: Tensor, student: Tensor, tau: Tensor) -> Tensor:
    """(...) tau^2 KL(teacher || student) of logits (..., J), both at temperature tau (eq. 7)."""
    target, answer = (F.log_softmax(logits.float() / tau, dim=-1) for logits in (teacher, student))
    return tau**2 * divergence(target, answer)


def divergence(target: Tensor, answer: Tensor) -> Tensor:
    """(...) KL(target || answer) of log-probabilities (..., J)."""
    return F.kl_div(answer, target, reduction="none", log_target=True).sum(-1)


def merge_bins(logits: Tensor, bins: int) -> Tensor:
    """(..., bins) log-probabilities of `bins` equal parts of an axis, from logits (..., J') of J' equal parts (eq. 6).

    Any ratio: a part's probability is spread evenly over what it covers.
    """
    log_p = F.log_softmax(logits.float(), dim=-1)
    given = log_p.shape[-1]
    if given == bins:
        return log_p
    if given % bins == 0:
        return torch.logsumexp(log_p.unflatten(-1, (bins, given // bins)), dim=-1)
    # in logarithms too: probabilities would underflow, and a high temperature brings the tails back
    share, index = shares(given, bins, log_p.device).T.topk(min(given, -(-given // bins) + 1), dim=1)
    return torch.logsumexp(log_p[..., index] + share.log(), dim=-1)


def shares(given: int, bins: int, device: torch.device | None = None) -> Tensor:
    """(given, bins): the share of each of `given` equal parts of an axis that lies in each of `bins` equal parts."""
    low = torch.arange(given, device=device, dtype=torch.float32).unsqueeze(1) * bins
    part = torch.arange(bins, device=device, dtype=torch.float32) * given  # both in units of 1 / (given * bins)
    covered = torch.minimum(low + bins, part + given) - torch.maximum(low, part)
    return covered.clamp(min=0) / bins
