"""RunConfig: what a recipe may say.

How recipe files become one is `recipe_files`; the resolved recipe is written into the run folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from lowpose.errors import LowposeError
from lowpose.strict import Strict, validate


def _size(value: tuple[int, int]) -> tuple[int, int]:
    if min(value) < 8 or max(value) > 4096:
        raise ValueError("width and height must be 8 to 4096 pixels")
    return value


class DataConfig(Strict):
    """Where the persons (or the pictures of classes) come from. `kind` is a registered reader; `root` defaults to data/KIND."""

    kind: str = "synthetic"
    root: str | None = None
    train: str = "train"
    val: str | None = "val"  # null: none; the run is then not measured
    boxes: str = "gt"  # of the validation split: 'gt', or a detector's result file
    skeleton: str | None = None  # built-in name or YAML file; default: the reader's own
    options: dict[str, Any] = Field(default_factory=dict)  # of the reader, e.g. synthetic's count


class CameraConfig(Strict):
    """The far camera of `resample: camera`: a person `height` pixels tall, blurred, noisy, compressed."""

    height: tuple[float, float] = (32, 32)  # least and most, pixels; drawn uniformly in the logarithm
    blur: tuple[float, float] = (0.4, 0.8)  # Gaussian sigma, far-camera pixels
    noise: tuple[float, float] = (0.0, 4.0)  # standard deviation, grey levels
    jpeg: tuple[int, int] = (60, 95)  # quality
    motion: tuple[float, float] = (0.0, 0.0)  # length of a movement in any direction, far-camera pixels; [0, 0]: it stands still

    @model_validator(mode="after")
    def _ranges(self):
        for name, least, most in (("height", 2, 4096), ("blur", 0, 100), ("noise", 0, 255), ("jpeg", 1, 100), ("motion", 0, 100)):
            low, high = getattr(self, name)
            if not least <= low <= high <= most:
                raise ValueError(f"{name} must be [least, most] within {least} to {most}, not [{low}, {high}]")
        return self


class InputConfig(Strict):
    size: Annotated[tuple[int, int], AfterValidator(_size)] = (64, 64)  # width, height
    padding: float = Field(1.25, gt=0)
    resample: Literal["area", "paper", "camera"] = "area"
    camera: CameraConfig = CameraConfig()


class AugmentConfig(Strict):
    """Random views of the training crops; every draw is a function of (seed, epoch, sample, view)."""

    scale: float = Field(0.25, ge=0, lt=1)  # factor clip(N(1, scale), 1 - scale, 1 + scale)
    rotation: float = Field(30.0, ge=0)  # degrees, clip(N(0, rotation), -2 rotation, 2 rotation)
    rotation_probability: float = Field(0.6, ge=0, le=1)
    flip: float = Field(0.5, ge=0, le=1)
    half_body: float = Field(0.0, ge=0, le=1)
    half_body_joints: int = Field(8, ge=2)  # only with more labelled joints than this
    shift: float = Field(0.0, ge=0, lt=1)  # of the box, uniform, as a share of its padded extent
    whole_pixels: bool = False  # shifts by whole crop pixels, each equally likely: a window of the picture in a black border
    colour: float = Field(0.0, ge=0, lt=1)  # brightness, contrast and saturation factors 1 +- colour
    camera: float = Field(0.0, ge=0, le=1)  # share of views that input.camera's far camera makes; a teacher's are never
    views: int | None = Field(None, ge=1)  # so many views of each person, taken in turn by epoch; null: a new one each epoch
    seed: int | None = Field(None, ge=0)  # of the views; null: train.seed


class CacheConfig(Strict):
    """Crop cache. `dir: null` keeps none; `reduced` stores smaller pixels (refused by `resample: paper`)."""

    dir: str | None = None
    reduced: bool = False

    @model_validator(mode="after")
    def _check(self) -> CacheConfig:
        if self.reduced and self.dir is None:
            raise ValueError("cache.reduced needs cache.dir, the folder of the cache")
        return self


SHORT = {"teacher": "weights", "model.downsampling": "name"}  # sections for which a bare text, the value of this key, may stand


def in_full(value: Any, place: str = "") -> Any:
    """A value of a recipe, at `place` (dotted keys), with every bare text as the section that it is short for."""
    if isinstance(value, dict):
        return {key: in_full(v, f"{place}.{key}" if place else key) for key, v in value.items()}
    return {SHORT[place]: value} if place in SHORT and isinstance(value, str) else value


def may_be_short(place: str) -> BeforeValidator:
    return BeforeValidator(lambda value: in_full(value, place))


class TokensConfig(Strict):
    """A transformer over cells of the backbone's map and one token per keypoint (`lowpose.nn.tokens`)."""

    patch: tuple[int, int] = (4, 4)  # steps of the map that make one token: width, height
    width: int = Field(192, ge=4)  # of a token
    depth: int = Field(12, ge=1)  # layers
    mlp_ratio: float = Field(3.0, gt=0)
    residual: Literal["double", "single"] = "double"
    taps: tuple[int, ...] = ()  # layers whose keypoint tokens are joined for the head; default: the last
    mixer: dict[str, Any] = Field(default_factory=lambda: {"name": "gfl-static"})  # 'name' and that mixer's settings

    @model_validator(mode="after")
    def _check(self) -> TokensConfig:
        if min(self.patch) < 1:
            raise ValueError(f"patch is width and height, 1 or more steps each, not {list(self.patch)}")
        if self.width % 4:
            raise ValueError(f"width must be a multiple of 4 (sines and cosines of row and column), not {self.width}")
        if self.taps and (list(self.taps) != sorted(set(self.taps)) or self.taps[0] < 1 or self.taps[-1] != self.depth):
            raise ValueError(f"taps are rising layer numbers that end with the depth, {self.depth}, not {list(self.taps)}")
        return self


