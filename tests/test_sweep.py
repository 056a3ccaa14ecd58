"""`lowpose sweep`: rows against `lowpose eval`, enlarged crops by a model that finds spots, a clock made by hand."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from tiny import tiny

import lowpose
from lowpose import sweeping, turns
from lowpose.checkpoint import load_model, save_weights
from lowpose.cli import main
from lowpose.config import parse_config
from lowpose.data import load_data
from lowpose.data.degradations import CoarseReader
from lowpose.errors import LowposeError
from lowpose.evaluation import evaluate
from lowpose.nn.cost import count
from lowpose.nn.heads.base import Decoded
from lowpose.nn.model import build_model
from lowpose.skeletons import COCO17
from lowpose.sweep_page import cost_rows, height_rows, label, markdown
from lowpose.sweeping import FILES, Entry, mark_fronts, read_entries, time_models
from lowpose.tasks.pose import predict_split


def make_run(folder, name: str, size: list[int], head: str = "simcc"):
    config = tiny(name=name, input={"size": size}, head={"name": head},
                  data={"options": {"count": 10, "size": [96, 96], "height": [20, 80]}})  # fmt: skip
    torch.manual_seed(3)
    folder.mkdir()
    save_weights(folder / "weights.safetensors", build_model(config, COCO17), config)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return make_run(folder / "small", "small", [32, 32]), make_run(folder / "large", "large", [48, 64], "heatmap")


@pytest.fixture(scope="module")
def report(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return lowpose.sweep(runs, sizes=[16, 32], heights=[16, 40], batch=2, rounds=2, bootstrap=20, out=out)


def row_of(report, name: str, size: int):
    return next(r for r in report["rows"] if (r["name"], r["size"]) == (name, size))


def test_every_model_at_its_own_size_and_enlarged_at_the_smaller_ones(report):
    rows = [(r["size"], r["name"], r["enlarged"]) for r in report["rows"]]
    assert rows == [(64, "large", False), (32, "small", False), (32, "large", True), (16, "small", True), (16, "large", True)]
    assert row_of(report, "large", 16)["input"] == [48, 64] and report["metric"] == "AP"


@pytest.mark.parametrize("number,size", [(0, 32), (1, 64)])
def test_rows_at_the_own_size_are_those_of_eval(runs, report, number, size, tmp_path):
    run = runs[number]
    card = evaluate(run, out=tmp_path, bootstrap=20, breakdown=True, heights=(16, 40))
    row = row_of(report, run.name, size)
    assert row["metrics"] == card["metrics"]
    assert row["heights"] == card["breakdown"]["heights"]


def test_macs_are_of_all_passes(runs, report, tmp_path):
    model, config = load_model(runs[1])
    assert config.eval.flip
    macs = count(model, (48, 64)).macs
    assert {row_of(report, "large", s)["macs"] for s in (16, 32, 64)} == {2 * macs}
    once = lowpose.sweep(runs[1:], flip=False, persons=2, batch=2, rounds=1, bootstrap=0, out=tmp_path)["rows"][0]
    assert (once["passes"], once["macs"]) == (1, macs)


class SpotFinder(torch.nn.Module):
    """Answers with the middle of what is brighter than 100."""

    def predict(self, images: torch.Tensor, flip: bool = True) -> Decoded:
        weight = (images.double().mean(1) - 100).clamp(min=0)
        height, width = weight.shape[1:]
        total = weight.sum((1, 2))
        x = (weight.sum(1) * (torch.arange(width) + 0.5)).sum(1) / total
        y = (weight.sum(2) * (torch.arange(height) + 0.5)).sum(1) / total
        points = torch.stack([x, y], -1)[:, None].expand(-1, 17, -1)
        return Decoded(points, torch.ones(points.shape[:2]), torch.ones(points.shape[:2]))


@pytest.mark.parametrize("share", [1.0, 0.75, 0.5, 1 / 3, 0.25])
def test_enlarged_crops_map_back_exactly(share):
    at, config = np.array([101.3, 77.8]), tiny(input={"size": [48, 64]})
    ys, xs = np.indices((200, 200)) + 0.5
    spot = (255 * np.exp(-((xs - at[0]) ** 2 + (ys - at[1]) ** 2) / 2 / 14**2)).round().astype(np.uint8)[..., None].repeat(3, 2)
    people = load_data("synthetic", options={"count": 2, "size": [64, 64], "height": [30, 50]})
    boxes = [np.array([50.2, 30.7, 80.0, 110.0]), np.array([60.0, 20.0, 100.0, 100.0])]
    samples = [replace(s, box=box) for s, box in zip(people.samples, boxes, strict=True)]
    data = replace(people, samples=samples, read=lambda key: spot)
    found = predict_split(SpotFinder(), data, config, reader=CoarseReader(data, config.input, 0, share))
    assert np.abs(found.keypoints - at).max() < 0.25, "picture pixels; a crop pixel is 2 to 2.6 of them"


class Slow(torch.nn.Module):
    """Takes times from a list, on a clock made by hand."""

    def __init__(self, name: str, times: list[float], clock: dict):
        super().__init__()
        self.name, self.times, self.clock = name, iter(times), clock

    def predict(self, images: torch.Tensor, flip: bool = True) -> None:
        self.clock["now"] += next(self.times) * len(images)
        self.clock["calls"].append((self.name, len(images), tuple(images.shape[1:]), flip, torch.get_num_threads()))


def test_times_are_medians_in_turns_after_warming_up(monkeypatch):
    rng, clock = np.random.default_rng(0), {"now": 0.0, "calls": []}
    monkeypatch.setattr(turns.time, "perf_counter", lambda: clock["now"])
    taken = rng.uniform(0.06, 0.12, (2, 6, 2))  # models, turns, one person and a batch; longer than a turn
    taken[:, 0] = 100.0
    config = tiny(input={"size": [24, 32]})
    entries = [Entry(n, None, Slow(n, list(taken[i].ravel()), clock), config) for i, n in enumerate("ab")]
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        times = time_models(entries, batch=4, rounds=5)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert clock["calls"][:4] == [(n, b, (3, 32, 24), True, 1) for n in "ab" for b in (1, 4)]
    assert len(clock["calls"]) == 24
    for i, name in enumerate("ab"):
        for j, kind in enumerate(("one", "batch")):
            low, median, high = 1000 * np.percentile(taken[i, 1:, j], [25, 50, 75])
            assert times[name][kind] == pytest.approx({"median": median, "low": low, "high": high})


def test_fronts_of_each_size():
    rng = np.random.default_rng(1)
    rows = [
        {"size": size, "macs": int(macs), "ms": {"one": {"median": float(ms)}}, "metrics": {"AP": {"value": float(value)}}}
        for size in (32, 64)
        for macs, ms, value in rng.integers(1, 9, (12, 3))
    ]
    mark_fronts(rows, "AP")
    for kind, cost in (("macs", lambda r: r["macs"]), ("ms", lambda r: r["ms"]["one"]["median"])):
        for size in (32, 64):
            own = [r for r in rows if r["size"] == size]
            costs, values = np.array([cost(r) for r in own]), np.array([r["metrics"]["AP"]["value"] for r in own])
            for i, row in enumerate(own):
                cheapest_as_good = costs[values >= values[i]].min()
                best_as_cheap = values[costs <= costs[i]].max()
                assert row["front"][kind] == (costs[i] == cheapest_as_good and values[i] == best_as_cheap)
    assert 0 < sum(r["front"]["macs"] for r in rows) < 24


def test_files(runs, report, tmp_path):
    again = lowpose.sweep(runs, sizes=[16, 32], heights=[16, 40], batch=2, rounds=2, bootstrap=20, out=tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == set(FILES)
    assert json.loads((tmp_path / "sweep.json").read_text()) == again

    def timeless(r):
        return [{k: v for k, v in row.items() if k not in ("ms", "front")} for row in r["rows"]]

    assert timeless(again) == timeless(report), "all but the times is the same in every run"
    picture = cv2.imread(str(tmp_path / "sweep.png"))
    assert min(picture.shape[:2]) > 400 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 20
    page = (tmp_path / "sweep.md").read_text()
    assert page == markdown(again, "sweep.png") and "| 32 px | large, enlarged | 48x64 | " in page
    assert len(cost_rows(again)) == 5 and [len(row) for row in height_rows(again, "same")] == [5] * 5
    assert label(row_of(again, "large", 64)) == "large"


def test_nothing_half_written(runs, tmp_path):
    (tmp_path / "sweep.png").mkdir()
    with pytest.raises(LowposeError, match="sweep.png: is a folder"):
        lowpose.sweep(runs[:1], persons=2, batch=1, rounds=1, bootstrap=0, out=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["sweep.png"]


def test_seeds_of_one_recipe_are_told_apart(tmp_path):
    twins = [make_run(tmp_path / name, "twin", [32, 32]) for name in ("seed-0", "seed-1")]
    assert [e.name for e in read_entries(twins, None)] == [str(t) for t in twins]


def test_data_without_an_accuracy(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(sweeping, "measure", lambda *args: {"metrics": {"EPE": {}}, "not_measured": {"AP": "no sigmas"}})
    with pytest.raises(LowposeError, match=r"has no accuracy to compare \(AP: no sigmas\)"):
        lowpose.sweep(runs[:1], persons=2, batch=1, rounds=1, bootstrap=0, out=tmp_path)


def test_command(runs, tmp_path, monkeypatch, capsys):
    out = tmp_path / "new"
    options = "--sizes 16,32 --persons 3 --batch 2 --rounds 1 --bootstrap 0 --no-flip --out".split()
    monkeypatch.setattr(sys, "argv", ["lowpose", "sweep", *map(str, runs), *options, str(out)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert "enlarged" in said and str(out / "sweep.md") in said
    report = json.loads((out / "sweep.json").read_text())
    assert report["measured_on"]["persons"] == 3 and report["command"].startswith("lowpose sweep ") and report["heights"] == []
    assert parse_config({}, "x").eval.flip and {r["passes"] for r in report["rows"]} == {1}
