"""Wrong input gives one line that names the thing, exit code 2, and nothing left behind."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import bad_input_world as world
import numpy as np
import pytest
from bad_input_cases import ANSWERS, CASES, PAGE, ROWS, page

import lowpose
from lowpose.cli import main
from lowpose.errors import LowposeError


@pytest.fixture(scope="session")
def good(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    world.build(folder)
    shutil.rmtree(folder / "run" / "tensorboard")
    return folder


@pytest.fixture
def here(good, tmp_path, monkeypatch) -> Path:
    """A copy of the good world, and the current folder."""
    folder = tmp_path / "world"
    shutil.copytree(good, folder)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    return folder


def tree(folder: Path) -> dict[str, str]:
    """Every path under a folder with what it holds; folders end in a slash."""
    found = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        found[name if path.is_file() else f"{name}/"] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
    return found


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in before | after if before.get(name) != after.get(name)}


def allowed(name: str, leaves: tuple[str, ...]) -> bool:
    """Whether a new path is one that the case may leave, or a folder of one."""
    return any(fits(pattern, name) or (name.endswith("/") and pattern.startswith(name)) for pattern in leaves)


def fits(pattern: str, text: str) -> bool:
    return re.fullmatch(re.escape(pattern).replace(re.escape("..."), ".*"), text) is not None


def run(command: str, monkeypatch, capfd) -> tuple[object, list[str]]:
    """Exit code and lines on standard error of a command line, with the warnings that Python would show."""
    monkeypatch.setattr(sys, "argv", shlex.split(command))
    monkeypatch.setattr(logging.root, "handlers", [])  # pytest's, beside which the command's own would not be set up
    capfd.readouterr()
    with warnings.catch_warnings(record=True) as caught:
        warnings.resetwarnings()
        for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", category)
        with pytest.raises(SystemExit) as end:
            main()
    return end.value.code, capfd.readouterr().err.splitlines() + [f"warning of Python: {w.message}" for w in caught]


def test_there_are_enough_cases():
    wrong = [case.wrong for case in ROWS]
    assert len(set(wrong)) == len(wrong) >= 40
    assert set(ANSWERS) == set(wrong)
    assert all(len(answer.replace("...", "")) > 15 for answer in ANSWERS.values()), "an answer must say something"


@pytest.mark.parametrize("case", ROWS, ids=lambda case: case.wrong.replace(" ", "-"))
def test_answer(case, here, monkeypatch, capfd):
    case.prepare(here)
    before = tree(here)
    with monkeypatch.context() as patched:
        case.patch(patched)
        if case.command.startswith(">>> "):
            with pytest.raises(LowposeError) as error:
                evaluate(case.command.removeprefix(">>> "))
            answer = str(error.value)
        else:
            code, lines = run(case.command, patched, capfd)
            assert (code, len(lines)) == (2, 1), lines
            assert lines[0].startswith("error: ")
            answer = lines[0].removeprefix("error: ")
    assert fits(ANSWERS[case.wrong], answer), answer
    left = {name for name in changed(before, tree(here)) if not allowed(name, case.leaves)}
    assert not left, "nothing may be left behind"


def evaluate(text: str) -> object:
    from lowpose.export import export_onnx
    from lowpose.loader import TrainingOrder

    return eval(text, {"lowpose": lowpose, "np": np, "export_onnx": export_onnx, "TrainingOrder": TrainingOrder})


def test_page():
    if not PAGE.parent.is_dir():
        pytest.skip("no docs beside the tests")
    assert PAGE.read_text() == page(), "python tests/bad_input_cases.py writes it"
    assert all(f"## {group}" in page() for group in CASES)


def test_training_skips_and_counts_broken_pictures(here, monkeypatch, capfd):
    world.truncate("coco/images/3.jpg")(here)
    world.remove("coco/images/5.jpg")(here)
    code, lines = run(
        "lowpose train recipe.yaml data.kind=coco data.root=coco data.options={} train.lr=1e-4 --out new", monkeypatch, capfd
    )
    assert code == 0
    assert lines == [
        "warning: 2 pictures could not be read and were skipped; the first: coco/images/3.jpg: truncated picture",
        "warning: 2 pictures could not be read; the card names them",
    ]
    card = json.loads((here / "new/card.json").read_text())
    named = ["coco/images/3.jpg: truncated picture", "coco/images/5.jpg: no such file or directory"]
    assert card["skipped_in_training"] == named  # in training
    assert card["skipped_pictures"] == named  # in the evaluation


def test_predict_names_a_broken_picture_and_goes_on(here, monkeypatch, capfd):
    world.truncate("pictures/a.jpg")(here)
    code, lines = run("lowpose predict pictures --weights run --out poses", monkeypatch, capfd)
    assert code == 0
    assert lines == ["warning: pictures/a.jpg: truncated picture", "warning: 1 could not be read; they are named above"]
    assert {row["image_id"] for row in json.loads((here / "poses/results.json").read_text())} == {"b.jpg"}
    assert changed(tree(here), {}) >= {"poses/b.jpg", "poses/results.json"}
    assert not (here / "poses/a.jpg").exists()


def test_loss_that_becomes_nan_keeps_a_state_that_can_be_resumed(here, monkeypatch, capfd):
    with monkeypatch.context() as patched:
        world.explode(2)(patched)
        assert run("lowpose train recipe.yaml --out new", patched, capfd)[0] == 2
    assert run("lowpose train recipe.yaml --out new --resume", monkeypatch, capfd) == (0, [])
    assert (here / "new/weights.safetensors").read_bytes() == (here / "run/weights.safetensors").read_bytes()


def limited(size: int):
    """Files end after `size` bytes, as on a disk that becomes full in the middle of one."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize(
    ("command", "answer", "limit"),
    [
        (
            "train recipe.yaml train.epoch=1 --out new",
            "error: recipe.yaml: unknown key 'train.epoch'; did you mean 'epochs'?",
            None,
        ),
        ("train recipe.yaml --out new", "error: new/state.pt: cannot be written; is the disk full? (...)", 1_000_000),
        ("train recipe.yaml train.save_every=100 --stop-after 1 --out new", "error: new/state.pt: ...", 100_000),
    ],
)
def test_as_a_program(command, answer, limit, here):
    result = subprocess.run(
        [sys.executable, "-m", "lowpose", *shlex.split(command)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        preexec_fn=limited(limit) if limit else None,
    )
    lines = result.stderr.splitlines()
    assert result.returncode == 2
    assert len(lines) == 1 and fits(answer, lines[0]), lines
    assert not list(here.rglob("*.part*")), "no temporary files"
    assert not (here / "new/state.pt").exists()
