"""Readers of pictures in classes: folders, CIFAR-10's binary version and TinyImageNet as published; what is wrong with them."""

from __future__ import annotations

import pickle

import cv2
import numpy as np
import pytest

from lowpose.data import find_reader, load_data, parse_source
from lowpose.data.classes import load_classes
from lowpose.errors import LowposeError


def pictures(n: int, size: int = 32, seed: int = 0) -> np.ndarray:
    """(n, size, size, 3) uint8 RGB of noise."""
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), np.uint8)


def write(path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), picture[..., ::-1])


def labelled(data) -> list[tuple[str, str]]:
    return [(s.image, data.classes[s.label]) for s in data.samples]


@pytest.fixture
def birds(tmp_path):
    """Two training pictures of three classes each; the validation split lacks one class."""
    for i, picture in enumerate(pictures(6, 8)):
        write(tmp_path / "train" / ("wren", "Rook", "jay")[i % 3] / f"{i}.png", picture)
    for i, name in enumerate(("wren", "jay")):
        write(tmp_path / "val" / name / "a.bmp", pictures(2, 8, seed=1)[i])
    return tmp_path


def test_folders(birds):
    data = load_classes("folder", birds)
    assert data.classes == ("Rook", "jay", "wren")  # in the order of their names
    assert (data.kind, data.split, data.root, len(data)) == ("folder", "train", str(birds), 6)
    named = [("train/Rook/1.png", "Rook"), ("train/Rook/4.png", "Rook"), ("train/jay/2.png", "jay"), ("train/jay/5.png", "jay")]
    assert labelled(data) == [*named, ("train/wren/0.png", "wren"), ("train/wren/3.png", "wren")]
    assert np.array_equal(data.read("train/jay/5.png"), pictures(6, 8)[5])


def test_the_classes_of_every_split_are_those_of_train(birds):
    data = load_classes("folder", birds, "val")
    assert data.classes == ("Rook", "jay", "wren")
    assert labelled(data) == [("val/jay/a.bmp", "jay"), ("val/wren/a.bmp", "wren")] and [s.label for s in data.samples] == [1, 2]
    (birds / "train").rename(birds / "fit")
    assert load_classes("folder", birds, "val").classes == ("jay", "wren")


def test_what_is_hidden_or_no_picture_is_left_out(birds):
    before = labelled(load_classes("folder", birds))
    (birds / "train" / ".ipynb_checkpoints").mkdir()
    (birds / "train" / "jay" / "._2.png").write_bytes(b"what some systems put beside a file")
    (birds / "train" / "jay" / "notes.txt").write_text("blue")
    (birds / "train" / "list.txt").write_text("jay")
    data = load_classes("folder", birds)
    assert labelled(data) == before and data.classes == ("Rook", "jay", "wren")


def cifar(root, files: dict[str, list[int]]) -> np.ndarray:
    """Batches of pictures with these labels, as the published description says: label, red, green, blue plane, row by row."""
    made = pictures(sum(map(len, files.values())))
    rest = iter(made)
    for name, labels in files.items():
        rows = []
        for label in labels:
            picture = next(rest)
            planes = [[picture[y, x, c] for y in range(32) for x in range(32)] for c in range(3)]
            rows.append(bytes([label, *planes[0], *planes[1], *planes[2]]))
        (root / name).write_bytes(b"".join(rows))
    return made


CIFAR = {f"data_batch_{i}.bin": [i, 9 - i] for i in range(1, 6)} | {"test_batch.bin": [0, 9, 3]}


def test_cifar_10(tmp_path):
    made = cifar(tmp_path, CIFAR)
    train, test = (load_classes("cifar-10", tmp_path, split) for split in ("train", "test"))
    assert train.classes == ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    assert [s.label for s in train.samples] == [1, 8, 2, 7, 3, 6, 4, 5, 5, 4] and [s.label for s in test.samples] == [0, 9, 3]
    for i, sample in enumerate([*train.samples, *test.samples]):
        found = (train if i < 10 else test).read(sample.image)
        assert found.dtype == np.uint8 and found.flags.c_contiguous and np.array_equal(found, made[i]), i
    assert len({s.image for s in train.samples}) == 10


