"""ETHT: the temperature (and the weights of the losses) climb the loss, more and more, while the student goes down.

Z. Gu, Z.-Q. Zhao, H. Ding, H. Shen, Z. Zhang, D.-S. Huang: Cross-Domain Knowledge Distillation for Low-Resolution Human Pose
Estimation, Sec. III-B.2, eq. 9 to 12, Table VII; after Z. Li et al.: Curriculum Temperature for Knowledge Distillation, AAAI
2023.

theta <- theta + xi eta dL/dtheta (eq. 11) in a plain SGD of its own: an adaptive optimizer would divide xi out again. No
momentum, decay or clipping; not averaged by EMA. xi = func(T_i / T_max) rises with the share of training that is done (eq. 12);
the paper does not name func, cosine is CTKD's. T_i is counted in steps here, in epochs there. After each step theta is put back
into its bounds; CTKD's temperatures are 1 to 21.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from lowpose.errors import LowposeError, did_you_mean
from lowpose.nn.distill.base import Distillers
from lowpose.registry import register
from lowpose.strict import Strict

SCHEDULES = {
    "linear": lambda done: done,
    "quadratic": lambda done: done * done,
    "cosine": lambda done: (1 - math.cos(math.pi * done)) / 2,
    "constant": lambda done: 1.0,
}


class ETHTConfig(Strict):
    learn: tuple[str, ...] = ("cca.temperature",)  # METHOD.HYPERPARAMETER, as sape.weight or cca.weight
    lr: float | None = Field(None, gt=0)  # eta; null: the student's learning rate of the step
    schedule: Literal["linear", "quadratic", "cosine", "constant"] = "cosine"  # func of eq. 12
    temperature: tuple[float, float] = (1.0, 21.0)  # bounds
    weight: tuple[float, float] = (0.0, 10.0)  # bounds

    @model_validator(mode="after")
    def _check(self) -> ETHTConfig:
        for name in ("temperature", "weight"):
            low, high = getattr(self, name)
            if not 0 <= low <= high or (name == "temperature" and low == 0):
                raise ValueError(f"{name} must be [least, most] above zero, not [{low}, {high}]")
        if len(set(self.learn)) != len(self.learn):
            raise ValueError(f"learn names something twice: {', '.join(self.learn)}")
        return self


@register("curriculum", "etht", ETHTConfig)
class ETHT:
    """Easy-to-hard training of CDKD: hyperparameters that climb the loss by gradient reversal."""

    def __init__(self, config: ETHTConfig, distillers: Distillers):
        """Turns the named hyperparameters of `distillers` into parameters. Raises: LowposeError for names that do not exist."""
        self.config = config
        self.learned = {key: self._learn(key, distillers) for key in config.learn}
        if not self.learned:
            raise LowposeError("distill.etht.learn is empty; name what is learned, as [cca.temperature]")
        self.optimizer = torch.optim.SGD(list(self.learned.values()), lr=0.0, maximize=True)

    def _learn(self, key: str, distillers: Distillers) -> nn.Parameter:
        method, _, name = key.partition(".")
        if method not in distillers:
            raise LowposeError(f"distill.etht.learn: '{key}': no method '{method}'{did_you_mean(method, distillers)}")
        if name not in ("temperature", "weight"):
            raise LowposeError(f"distill.etht.learn: '{key}': only a temperature or a weight can be learned")
        bounds = getattr(self.config, name)
        try:
            parameter = distillers[method].learn(name)
        except LowposeError as e:
            raise LowposeError(f"distill.etht.learn: '{key}': {e}") from None
        if not bounds[0] <= parameter.item() <= bounds[1]:
            raise LowposeError(f"distill.{key} = {parameter.item():g} starts outside distill.etht.{name} = {list(bounds)}")
        return parameter

    def xi(self, done: float) -> float:
        """Eq. 12, for the share of training that is done."""
        return SCHEDULES[self.config.schedule](done)

    def prepare(self, done: float, lr: float) -> None:
        """Set the length of the next `optimizer.step()`: xi eta (eq. 11)."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.xi(done) * (self.config.lr or lr)

    @torch.no_grad()
    def bound(self) -> None:
        """Put what was learned back into its bounds."""
        for key, parameter in self.learned.items():
            parameter.clamp_(*getattr(self.config, key.partition(".")[2]))

    def values(self) -> dict[str, float]:
        return {key: parameter.item() for key, parameter in self.learned.items()}
