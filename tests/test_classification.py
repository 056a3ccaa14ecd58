"""Classification through the same loop: training, resuming, measuring, carrying weights over, comparing."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from sorting import CLASSES, sorting, write_pictures
from test_resume import CHILD, same, start, steps
from tiny import tiny

from lowpose.checkpoint import initialise, load_model, load_state, pack_weights, read_weights, save_weights
from lowpose.cli import main
from lowpose.comparison import compare
from lowpose.config import dump_config
from lowpose.errors import LowposeError
from lowpose.evaluation import evaluate
from lowpose.nn.classifier import build_classifier
from lowpose.nn.model import build_model
from lowpose.skeletons import COCO17
from lowpose.training import Run, train, training_loader


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Twelve training and six validation pictures of three classes."""
    return write_pictures(tmp_path_factory.mktemp("drawn"))


@pytest.fixture(scope="module")
def run(drawn, tmp_path_factory):
    """A trained run, by the command."""
    folder = tmp_path_factory.mktemp("command")
    (folder / "sorting.yaml").write_text(dump_config(sorting(drawn, eval={"flip": True}, train={"eval_every": 1})))
    words = ["train", str(folder / "sorting.yaml"), "--out", str(folder / "run")]
    with pytest.MonkeyPatch.context() as patched, pytest.raises(SystemExit) as end:
        patched.setattr(sys, "argv", ["lowpose", *words])
        main()
    assert end.value.code == 0
    return folder / "run"


@pytest.mark.parametrize(
    "model",
    [{"backbone": "test_resnet"}, {"backbone": "resnet18", "stem": "small", "downsampling": "mgil"}],
    ids=["own stem", "small stem, mgil"],
)
def test_every_parameter_learns(drawn, tmp_path, model):
    """Three steps without weight decay change all of them, and no other numbers than the norms' statistics."""
    config = sorting(drawn, input={"size": [16, 16]}, model={**model, "pretrained": "none"}, train={"lr": 0.1})
    run = Run(config, tmp_path / "run")
    before = {k: v.clone() for k, v in run.bare.state_dict().items()}
    run.order.total = 3
    run._set_training()
    for batch in training_loader(run.reader, run.order, 0, False):
        run._step(batch)
        run.step += 1
    known = {id(p) for group in run.optimizer.param_groups for p in group["params"]}
    for name, p in run.bare.named_parameters():
        assert id(p) in known and not torch.equal(p, before[name]), name


def test_the_logged_loss_is_that_of_numpy(drawn, tmp_path):
    """The sum of cross-entropies over the pictures that could be read, by their number."""
    run = Run(sorting(drawn, head={"smoothing": 0.1}, train={"freeze_bn": True}), tmp_path)
    run.order.total = 1
    (batch,) = training_loader(run.reader, run.order, 0, False)
    batch.weight[[1, 4]] = 0
    run._set_training()
    logits = run.bare(batch.images)["logits"].detach().double().numpy()
    targets = 0.9 * np.eye(3)[batch.labels] + 0.1 / 3
    each = -(targets * (logits - np.log(np.exp(logits).sum(1, keepdims=True)))).sum(1)
    values, _ = run._step(batch)
    assert values["loss"] == pytest.approx(each[[0, 2, 3, 5]].mean(), rel=1e-5)
    assert values["cross_entropy"] == values["loss"]


def test_two_classes_are_learned_by_heart(tmp_path):
    root = write_pictures(tmp_path / "drawn", 16, 4, ("bars", "disc"))
    flat = {"flip": 0.0, "shift": 0.0}
    train_it = {"epochs": 12, "batch_size": 16, "optimizer": "adamw", "lr": 5e-3, "schedule": "onecycle"}
    folder = train(sorting(root, augment=flat, train=train_it), tmp_path / "run")
    card = evaluate(folder, split="train", bootstrap=0)
    assert card["metrics"]["top-1"]["value"] == 100 and card["metrics"]["top-1"]["n"] == 32


RESUMED = {"epochs": 6, "schedule": "onecycle", "ema": 0.9, "weight_decay": 0.01, "clip": 1.0}


def test_killed_and_resumed_ends_with_the_same_bits(drawn, tmp_path):
    """With dropout, whose random numbers go on where they were, and views that are drawn anew in every epoch."""
    config = sorting(drawn, train=RESUMED, head={"dropout": 0.3})
    killed, whole = tmp_path / "killed", train(config, tmp_path / "whole")
    process = start(CHILD, config, killed)
    deadline = time.monotonic() + 120
    while process.poll() is None and max(steps(killed), default=0) < 7 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, process.stderr.read().decode()[-2000:]
    assert load_state(killed)["step"] in (3, 6, 9) and not (killed / "weights.safetensors").exists()
    train(config, killed, resume=True)
    assert steps(killed) == list(range(1, 13))
    same(killed, whole)


