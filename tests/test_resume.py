"""Killed at any moment and taken up again, a run ends with the same bits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny import digest, tiny
from torch import nn

from lowpose import checkpoint
from lowpose.checkpoint import STATE, WEIGHTS, load_model, load_state
from lowpose.config import dump_config
from lowpose.progress import read_log
from lowpose.tasks import pose
from lowpose.training import train

PLAIN = {"train": {"epochs": 6, "save_every": 3, "optimizer": "adamw", "weight_decay": 0.05, "schedule": "onecycle", "ema": 0.9}}
BF16 = {
    "train": {**PLAIN["train"], "precision": "bf16"},
    "input": {"resample": "camera"},
    "augment": {"half_body": 0.5, "colour": 0.2},
}

CHILD = """
import sys, time, torch
torch.set_num_threads(1)
import lowpose.training as loop
from lowpose.recipe_files import load_config
own = loop.Run._after_step
def slow(self, *args):
    own(self, *args)
    time.sleep(0.1)
loop.Run._after_step = slow
loop.train(load_config(sys.argv[1]), sys.argv[2], resume=True)
"""
DIES_WHILE_SAVING = """
import os, signal, sys, torch
torch.set_num_threads(1)
import lowpose.checkpoint as checkpoint, lowpose.training as loop
from lowpose.recipe_files import load_config
own, calls = torch.save, []
def save(state, path):
    calls.append(1)
    own(state, path)
    if len(calls) == 2:
        with open(path, "r+b") as f:
            f.truncate(os.path.getsize(path) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
torch.save = save
loop.train(load_config(sys.argv[1]), sys.argv[2], resume=True)
"""


def start(script: str, config, folder: Path) -> subprocess.Popen:
    recipe = folder.with_suffix(".yaml")
    recipe.write_text(dump_config(config))
    return subprocess.Popen(
        [sys.executable, "-c", script, str(recipe), str(folder)],
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def steps(folder: Path) -> list[int]:
    path = folder / "metrics.jsonl"
    return [line["step"] for line in read_log(path)] if path.is_file() else []


def same(one: Path, two: Path) -> None:
    a, b = load_state(one), load_state(two)
    for part in ("model", "ema"):
        assert (a[part] is None and b[part] is None) or digest(a[part]) == digest(b[part])
    moments = [{f"{i}.{k}": v for i, s in x["optimizer"]["state"].items() for k, v in s.items()} for x in (a, b)]
    assert digest(moments[0]) == digest(moments[1])
    assert digest(load_model(one, None)[0].state_dict()) == digest(load_model(two, None)[0].state_dict())
    assert (one / WEIGHTS).read_bytes() == (two / WEIGHTS).read_bytes()
    curves = [[(line["step"], line["loss"], line["lr"]) for line in read_log(run / "metrics.jsonl")] for run in (one, two)]
    assert curves[0] == curves[1]


@pytest.mark.parametrize("sections", [PLAIN, BF16], ids=["fp32", "bf16 camera"])
def test_killed_and_resumed_ends_with_the_same_bits(tmp_path, sections):
    config = tiny(**sections, cache={"dir": str(tmp_path / "cache")})
    killed, whole = tmp_path / "killed", train(config, tmp_path / "whole")
    process = start(CHILD, config, killed)
    deadline = time.monotonic() + 120
    after = 3 + int.from_bytes(os.urandom(1), "big") % 6  # of twelve steps
    while process.poll() is None and max(steps(killed), default=0) < after and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(int.from_bytes(os.urandom(1), "big") / 256 * 0.2)  # at a random moment of a step
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, process.stderr.read().decode()[-2000:]
    state = load_state(killed)  # none, where the kill came before the first was whole
    assert not (killed / WEIGHTS).exists() and (state is None or state["step"] in (3, 6, 9))
    train(config, killed, resume=True)
    assert steps(killed) == list(range(1, 13))  # every step once
    same(killed, whole)


def test_killed_while_the_state_is_written(tmp_path):
    """The state of step 3 stays whole under its name; the torn one of step 6 is cleared away, and the end is the same."""
    config = tiny(**PLAIN, cache={"dir": str(tmp_path / "cache")})
    folder = tmp_path / "killed"
    process = start(DIES_WHILE_SAVING, config, folder)
    assert process.wait(120) == -signal.SIGKILL, process.stderr.read().decode()[-2000:]
    torn = [p.name for p in folder.iterdir() if ".part" in p.name]
    assert len(torn) == 1 and load_state(folder)["step"] == 3 and max(steps(folder)) == 6
    train(config, folder, resume=True)
    assert not [p.name for p in folder.iterdir() if ".part" in p.name]
    assert steps(folder) == list(range(1, 13))
    same(folder, train(config, tmp_path / "whole"))


def test_an_error_while_the_state_is_written_keeps_the_last(tmp_path, monkeypatch):
    config, own = tiny(cache={"dir": str(tmp_path / "cache")}), torch.save

    def save(state, path):
        Path(path).write_bytes(b"half")
        if state["step"] == 4:
            raise KeyboardInterrupt
        own(state, path)

    monkeypatch.setattr(checkpoint.torch, "save", save)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run")
    assert load_state(tmp_path / "run")["step"] == 2
    assert not [p for p in (tmp_path / "run").iterdir() if ".part" in p.name]


def with_dropout(config, skeleton):
    """A model that draws random numbers of torch in every step."""
    model = own_build(config, skeleton)
    model.backbone.neck.append(nn.Dropout2d(0.5))
    return model


own_build = pose.build_model


@pytest.mark.parametrize("stops", [[1], [5], [3, 1]])
def test_stopped_anywhere_and_resumed(tmp_path, monkeypatch, stops):
    """`stop_after` saves the state; momentum, EMA and the random numbers of dropout go on where they were."""
    monkeypatch.setattr(pose, "build_model", with_dropout)
    config = tiny(
        train={"epochs": 4, "ema": 0.9, "optimizer": "sgd", "lr": 0.01, "save_every": 3}, cache={"dir": str(tmp_path / "cache")}
    )
    whole = train(config, tmp_path / "whole")
    for n in stops:
        folder = train(config, tmp_path / "parts", resume=True, stop_after=n)
        assert (folder / WEIGHTS).exists() == (load_state(folder)["step"] == 8)
    train(config, folder, resume=True)
    assert steps(folder) == list(range(1, 9))
    assert digest(load_state(folder)["model"]) == digest(load_state(whole)["model"])
    assert digest(load_state(folder)["ema"]) == digest(load_state(whole)["ema"])


def test_other_paces_change_nothing(tmp_path):
    """When states are saved, lines are logged and validations made, and how many workers read, is no part of the result."""
    cache = {"dir": str(tmp_path / "cache")}
    one = train(tiny(train={"epochs": 2, "log_every": 1, "save_every": 1}, cache=cache), tmp_path / "one")
    paced = {"epochs": 2, "log_every": 3, "save_every": 99, "workers": 2, "eval_every": 1}
    two = train(tiny(train=paced, cache=cache), tmp_path / "two")
    plain = train(tiny(train={"epochs": 2}), tmp_path / "three")  # no cache
    assert len({digest(load_state(f)["model"]) for f in (one, two, plain)}) == 1


def test_resuming_a_run_that_has_ended_changes_nothing(tmp_path):
    config = tiny(train={"epochs": 1}, cache={"dir": str(tmp_path / "cache")})
    folder = train(config, tmp_path / "run")
    before = {name: (folder / name).read_bytes() for name in (WEIGHTS, "metrics.jsonl")}
    train(config, folder, resume=True)
    assert before == {name: (folder / name).read_bytes() for name in before}
    assert (folder / STATE).is_file()
