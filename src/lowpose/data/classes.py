"""Pictures in classes, for `task: classification`. `load_classes("cifar-10", root, "test")` gives one split.

| kind | layout under its root |
|---|---|
| folder | SPLIT/CLASS/*.png (or any other kind of picture): the classes of `train`, in the order of their names |
| cifar-10 | its binary version, as published: data_batch_1.bin to data_batch_5.bin (train) and test_batch.bin (test) |
| tiny-imagenet | as published: train/CLASS/images/*.JPEG, val/images/*.JPEG and val/val_annotations.txt, wnids.txt |

A. Krizhevsky, Learning multiple layers of features from tiny images, 2009 (CIFAR-10: 10 classes of 32 x 32 pixels).
Y. Le and X. Yang, Tiny ImageNet visual recognition challenge, 2015 (200 classes of 64 x 64 pixels; its test split has no
labels, so figures are of `val`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from lowpose.data import find_reader
from lowpose.errors import LowposeError, did_you_mean
from lowpose.images import SUFFIXES, read_image
from lowpose.registry import register
from lowpose.samples import ClassData, PictureSample

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
ROW = 3073  # bytes of a picture in CIFAR-10's binary version


def load_classes(kind: str, root: str | Path | None = None, split: str = "train") -> ClassData:
    """One split of pictures in classes; pictures in the order of their paths.

    Args: kind: registered reader. root: its folder, default data/KIND.
    Raises: LowposeError for an unknown kind, a missing folder or split, a class without name in `train`, no pictures.
    """
    entry = find_reader("classes", kind)
    folder = Path(root) if root is not None else Path("data") / kind
    if not folder.is_dir():
        raise LowposeError(f"{folder}: no such folder (root of the {kind} data)")
    classes, samples, read = entry.make(folder, split)
    if not samples:
        raise LowposeError(f"{kind}:{folder}: split '{split}' has no pictures")
    return ClassData(kind, split, str(folder), classes, samples, read)


def _read(root: Path, key: str) -> np.ndarray:
    return read_image(root / key)


Split = tuple[tuple[str, ...], list[PictureSample], Callable[[str], np.ndarray]]  # classes, samples, and how to read one


@register("classes", "folder")
def folder(root: Path, split: str) -> Split:
    """Pictures in folders, one for each class: ROOT/SPLIT/CLASS/*.png; hidden files and folders are none."""
    classes = tuple(_names(_split(root, "train" if (root / "train").is_dir() else split)))
    own = _names(_split(root, split))
    for name in own:
        if name not in classes:
            raise LowposeError(f"{root / split / name}: no class of {root / 'train'}{did_you_mean(name, classes)}")
    return classes, _samples(root, {f"{split}/{name}": classes.index(name) for name in own}), partial(_read, root)


@register("classes", "cifar-10")
def cifar10(root: Path, split: str) -> Split:
    """CIFAR-10 in its binary version: ROOT/data_batch_1.bin to data_batch_5.bin (train) and test_batch.bin (test)."""
    files = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
    if split not in files:
        raise LowposeError(f"{root}: CIFAR-10 has the splits 'train' and 'test', not '{split}'")
    batches = {name: _labels(root / name) for name in files[split]}
    samples = [PictureSample(f"{name}#{i}", int(label)) for name, labels in batches.items() for i, label in enumerate(labels)]
    return CIFAR10, samples, partial(_read_row, root)


def _read_row(root: Path, key: str) -> np.ndarray:
    """A row is a label, then red, green and blue planes of 32 x 32."""
    name, _, i = key.rpartition("#")
    row = np.fromfile(root / name, np.uint8, ROW, offset=int(i) * ROW)
    return np.ascontiguousarray(row[1:].reshape(3, 32, 32).transpose(1, 2, 0))


def _labels(path: Path) -> np.ndarray:
    """(N,) uint8."""
    if not path.is_file():
        raise LowposeError(f"{path}: no such file; CIFAR-10 is read in its binary version (see: lowpose data get cifar-10)")
    rows = np.fromfile(path, np.uint8)
    if len(rows) == 0 or len(rows) % ROW or rows[::ROW].max() >= len(CIFAR10):
        raise LowposeError(
            f"{path}: not a batch of CIFAR-10's binary version (rows of {ROW} bytes that begin with a class, 0 to 9)"
        )
    return rows[::ROW].copy()


@register("classes", "tiny-imagenet")
def tiny_imagenet(root: Path, split: str) -> Split:
    """TinyImageNet as published: 200 classes, `train` of 500 pictures each and `val` of 50."""
    classes = tuple(sorted(_lines(root / "wnids.txt")))
    if split == "train":
        return classes, _samples(root, {f"train/{name}/images": i for i, name in enumerate(classes)}), partial(_read, root)
    if split != "val":
        raise LowposeError(f"{root}: TinyImageNet has labels for 'train' and 'val', not for '{split}'")
    path, samples = root / "val" / "val_annotations.txt", []
    for number, line in enumerate(_lines(path), 1):
        picture, name, *_ = [*line.split("\t"), ""]
        if name not in classes:
            raise LowposeError(f"{path}, line {number}: '{name}' is no class of wnids.txt{did_you_mean(name, classes)}")
        samples.append(PictureSample(f"val/images/{picture}", classes.index(name)))
    return classes, sorted(samples, key=lambda s: s.image), partial(_read, root)


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise LowposeError(f"{path}: no such file")
    try:
        return [line for line in path.read_text("utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise LowposeError(f"{path}: not UTF-8 text") from None


def _split(root: Path, split: str) -> Path:
    path = root / split
    if not path.is_dir():
        known = sorted(p.name for p in root.iterdir() if p.is_dir())
        raise LowposeError(f"{path}: no such split{did_you_mean(split, known)}")
    return path


def _names(path: Path) -> list[str]:
    names = sorted(p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise LowposeError(f"{path}: expected a folder for each class")
    return names


def _samples(root: Path, folders: dict[str, int]) -> list[PictureSample]:
    samples = []
    for folder, label in folders.items():
        if not (root / folder).is_dir():
            raise LowposeError(f"{root / folder}: no such folder of a class")
        names = sorted(p.name for p in (root / folder).iterdir() if p.suffix.lower() in SUFFIXES)
        samples += [PictureSample(f"{folder}/{name}", label) for name in names if not name.startswith(".")]
    return samples
