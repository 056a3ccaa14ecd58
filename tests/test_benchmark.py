"""`lowpose bench`: what its rows say, checked without looking at how fast anything is."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

from tiny import tiny  # noqa: E402

import lowpose  # noqa: E402
from lowpose import benchmark, turns  # noqa: E402
from lowpose.checkpoint import save_weights  # noqa: E402
from lowpose.nn.model import build_model  # noqa: E402
from lowpose.skeletons import COCO17  # noqa: E402
from lowpose.ways import crops_of, no_compiler, open_way, read_onnx  # noqa: E402

NET = {"backbone": "test_resnet", "pretrained": "none", "deconv": [8, 8, 8]}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    config = tiny(model=NET)
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("bench") / "small.safetensors"
    save_weights(path, build_model(config, COCO17), config)
    return path


@pytest.fixture(scope="module")
def found(weights):
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        true = benchmark.open_way
        patch.setattr(benchmark, "open_way", lambda way, threads: seen.append((way, threads)) or true(way, threads))
        out = weights.parent / "bench.json"
        report = lowpose.bench([weights], batches=(1, 3), runtimes=("torch", "onnx"), seconds=0.1, out=out)
    return report, seen, out


def test_rows(found, weights):
    report, seen, out = found
    assert json.loads(out.read_text()) == report and not report["skipped"]
    rows = {(r["runtime"], r["batch"]): r for r in report["rows"]}
    assert set(rows) == {(r, b) for r in ("torch", "onnx") for b in (1, 3)} and len(seen) == 4
    want = sum(p.numel() for p in build_model(tiny(model=NET), COCO17).parameters())
    for (_, batch), row in rows.items():
        ms = row["ms"]
        assert row["model"] == "small" and row["size"] == [32, 32] and row["params"] == want and row["macs"] > 0
        assert ms["low"] <= ms["median"] <= ms["high"] and ms["rounds"] >= 1
        assert row["persons"] == pytest.approx(1000 * batch / ms["median"]) == row["persons_per_thread"]
        assert (row["memory"] is None) == (batch == 1)
    assert rows["torch", 1]["ratio"] == rows["torch", 3]["ratio"] == 1
    assert rows["torch", 3]["memory"] > rows["onnx", 3]["memory"] > 30e6  # the second has no torch inside


def test_what_is_timed_gives_the_answers_of_the_weights(found, weights):
    way = found[1][0][0]
    infer, size = open_way(way, 1)
    crops = crops_of(size, 2)
    assert crops.shape == (2, 32, 32, 3) and crops.dtype == np.uint8
    for got, want in zip(infer(crops), lowpose.load(weights, flip=False).infer(crops), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_int8_files_are_told_by_their_operators(weights, tmp_path):
    benchmark.write_unproven(*benchmark.open_model(benchmark.Way("small", "torch", file=str(weights))), tmp_path / "a.onnx", "a")
    assert read_onnx(tmp_path / "a.onnx")["precision"] == "fp32"
    graph = onnx.load(tmp_path / "a.onnx")
    scale = onnx.helper.make_tensor("s", onnx.TensorProto.FLOAT, [], [0.5])
    number = onnx.helper.make_tensor("q", onnx.TensorProto.INT8, [2], [1, 2])
    graph.graph.initializer.extend([scale, number])
    graph.graph.node.append(onnx.helper.make_node("DequantizeLinear", ["q", "s"], ["unused"]))
    onnx.save(graph, tmp_path / "b.onnx")
    assert read_onnx(tmp_path / "b.onnx")["precision"] == "int8"
    row = lowpose.bench([tmp_path / "b.onnx"], batches=(1,), seconds=0.1, memory=False)["rows"][0]
    assert (row["runtime"], row["precision"], row["macs"]) == ("int8", "int8", None)


def test_recipes_have_random_weights_of_any_size(monkeypatch):
    monkeypatch.setattr(turns, "TURN", 0.0)
    report = lowpose.bench(
        ["lspet/simcc_hrnet-w18-small_64"], runtimes=("torch",), batches=(1,), sizes=(32, 64), seconds=0.01, memory=False
    )
    small, large = report["rows"]
    assert (small["size"], large["size"]) == ([32, 32], [64, 64]) and small["model"].endswith("at 32")
    assert 3 < large["macs"] / small["macs"] < 5


def test_without_a_compiler_the_reason_is_told(weights, monkeypatch, caplog):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no-such-compiler not found" in no_compiler()
    report = lowpose.bench([weights], runtimes=("torch", "compiled"), batches=(1,), seconds=0.01, memory=False)
    assert [r["runtime"] for r in report["rows"]] == ["torch"] and "needs a C++ compiler" in report["skipped"][0]
    assert "needs a C++ compiler" in caplog.text


def test_turns(monkeypatch):
    monkeypatch.setattr(turns, "TURN", 0.0)
    order = []
    times = turns.measure({n: (lambda n=n: order.append(n)) for n in "ab"}, rounds=3, seconds=60)
    assert "".join(order) == "abababab" and [len(v) for v in times.values()] == [3, 3]  # the first round is not kept
    assert turns.summary([4.0, 1.0, 3.0, 2.0, 5.0]) == {"median": 3.0, "low": 2.0, "high": 4.0, "rounds": 5}
