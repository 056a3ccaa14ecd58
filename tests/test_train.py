"""The training loop: what learns, how fast, what is kept, and when it stops."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from tiny import digest, tiny
from torch import nn

from lowpose import registry
from lowpose import training as loop
from lowpose.checkpoint import STATE, WEIGHTS, load_model, load_state, read_weights
from lowpose.config import TrainConfig
from lowpose.errors import LowposeError
from lowpose.evaluation import evaluate
from lowpose.nn.backbones import Backbone
from lowpose.nn.distill.base import Term
from lowpose.nn.model import build_model
from lowpose.progress import Log, read_log
from lowpose.skeletons import COCO17
from lowpose.training import Run, check_folder, learning_rate_factor, make_optimizer, prepare_model, set_training, train

HEADS = registry.names("head")


def first_batch(run):
    run.order.start, run.order.total = 0, run.total
    return next(iter(loop.training_loader(run.reader, run.order, 0, False)))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("backbone", ["resnet18", "hrnet_w18_small"])
def test_every_parameter_learns(tmp_path, head, backbone):
    """Each parameter stands in exactly one group, gets a gradient and moves; decay spares norms and biases."""
    small = {"backbone": backbone, "pretrained": "none", "deconv": [16, 16, 16]}
    run = Run(tiny(head={"name": head}, model=small, train={"optimizer": "adamw", "weight_decay": 0.01}), tmp_path, False)
    named = dict(run.bare.named_parameters())
    grouped = [id(p) for group in run.optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in named.values()) and all(p.requires_grad for p in named.values())
    decayed = {id(p) for group in run.optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    assert all((id(p) in decayed) == (p.ndim > 1) for p in named.values())
    before = {name: p.detach().clone() for name, p in named.items()}
    set_training(run.model, run.t)
    for _ in range(
        2
    ):  # residual branches end in a norm that begins at zero: what stands before it learns from the second step on
        run._step(first_batch(run))
        run.step += 1
    for name, p in named.items():
        assert p.grad is not None and p.grad.abs().sum() > 0, f"{name} gets no gradient"
        assert not torch.equal(p, before[name]), f"{name} does not move"


@pytest.mark.parametrize("head", HEADS)
def test_the_loss_falls(tmp_path, head):
    """Four persons seen again and again without change are learnt by heart."""
    data = {"kind": "synthetic", "options": {"count": 4, "size": [64, 64], "height": [40, 50]}}
    still = {"scale": 0, "rotation": 0, "flip": 0}
    paced = {"epochs": 40, "lr": 2e-3, "optimizer": "adam", "save_every": 99}
    config = tiny(head={"name": head}, data=data, augment=still, train=paced, cache={"dir": str(tmp_path / "cache")})
    losses = [line["loss"] for line in read_log(train(config, tmp_path / "run") / "metrics.jsonl")]
    assert len(losses) == 40 and np.mean(losses[-3:]) < 0.6 * losses[0]


def test_a_run_leaves_what_it_promises(tmp_path):
    folder = train(tiny(train={"ema": 0.9, "epochs": 2, "eval_every": 1}, eval={"flip": False}), tmp_path / "run")
    assert {p.name for p in folder.iterdir()} == {WEIGHTS, STATE, "recipe.yaml", "metrics.jsonl", "tensorboard"}
    lines = read_log(folder / "metrics.jsonl")
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    assert [line["step"] for line in lines if "val" in line] == [2, 4]
    assert lines[0]["loss"] == pytest.approx(lines[0]["simcc"]) and lines[0]["lr"] == 1e-3 and lines[0]["epoch"] == 0.5
    assert any(p.stat().st_size for p in (folder / "tensorboard").iterdir())
    model, config = load_model(folder)
    assert config.name == "tiny" and read_weights(folder)[1]["step"] == 4


def test_the_weights_are_those_of_the_ema(tmp_path):
    """Recomputed from the raw weights of every step: decay 0 at the first step, then min(0.9, 1 - (1 + n)^(-2/3))."""
    raw, own_step = [], Run._step

    def watch(self, batch):
        out = own_step(self, batch)
        raw.append({k: v.detach().clone() for k, v in self.bare.state_dict().items()})
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "_step", watch)
        folder = train(tiny(train={"ema": 0.9, "epochs": 4}, cache={"dir": str(tmp_path / "cache")}), tmp_path / "run")
    saved, state = load_model(folder)[0].state_dict(), load_state(folder)
    assert all(torch.equal(saved[k], state["ema"][k]) for k in saved)
    assert digest(state["model"]) == digest(raw[-1]) != digest(saved)
    name = "head.to_x.weight"
    mean = raw[0][name].double()
    for n, weights in enumerate(raw):
        decay = 0.0 if n <= 1 else min(0.9, 1 - (1 + (n - 1)) ** (-2 / 3))
        mean = decay * mean + (1 - decay) * weights[name].double()
    assert torch.allclose(saved[name].double(), mean, atol=1e-6)


def schedule(name, **settings):
    return TrainConfig(schedule=name, lr=0.5, **settings)


def torch_factors(make, steps):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler, out = make(optimizer), []
    for _ in range(steps):
        out.append(optimizer.param_groups[0]["lr"] / 0.5)
        optimizer.step()
        scheduler.step()
    return out


@pytest.mark.parametrize("total", [1, 2, 5, 40, 137])
def test_onecycle_is_torchs(total):
    ours = [learning_rate_factor(schedule("onecycle"), s, total, 7) for s in range(total)]
    if total > 3:
        assert np.allclose(
            ours, torch_factors(lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.5, total, cycle_momentum=False), total)
        )
    assert all(0 < f <= 1 for f in ours)


def test_multistep_is_torchs():
    ours = [learning_rate_factor(schedule("multistep", milestones=(3, 5), gamma=0.2), s, 80, 10) for s in range(80)]
    assert np.allclose(ours, torch_factors(lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [30, 50], 0.2), 80))


def test_cosine_is_torchs_and_warm_up_is_linear():
    ours = [learning_rate_factor(schedule("cosine"), s, 50, 10) for s in range(50)]
    assert np.allclose(ours, torch_factors(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 50), 50))
    warm = [learning_rate_factor(schedule("cosine", warmup_steps=5), s, 55, 10) for s in range(55)]
    assert np.allclose(warm[:5], [0.2, 0.4, 0.6, 0.8, 1.0]) and np.allclose(warm[5:], ours)
    assert [learning_rate_factor(schedule("constant", warmup_steps=2), s, 9, 3) for s in range(4)] == [0.5, 1, 1, 1]


def test_the_logged_rates_are_used(tmp_path):
    config = tiny(train={"schedule": "multistep", "milestones": [1, 2], "gamma": 0.1, "optimizer": "sgd", "lr": 0.01})
    lines = read_log(train(config, tmp_path / "run") / "metrics.jsonl")
    assert np.allclose([line["lr"] for line in lines], [1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4])
    moved = load_state(tmp_path / "run")["optimizer"]["param_groups"][0]["lr"]
    assert moved == pytest.approx(1e-4)


def test_clipping(tmp_path):
    run = Run(tiny(train={"clip": 1e-3}), tmp_path, False)
    run._step(first_batch(run))
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in run.bare.parameters()))
    assert norm == pytest.approx(1e-3, rel=1e-3)


def poisoned(step):
    """compute_loss whose value is not a number at one step."""
    calls, own = [], loop.compute_loss

    def compute(*args):
        calls.append(1)
        terms = own(*args)
        return {k: Term(v.total * (float("nan") if len(calls) == step else 1), v.count) for k, v in terms.items()}

    return compute


def test_a_loss_that_is_nan_stops_and_keeps_the_last_state(tmp_path, monkeypatch):
    config = tiny(train={"epochs": 5}, cache={"dir": str(tmp_path / "cache")})
    monkeypatch.setattr(loop, "compute_loss", poisoned(6))
    with pytest.raises(LowposeError, match="the loss became nan at step 6; the last good state is .*state.pt") as e:
        train(config, tmp_path / "run")
    assert "\n" not in str(e.value) and not (tmp_path / "run" / WEIGHTS).exists()
    state = load_state(tmp_path / "run")
    assert state["step"] == 4 and all(torch.isfinite(v).all() for v in state["model"].values())
    monkeypatch.undo()
    folder = train(config, tmp_path / "run", resume=True)
    assert digest(load_state(folder)["model"]) == digest(load_state(train(config, tmp_path / "whole"))["model"])


def test_a_rate_beyond_reason_stops_as_well(tmp_path):
    with pytest.raises(LowposeError, match="the loss became (nan|inf) at step [234]"):
        train(tiny(train={"lr": 1e30, "optimizer": "sgd", "save_every": 100}), tmp_path / "run")
    assert not (tmp_path / "run" / STATE).exists()


def test_weights_that_are_not_finite_are_not_saved_over_good_ones(tmp_path, monkeypatch):
    own = Run._step

    def spoil(self, batch):
        out = own(self, batch)
        if self.step == 3:
            next(self.bare.parameters()).data[0] = float("inf")
        return out

    monkeypatch.setattr(Run, "_step", spoil)
    with pytest.raises(LowposeError, match="the last good state"):
        train(tiny(), tmp_path / "run")
    assert load_state(tmp_path / "run")["step"] == 2


def test_folders_of_other_runs_are_refused(tmp_path):
    folder = train(tiny(train={"epochs": 1}), tmp_path / "run")
    recipe = (folder / "recipe.yaml").read_text()
    with pytest.raises(LowposeError, match="holds a run already; give --resume"):
        train(tiny(train={"epochs": 1}), folder)
    with pytest.raises(LowposeError, match="holds a run of another recipe"):
        train(tiny(train={"epochs": 2}), folder, resume=True)
    assert (folder / "recipe.yaml").read_text() == recipe
    check_folder(folder, tiny(train={"epochs": 1, "save_every": 9, "log_every": 5, "workers": 1}), True)  # only its pace differs
    (folder / STATE).unlink()
    with pytest.raises(LowposeError, match="holds weights but no training state"):
        train(tiny(train={"epochs": 1}), folder, resume=True)


@pytest.mark.parametrize(
    "change,answer",
    [
        ({"head": {"name": "simcc", "splitt": 2}}, "unknown key 'splitt'; did you mean 'split'"),
        ({"head": {"name": "simc"}}, "unknown head 'simc'"),
        ({"data": {"kind": "synthetik"}}, "unknown data 'synthetik'; did you mean 'synthetic'"),
        ({"data": {"train": "trian"}}, "unknown split 'trian'"),
        ({"data": {"val": "vall"}, "train": {"eval_every": 1}}, "unknown split 'vall'"),
        ({"init": "nothing.safetensors"}, "no such weights file"),
        ({"train": {"precision": "fp16"}}, "fp16 needs a GPU"),
        ({"train": {"sync_bn": True}}, "sync_bn needs GPUs"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="answers of a machine without a GPU")
def test_wrong_recipes_leave_no_folder(tmp_path, change, answer):
    with pytest.raises(LowposeError, match=answer):
        train(tiny(**change), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_runs_of_different_precision_in_one_process(tmp_path):
    """bf16 computes in bf16 and stores float32."""
    seen = []
    for precision in ("no", "bf16", "no"):
        run = Run(tiny(train={"precision": precision}), tmp_path / str(len(seen)), False)
        run.bare.backbone.body.register_forward_hook(lambda _m, _i, out: seen.append(out.dtype))
        run._step(first_batch(run))
        assert {p.dtype for p in run.bare.parameters()} == {torch.float32}
    assert seen == [torch.float32, torch.bfloat16, torch.float32]


@pytest.mark.parametrize("avx512, amx", [(False, False), (True, False), (False, True)])
@pytest.mark.skipif(torch.cuda.is_available(), reason="answers of a machine without a GPU")
def test_auto_takes_bf16_where_the_processor_computes_it(tmp_path, monkeypatch, caplog, avx512, amx):
    """The card says which; bf16 that is asked for is computed anywhere, with a warning where it is emulated."""
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: amx)
    has = avx512 or amx
    train(tiny(train={"precision": "auto"}), tmp_path / "run")
    assert not caplog.records
    card = evaluate(tmp_path / "run")
    assert card["precision"] == ("bf16" if has else "no") and card["recipe"]["train"]["precision"] == "auto"
    assert (", in bf16" in (tmp_path / "run/card.md").read_text()) == has
    run = Run(tiny(train={"precision": "bf16"}), tmp_path / "asked", False)
    assert run.accelerator.mixed_precision == "bf16"
    assert ("train.precision=bf16: this machine emulates it" in caplog.text) != has
    run.log.close()


def test_frozen_norms_keep_their_statistics(tmp_path):
    for frozen in (True, False):
        run = Run(tiny(train={"freeze_bn": frozen}), tmp_path / str(frozen), False)
        before = {k: v.clone() for k, v in run.bare.state_dict().items() if "running" in k}
        set_training(run.model, run.t)
        run._step(first_batch(run))
        assert all(torch.equal(run.bare.state_dict()[k], v) for k, v in before.items()) == frozen


def test_sync_bn_reaches_every_norm_and_keeps_activations(monkeypatch):
    """MobileNet's norms hold its activations."""
    model = build_model(
        tiny(model={"backbone": "mobilenetv3_small_100", "pretrained": "none", "deconv": [16, 16, 16]}), COCO17
    ).eval()
    pictures = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    wanted = model.backbone.body(pictures).detach()
    monkeypatch.setattr(type(model), "to", lambda self, *a, **k: self)
    prepare_model(model, TrainConfig(sync_bn=True), torch.device("cuda"))
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert norms and all(isinstance(m, nn.SyncBatchNorm) for m in norms)
    assert isinstance(model.backbone, Backbone)
    found = model.backbone.body(pictures)
    assert wanted.std() > 0 and torch.allclose(found, wanted, rtol=1e-3, atol=1e-4 * float(wanted.std()))


