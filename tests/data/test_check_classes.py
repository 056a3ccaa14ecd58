"""`data check` of pictures in classes: every kind of problem is found in a data set that has it."""

from __future__ import annotations

import io
import json
from collections import Counter

import cv2
import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from lowpose.cli import app
from lowpose.data.check_classes import KINDS, check_classes, print_report
from lowpose.errors import LowposeError


def noise(seed: int, width: int = 6, height: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def write(path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), picture)


@pytest.fixture
def root(tmp_path):
    """Two pictures of 'a', one of 'b', three of 'c'."""
    for i, name in enumerate("aabccc"):
        write(tmp_path / "train" / name / f"{i}.png", noise(i))
    return tmp_path


def test_a_good_data_set(root):
    report = check_classes("folder", root)
    assert report.ok and report.problems == [] and report.decoded
    assert report.classes == {"a": 2, "b": 1, "c": 3} and report.pictures == 6
    assert report.sizes == {(6, 4): 6}
    write(root / "train" / "a" / "wide.png", noise(9, 9, 4))
    assert list(check_classes("folder", root).sizes.items()) == [((6, 4), 6), ((9, 4), 1)]


PROBLEMS = {
    "broken-picture": (lambda train: (train / "b/2.png").write_bytes(b""), "train/b/2.png", "{}: the file is empty"),
    "blank-picture": (
        lambda train: write(train / "c/9.png", np.full((4, 6, 3), (7, 8, 9), np.uint8)),
        "train/c/9.png",
        "{}: all pixels are the same",
    ),
    "two-classes": (  # the same pixels in another kind of file
        lambda train: write(train / "c/0.bmp", noise(0)),
        "train/c/0.bmp",
        "{}: the same picture as train/a/0.png",
    ),
    "twice": (lambda train: write(train / "c/9.png", noise(4)), "train/c/9.png", "{}: the same picture as train/c/4.png"),
}


@pytest.mark.parametrize("kind", PROBLEMS)
def test_pictures(root, kind):
    spoil, image, message = PROBLEMS[kind]
    spoil(root / "train")
    report = check_classes("folder", root)
    assert report.counts == {kind: 1} and report.ok == (kind == "twice")
    (problem,) = report.problems
    assert problem.image == image and problem.message.endswith(message.format(image))
    assert sum(report.sizes.values()) == report.pictures - (kind == "broken-picture")
    counted = check_classes("folder", root, decode=False)
    assert counted.ok and counted.counts == {} and counted.sizes == {} and counted.classes == report.classes


def test_pictures_of_another_shape_are_others(root):
    """The same bytes as 6 x 4 and as 4 x 6 pixels."""
    write(root / "train/b/turned.png", noise(0).reshape(6, 4, 3))
    assert check_classes("folder", root).ok


def test_each_picture_is_told_once(root):
    """The third of a kind stands in two classes: that is the problem, not that it stands twice in its own."""
    for path in ("b/0.png", "b/1.png", "a/9.png"):
        write(root / "train" / path, noise(0))
    report = check_classes("folder", root)
    assert Counter((p.kind, p.image) for p in report.problems) == {
        ("twice", "train/a/9.png"): 1,
        ("two-classes", "train/b/0.png"): 1,
        ("two-classes", "train/b/1.png"): 1,
    }


def test_classes_without_a_picture(root):
    write(root / "val/a/0.png", noise(7))
    report = check_classes("folder", root, "val")
    assert report.classes == {"a": 1, "b": 0, "c": 0} and report.counts == {"empty-class": 2} and not report.ok
    assert report.problems[0].message == "class 'b' has no picture in split 'val'"


def test_nothing_to_read_is_an_error(root):
    with pytest.raises(LowposeError, match="no such folder"):
        check_classes("folder", root / "none")
    with pytest.raises(LowposeError, match="'coco' data hold poses"):
        check_classes("coco", root)


def printed(report, width: int = 100) -> list[str]:
    out = io.StringIO()
    print_report(report, Console(file=out, width=width), examples=1)
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_printed_report(root):
    for path, seed in (("c/0.png", 0), ("b/1.png", 1), ("c/9.png", 4)):
        write(root / "train" / path, noise(seed))
    lines = printed(check_classes("folder", root))
    assert lines[0] == f"folder:{root}, split train: 9 pictures of 3 classes"
    assert [line.split() for line in lines[1:5]] == [["class", "pictures"], ["a", "2"], ["b", "2"], ["c", "5"]]
    assert lines[5:] == [
        "sizes, width x height (pictures): 6x4 (9)",
        f"2 {KINDS['two-classes']}",
        "  train/b/1.png: the same picture as train/a/1.png",
        "  ... and 1 more",
        f"1 {KINDS['twice']}",
    ]


def test_of_many_classes_the_least_and_the_most_frequent_are_printed(tmp_path):
    for i in range(25):
        for k in range(1 + i):
            (tmp_path / f"train/{i:02d}").mkdir(parents=True, exist_ok=True)
            (tmp_path / f"train/{i:02d}/{k}.png").touch()
    lines = printed(check_classes("folder", tmp_path, decode=False))
    shown = [f"{i:02d} {i + 1}" for i in (*range(10), *range(15, 25))]
    assert [" ".join(line.split()) for line in lines[2:23]] == [*shown[:10], "...", *shown[10:]]
    assert lines[23:] == ["pictures were counted, not read", "no problems found"]


def test_the_verb(root):
    write(root / "train/c/0.png", noise(0))
    result = CliRunner().invoke(app, ["data", "check", f"folder:{root}", "--json"])
    found = json.loads(result.stdout)
    assert found["classes"] == {"a": 2, "b": 1, "c": 4} and found["sizes"] == {"6x4": 7} and found["ok"] is False
    assert found["problems"] == [
        {"kind": "two-classes", "message": "train/c/0.png: the same picture as train/a/0.png", "image": "train/c/0.png"}
    ]
    assert CliRunner().invoke(app, ["data", "check", f"folder:{root}"]).stdout.count("7 pictures of 3 classes") == 1
