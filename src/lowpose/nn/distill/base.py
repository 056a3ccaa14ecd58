"""What every distillation method gets and gives, and how a recipe's `distill` section becomes one module.

Letters: B batch, K keypoints, C channels, h w feature size, J bins; primes and `t` are the teacher's.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from lowpose import registry
from lowpose.errors import LowposeError, did_you_mean
from lowpose.nn.heads.base import Outputs, Term
from lowpose.nn.model import PoseModel
from lowpose.strict import Strict, validate

FEATURE = "feature"  # names of what the head reads among a model's outputs (PoseModel.forward)
TOKENS = "keypoint_tokens"
INNER = {FEATURE, TOKENS}


class Side(NamedTuple):
    """What a model answers for one crop: output name -> shape without the batch axis; its crop (width, height); whether
    'map' has been taught to be a Gaussian of peak 1."""

    shapes: dict[str, tuple[int, ...]]
    input_size: tuple[int, int]
    gaussian: bool = True


class Distiller(nn.Module):
    """One method. Its weight and other hyperparameters are buffers, which ETHT can turn into parameters.

    Attributes:
        student_needs, teacher_needs: names of the outputs that `forward` reads; INNER ones are no head's.
        every_bin: reads the teacher's bins before merging, so a cache of merged answers is refused.
    """

    student_needs: tuple[str, ...] = ()
    teacher_needs: tuple[str, ...] = ()
    every_bin = False

    def __init__(self, weight: float):
        super().__init__()
        self.hyper("weight", weight)

    def hyper(self, name: str, value: float) -> None:
        self.register_buffer(name, torch.tensor(float(value)))

    def learn(self, name: str) -> nn.Parameter:
        """Turn a hyperparameter into a parameter. Raises: LowposeError if there is none of this name."""
        known = [n for n, v in self.named_buffers(recurse=False) if v.ndim == 0]
        if name not in known:
            raise LowposeError(f"no hyperparameter '{name}'{did_you_mean(name, known)}")
        value = self._buffers.pop(name)
        self.register_parameter(name, nn.Parameter(value))
        return self._parameters[name]

    def forward(self, student: Outputs, teacher: Outputs, weight: Tensor) -> dict[str, Term]:
        """Named terms from the outputs of both sides (float32) and joint weights (B, K). Not yet times `self.weight`."""
        raise NotImplementedError("abstract")


class Distillers(nn.ModuleDict):
    """All methods of a recipe, by name."""

    def forward(self, student: Outputs, teacher: Outputs, weight: Tensor) -> dict[str, Term]:
        """Terms of all methods, each times its method's weight."""
        terms: dict[str, Term] = {}
        for method in self.values():
            for name, (total, count) in method(student, teacher, weight).items():
                terms[name] = Term(method.weight * total, count)
        return terms

    def needs(self, side: str) -> list[str]:
        """Names of the outputs that are read; `side` is 'student' or 'teacher'."""
        return sorted({name for method in self.values() for name in getattr(method, f"{side}_needs")})


class Weighted(Strict):
    """What the settings of every method have."""

    weight: float = Field(1.0, ge=0, allow_inf_nan=False)


class Tempered(Weighted):
    """Of methods that compare probabilities."""

    temperature: float = Field(1.0, gt=0)


def build_distillers(settings: dict[str, dict[str, Any] | None], student: Side, teacher: Side) -> tuple[Distillers, Any]:
    """The methods of a recipe's `distill` section for two models, and its curriculum (None if it names none).

    Raises: LowposeError for unknown names, wrong settings, and models that a method cannot align.
    """
    chosen = {name: values or {} for name, values in settings.items() if values is not None}
    known = {kind: registry.names(kind) for kind in ("distill", "curriculum")}
    for name in chosen:
        if not any(name in names for names in known.values()):
            raise LowposeError(f"unknown key 'distill.{name}'{did_you_mean(name, sum(known.values(), []))}")
    methods = {name: _build(name, values, student, teacher) for name, values in chosen.items() if name in known["distill"]}
    if not methods:
        raise LowposeError(f"a teacher needs at least one method in 'distill': {', '.join(known['distill'])}")
    distillers = Distillers(methods)
    curricula = [name for name in chosen if name in known["curriculum"]]
    if not curricula:
        return distillers, None
    entry = registry.find("curriculum", curricula[0])
    return distillers, entry.make(validate(entry.config, chosen[curricula[0]], f"distill.{curricula[0]}"), distillers)


def _build(name: str, values: dict[str, Any], student: Side, teacher: Side) -> Distiller:
    entry = registry.find("distill", name)
    config = validate(entry.config, values, f"distill.{name}")
    return entry.make(config, student, teacher)


def output_shapes(name: str, method: str, student: Side, teacher: Side) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The student's and the teacher's shape of an output. Raises: LowposeError if one of them has none of this name."""
    return output_shape(name, method, student, "student"), output_shape(name, method, teacher, "teacher")


def output_shape(name: str, method: str, side: Side, whose: str) -> tuple[int, ...]:
    if name not in side.shapes:
        raise LowposeError(f"distill.{method} needs the output '{name}', and the {whose} gives only {', '.join(side.shapes)}")
    return side.shapes[name]


def check_heatmap_teaches(method: str, needs: tuple[str, ...], student: Side, teacher: Side) -> None:
    """Raises: LowposeError unless the student gives all that is needed and the teacher gives heatmaps.

    The values of SimCC's keypoint map mean nothing; UDP's map is a disc, flat around the joint.
    """
    for name in needs:
        output_shape(name, method, student, "student")
    output_shape("map", method, teacher, "teacher")
    for name, what in {"x": "classifies coordinates", "dx": "has head.name=udp, whose map is a disc with offsets"}.items():
        if name in teacher.shapes:
            raise LowposeError(f"distill.{method} needs a teacher of head.name=heatmap; this one {what}")
    if not teacher.gaussian:
        raise LowposeError(
            f"distill.{method} needs a teacher of head.name=heatmap; this one's map was taught by coordinates alone"
        )


@torch.no_grad()
def describe(model: PoseModel) -> Side:
    """What a model answers, found by running it on an empty crop in eval mode."""
    training = model.training
    device = next(model.parameters()).device
    w, h = model.input_size
    # not model(...): a compiled model would be compiled for this one crop
    outputs = model.eval().forward(torch.zeros(1, 3, h, w, device=device), inner=True)
    model.train(training)
    shapes = {name: tuple(value.shape[1:]) for name, value in outputs.items()}
    return Side(shapes, model.input_size, model.head.gaussian)


def visible_persons(weight: Tensor) -> Tensor:
    """(B,) 1 for persons with a joint that counts; pictures that could not be read have none."""
    return (weight.sum(1) > 0).float()
