"""Exported files in onnxruntime and OpenVINO: a small graph whose answers NumPy knows, and options that do not fit."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

import lowpose
from lowpose.errors import LowposeError
from lowpose.runtime import PosePredictor
from lowpose.skeletons import Skeleton

THREE = Skeleton("three", ("r", "g", "b"))
CROPS = np.random.default_rng(3).integers(0, 256, (5, 24, 16, 3), dtype=np.uint8)
IMAGE = np.random.default_rng(4).integers(0, 256, (60, 80, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A graph as `lowpose export` writes: a keypoint's x is the mean of its channel / 16, y half of that, score mean / 255."""
    onnx = pytest.importorskip("onnx")
    node, value, of = onnx.helper.make_node, onnx.helper.make_tensor_value_info, onnx.TensorProto
    constants = {"wide": np.float32([1 / 16, 1 / 32]), "one": np.float32(255), "last": np.int64([2]), "picture": np.int64([1, 2])}
    graph = onnx.helper.make_graph(
        [
            node("Cast", ["images"], ["numbers"], to=of.FLOAT),
            node("ReduceMean", ["numbers", "picture"], ["mean"], keepdims=0),
            node("Unsqueeze", ["mean", "last"], ["column"]),
            node("Mul", ["column", "wide"], ["keypoints"]),
            node("Div", ["mean", "one"], ["scores"]),
            node("Neg", ["scores"], ["published"]),
        ],
        "small",
        [value("images", of.UINT8, ["B", 24, 16, 3])],
        [value("keypoints", of.FLOAT, ["B", 3, 2]), value("scores", of.FLOAT, ["B", 3]), value("published", of.FLOAT, ["B", 3])],
        [onnx.numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    onnx.helper.set_model_props(model, {"lowpose": json.dumps({"input": {"size": [16, 24]}, "skeleton": THREE.to_dict()})})
    path = tmp_path_factory.mktemp("graph") / "small.onnx"
    onnx.save(model, path)
    return path


def check(predictor: PosePredictor) -> None:
    keypoints, scores, published = predictor.infer(CROPS)
    mean = CROPS.astype(np.float64).mean((1, 2))
    np.testing.assert_allclose(keypoints, np.stack([mean / 16, mean / 32], 2), rtol=1e-5)
    np.testing.assert_allclose(scores, mean / 255, rtol=1e-5)
    np.testing.assert_allclose(published, -mean / 255, rtol=1e-5)
    assert predictor.settings.size == (16, 24) and predictor.skeleton == THREE


@pytest.mark.parametrize("options", [{}, {"threads": 1}, {"threads": 2, "providers": ["CPUExecutionProvider"]}])
def test_onnxruntime(file, options):
    check(lowpose.load(file, **options))


def test_threads_and_providers_reach_onnxruntime(file, monkeypatch):
    import onnxruntime

    seen, real = [], onnxruntime.InferenceSession

    def session(path, options, providers):
        seen.append((options.intra_op_num_threads, providers))
        return real(path, options, providers=providers)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    lowpose.load(file, threads=3)
    lowpose.load(file, providers="CPUExecutionProvider")
    assert seen == [(3, ["CPUExecutionProvider"]), (0, ["CPUExecutionProvider"])]


def test_provider_that_does_not_start_is_no_silent_cpu(file, monkeypatch):
    """onnxruntime names the GPU as available where only its driver is missing, and computes on the CPU instead."""
    import onnxruntime

    real = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda p, o, providers: real(p, o, providers=["CPUExecutionProvider"]))
    with pytest.raises(LowposeError, match="'CUDAExecutionProvider' does not start on this machine"):
        lowpose.load(file, providers=["CUDAExecutionProvider"])


def test_openvino_answers_as_onnxruntime(file):
    pytest.importorskip("openvino")
    check(lowpose.load(file, engine="openvino", threads=1))
    boxes = [[3, 4, 30, 40], [20.5, 10, 50, 20], [-5, -5, 40, 80]]
    ours, theirs = (lowpose.load(file, engine=name).predict(IMAGE, boxes) for name in ("openvino", "onnxruntime"))
    np.testing.assert_allclose(ours.keypoints, theirs.keypoints, atol=1e-3)
    (file.parent / "half.onnx").write_bytes(file.read_bytes()[:200])
    with pytest.raises(LowposeError, match=r"half.onnx: openvino cannot open it \(") as e:
        lowpose.load(file.parent / "half.onnx", engine="openvino")
    assert "\n" not in str(e.value)


def test_openvino_that_is_not_installed(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(LowposeError, match=r"needs openvino, which is not installed: pip install 'lowpose\[openvino\]'"):
        lowpose.load(file, engine="openvino")


@pytest.mark.parametrize(
    "options, match",
    [
        ({"threads": 0}, "threads = 0: give 1 or more"),
        ({"threads": -2}, "threads = -2"),
        ({"providers": ["CPUExecutionProvidr"]}, "no provider 'CPUExecutionProvidr' here; it has .*CPUExecutionProvider"),
        ({"providers": ["CPUExecutionProvider", "X"]}, "no provider 'X' here"),
        ({"engine": "openvin"}, "unknown engine 'openvin'; did you mean 'openvino'"),
        ({"engine": "openvino", "providers": ["CPUExecutionProvider"]}, "providers are onnxruntime's"),
        ({"flip": True}, "exported .onnx files have no option 'flip'; there are threads, providers, engine"),
    ],
)
def test_options_that_do_not_fit(file, options, match):
    with pytest.raises(LowposeError, match=match):
        lowpose.load(file, **options)


def test_options_of_exported_files_for_weights(tmp_path):
    with pytest.raises(LowposeError, match="weights, which torch runs, have no option 'engine'"):
        lowpose.load(tmp_path / "w.safetensors", engine="openvino")


def test_prediction_from_an_exported_file_needs_no_torch(file, tmp_path):
    """The command line, pictures to results and drawings, where torch cannot be imported."""
    lowpose.write_image(tmp_path / "a.png", IMAGE)
    code = (
        "import sys\nfor n in ('torch', 'torchvision', 'timm', 'safetensors'): sys.modules[n] = None\n"
        f"sys.argv = ['lowpose', 'predict', 'a.png', '--weights', {str(file)!r}, '--threads', '1', '--out', 'out']\n"
        "from lowpose.cli import main; main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "out" / "results.json").read_text())
    got = lowpose.load(file).predict(IMAGE).keypoints[0] - 0.5
    np.testing.assert_allclose(np.reshape(row["keypoints"], (3, 3))[:, :2], got, atol=1e-3)
    assert (tmp_path / "out" / "a.png").is_file()
