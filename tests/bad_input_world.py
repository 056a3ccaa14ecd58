"""A small world in which everything is right, for `bad_input_cases` to put one thing wrong in.

recipe.yaml run/            a recipe and its trained run (synthetic people, a network of 0.4 million weights)
coco/ lsp/                  eight pictures of 64 x 64 in the forms of COCO and LSPET
pictures/ boxes.json        two pictures and their boxes
classes/ sorter.yaml sorter/    twelve pictures in three classes, a recipe that sorts them and its run without the training state
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import shutil
import socket
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from sorting import sorting, write_pictures

RECIPE = {
    "data": {"kind": "synthetic", "options": {"count": 8, "size": [64, 64], "height": [32, 56]}},
    "input": {"size": [32, 32]},
    "model": {"backbone": "test_resnet", "pretrained": "none", "deconv": [8, 8, 8]},
    "head": {"name": "simcc"},
    "train": {"epochs": 1, "batch_size": 4, "save_every": 1},
    "eval": {"flip": False},
}
COCO = "coco/annotations/person_keypoints_{}2017.json"


@dataclass(frozen=True)
class Case:
    """One thing that is wrong; its answer is in bad_input_answers.json.

    Attributes:
        wrong: what, in words. command: a command line, or Python after '>>> '; the folder of the world is the current one.
        prepare: puts the wrong thing into the world, `prepare(folder)`. patch: into the program, `patch(monkeypatch)`.
        leaves: files that may be new or changed afterwards.
    """

    wrong: str
    command: str
    prepare: Callable[[Path], Any] = lambda folder: None
    patch: Callable[[Any], None] = lambda monkeypatch: None
    leaves: tuple[str, ...] = ()


def build(folder: Path) -> None:
    """Write the world into an empty folder."""
    from lowpose.config import dump_config
    from lowpose.data import load_data
    from lowpose.images import write_image
    from lowpose.recipe_files import load_config
    from lowpose.skeletons import COCO17
    from lowpose.training import train

    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    data = load_data("synthetic", split="train", options=RECIPE["data"]["options"])
    images, rows = [], []
    for sample in data.samples:
        picture = data.read(sample.image)
        write_image(folder / f"coco/images/{sample.id}.jpg", picture)
        write_image(folder / f"lsp/images/im{sample.id:05d}.jpg", picture)
        images.append({"id": sample.id, "file_name": f"{sample.id}.jpg", "width": 64, "height": 64})
        flat = np.column_stack([sample.keypoints - 0.5, sample.visibility]).ravel().tolist()
        row = {"id": sample.id, "image_id": sample.id, "category_id": 1, "bbox": sample.box.tolist(), "area": sample.area}
        rows.append(row | {"keypoints": flat, "iscrowd": 0})
    category = {"id": 1, "name": "person", "keypoints": list(COCO17.keypoints), "skeleton": []}
    for split in ("train", "val"):
        text = json.dumps({"images": images, "annotations": rows, "categories": [category]})
        write(COCO.format(split), text)(folder)
    save_joints(lambda joints: joints)(folder)
    for i, name in enumerate("ab"):
        write_image(folder / f"pictures/{name}.jpg", data.read(data.samples[i].image))
    write("boxes.json", json.dumps({"a.jpg": [[0, 0, 64, 64]], "b.jpg": [[0, 0, 64, 64]]}))(folder)
    train(load_config(folder / "recipe.yaml"), folder / "run")
    config = sorting(write_pictures(folder / "classes"), train={"epochs": 1})
    train(config, folder / "sorter")
    (folder / "sorter/state.pt").unlink()
    shutil.rmtree(folder / "sorter/tensorboard")
    (folder / "sorter.yaml").write_text(dump_config(config).replace(str(folder / "classes"), "classes"))


def joints_like_lspet(count: int = 8) -> np.ndarray:
    """(14, 3, count) float64: joints within a picture of 64 x 64, all labelled."""
    joints = np.random.default_rng(0).uniform(8, 56, (14, 3, count))
    joints[:, 2] = 1
    return joints


def write(name: str, text: str | bytes) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)

    return prepare


def recipe(text: str, base: str = "recipe.yaml") -> Callable[[Path], None]:
    """bad.yaml: the good recipe, with this YAML over it."""
    return write("bad.yaml", f"base: {base}\n{text}")


def edit_coco(change: Callable[[dict], None]) -> Callable[[Path], None]:
    """Change the annotations; NaN is written as Python's JSON does."""

    def prepare(folder: Path) -> None:
        path = folder / COCO.format("train")
        values = json.loads(path.read_text())
        change(values)
        path.write_text(json.dumps(values))

    return prepare