class ModelConfig(Strict):
    backbone: str = "resnet18"  # any timm model that gives feature maps, or 'none': tokens of the picture itself
    stages: int | None = Field(None, ge=1, le=4)  # HRNet only: how many are kept (default all); the last fuses into one branch
    pretrained: str = "imagenet"  # 'imagenet', 'none' or a weights file
    options: dict[str, Any] = Field(default_factory=dict)  # of the timm model itself, as channels or drop_path_rate
    # 'small', for pictures of a few dozen pixels: a ResNet's first convolution becomes 3x3 of stride 1, its pooling is left out
    stem: Literal["own", "small"] = "own"
    # crops are enlarged so many times, bilinearly, in front of the first layer: twice gives maps of four times the cells
    enlarge: int = Field(1, ge=1, le=8)
    neck: Literal["auto", "none", "deconv"] = "auto"  # auto: deconvolutions up to stride 4 where the backbone ends above 4
    deconv: tuple[int, ...] = (256, 256, 256)
    # what takes the place of strided convolutions and pooling: 'mgil', 'spd', or a mapping of 'name' and its settings
    downsampling: Annotated[dict[str, Any] | None, may_be_short("model.downsampling")] = None
    tokens: TokensConfig | None = None  # null: the head reads the feature map

    @model_validator(mode="after")
    def _without_backbone(self) -> ModelConfig:
        if self.backbone != "none":
            return self
        if self.tokens is None:
            raise ValueError("backbone 'none' leaves the picture to tokens: give model.tokens, as model.tokens.patch=[8,8]")
        if self.pretrained != "none":
            raise ValueError("backbone 'none' has no weights: give model.pretrained=none")
        if self.stem != "own" or self.options:
            key = "options" if self.options else "stem"
            raise ValueError(f"backbone 'none' has no {key}: leave model.{key} out")
        return self


# auto: bf16 where the hardware computes it, else no (lowpose.nn.layers.precision). YAML reads a bare `no` as false
Precision = Annotated[Literal["no", "bf16", "fp16", "auto"], BeforeValidator(lambda v: "no" if v is False else v)]