def by_hand(folder, root, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (flip test included) and labels of a split, read with Pillow and listed by name."""
    model, _ = load_model(folder, task=None)
    paths = [path for name in CLASSES for path in sorted((root / split / name).iterdir())]
    pictures = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    with torch.no_grad():
        both = [torch.softmax(model(x)["logits"], 1) for x in (images, images.flip(-1))]
    return (sum(both) / 2).numpy(), np.array([CLASSES.index(path.parent.name) for path in paths])


def test_a_run_and_its_card(run, drawn):
    card, text = json.loads((run / "card.json").read_text()), (run / "card.md").read_text()
    probabilities, labels = by_hand(run, drawn, "val")
    right = probabilities.argmax(1) == labels
    assert list(card["metrics"]) == ["top-1"]
    assert card["metrics"]["top-1"]["value"] == pytest.approx(100 * right.mean()) and card["metrics"]["top-1"]["n"] == 6
    assert card["groups"]["top-1"] == {name: pytest.approx(100 * right[labels == i].mean()) for i, name in enumerate(CLASSES)}
    assert card["measured_on"] == {"kind": "folder", "split": "val", "pictures": 6, "classes": 3}
    assert card["flip_test"] is True and card["cost"]["params"] == 372_688 + 96 * 3 + 3 and "convention" not in card
    assert str(drawn) not in json.dumps(card) and "boxes" not in text and "Coordinates" not in text and "persons" not in text
    assert "6 pictures of 3 classes" in text and "95% interval over pictures" in text and "| disc | " in text
    saved = np.load(run / "predictions.npz")
    assert np.allclose(saved["probabilities"], probabilities, atol=1e-5) and saved["classes"].tolist() == list(CLASSES)
    assert saved["images"].tolist() == [f"val/{name}/{i}.png" for name in CLASSES for i in range(2)]
    names = {"recipe.yaml", "metrics.jsonl", "state.pt", "weights.safetensors", "learning_curve.png", "card.md"}
    assert names <= {path.name for path in run.iterdir()}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [set(line["val"]) for line in lines if "val" in line] == [{"top-1"}] * 3
    assert lines[-1]["val"]["top-1"] == pytest.approx(100 * right.mean())


def test_measured_elsewhere(run, drawn, tmp_path):
    card = evaluate(run, split="train", out=tmp_path, overrides=["eval.flip=false"], bootstrap=0)
    assert card["measured_on"]["pictures"] == 12 and card["flip_test"] is False
    assert (tmp_path / f"card-folder-{drawn.name}-train-eval.flip-false.json").is_file()
    broken = shutil.copytree(drawn, tmp_path / "broken")
    (broken / "val" / "disc" / "1.png").write_bytes(b"")
    card = evaluate(run, f"folder:{broken}", "val", out=tmp_path, bootstrap=0)
    probabilities, labels = by_hand(run, drawn, "val")
    right = (probabilities.argmax(1) == labels) & (np.arange(6) != 3)  # what cannot be read is wrong
    assert card["metrics"]["top-1"]["value"] == pytest.approx(100 * right.mean()) and card["metrics"]["top-1"]["n"] == 6
    assert card["skipped_pictures"] == [f"{broken}/val/disc/1.png: the file is empty"]
    others = write_pictures(tmp_path / "others", 1, 1, ("bars", "disc"))
    with pytest.raises(LowposeError) as error:
        evaluate(run, f"folder:{others}", "val")
    ours, theirs = "3 classes (bars, disc, rows)", "2 classes (bars, disc)"
    assert str(error.value) == f"weights for {ours} do not fit folder:{others} with {theirs}; train on it"


def test_packed_weights_answer_as_the_run(run, drawn, tmp_path):
    pack_weights(run, tmp_path / "packed.safetensors")
    assert (tmp_path / "packed.safetensors").stat().st_size < 0.6 * (run / "weights.safetensors").stat().st_size
    assert str(drawn).encode() not in (tmp_path / "packed.safetensors").read_bytes()
    assert read_weights(tmp_path / "packed.safetensors")[1]["classes"] == list(CLASSES)
    model, config = load_model(tmp_path / "packed.safetensors", task="classification")
    assert model.classes == CLASSES and config.data.root is None
    card = evaluate(tmp_path / "packed.safetensors", f"folder:{drawn}", out=tmp_path, bootstrap=0)
    saved = np.load(next(tmp_path.glob("predictions*.npz")))
    assert np.allclose(saved["probabilities"], by_hand(run, drawn, "val")[0], atol=0.02)
    assert card["weights"]["file"] == "packed.safetensors"


NET = {"backbone": "test_resnet", "pretrained": "none"}


def fresh(root, classes: tuple[str, ...], seed: int, **sections):
    torch.manual_seed(seed)
    config = sorting(root, **sections)
    return build_classifier(config, classes), config


def test_init_carries_classes_over_by_name(tmp_path):
    source, config = fresh(tmp_path, ("owl", "wren", "jay"), 0)
    save_weights(tmp_path / "w.safetensors", source, config)
    model, _ = fresh(tmp_path, ("jay", "rook", "owl", "kite"), 1)
    start_of = {k: v.clone() for k, v in model.state_dict().items()}
    missing = initialise(model, tmp_path / "w.safetensors")
    state, given = model.state_dict(), source.state_dict()
    assert all(torch.equal(state[k], given[k]) for k in state if not k.startswith("head."))
    for name in ("head.fc.weight", "head.fc.bias"):
        for row, old in ((0, given[name][2]), (2, given[name][0]), (1, start_of[name][1]), (3, start_of[name][3])):
            assert torch.equal(state[name][row], old)
    assert missing == [f"head.fc.{part}[{name}]" for part in ("weight", "bias") for name in ("rook", "kite")]
    other, _ = fresh(tmp_path, ("tern", "rook"), 1)
    with pytest.raises(LowposeError) as error:
        initialise(other, tmp_path / "w.safetensors")
    answer = "weights for classes owl, wren, jay share none with tern, rook"
    assert str(error.value) == f"{tmp_path}/w.safetensors: {answer}"


def test_backbones_go_from_poses_to_classes_and_back(tmp_path):
    torch.manual_seed(0)
    config = tiny(model={**NET, "deconv": [8, 8, 8]})
    pose = build_model(config, COCO17)
    save_weights(tmp_path / "pose.safetensors", pose, config)
    sorter, sorting_config = fresh(tmp_path, CLASSES, 1)
    save_weights(tmp_path / "sorter.safetensors", sorter, sorting_config)
    body = [k for k in sorter.state_dict() if k.startswith("backbone.")]
    fresh_head = sorter.head.fc.weight.clone()

    target, _ = fresh(tmp_path, CLASSES, 2)
    torch.nn.init.constant_(target.head.fc.weight, 0.5)
    missing = initialise(target, tmp_path / "pose.safetensors")
    assert missing == ["head.fc.weight", "head.fc.bias"] and (target.head.fc.weight == 0.5).all()
    assert all(torch.equal(target.state_dict()[k], pose.state_dict()[k]) for k in body)

    before = {k: v.clone() for k, v in pose.state_dict().items()}
    missing = initialise(pose, tmp_path / "sorter.safetensors")
    assert set(missing) == {k for k in before if k not in body} and any(".neck." in k for k in missing)
    assert all(torch.equal(v, sorter.state_dict()[k] if k in body else before[k]) for k, v in pose.state_dict().items())
    assert torch.equal(sorter.head.fc.weight, fresh_head)
    small, _ = fresh(tmp_path, CLASSES, 1, model={"backbone": "test_convnext"}, input={"size": [32, 32]})
    with pytest.raises(LowposeError, match="none of its .* tensors fits this model; are they of another backbone"):
        initialise(small, tmp_path / "pose.safetensors")


def test_training_begins_with_the_weights_of_init(run, drawn, tmp_path):
    """One step of a rate of nearly zero: the weights are still those of the other run."""
    config = sorting(drawn, init=str(run), train={"epochs": 1, "batch_size": 12, "lr": 1e-12, "freeze_bn": True})
    folder = train(config, tmp_path / "run")
    given, found = (dict(load_model(path, task=None)[0].named_parameters()) for path in (run, folder))
    assert all(torch.allclose(found[name], value, atol=1e-8) for name, value in given.items())


def test_comparison_of_two_recipes(drawn, tmp_path):
    for name, smoothing in (("plain", 0.0), ("smooth", 0.2)):
        config = sorting(drawn, head={"smoothing": smoothing}, train={"epochs": 2})
        (tmp_path / f"{name}.yaml").write_text(dump_config(config))
    names = [str(tmp_path / f"{name}.yaml") for name in ("plain", "smooth")]
    result = compare(names, (0, 1), tmp_path / "runs", bootstrap=50)
    right = {}
    for name in ("plain", "smooth"):
        for seed in (0, 1):
            saved = np.load(tmp_path / f"runs/{name}/seed-{seed}/predictions.npz")
            labels = np.repeat(np.arange(3), 2)
            right.setdefault(name, []).append(100 * (saved["probabilities"].argmax(1) == labels).mean())
    first, second = (row["metrics"]["top-1"] for row in result["rows"])
    assert first["per_seed"] == pytest.approx(right["plain"]) and second["per_seed"] == pytest.approx(right["smooth"])
    assert second["difference"] == pytest.approx(np.mean(right["smooth"]) - np.mean(right["plain"]))
    text = (tmp_path / "runs/compare.md").read_text()
    assert "interval over pictures and seeds" in text and "top-1" in text and "persons" not in text


@pytest.mark.photographs
def test_photographs_are_sorted_better_than_by_chance(shared, tmp_path):
    """A small network, three epochs: chance is one in ten, five in ten."""
    config = sorting(
        shared / "cifar-10-subset",
        data={"root": str(shared / "cifar-10-subset"), "val": "test"},
        train={"epochs": 3, "batch_size": 64, "optimizer": "adamw", "lr": 5e-3, "schedule": "onecycle", "save_every": 1000},
    )
    card = evaluate(train(config, tmp_path / "run"), bootstrap=200)
    top1, top5 = card["metrics"]["top-1"], card["metrics"]["top-5"]
    assert top1["n"] == 1000 and top1["low"] > 25 and top5["low"] > 70