TINY = ["n02", "n01"]  # wnids.txt is in no order


@pytest.fixture
def tiny_imagenet(tmp_path):
    (tmp_path / "wnids.txt").write_text("\n".join(TINY) + "\n")
    for name in TINY:
        for i in range(2):
            path = tmp_path / "train" / name / "images" / f"{name}_{i}.JPEG"
            write(path, np.full((64, 64, 3), 40 * (1 + i), np.uint8))
        (tmp_path / "train" / name / f"{name}_boxes.txt").write_text(f"{name}_0.JPEG\t0\t0\t63\t63\n")
    lines = [f"val_{i}.JPEG\t{TINY[i % 2]}\t0\t32\t44\t62\n" for i in (2, 0, 1)]
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "val_annotations.txt").write_text("".join(lines))
    for i in range(3):
        write(tmp_path / "val" / "images" / f"val_{i}.JPEG", np.full((64, 64, 3), 10 * i, np.uint8))
    return tmp_path


def test_tiny_imagenet(tiny_imagenet):
    train, val = (load_classes("tiny-imagenet", tiny_imagenet, split) for split in ("train", "val"))
    assert train.classes == val.classes == ("n01", "n02")
    assert labelled(train) == [(f"train/{n}/images/{n}_{i}.JPEG", n) for n in ("n01", "n02") for i in (0, 1)]
    assert labelled(val) == [(f"val/images/val_{i}.JPEG", TINY[i % 2]) for i in (0, 1, 2)]
    assert [int(val.read(s.image).mean().round()) for s in val.samples] == [0, 10, 20]


def test_the_root_is_data_kind_unless_it_is_given(birds, monkeypatch):
    monkeypatch.chdir(birds)
    with pytest.raises(LowposeError, match=r"^data/folder: no such folder \(root of the folder data\)$"):
        load_classes("folder")
    (birds / "data").mkdir()
    (birds / "train").rename(birds / "data" / "folder")
    with pytest.raises(LowposeError, match="^data/folder/train: no such split; known: Rook, jay, wren$"):
        load_classes("folder")


WORLDS = {"folder": "birds", "cifar-10": "tmp_path", "tiny-imagenet": "tiny_imagenet"}


@pytest.mark.parametrize("kind", WORLDS)
def test_workers_that_are_no_forks_can_read(kind, request):
    """The data go to them by pickle, without the pictures."""
    root = request.getfixturevalue(WORLDS[kind])
    cifar(root, CIFAR)
    data = load_classes(kind, root)
    packed = pickle.dumps(data)
    again = pickle.loads(packed)
    assert len(packed) < 3000 and again.samples == data.samples
    assert all(np.array_equal(again.read(s.image), data.read(s.image)) for s in data.samples)


def spoil(root, kind: str, what: str) -> None:
    if kind == "folder":
        {
            "no classes": lambda: [(root / "val" / n).rename(root / n) for n in ("wren", "jay")],
            "no pictures": lambda: [path.unlink() for path in root.glob("val/*/*")],
            "class of its own": lambda: (root / "val" / "wren").rename(root / "val" / "wen"),
            "class of its own, like none": lambda: (root / "val" / "wren").rename(root / "val" / "owl"),
        }.get(what, lambda: None)()
    elif kind == "cifar-10":
        cifar(root, CIFAR | ({"data_batch_3.bin": [3, 10]} if what == "label" else {}))
        path = root / "data_batch_2.bin"
        data = path.read_bytes()
        change = {"missing": None, "truncated": data[:-1], "empty": b""}.get(what, data)
        path.unlink() if change is None else path.write_bytes(change)
    else:
        notes = root / "val" / "val_annotations.txt"
        {
            "missing": lambda: (root / "wnids.txt").unlink(),
            "not text": lambda: (root / "wnids.txt").write_bytes(b"n01\n\xff\xfe\n"),
            "class": lambda: notes.write_text(notes.read_text().replace("val_0.JPEG\tn02", "val_0.JPEG\tn03")),
            "columns": lambda: notes.write_text("val_0.JPEG\n"),
            "folder": lambda: (root / "train" / "n01").rename(root / "n01"),
        }.get(what, lambda: None)()


