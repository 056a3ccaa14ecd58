"""What a training run with a teacher holds beside the student: the teacher's answers, the distillation methods, their state."""

from __future__ import annotations

import logging
from typing import Any

from accelerate import Accelerator
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn

from lowpose.config import RunConfig
from lowpose.data.crops import CropReader
from lowpose.errors import LowposeError
from lowpose.loader import PoseBatch
from lowpose.nn.distill.base import INNER, Term, build_distillers, describe
from lowpose.nn.heads.base import Outputs
from lowpose.nn.model import PoseModel
from lowpose.samples import PoseData
from lowpose.teacher import Teacher, open_teacher_cache

HEAVY = 20.0  # times the head's own loss: a term that leaves the student little else to learn
log = logging.getLogger("lowpose")


class Teaching:
    """Attributes: teacher, distillers (their bare module), curriculum (ETHT or None)."""

    def __init__(
        self, config: RunConfig, student: PoseModel, data: PoseData, accelerator: Accelerator, began: dict[str, Any] | None = None
    ):
        """`began`: the state of the run that is continued, if any.

        Raises: LowposeError for a teacher or methods that do not fit the student, a cache that does not fit the methods,
            or another teacher than the run began with.
        """
        self.teacher = Teacher(config.teacher, accelerator.device)
        if began is not None and began["teacher"] != self.teacher.sha256:
            raise LowposeError(f"{config.teacher.weights}: not the weights that this run began with; give another --out")
        self.teacher.check(config, student.skeleton)
        side = describe(student)
        self.distillers, self.curriculum = build_distillers(config.distill, side, self.teacher.side)
        self.names = self.distillers.needs("teacher")
        self.reads_inner = not INNER.isdisjoint(self.distillers.needs("student"))
        self.cached = config.teacher.cache != "none"
        if config.teacher.cache == "merged":
            self._check_merged()
        self.distillers.to(accelerator.device)
        self._wrapped: nn.Module = self.distillers
        with accelerator.main_process_first():
            self.beside = open_teacher_cache(self.teacher, data, config, side, self.names) if self.cached else None
        if self.beside is None:
            self.beside = Live(self.teacher.reader(data, config))
        else:
            self.teacher.release()

    def _check_merged(self) -> None:
        for name, method in self.distillers.items():
            if method.every_bin:
                hint = " or order=merge-first" if name == "cca" else ""
                raise LowposeError(f"distill.{name} reads every bin of the teacher; use teacher.cache=full{hint}")

    def prepare(self, accelerator: Accelerator, sync_bn: bool) -> None:
        """Gradients of the methods' parameters are averaged over processes, as the student's."""
        if sync_bn:
            convert_sync_batchnorm(self.distillers)
        if any(p.requires_grad for p in self.distillers.parameters()):
            self._wrapped = accelerator.prepare(self.distillers)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What the run's optimizer moves: all parameters of the methods but the curriculum's."""
        taken = {id(p) for p in self.curriculum.learned.values()} if self.curriculum else set()
        return [p for p in self.distillers.parameters() if id(p) not in taken]

    def terms(self, outputs: Outputs, batch: PoseBatch, weight: Tensor) -> dict[str, Term]:
        """Weighted terms of all methods, from the student's outputs (float32) and joint weights (B, K)."""
        if self.cached:
            answers = {name: value.float() for name, value in batch.teacher.items()}
        else:
            answers = self.teacher.answer(batch.teacher["images"], self.names)
        return self._wrapped(outputs, answers, weight)

    def warn_of_weights(self, terms: dict[str, float]) -> None:
        """Name the methods that drown the head's own loss; `terms`: 'loss', their sum, and each by name."""
        taught = {name: terms[name] for name in self.distillers if name in terms}
        own = terms["loss"] - sum(taught.values())
        for name, value in taught.items():
            if own > 0 and value > HEAVY * own:
                log.warning(
                    "after the first epoch the term of distill.%s is %.0f times the head's own loss, which then teaches little; "
                    "distill.%s.weight=%.2g would make them alike",
                    *(name, value / own, name, float(self.distillers[name].weight.detach()) * own / value),
                )

    def zero_grad(self) -> None:
        """Of what the curriculum learns; the rest is in the run's optimizer."""
        if self.curriculum is not None:
            self.curriculum.optimizer.zero_grad(set_to_none=True)

    def climb(self, scaler: Any, done: float, lr: float) -> dict[str, float]:
        """The curriculum's step, after `backward` and before the student's; returns what it has learned, by name.

        `scaler`: of fp16 gradients, or None.
        """
        if self.curriculum is None:
            return {}
        self.curriculum.prepare(done, lr)
        if scaler is not None:
            scaler.step(self.curriculum.optimizer)  # not prepared: scaler.update() belongs to the student's step
        else:
            self.curriculum.optimizer.step()
        self.curriculum.bound()
        return self.curriculum.values()

    def facts(self) -> dict[str, Any]:
        """For cards: which teacher, and how it answered."""
        own, settings = self.teacher.config, self.teacher.settings
        return {
            "name": own.name,
            "sha256": self.teacher.sha256,
            "size": list(own.input.size),
            "head": own.head["name"],
            "backbone": own.model.backbone,
            "precision": self.teacher.precision,
            "flip": settings.flip,
            "cache": settings.cache,
        }

    def state(self) -> dict[str, Any]:
        return {"teacher": self.teacher.sha256, "distillers": self.distillers.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        self.distillers.load_state_dict(state["distillers"])


class Live:
    """The teacher's own crop of each view."""

    def __init__(self, reader: CropReader):
        self.reader = reader

    def __call__(self, index: int, epoch: int) -> dict[str, Any]:
        return {"images": self.reader.crop(index, epoch).image}