def test_optimizers():
    layer = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    for name, kind in (("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)):
        optimizer = make_optimizer(layer, TrainConfig(optimizer=name, weight_decay=0.1))
        assert type(optimizer) is kind and sorted(len(g["params"]) for g in optimizer.param_groups) == [1, 3]
        assert {g["weight_decay"] for g in optimizer.param_groups} == {0.0, 0.1}
    assert make_optimizer(layer, TrainConfig(optimizer="sgd")).param_groups[0]["momentum"] == 0.9


def broken_data(keys):
    own = loop.training_data

    def load(config):
        data = own(config)

        def read(key):
            if key in keys:
                raise LowposeError(f"{key}: truncated picture")
            return data.read(key)

        return dataclasses.replace(data, read=read)

    return load


def test_broken_pictures_are_skipped_counted_and_named(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(loop, "training_data", broken_data({"train/000003", "train/000007"}))
    folder = train(tiny(train={"epochs": 4}), tmp_path / "run")
    told = [r.message for r in caplog.records if "skipped" in r.message]
    assert told == ["2 pictures could not be read and were skipped; the first: train/000003: truncated picture"]
    assert read_weights(folder)[1]["skipped_in_training"] == [
        "train/000003: truncated picture",
        "train/000007: truncated picture",
    ]
    assert all(math.isfinite(line["loss"]) for line in read_log(folder / "metrics.jsonl"))


def test_a_folder_without_pictures_stops_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "training_data", broken_data({f"train/{i:06d}" for i in range(10)}))
    with pytest.raises(LowposeError, match="no picture of the first batch can be read: train/0.*truncated"):
        train(tiny(), tmp_path / "run")


def test_losses_are_divided_by_the_visible_joints(tmp_path):
    """The logged loss is the sum over joints that carry weight, by their number, computed here from the head alone."""
    run = Run(tiny(train={"freeze_bn": True}), tmp_path, False)
    batch = first_batch(run)
    batch.weight[0] = 0
    batch.weight[1, 3:] = 0
    set_training(run.model, run.t)
    with torch.no_grad():
        outputs = run.bare(batch.images)
    targets, weight = run.bare.head.targets(batch.keypoints, batch.weight)
    total = 0.0
    for axis in "xy":
        log_p, q = torch.log_softmax(outputs[axis], -1).double(), targets[axis].double()
        total += float(((q * (q.clamp(min=1e-300).log() - log_p)).sum(-1) * weight).sum())
    values, _ = run._step(batch)
    assert values["loss"] == pytest.approx(total / float(weight.sum()), rel=1e-4) and weight.sum() < 17 * 3


def test_a_log_that_was_deleted_is_begun_again(tmp_path):
    log = Log(tmp_path, 0, 0)
    log.write({"step": 1, "loss": 2.0})
    kept = log.size()
    log.write({"step": 2, "loss": 1.0})
    log.close()
    Log(tmp_path, kept, 1).close()
    assert [line["step"] for line in read_log(tmp_path / "metrics.jsonl")] == [1]
    (tmp_path / "metrics.jsonl").unlink()
    log = Log(tmp_path, kept, 1)
    log.write({"step": 2, "loss": 1.0})
    log.close()
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [2]
