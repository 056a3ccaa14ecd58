"""Teachers with random weights at twice the size of `tiny`'s students, and runs that learn from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny import tiny
from torch import nn

from lowpose import training as loop
from lowpose.checkpoint import save_weights
from lowpose.config import RunConfig
from lowpose.loader import PoseBatch
from lowpose.nn.model import build_model
from lowpose.skeletons import COCO17, Skeleton
from lowpose.training import Run

NET = {"backbone": "test_resnet", "pretrained": "none", "deconv": [8, 8, 8]}
CDKD = {
    "sape": {"weight": 0.7},
    "cca": {"weight": 1.5, "temperature": 2.0},
    "etht": {"learn": ["cca.temperature", "sape.weight"], "lr": 0.5},
}


def save_teacher(path: Path, seed: int = 1, skeleton: Skeleton = COCO17, **sections: Any) -> Path:
    """Weights of a model of 64 px (unless `sections` say else) whose bins have peaks that depend on the picture."""
    config = tiny(**{"name": "the teacher", "input": {"size": [64, 64]}, "model": NET, **sections})
    torch.manual_seed(seed)
    model = build_model(config, skeleton).eval()
    head, (w, h) = model.head, config.input.size
    noise = torch.randint(0, 256, (16, 3, h // 8, w // 8), generator=torch.Generator().manual_seed(seed)).float()
    blobs = nn.functional.interpolate(noise, (h, w), mode="bilinear")
    with torch.no_grad():
        for module in model.modules():  # normalise as if it were trained on these
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
        model.train()(blobs)
        found = model.eval()(blobs)["map"]
        head.final.weight.div_(found.std())
        for layer in (getattr(head, "to_x", None), getattr(head, "to_y", None)):
            if layer is not None:
                layer.weight.normal_(std=layer.in_features**-0.5)
    save_weights(path, model, config)
    return path


def taught(teacher: Path | dict[str, Any], distill: dict[str, Any] = CDKD, **sections: Any) -> RunConfig:
    """A tiny recipe of 32 px with a teacher."""
    given = teacher if isinstance(teacher, dict) else {"weights": str(teacher)}
    return tiny(**{"model": NET, **sections}, teacher={**given, "weights": str(given["weights"])}, distill=distill)


def batches(run: Run, count: int, start: int = 0) -> list[PoseBatch]:
    """The first batches of a run, with what its teacher needs."""
    run.order.start, run.order.total = start, start + count
    beside = {"beside": run.teaching.beside} if run.teaching else {}
    return list(loop.training_loader(run.reader, run.order, 0, False, **beside))


def steps(run: Run, count: int) -> list[dict[str, float]]:
    """Train so many steps; the logged values of each."""
    run._set_training()
    out = []
    for batch in batches(run, count, run.step):
        out.append(run._step(batch)[0])
        run.step += 1
    return out


def merged(logits: torch.Tensor, bins: int):
    """float64 (..., bins) probabilities: neighbours of the softmax of (..., J') summed."""
    p = torch.softmax(logits.double(), -1)
    return p.reshape(*p.shape[:-1], bins, -1).sum(-1)
