"""INT8 and FP16 files: written with their accuracy before and after, refused where it falls too far."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxscript")
from onnx import numpy_helper  # noqa: E402
from tiny import tiny  # noqa: E402

from lowpose import smaller as module  # noqa: E402
from lowpose.cards import sha256  # noqa: E402
from lowpose.checkpoint import load_model  # noqa: E402
from lowpose.errors import LowposeError  # noqa: E402
from lowpose.evaluation import evaluate  # noqa: E402
from lowpose.export import export_onnx  # noqa: E402
from lowpose.smaller import export_reduced, real_crops, spread_crops  # noqa: E402
from lowpose.training import train  # noqa: E402


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Learned by heart, so that there is something to lose."""
    config = tiny(
        data={"options": {"count": 6, "size": [64, 64], "height": [40, 50]}, "val": "train"},
        augment={"scale": 0, "rotation": 0, "flip": 0},
        model={"backbone": "resnet10t"},
        train={"epochs": 120, "batch_size": 6, "optimizer": "adamw", "lr": 3e-3, "schedule": "onecycle", "save_every": 500},
        eval={"flip": False},
    )
    return train(config, tmp_path_factory.mktemp("run") / "run")


def values(report, name="value"):
    return {m: v[name] for m, v in report.items() if v.get(name) is not None}


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_the_card_says_what_it_cost(run, tmp_path, precision):
    report = export_reduced(run, precision, tmp_path / "m.onnx", limit=100, calibration=4, bootstrap=100)
    card = json.loads((tmp_path / "card-m.json").read_text())
    e, by_torch = card["exported"], evaluate(run, out=tmp_path / "torch", bootstrap=0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["card-m.json", "card-m.md", "m.onnx", "torch"]
    assert report.metric == "AP" and report.before > 50  # something was learned
    for metric, value in values(by_torch["metrics"]).items():
        assert e["before"][metric]["value"] == pytest.approx(value, abs=1e-6)
    assert card["metrics"][report.metric]["value"] == report.after and e["before"][report.metric]["value"] == report.before
    assert e["difference"][report.metric]["difference"] == pytest.approx(report.after - report.before, abs=1e-6)
    assert card["weights"] == {"file": "m.onnx", "sha256": sha256(tmp_path / "m.onnx")}
    assert e["from"]["sha256"] == sha256(run / "weights.safetensors") and e["float32_parts"] == ["head"]
    assert report.bytes == e["bytes"] == (tmp_path / "m.onnx").stat().st_size
    assert e["bytes"] < {"int8": 0.35, "fp16": 0.6}[precision] * e["bytes_float32"]
    about = json.loads({p.key: p.value for p in onnx.load(tmp_path / "m.onnx").metadata_props}["lowpose"])
    assert about["precision"] == {"weights": precision, "layers": e["layers"], "float32": ["head"]}
    text = (tmp_path / "card-m.md").read_text()
    assert f"| metric | float32 | {precision} |" in text and f"{report.after:.2f}" in text
    assert (e["calibration"] == {"split": "train", "crops": 4}) is (precision == "int8")


def test_a_fall_beyond_the_limit_is_refused_and_names_layers(run, tmp_path, monkeypatch):
    def broken(crops):
        def write(source, out, layers):
            model = onnx.load(source)
            inputs = {n.input[1] for n in model.graph.node if n.name in layers and n.name != "backbone.body.conv1"}
            for tensor in model.graph.initializer:
                if tensor.name in inputs:
                    zero = np.zeros_like(numpy_helper.to_array(tensor))
                    tensor.CopyFrom(numpy_helper.from_array(zero, tensor.name))
            onnx.save(model, out)

        return write

    monkeypatch.setattr(module, "write_int8", broken)
    with pytest.raises(LowposeError, match=r"m.onnx: not written: AP falls by .* \(limit 1\); alone, these layers") as e:
        export_reduced(
            run, "int8", tmp_path / "m.onnx", calibration=4, keep=["backbone.body.net.layer1", "head.final"], bootstrap=0
        )
    named = str(e.value).split("(mean pixels): ")[1]
    assert "\n" not in str(e.value) and "head.to_" in named and "head.final" not in named and "layer1" not in named
    assert not list(tmp_path.iterdir())


def test_crops_are_spread_over_the_split(run):
    _, config = load_model(run)
    few, all_of_them = spread_crops(config, "train", 4), spread_crops(config, "train", 99)
    assert len(all_of_them) == 6 and few.shape == (4, 32, 32, 3) and few.dtype == np.uint8
    np.testing.assert_array_equal(few, all_of_them[[0, 2, 3, 5]])


def test_a_card_that_cannot_be_written_leaves_no_file(run, tmp_path):
    (tmp_path / "card-m.md").mkdir()
    with pytest.raises(LowposeError, match="card-m.md: is a folder"):
        export_reduced(run, "fp16", tmp_path / "m.onnx", limit=100, bootstrap=0)
    assert [p.name for p in tmp_path.iterdir()] == ["card-m.md"]


def test_the_main_metric_is_one_where_more_is_better():
    before = {"metrics": {"PCKh@0.5": {"value": None}, "EPE": {"value": 5.0}, "AP": {"value": 60.0}}}
    after = {"metrics": {"PCKh@0.5": {"value": None}, "EPE": {"value": 50.0}, "AP": {"value": 10.0}}}
    assert module.main_metric(before, after) == ("AP", 60.0, 10.0)
    with pytest.raises(LowposeError, match="no measure but distances"):
        module.main_metric({"metrics": {"EPE": {"value": 5.0}}}, {"metrics": {"EPE": {"value": 50.0}}})


def test_a_float32_file_can_be_proven_on_crops_of_data(run, tmp_path):
    crops = real_crops(run, None, "val", 4)
    reader = spread_crops(load_model(run)[1], "val", 4)
    np.testing.assert_array_equal(crops, reader)
    assert export_onnx(run, tmp_path / "m.onnx", crops=crops).crops == 4


@pytest.mark.parametrize(
    "options,match",
    [
        ({"precision": "int4"}, "precision int4: it is one of int8, fp16"),
        ({"keep": ["tail"]}, "keep-float 'tail': no layer of weights.safetensors is called so; they begin with backbone, "),
        ({"calibration": 0}, "at least one crop"),
        ({"limit": -1.0}, "a limit of 0 points or more"),
        ({"source": "lsp:nowhere"}, "nowhere"),
        ({"out": "m.bin"}, "must end in .onnx"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(run, tmp_path, monkeypatch, options, match):
    monkeypatch.chdir(tmp_path)
    options = {"precision": "int8", "out": "m.onnx", **options}
    with pytest.raises(LowposeError, match=match) as e:
        export_reduced(run, options.pop("precision"), options.pop("out"), **options)
    assert "\n" not in str(e.value) and not list(tmp_path.iterdir())
