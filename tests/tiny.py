"""A training run that takes a second: ten drawn people at 32 px, a small network, one thread."""

from __future__ import annotations

import hashlib

import torch

from lowpose.config import RunConfig, parse_config

BASE = {
    "data": {"kind": "synthetic", "options": {"count": 10, "size": [64, 64], "height": [30, 50]}},
    "input": {"size": [32, 32]},
    "augment": {"scale": 0.1, "rotation": 10},
    "model": {"backbone": "resnet18", "pretrained": "none", "deconv": [16, 16, 16]},
    "head": {"name": "simcc"},
    "train": {"epochs": 3, "batch_size": 4, "schedule": "constant", "log_every": 1, "save_every": 2},
}


def tiny(**sections) -> RunConfig:
    """The tiny recipe; `train={"ema": 0.9}` and the like change parts of it."""
    values = {**BASE, "name": "tiny"}
    for name, value in sections.items():
        old = values.get(name)
        values[name] = {**old, **value} if isinstance(old, dict) and name != "head" else value
    torch.set_num_threads(1)
    return parse_config(values, "tiny")


def digest(tensors) -> str:
    """SHA-256 over the names, types and bytes of tensors."""
    out = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        out.update(f"{name} {value.dtype} {tuple(value.shape)}".encode() + value.detach().cpu().numpy().tobytes())
    return out.hexdigest()