class TeacherConfig(Strict):
    """The trained model that a student learns from: it sees the student's view in a crop of its own size.

    `teacher: PATH` is short for `teacher: {weights: PATH}`.
    """

    weights: str  # run folder or weights file
    # null: as its own recipe trained it, or no where this machine does not compute that
    precision: Precision | None = None
    flip: bool = False  # its answer is averaged with that for the mirror image
    # answers for all views (augment.views) are computed once and kept beside the crop cache (cache.dir):
    # 'merged' to the student's bins, or 'full'
    cache: Literal["none", "merged", "full"] = "none"


class TrainConfig(Strict):
    epochs: int = Field(210, ge=1)
    batch_size: int = Field(128, ge=1)  # of all processes together
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["multistep", "cosine", "onecycle", "constant"] = "multistep"
    milestones: tuple[int, ...] = (170, 200)  # epochs
    gamma: float = Field(0.1, gt=0)
    warmup_steps: int = Field(0, ge=0)
    clip: float | None = Field(None, gt=0)  # norm of all gradients
    ema: float | None = Field(None, gt=0, lt=1)
    precision: Precision = "no"
    channels_last: bool = True
    compile: bool = False
    sync_bn: bool = False
    freeze_bn: bool = False  # normalise with stored statistics; ranks then compute the same as one process
    workers: int = Field(0, ge=0)
    seed: int = Field(0, ge=0)
    save_every: int = Field(500, ge=1)  # steps between whole training states
    eval_every: int = Field(0, ge=0)  # epochs between validations while training; 0: only at the end
    log_every: int = Field(20, ge=1)  # steps between lines of metrics.jsonl

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        if self.schedule == "onecycle" and self.warmup_steps:
            raise ValueError("train.warmup_steps: onecycle has its own warm-up; use 0 or another schedule")
        return self


class EvalConfig(Strict):
    flip: bool = True
    batch_size: int = Field(128, ge=1)
    nms: float = Field(0.9, gt=0, le=1)  # OKS threshold of non-maximum suppression among detector boxes
    keypoint_threshold: float | None = None  # of the instance score; default: the head's published value


class PaperConfig(Strict):
    """The published row that a recipe stands for. `value: null`: the same method at a size that the table lacks."""

    title: str
    table: str
    row: str
    metric: str
    value: float | None = None
    params_m: float | None = None
    gmacs: float | None = None
    note: str | None = None


# what a recipe with task: classification says where it says nothing: the whole picture, as it is
CLASSIFICATION: dict[str, Any] = {
    "data": {"kind": "folder"},
    "input": {"padding": 1.0},
    "augment": {"scale": 0.0, "rotation": 0.0, "shift": 0.125, "whole_pixels": True},
    "model": {"neck": "none"},
    "head": {"name": "linear"},
    "eval": {"flip": False},
}
POSE_ONLY = (
    *("data.boxes", "data.skeleton", "augment.half_body", "augment.half_body_joints", "augment.camera", "cache"),
    *("model.neck", "model.deconv", "model.tokens", "teacher", "distill", "eval.nms", "eval.keypoint_threshold"),
)


def merge(low: dict[str, Any], high: dict[str, Any]) -> dict[str, Any]:
    """`high` with what it lacks taken from `low`, section by section."""
    out = dict(low)
    for key, value in high.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        # another head (or data kind) has other settings: nothing of the lower one's may leak into it
        other = both and any(k in value and value[k] != out[key].get(k) for k in ("name", "kind"))
        out[key] = merge(out[key], value) if both and not other else value
    return out


def _at(config: Any, path: str) -> Any:
    for part in path.split("."):
        config = getattr(config, part)
    return config


