"""Smaller numbers in exported files: which weights they concern, what stands in the file, and which layers suffer."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
from onnx import numpy_helper  # noqa: E402
from test_export import HRNET, make_weights, noisy  # noqa: E402

from lowpose.checkpoint import load_model  # noqa: E402
from lowpose.errors import LowposeError  # noqa: E402
from lowpose.export import export_onnx  # noqa: E402
from lowpose.quantisation import add_facts, blame, halvable, quantisable, without, write_fp16, write_int8  # noqa: E402
from lowpose.runtime import load_onnx  # noqa: E402

CROPS = noisy(8, (32, 32), 50)
TOKENS = {
    "backbone": "none",
    "pretrained": "none",
    "tokens": {"patch": [8, 8], "width": 16, "depth": 1, "mixer": {"name": "gfl-static"}},
}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """(weights, float32 file) of a convolutional network."""
    weights = make_weights(tmp_path_factory.mktemp("small") / "m.safetensors", "simcc", HRNET, (32, 32), False)
    return weights, export_onnx(weights, crops=CROPS).path


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    weights = make_weights(tmp_path_factory.mktemp("tokens") / "m.safetensors", "regression", TOKENS, (32, 32), False)
    return weights, export_onnx(weights, crops=CROPS).path


def constants(file):
    return {i.name: numpy_helper.to_array(i) for i in onnx.load(file).graph.initializer}


def test_layers_are_named_by_their_modules(small, tokens):
    for weights, file in (small, tokens):
        model, _ = load_model(weights)
        modules = dict(model.named_modules())
        layers = quantisable(file)
        found = {type(modules[name]).__name__ for name in layers}
        assert len(set(layers)) == len(layers) and found <= {"Conv2d", "Linear"}
        wanted = [n for n, m in modules.items() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear)) and n in layers]
        assert sorted(wanted) == sorted(layers)
    assert {"head.to_x", "head.to_y", "head.final"} <= set(quantisable(small[1]))
    convolutions = [n for n, m in load_model(small[0])[0].named_modules() if isinstance(m, torch.nn.Conv2d)]
    assert set(convolutions) <= set(quantisable(small[1]))  # none is forgotten


def test_weights_are_rounded_per_channel_and_the_rest_is_left(small, tmp_path):
    _, file = small
    layers = without(quantisable(file), ["head"], "m")
    write_int8(CROPS)(file, tmp_path / "q.onnx", layers)
    graph, before = onnx.load(tmp_path / "q.onnx").graph, constants(file)
    after = constants(tmp_path / "q.onnx")
    weights = {n.input[1]: n.name for n in onnx.load(file).graph.node if n.name in layers}
    dequantised = {n.input[0]: n for n in graph.node if n.op_type == "DequantizeLinear"}
    for name in weights:
        node = dequantised[f"{name}_quantized"]
        values, scale, zero = (after[i] for i in node.input)
        assert values.dtype == np.int8 and scale.shape == (len(values),) and not zero.any()
        assert 2 * 255 * np.abs(values.astype(int)).max() < 2**15  # what AVX2 adds in 16 bits does not saturate
        shape = (-1,) + (1,) * (values.ndim - 1)
        error = np.abs(values.astype(np.float64) * scale.reshape(shape) - before[name])
        assert (error <= scale.reshape(shape) * 0.5001).all()  # rounded to the nearest step of its own channel
    np.testing.assert_array_equal(after["model.head.final.weight"], before["model.head.final.weight"])
    rounded = {n.input[0] for n in graph.node if n.op_type == "QuantizeLinear"}
    resized = {n.output[0] for n in graph.node if n.op_type == "Resize"}
    assert resized and not resized & rounded  # sums and resizing stay in float32


def test_int8_answers_are_near_float32(small, tmp_path):
    _, file = small
    write_int8(CROPS)(file, tmp_path / "q.onnx", without(quantisable(file), ["head"], "m"))
    plain, eight = (load_onnx(f).infer(CROPS)[0] for f in (file, tmp_path / "q.onnx"))
    moved = np.linalg.norm(plain - eight, axis=-1)
    assert moved.max() > 0 and np.median(moved) < 2
    assert (tmp_path / "q.onnx").stat().st_size < 0.5 * file.stat().st_size


def test_fp16_stores_rounded_weights_and_computes_in_float32(small, tokens, tmp_path):
    for name, (_, file) in {"small": small, "tokens": tokens}.items():
        out = tmp_path / f"{name}.onnx"
        write_fp16(file, out, list(halvable(file).values()))
        before, after = constants(file), constants(out)
        onnx.checker.check_model(onnx.load(out), full_check=True)
        assert halvable(file)
        for constant in halvable(file):
            assert after[f"{constant}.fp16"].dtype == np.float16
            np.testing.assert_array_equal(after[f"{constant}.fp16"], before[constant].astype(np.float16))
        untouched = set(before) - set(halvable(file))
        for constant in untouched:
            np.testing.assert_array_equal(after[constant], before[constant])
        plain, half = (load_onnx(f).infer(CROPS) for f in (file, out))
        assert np.median(np.linalg.norm(plain[0] - half[0], axis=-1)) < 0.1
    filters = [n for n in halvable(tokens[1]).values() if "mixer" in n]
    assert filters  # the filters of a global filter are weights, too


def test_weights_beyond_half_precision_are_refused(small, tmp_path):
    _, file = small
    model = onnx.load(file)
    (tensor,) = (i for i in model.graph.initializer if i.name == "model.head.final.weight")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 0 + 7e4, tensor.name))
    onnx.save(model, tmp_path / "large.onnx")
    with pytest.raises(LowposeError, match="fp16 cannot hold the weights of head.final; keep them in float32"):
        write_fp16(tmp_path / "large.onnx", tmp_path / "a.onnx", ["head.final"])


def test_parts_are_kept_by_name():
    layers = ["backbone.conv1", "backbone.conv10", "head.to_x"]
    assert without(layers, [], "m") == layers
    assert without(layers, ["backbone.conv1"], "m") == ["backbone.conv10", "head.to_x"]
    assert without(layers, ["head", "backbone.conv10"], "m") == ["backbone.conv1"]
    with pytest.raises(LowposeError, match="'heads': no layer of m is called so; they begin with backbone, head"):
        without(layers, ["heads"], "m")
    with pytest.raises(LowposeError, match="leaves no layer of m"):
        without(layers, ["head", "backbone"], "m")


def test_blame_names_the_layer_that_moves_keypoints(small):
    _, file = small

    def spoil(source, out, layers):
        """Takes the weights of to_x away, and leaves other layers as they are."""
        model = onnx.load(source)
        (node,) = (n for n in model.graph.node if n.name in layers)
        for tensor in model.graph.initializer:
            if tensor.name == node.input[1] and node.name == "head.to_x":
                tensor.CopyFrom(numpy_helper.from_array(0 * numpy_helper.to_array(tensor), tensor.name))
        onnx.save(model, out)

    found = blame(file, spoil, ["head.final", "head.to_x", "head.to_y"], CROPS)
    names, moved = zip(*found, strict=True)
    assert names[0] == "head.to_x" and moved[0] > 1 and moved[1:] == (0.0, 0.0)
    plain = load_onnx(file).infer(CROPS)[0]
    # without its weights an axis is decided by the bias alone: one place for all
    bias = constants(file)["model.head.to_x.bias"]
    away = np.abs(plain[..., 0] - (bias.argmax() + 0.5) / 2)
    assert moved[0] == pytest.approx(away.mean(), abs=1e-4)


def test_facts_are_added(small, tmp_path):
    _, file = small
    copy = tmp_path / "c.onnx"
    copy.write_bytes(file.read_bytes())
    add_facts(copy, precision={"weights": "int8"})
    facts = [json.loads(onnx.load(f).metadata_props[0].value) for f in (file, copy)]
    assert facts[1] == facts[0] | {"precision": {"weights": "int8"}}
    np.testing.assert_array_equal(load_onnx(copy).infer(CROPS)[0], load_onnx(file).infer(CROPS)[0])