def save_joints(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        from scipy.io import savemat

        savemat(folder / "lsp/joints.mat", {"joints": change(joints_like_lspet())})

    return prepare


def truncate(*names: str, size: int = 300) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        for name in names:
            os.truncate(folder / name, size)

    return prepare


def remove(*names: str) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return prepare


def tensors(name: str, metadata: dict[str, str] | None = None, shape: tuple[int, ...] = (1,)) -> Callable[[Path], None]:
    """A safetensors file of somebody else."""

    def prepare(folder: Path) -> None:
        import torch
        from safetensors.torch import save_file

        save_file({"conv.weight": torch.zeros(shape)}, folder / name, metadata)

    return prepare


def rename(source: str, target: str) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        (folder / source).rename(folder / target)

    return prepare


def copy(source: str, target: str) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        (folder / target).parent.mkdir(parents=True)
        shutil.copy(folder / source, folder / target)

    return prepare


def hand(folder: Path) -> None:
    """hand.safetensors: weights for a skeleton that shares no keypoint with people."""
    from lowpose.checkpoint import save_weights
    from lowpose.nn.model import build_model
    from lowpose.recipe_files import load_config
    from lowpose.skeletons import Skeleton

    config, skeleton = load_config(folder / "recipe.yaml"), Skeleton("hand", ("thumb", "index"))
    save_weights(folder / "hand.safetensors", build_model(config, skeleton), config)


def owls(folder: Path) -> None:
    """owls.safetensors: weights for classes that no picture here is of."""
    from lowpose.checkpoint import save_weights
    from lowpose.nn.classifier import build_classifier
    from lowpose.recipe_files import load_config

    config = load_config(folder / "sorter.yaml")
    save_weights(folder / "owls.safetensors", build_classifier(config, ("owl", "wren")), config)


def tiny_imagenet(folder: Path) -> None:
    """tiny/: TinyImageNet's lists without its pictures."""
    write("tiny/wnids.txt", "n01\nn02\n")(folder)
    write("tiny/val/val_annotations.txt", "val_0.JPEG\tn01\t0\t0\t9\t9\nval_1.JPEG\tn03\t0\t0\t9\t9\n")(folder)


def mapped(folder: Path) -> None:
    """mapped.safetensors: weights whose head gives heatmaps."""
    from lowpose.checkpoint import save_weights
    from lowpose.nn.model import build_model
    from lowpose.recipe_files import load_config
    from lowpose.skeletons import COCO17

    config = load_config(folder / "recipe.yaml", ["head={name: heatmap}"])
    save_weights(folder / "mapped.safetensors", build_model(config, COCO17), config)


def begun(folder: Path) -> None:
    """new/: a run that stopped, whose teacher had other weights than run/ has now."""
    import torch

    from lowpose.checkpoint import STATE
    from lowpose.recipe_files import load_config
    from lowpose.training import train

    config = load_config(folder / "recipe.yaml", ["teacher=run", "distill.cca.weight=1"])
    state = train(config, folder / "new", stop_after=1) / STATE
    values = torch.load(state, weights_only=True)
    values["teaching"]["teacher"] = "of another file"
    torch.save(values, state)


def together(*steps: Callable[[Path], None]) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        for step in steps:
            step(folder)

    return prepare


def full_disk(name: str) -> Callable[[Any], None]:
    """As a disk that is full when the content of a file that begins so is brought to it."""
    bring = os.fsync

    def fsync(descriptor: int) -> None:
        if Path(os.readlink(f"/proc/self/fd/{descriptor}")).name.startswith(name):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        bring(descriptor)

    return lambda monkeypatch: monkeypatch.setattr(os, "fsync", fsync)


def full_cache(monkeypatch) -> None:
    def save(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "save", save)


def no_permission(monkeypatch) -> None:
    """As a folder of another user (root, whom tests may run as, may write everywhere)."""

    def refuse(path: Path, *args: Any, **kwargs: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr(Path, "touch", refuse)


def offline(monkeypatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("lowpose.nn.backbones.timm_features.getproxies", dict)
    monkeypatch.setattr("lowpose.nn.backbones.timm_features.try_to_load_from_cache", lambda *a: None)
    monkeypatch.setattr(urllib.request, "getproxies", dict)


def no_detector(monkeypatch) -> None:
    """As offline, without torchvision's cache."""
    import torch

    offline(monkeypatch)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: "nowhere")
    monkeypatch.setattr(os, "makedirs", lambda *args, **kwargs: None)


def explode(step: int) -> Callable[[Any], None]:
    """The loss of this step (from 1) is NaN."""

    def patch(monkeypatch) -> None:
        train = importlib.import_module("lowpose.training")
        compute, calls = train.compute_loss, []

        def wrong(*args: Any):
            calls.append(1)
            terms = compute(*args)
            nan = float("nan") if len(calls) == step else 1.0
            return {name: term._replace(total=term.total * nan) for name, term in terms.items()}

        monkeypatch.setattr(train, "compute_loss", wrong)

    return patch
