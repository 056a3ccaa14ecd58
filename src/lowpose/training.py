"""The training loop, in one file.

    lowpose train RECIPE [key=value ...]                                one process
    accelerate launch --num_processes 2 -m lowpose train RECIPE ...     many GPUs
    torchrun --nproc_per_node 2 -m lowpose train RECIPE ...             many GPUs, or processes on CPUs (gloo)

A run is a pure function of its recipe: batches depend on (seed, step), learning rates on the step. The whole state is
written every `save_every` steps; after a kill, `--resume` continues from it and ends with the same bits.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from timm.layers import convert_sync_batchnorm
from timm.optim import param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch import nn

from lowpose.checkpoint import STATE, WEIGHTS, initialise, load_state, save_state, save_weights
from lowpose.config import RunConfig, TrainConfig, dump_config
from lowpose.errors import LowposeError
from lowpose.files import write_text
from lowpose.loader import Batch, TrainingOrder, training_loader
from lowpose.nn.classifier import Classifier
from lowpose.nn.heads.base import Term
from lowpose.nn.layers.precision import chosen, computes
from lowpose.nn.model import PoseModel
from lowpose.progress import Log, TrainingProgress
from lowpose.samples import ClassData, PoseData
from lowpose.tasks import task_of
from lowpose.teaching import Live, Teaching

log = logging.getLogger("lowpose")


def train(config: RunConfig, out: str | Path | None = None, resume: bool = False, stop_after: int | None = None) -> Path:
    """Train a recipe; returns the run folder with weights.safetensors and metrics.jsonl.

    Args:
        out: run folder, default runs/NAME. resume: continue from its last whole state, if it has one.
        stop_after: leave after this many steps (a budget); the state is saved, the run can be resumed.

    Raises: LowposeError for wrong input, a folder that holds another run, or a loss that is not finite.
    """
    folder = Path(out) if out else Path("runs") / config.name
    run = Run(config, folder, resume)
    run.loop(stop_after)
    return folder


class Run:
    """Everything that one training run holds."""

    def __init__(self, config: RunConfig, folder: Path, resume: bool = False):
        self.config, self.folder, self.t = config, folder, config.train
        torch.manual_seed(self.t.seed)
        AcceleratorState._reset_state()  # an earlier run of this process may have had another precision
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
        self.precision = chosen(self.t.precision, device)
        # without cpu=True accelerate ignores the ranks that torchrun starts on a machine without GPUs
        self.accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=self.precision)
        state = check_folder(folder, config, resume)
        self.task = task_of(config)
        self.data = training_data(config)
        # a wrong one shows before training
        self.val = self.task.validation_data(config) if config.data.val is not None else None
        model = self.task.build(config, self.data)
        if self.val is not None:
            self.task.check_fits(model, self.val)
        self.not_loaded = initialise(model, config.init) if config.init else []
        if self.not_loaded and state is None:
            log.warning(
                "%s: %d tensors begin anew, as %s; the card lists them",
                config.init,
                len(self.not_loaded),
                ", ".join(self.not_loaded[:3]),
            )
        if state is None:
            self.task.warn(config, self.data)
            if self.precision == "bf16" and not computes("bf16", device):
                log.warning("train.precision=bf16: this machine emulates it, which takes several times as long; give auto")
        prepare_model(model, self.t, self.accelerator.device)
        self.teaching = self._teaching(model, state) if config.teacher else None
        with self.accelerator.main_process_first():  # which fills the cache
            self.reader = self.task.training_reader(self.data, config)
        if self.teaching and isinstance(self.teaching.beside, Live):
            self.teaching.beside.reader.share_pictures(self.reader)
        self.ema = ModelEmaV3(model, decay=self.t.ema, use_warmup=True, device=self.accelerator.device) if self.t.ema else None
        optimizer = make_optimizer(model, self.t, self.teaching)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        if self.teaching:
            self.teaching.prepare(self.accelerator, self.t.sync_bn)
        self.step = 0
        self.skipped: set[str] = set()
        ranks = self.accelerator.num_processes
        self.order = TrainingOrder(len(self.data), self.t.batch_size, self.t.seed, 0, 0, self.accelerator.process_index, ranks)
        self.total = self.t.epochs * self.order.steps_per_epoch
        if state is not None:
            self._restore(state)
        if self.accelerator.is_main_process:  # from here on nothing is wrong with the input
            begin_folder(folder, config)
        self.log = Log(folder, state["log_bytes"] if state else 0, self.step) if self.accelerator.is_main_process else None

    @property
    def bare(self) -> PoseModel | Classifier:
        return self.accelerator.unwrap_model(self.model)

    @property
    def result(self) -> nn.Module:
        """The weights that are reported: the last EMA if there is one, never the best on validation."""
        return self.ema.module if self.ema else self.bare

    def _teaching(self, student: PoseModel, state: dict[str, Any] | None) -> Teaching:
        return Teaching(self.config, student, self.data, self.accelerator, state["teaching"] if state else None)

    def loop(self, stop_after: int | None = None) -> None:
        self.order.start, self.order.total = self.step, self.total
        if stop_after is not None:
            self.order.total = min(self.total, self.step + stop_after)
        pin = self.accelerator.device.type == "cuda"
        self._set_training()
        with TrainingProgress(self.step, self.total, self.order.batch_size, self.accelerator.is_main_process) as progress:
            for batch in training_loader(self.reader, self.order, self.t.workers, pin, self.teaching and self.teaching.beside):
                terms, lr = self._step(batch.to(self.accelerator.device))
                self.step += 1
                progress.update(self.step, terms)
                self._after_step(terms, lr, progress)
        if self.order.total % self.t.save_every:
            self._save()
        if self.step == self.total and self.accelerator.is_main_process:
            facts = {"step": self.step, "precision": self.precision, "not_loaded": self.not_loaded}
            facts["skipped_in_training"] = sorted(self.skipped)
            if self.teaching:
                facts["teacher"] = self.teaching.facts()
            save_weights(self.folder / WEIGHTS, self.result, self.config, **facts)
        if self.skipped:
            log.warning("%d pictures could not be read and were skipped; the first: %s", len(self.skipped), min(self.skipped))
        if self.log:
            self.log.close()
        self.accelerator.wait_for_everyone()

    def _set_training(self) -> None:
        for module in (self.model, self.teaching.distillers) if self.teaching else (self.model,):
            set_training(module, self.t)

    def _step(self, batch: Batch) -> tuple[dict[str, float], float]:
        """One update; returns the loss terms of the global batch, by name, and the learning rate."""
        lr = self.t.lr * learning_rate_factor(self.t, self.step, self.total, self.order.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.skipped.update(batch.errors)
        if self.step == 0 and len(batch.errors) == len(batch.images):
            raise LowposeError(f"no picture of the first batch can be read: {batch.errors[0]}")
        self.optimizer.zero_grad(set_to_none=True)
        if self.teaching:
            self.teaching.zero_grad()
        terms = compute_loss(self.model, self.bare.head, batch, self.accelerator.autocast, self.teaching)
        sums = [v.detach() for term in terms.values() for v in term]
        reduced = self.accelerator.reduce(torch.stack(sums), "sum").view(-1, 2)
        counts = reduced[:, 1].clamp(min=1)
        # DDP averages gradients over processes; this makes each term its sum divided by the global number of joints or persons
        loss = sum(term.total / n for term, n in zip(terms.values(), counts, strict=True)) * self.accelerator.num_processes
        values = dict(zip(terms, (reduced[:, 0] / counts).tolist(), strict=True))
        values = {"loss": sum(values.values())} | values
        if not math.isfinite(values["loss"]):
            self._refuse(values["loss"])
        self.accelerator.backward(loss)
        if self.teaching:
            values |= self.teaching.climb(self.accelerator.scaler, self.step / self.total, lr)
        if self.t.clip is not None:
            self.accelerator.clip_grad_norm_([p for g in self.optimizer.param_groups for p in g["params"]], self.t.clip)
        self.optimizer.step()
        if self.ema:
            self.ema.update(self.bare, step=self.step)
        return values, lr

    def _refuse(self, loss: float) -> None:
        kept = f"the last good state is {self.folder / STATE}" if (self.folder / STATE).is_file() else "no state was saved yet"
        if self.log:
            self.log.close()
        raise LowposeError(
            f"the loss became {loss} at step {self.step + 1}; {kept}. Lower train.lr, set train.clip or train.precision=no"
        )

    def _after_step(self, terms: dict[str, float], lr: float, progress: TrainingProgress) -> None:
        epoch_ends = self.step % self.order.steps_per_epoch == 0
        if self.log and (self.step % self.t.log_every == 0 or self.step == self.total):
            epoch = self.step / self.order.steps_per_epoch
            self.log.write(
                {"step": self.step, "epoch": round(epoch, 4), **terms, "lr": lr, "images_per_s": round(progress.rate, 1)}
            )
        if self.step == self.order.steps_per_epoch and self.teaching and self.accelerator.is_main_process:
            self.teaching.warn_of_weights(terms)
        if epoch_ends and self.val and self.t.eval_every and (self.step // self.order.steps_per_epoch) % self.t.eval_every == 0:
            self._validate()
        if self.step % self.t.save_every == 0:
            self._save()

    def _validate(self) -> None:
        """Metrics of the current result weights on the validation split, into the log; nothing is chosen by them."""
        if self.log:
            found = self.task.predict_split(self.result, self.val, self.config, self.accelerator.device)
            report = self.task.measure(self.result, self.config, self.val, found, bootstrap=0)
            self.log.write({"step": self.step, "val": {k: v["value"] for k, v in report["metrics"].items()}})
            self._set_training()
        self.accelerator.wait_for_everyone()

    def _save(self) -> None:
        if not self.accelerator.is_main_process:
            return
        weights = self.bare.state_dict()
        if not all(torch.isfinite(v).all() for v in weights.values() if v.is_floating_point()):
            self._refuse(float("nan"))
        save_state(self.folder, {
            "step": self.step,
            "recipe": recipe_key(self.config),
            "model": weights,
            "ema": self.ema.module.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else None,
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "teaching": self.teaching.state() if self.teaching else None,
            "log_bytes": self.log.size() if self.log else 0,
            "skipped": sorted(self.skipped),
        })  # fmt: skip

    def _restore(self, state: dict[str, Any]) -> None:
        self.bare.load_state_dict(state["model"])
        if self.ema:
            self.ema.module.load_state_dict(state["ema"])
        if self.teaching:
            self.teaching.restore(state["teaching"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"] and self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["random"])
        if torch.cuda.is_available() and state["random_cuda"]:
            torch.cuda.set_rng_state_all(state["random_cuda"])
        self.step, self.skipped = state["step"], set(state["skipped"])


def training_data(config: RunConfig) -> PoseData | ClassData:
    return task_of(config).training_data(config)


def compute_loss(
    model: nn.Module, head: nn.Module, batch: Batch, autocast: Callable, teaching: Teaching | None = None
) -> dict[str, Term]:
    """Named terms: those of the head, summed over the joints (or pictures) that carry weight, and those of the teaching."""
    with autocast():
        outputs = model(batch.images, inner=True) if teaching and teaching.reads_inner else model(batch.images)
    outputs = {name: value.float() for name, value in outputs.items()}
    terms, weight = head.terms(outputs, batch)
    if teaching:
        with autocast():
            terms |= teaching.terms(outputs, batch, weight)
    return terms


def prepare_model(model: nn.Module, t: TrainConfig, device: torch.device) -> None:
    if t.precision == "fp16" and device.type == "cpu":
        raise LowposeError("train.precision=fp16 needs a GPU; a CPU trains with bf16 or no")
    if t.sync_bn:
        if device.type != "cuda":
            raise LowposeError(
                "train.sync_bn needs GPUs; on a CPU statistics are per process, or fixed with train.freeze_bn=true"
            )
        convert_sync_batchnorm(model)  # timm's, which keeps the activation that some of its norms hold
    if t.channels_last:
        model.to(memory_format=torch.channels_last)
    model.to(device)
    if t.compile:
        model.compile()


def set_training(model: nn.Module, t: TrainConfig) -> None:
    model.train()
    if t.freeze_bn:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def make_optimizer(model: nn.Module, t: TrainConfig, teaching: Teaching | None = None) -> torch.optim.Optimizer:
    """Adam, AdamW or SGD (momentum 0.9) over the student and the distillation methods; norms and biases do not decay."""
    modules = nn.ModuleList([model, teaching.distillers] if teaching else [model])
    groups = param_groups_weight_decay(modules, t.weight_decay) if t.weight_decay else [{"params": list(modules.parameters())}]
    if teaching:
        own = {id(p) for p in [*model.parameters(), *teaching.parameters]}
        groups = [group | {"params": [p for p in group["params"] if id(p) in own]} for group in groups]
    if t.optimizer == "sgd":
        return torch.optim.SGD(groups, t.lr, momentum=0.9, nesterov=True)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[t.optimizer](groups, t.lr, weight_decay=t.weight_decay)


def learning_rate_factor(t: TrainConfig, step: int, total: int, steps_per_epoch: int) -> float:
    """Share of `train.lr` at a step: a function of the step alone, so nothing needs to be stored to resume.

    onecycle: cosine from 1/25 up over the first 30% of the steps, cosine down to 1/250,000 (L. N. Smith 2018, as in torch).
    """
    if step < t.warmup_steps:
        return (step + 1) / t.warmup_steps
    if t.schedule == "multistep":
        return t.gamma ** sum(step // steps_per_epoch >= m for m in t.milestones)
    if t.schedule == "cosine":
        done = (step - t.warmup_steps) / max(1, total - t.warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * done))
    if t.schedule == "onecycle":
        up, last = 0.3 * total - 1, total - 1
        low, high, done = (1 / 25, 1.0, step / up) if step <= up else (1.0, 1 / 250000, (step - up) / (last - up))
        return high + (low - high) / 2 * (1 + math.cos(math.pi * done))
    return 1.0


def recipe_key(config: RunConfig) -> str:
    """What must be the same for a run to be resumed: the recipe without what only paces or places it."""
    values = config.model_dump(mode="json", exclude={"cache", "paper", "note", "eval", "name"})
    for pace in ("save_every", "log_every", "workers", "eval_every"):
        values["train"].pop(pace)
    values["data"].pop("root")
    if values["teacher"] is not None:  # its place may change; that it is the same one is checked by its content
        values["teacher"] = {k: v for k, v in values["teacher"].items() if k != "weights"}
    return json.dumps(values, sort_keys=True)


def check_folder(folder: Path, config: RunConfig, resume: bool) -> dict[str, Any] | None:
    """The state to continue from; None if the run begins. Raises: LowposeError if the folder holds another run."""
    if not resume and ((folder / STATE).exists() or (folder / WEIGHTS).exists()):
        raise LowposeError(f"{folder}: holds a run already; give --resume to continue it or another --out")
    state = load_state(folder) if resume else None
    if state is not None and state["recipe"] != recipe_key(config):
        raise LowposeError(f"{folder}: holds a run of another recipe (see its recipe.yaml); give another --out")
    if state is None and (folder / WEIGHTS).exists():
        raise LowposeError(f"{folder}: holds weights but no training state to continue from; give another --out")
    return state


def begin_folder(folder: Path, config: RunConfig) -> None:
    """Write the resolved recipe, and clear away states that a kill left half-written."""
    write_text(folder / "recipe.yaml", dump_config(config))
    for left in folder.glob(f".{Path(STATE).stem}.*.part.*"):
        left.unlink(missing_ok=True)


def is_main_process() -> bool:
    """Whether this process is the one that writes (rank 0, or the only one)."""
    return PartialState().is_main_process