@pytest.mark.parametrize(
    ("kind", "split", "what", "answer"),
    [
        ("folder", "vall", "", "{root}/vall: no such split; did you mean 'val'?"),
        ("folder", "val", "no classes", "{root}/val: expected a folder for each class"),
        ("folder", "val", "no pictures", "folder:{root}: split 'val' has no pictures"),
        ("folder", "val", "class of its own", "{root}/val/wen: no class of {root}/train; did you mean 'wren'?"),
        (
            "folder",
            "val",
            "class of its own, like none",
            "{root}/val/owl: no class of {root}/train; known: Rook, jay, wren",
        ),
        ("cifar-10", "val", "", "{root}: CIFAR-10 has the splits 'train' and 'test', not 'val'"),
        (
            "cifar-10",
            "train",
            "missing",
            "{root}/data_batch_2.bin: no such file; CIFAR-10 is read in its binary version (see: lowpose data get cifar-10)",
        ),
        *(
            (
                "cifar-10",
                "train",
                what,
                "{root}/data_batch_" + file + ".bin: not a batch of CIFAR-10's binary version (rows of 3073 bytes that begin "
                "with a class, 0 to 9)",
            )
            for what, file in (("truncated", "2"), ("empty", "2"), ("label", "3"))
        ),
        ("tiny-imagenet", "test", "", "{root}: TinyImageNet has labels for 'train' and 'val', not for 'test'"),
        ("tiny-imagenet", "val", "missing", "{root}/wnids.txt: no such file"),
        ("tiny-imagenet", "val", "not text", "{root}/wnids.txt: not UTF-8 text"),
        (
            "tiny-imagenet",
            "val",
            "class",
            "{root}/val/val_annotations.txt, line 2: 'n03' is no class of wnids.txt; did you mean 'n02'?",
        ),
        (
            "tiny-imagenet",
            "val",
            "columns",
            "{root}/val/val_annotations.txt, line 1: '' is no class of wnids.txt; known: n01, n02",
        ),
        ("tiny-imagenet", "train", "folder", "{root}/train/n01/images: no such folder of a class"),
    ],
)
def test_what_is_wrong_is_named(kind, split, what, answer, request):
    root = request.getfixturevalue(WORLDS[kind])
    spoil(root, kind, what)
    with pytest.raises(LowposeError) as error:
        load_classes(kind, root, split)
    assert str(error.value) == answer.format(root=root)


def test_readers_of_poses_and_of_classes_are_told_apart(tmp_path):
    with pytest.raises(LowposeError, match="^unknown data 'foldr'; did you mean 'folder'"):
        load_classes("foldr", tmp_path)
    with pytest.raises(LowposeError) as error:
        load_classes("coco", tmp_path)
    read = "pictures in classes (task: classification)"
    assert str(error.value) == f"'coco' data hold poses; {read} are read by cifar-10, folder, tiny-imagenet"
    with pytest.raises(LowposeError) as error:
        load_data("cifar-10", tmp_path)
    assert str(error.value) == f"'cifar-10' data hold {read}; poses are read by coco, crowdpose, lsp, mpii, synthetic"
    assert parse_source("folder:a:b", "classes") == ("folder", "a:b")
    with pytest.raises(LowposeError, match="'folder' data hold pictures in classes"):
        parse_source("folder:a")
    assert find_reader("classes", "tiny-imagenet").summary.startswith("TinyImageNet as published")


@pytest.mark.photographs
def test_the_photographs_are_read(shared):
    train, test = (load_classes("folder", shared / "cifar-10-subset", split) for split in ("train", "test"))
    assert (len(train), len(test)) == (5000, 1000)
    assert train.classes == test.classes and len(train.classes) == 10 and train.classes[::9] == ("airplane", "truck")
    assert all(len([s for s in data.samples if s.label == i]) > 80 for data in (train, test) for i in range(10))
    assert test.read(test.samples[-1].image).shape == (32, 32, 3)