class RunConfig(Strict):
    """A whole recipe. `head` holds the name of a head and that head's settings; `init` names weights to start from."""

    name: str = "run"
    task: Literal["pose", "classification"] = "pose"
    data: DataConfig = DataConfig()
    input: InputConfig = InputConfig()
    augment: AugmentConfig = AugmentConfig()
    cache: CacheConfig = CacheConfig()
    model: ModelConfig = ModelConfig()
    head: dict[str, Any] = Field(default_factory=lambda: {"name": "simcc"})  # 'name' and that head's settings
    init: str | None = None  # weights to start from; joints are matched by name
    teacher: Annotated[TeacherConfig | None, may_be_short("teacher")] = None
    distill: dict[str, dict[str, Any] | None] = Field(default_factory=dict)  # method: its settings; null leaves one out
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    paper: PaperConfig | None = None
    note: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_task(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("task") == "classification":
            return merge(CLASSIFICATION, values)
        return values

    @model_validator(mode="after")
    def _only_for_pose(self) -> RunConfig:
        if self.task == "classification":
            plain = RunConfig(model=ModelConfig(neck="none"))
            for path in POSE_ONLY:
                if _at(self, path) != _at(plain, path):
                    raise ValueError(f"{path} is for poses; a recipe with task: classification leaves it out")
        return self

    @model_validator(mode="after")
    def _teaching(self) -> RunConfig:
        if self.methods and self.teacher is None:
            raise ValueError(f"distill.{self.methods[0]} needs a teacher: teacher=RUN_OR_WEIGHTS")
        if self.teacher is not None and not self.methods:
            raise ValueError("a teacher needs a method of distillation, as distill.cca.weight=1")
        if self.augment.camera and self.input.resample == "camera":
            raise ValueError("augment.camera: with input.resample=camera all views are a far camera's; leave it out")
        if self.teacher is not None and self.augment.whole_pixels:
            raise ValueError("augment.whole_pixels: a teacher's crop has other pixels and would show another view; leave it out")
        return self

    @property
    def methods(self) -> list[str]:
        """Names in `distill` that are not left out by null."""
        return [name for name, settings in self.distill.items() if settings is not None]


def parse_config(values: dict[str, Any], where: str) -> RunConfig:
    """RunConfig from a mapping; head settings are checked by the head's own config class when the model is built."""
    return validate(RunConfig, values, where)


def from_scratch(config: RunConfig) -> RunConfig:
    """The same recipe without pretrained weights, to build a model that is filled or counted and needs no download."""
    return config.model_copy(update={"model": config.model.model_copy(update={"pretrained": "none"})})


def portable(config: RunConfig) -> RunConfig:
    """The same recipe without where files lie on this machine: folders are left out, files keep their names."""

    def name(path: str | None) -> str | None:
        return path if path is None or not Path(path).is_absolute() and ".." not in Path(path).parts else Path(path).name

    d, m, t = config.data, config.model, config.teacher
    data = {"root": None, "boxes": name(d.boxes), "skeleton": name(d.skeleton), "train": name(d.train), "val": name(d.val)}
    return config.model_copy(
        update={
            "data": d.model_copy(update=data),
            "cache": config.cache.model_copy(update={"dir": None}),
            "model": m.model_copy(update={"pretrained": name(m.pretrained)}),
            "init": name(config.init),
            "teacher": t and t.model_copy(update={"weights": name(t.weights)}),
        }
    )


def recipe_values(config: RunConfig) -> dict[str, Any]:
    """The resolved recipe as JSON can hold it; read again it is the same recipe."""
    values = config.model_dump(mode="json", exclude_none=True)
    return {**values, "data": {**values["data"], "val": config.data.val}}  # where null does not stand for the default


def validation_split(config: RunConfig) -> str:
    """The split that a recipe is measured on. Raises: LowposeError if it has none."""
    if config.data.val is None:
        raise LowposeError(f"{config.name}: has no validation split (data.val is null); name one with --split")
    return config.data.val


def dump_config(config: RunConfig) -> str:
    """The resolved recipe as YAML."""
    return yaml.safe_dump(recipe_values(config), sort_keys=False)
