"""Export: the file gives torch's answers, a file that does not is never written, and reading it needs no torch."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

import lowpose  # noqa: E402
from lowpose import export, export_proof, registry  # noqa: E402
from lowpose.cards import sha256  # noqa: E402
from lowpose.checkpoint import load_model, save_weights  # noqa: E402
from lowpose.config import RunConfig  # noqa: E402
from lowpose.errors import LowposeError  # noqa: E402
from lowpose.export import export_onnx  # noqa: E402
from lowpose.nn.model import build_model  # noqa: E402
from lowpose.nn.predictor import load_torch  # noqa: E402
from lowpose.runtime import load_onnx  # noqa: E402
from lowpose.skeletons import LSP14  # noqa: E402

RESNET = {"backbone": "resnet10t", "pretrained": "none", "deconv": [16, 16, 16]}
HRNET = {"backbone": "hrnet_w18_small", "pretrained": "none"}
CASES = {f"{head}-resnet-48x64": (head, RESNET, (48, 64), True) for head in registry.names("head")}
CASES |= {f"{head}-hrnet-32": (head, HRNET, (32, 32), False) for head in ("heatmap", "simcc")}
CASES |= {"simcc-hrnet-32-enlarged": ("simcc", HRNET | {"enlarge": 2}, (32, 32), False)}
BOXES = [[20, 10, 40, 60], [-12.5, 30, 50, 61], [90, -20, 60, 70], [0, 0, 120, 100], [55.25, 60.5, 9, 21]]


def noisy(count: int, size, seed: int = 0) -> np.ndarray:
    """(count, h, w, 3) uint8: blocks of colour, so that answers differ from place to place and crop to crop."""
    w, h = size
    blocks = np.random.default_rng(seed).integers(0, 256, (count, h // 8 + 1, w // 8 + 1, 3), np.uint8)
    return blocks.repeat(8, 1).repeat(8, 2)[:, :h, :w]


def make_weights(path, head: str, model: dict, size, flip: bool):
    """Random weights whose answers stand out: plain ones are nearly tied everywhere, and would prove little."""
    torch.manual_seed(0)
    config = RunConfig.model_validate(
        {"name": "made-up", "input": {"size": size}, "model": model, "head": {"name": head}, "eval": {"flip": flip}}
    )
    net = build_model(config, LSP14)
    with torch.no_grad():
        for n, p in net.head.named_parameters():
            p.mul_(500 if n == "final.weight" else 20)
        for module in net.train().modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None  # the mean of what is seen, not of the start as well
        for seed in range(4):
            net(torch.from_numpy(noisy(8, size, seed)).permute(0, 3, 1, 2))
    save_weights(path, net, config)
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """name of a case -> (weights, report), made at first use."""
    folder, made = tmp_path_factory.mktemp("exported"), {}

    def get(name):
        if name not in made:
            head, model, size, flip = CASES[name]
            weights = make_weights(folder / f"{name}.safetensors", head, model, size, flip)
            made[name] = weights, export_onnx(weights, crops=noisy(6, size, 50))
        return made[name]

    return get


SMALL = "simcc-resnet-48x64"


@pytest.mark.parametrize("name", CASES)
def test_file_predicts_what_torch_predicts(exported, name):
    weights, report = exported(name)
    assert report.path == weights.with_suffix(".onnx") and report.bytes == report.path.stat().st_size
    assert report.crops == 6 and report.keypoints == 6 * 14 and report.ties < 0.2 * report.keypoints
    assert report.pixels <= 0.05 and report.score <= 1e-3 and report.maps <= 1e-4 and report.flip == CASES[name][3]
    image = noisy(1, (120, 100), 7)[0]
    ours, theirs = lowpose.load(report.path, threads=1), load_torch(weights)
    for boxes in (BOXES, BOXES[:1], None):
        got, want = ours.predict(image, boxes), theirs.predict(image, boxes)
        scale = 1.25 * np.maximum(got.boxes[:, 2] / ours.settings.size[0], got.boxes[:, 3] / ours.settings.size[1])
        assert (np.abs(got.keypoints - want.keypoints) <= 0.05 * scale[:, None, None] + 1e-3).all()
        np.testing.assert_allclose(got.scores, want.scores, atol=1e-3)
        np.testing.assert_allclose(got.published, want.published, rtol=1e-3, atol=1e-3)
    assert want.skeleton == got.skeleton
    many = ours.predict(image, BOXES).keypoints
    assert (many.std(axis=1) > 1).all()  # answers differ, so that the comparison says something
    if not report.flip:
        return
    once = load_torch(weights, flip=False).predict(image, BOXES)
    assert np.abs(once.scores - ours.predict(image, BOXES).scores).max() > 0.01  # the flip test is inside


def test_what_the_file_says_about_itself(exported):
    weights, report = exported(SMALL)
    model = onnx.load(report.path)
    onnx.checker.check_model(model, full_check=True)
    about = json.loads({p.key: p.value for p in model.metadata_props}["lowpose"])
    assert about["version"] == lowpose.__version__ and about["name"] == "made-up" and about["flip"] is True
    assert about["input"] == {
        "size": [48, 64], "padding": 1.25, "resample": "area",
        "camera": {"height": [32, 32], "blur": [0.4, 0.8], "noise": [0, 4], "jpeg": [60, 95], "motion": [0, 0]},
    }  # fmt: skip
    assert about["skeleton"]["keypoints"] == list(LSP14.keypoints) and about["head"]["split"] == 2.0
    assert about["licence"] == {"code": "Apache-2.0", "trained_on": "synthetic"} and about["weights_sha256"] == sha256(weights)
    images = model.graph.input[0]
    assert images.name == "images" and images.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    shape = images.type.tensor_type.shape.dim
    assert shape[0].dim_param and [d.dim_value for d in shape[1:]] == [64, 48, 3]
    assert [o.name for o in model.graph.output] == ["keypoints", "scores", "published"]


def test_no_paths_of_this_machine_in_the_file(exported):
    content = exported(SMALL)[1].path.read_bytes()
    for text in (b"site-packages", b"lowpose/nn", b"stack_trace", str(export.__file__).encode()):
        assert text not in content


def test_predicting_from_the_file_imports_no_torch(exported, tmp_path):
    weights, report = exported(SMALL)
    image = noisy(1, (120, 100), 7)[0]
    np.save(tmp_path / "image.npy", image)
    code = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "import numpy as np, lowpose\n"
        f"r = lowpose.load({str(report.path)!r}).predict(np.load('image.npy'), {BOXES!r})\n"
        "np.savez('found.npz', k=r.keypoints, s=r.scores)\n"
        "assert sys.modules['torch'] is None\n"
        "loaded = [m for m in sys.modules if m.split('.')[0] in ('torch', 'torchvision', 'timm', 'onnx', 'safetensors')]\n"
        "assert loaded == ['torch'], loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found, want = np.load(tmp_path / "found.npz"), load_torch(weights).predict(image, BOXES)
    np.testing.assert_allclose(found["k"], want.keypoints, atol=0.05)
    np.testing.assert_allclose(found["s"], want.scores, atol=1e-3)


def test_flip_can_be_chosen_and_nothing_is_printed(exported, tmp_path, capfd):
    weights, _ = exported(SMALL)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = export_onnx(weights, tmp_path / "new" / "one.onnx", flip=False, crops=noisy(3, (48, 64)))
    assert report.flip is False and [p.name for p in (tmp_path / "new").iterdir()] == ["one.onnx"]
    assert capfd.readouterr() == ("", "")
    image = noisy(1, (120, 100), 7)[0]
    got, want = lowpose.load(report.path).predict(image, BOXES), load_torch(weights, flip=False).predict(image, BOXES)
    np.testing.assert_allclose(got.scores, want.scores, atol=1e-3)
    text = str(report)
    assert "one.onnx" in text and "without flip test" in text and "3 crops" in text and "42 keypoints" in text


def test_example_crops_are_always_the_same(monkeypatch):
    monkeypatch.setattr(export, "PERSONS", 3)
    settings = RunConfig.model_validate({"input": {"size": (48, 64)}}).input
    crops = export.example_crops(settings)
    assert crops.shape == (8, 64, 48, 3) and crops.dtype == np.uint8
    np.testing.assert_array_equal(crops, export.example_crops(settings))
    assert len({c.tobytes() for c in crops}) == 8 and crops[-1].max() == 0


# What is refused


@pytest.fixture(scope="module")
def traced(exported):
    """The small model's graph, so that not every test below pays for translating it again."""
    model, config = load_model(exported(SMALL)[0])
    return export.translate(model, True, config.input, exported(SMALL)[0])


def refused(weights, out, match, **options):
    """Nothing new is left in the folder, and a file that was there stays."""
    out.write_bytes(b"before")
    with pytest.raises(LowposeError, match=match) as e:
        export_onnx(weights, out, crops=noisy(3, (48, 64)), **options)
    assert "\n" not in str(e.value)
    assert [p.name for p in out.parent.iterdir()] == [out.name] and out.read_bytes() == b"before"


def test_a_graph_that_decodes_otherwise_is_refused(exported, tmp_path, monkeypatch):
    simcc = registry.find("head", "simcc").make
    true = simcc.decode

    def shifted(self, outputs):
        decoded = true(self, outputs)
        return decoded._replace(keypoints=decoded.keypoints + 0.1) if torch.compiler.is_exporting() else decoded

    monkeypatch.setattr(simcc, "decode", shifted)
    refused(
        exported(SMALL)[0],
        tmp_path / "a.onnx",
        r"not written: onnxruntime and torch differ by 0.1 pixels \(limit 0.05\) in '\w+' of crop \d",
    )


def test_a_graph_with_other_weights_is_refused(exported, tmp_path, monkeypatch, traced):
    import onnx_ir

    (bias,) = (v for n, v in traced.model.graph.initializers.items() if n.endswith("to_x.bias"))
    before = bias.const_value
    bias.const_value = onnx_ir.tensor(np.roll(before.numpy(), 30), name=bias.name)
    monkeypatch.setattr(export, "translate", lambda *a: traced)
    try:
        refused(exported(SMALL)[0], tmp_path / "a.onnx", "not written: onnxruntime and torch differ")
    finally:
        bias.const_value = before


@pytest.fixture
def skewed(monkeypatch, traced):
    """Lets a test change what onnxruntime answers: `change(keypoints, scores, published)`, in place."""

    def set_up(change):
        def load(path):
            predictor = load_onnx(path)
            plain = predictor.infer

            def infer(crops):
                answers = [a.copy() for a in plain(crops)]
                change(*answers)
                return tuple(answers)

            predictor.infer = infer
            return predictor

        monkeypatch.setattr(export, "translate", lambda *a: traced)
        monkeypatch.setattr(export, "load_onnx", load)

    return set_up


@pytest.mark.parametrize(
    "output,value,match",
    [
        (0, 0.051, "0.051 pixels"),
        (0, -0.2, "0.2 pixels"),
        (0, np.nan, "nan pixels"),
        (1, 0.0012, "of its score"),
        (1, np.nan, "nan of its score"),
        (2, -0.0012, "of its published score"),
    ],
)
def test_one_wrong_number_is_enough(exported, tmp_path, skewed, output, value, match):
    weights, _ = exported(SMALL)
    model, _ = load_model(weights)
    tied = export_proof.torch_answers(model, True, noisy(3, (48, 64)))[1]
    k = int(np.argmin(tied[0]))  # a keypoint that is no tie; the first crop is the batch of one

    def change(*answers):
        if len(answers[0]) == 1:
            answers[output][(0, k, 1) if output == 0 else (0, k)] += value

    skewed(change)
    refused(weights, tmp_path / "a.onnx", f"{match}.*'{LSP14.keypoints[k]}' of crop 0")


@pytest.mark.parametrize("value", [2e-4, np.nan])
def test_one_wrong_number_of_a_map_is_enough(exported, tmp_path, skewed, monkeypatch, value):
    skewed(lambda *answers: None)
    true = export._session_of

    def off(proto):
        answers = true(proto)

        def infer(crops):
            maps = [a.copy() for a in answers(crops)]
            if np.array_equal(crops[0], noisy(3, (48, 64))[0]):  # of that crop alone: rounding may make any other the worst
                maps[1][0, 3, 7] += value * np.abs(maps[1][0]).max()
            return maps

        return infer

    monkeypatch.setattr(export, "_session_of", off)
    refused(
        exported(SMALL)[0], tmp_path / "a.onnx", r"by \S+ of the largest value \(limit 0.0001\) in output '(x|y|map)' of crop 0"
    )


def test_small_differences_pass_and_are_reported(exported, tmp_path, skewed):
    weights, _ = exported(SMALL)

    def change(keypoints, scores, published):
        keypoints += 0.04
        scores += 0.0008

    skewed(change)
    report = export_onnx(weights, tmp_path / "a.onnx", crops=noisy(3, (48, 64)))
    assert abs(report.pixels - 0.04) < 1e-5 and abs(report.score - 0.0008) < 1e-4


def test_ties_may_go_either_way_but_are_counted(exported, tmp_path, skewed, monkeypatch):
    weights, _ = exported(SMALL)
    true = export_proof.torch_answers

    def with_ties(*a):
        answers, _ = true(*a)
        tied = np.zeros(answers.scores.shape, bool)
        tied[:, 4] = True
        return answers, tied

    def change(keypoints, scores, published):
        keypoints[:, 4] += 9
        scores[:, 4] /= 2

    monkeypatch.setattr(export_proof, "torch_answers", with_ties)
    skewed(change)
    assert export_onnx(weights, tmp_path / "a.onnx", crops=noisy(3, (48, 64))).ties == 3
    monkeypatch.setattr(export_proof, "torch_answers", lambda *a: (true(*a)[0], np.ones((len(a[2]), 14), bool)))
    refused(weights, tmp_path / "a.onnx", "every keypoint are equal, which proves nothing; are the weights trained")


def choices(head, outputs):
    with export_proof._Choices((1, 1)) as seen:
        head.decode(outputs)
    return bool(seen.close)


def one_joint(name, **settings):
    entry = registry.find("head", name)
    return entry.make(entry.config(**settings), (4, 12, 8), (32, 48), lowpose.Skeleton("one", ("a",)))


@pytest.mark.parametrize("gap,tied", [(4e-4, True), (9e-4, True), (1.2e-3, False), (0.1, False)])
def test_ties_are_found_whatever_the_head(gap, tied):
    def lumps(*more):  # a slope, so that no two sides are equal by accident, and two peaks
        maps = torch.linspace(0, 0.2, 96).reshape(1, 1, 12, 8).clone() * 0.5
        maps[0, 0, 3, 2], maps[0, 0, 8, 5] = 2.0, 2.0 * (1 - gap)
        return {"map": maps, **{n: torch.zeros(1, 1, 12, 8) for n in more}}

    assert choices(one_joint("heatmap"), lumps()) is tied
    assert choices(one_joint("heatmap", decode="argmax"), lumps()) is tied
    disc = lumps("dx", "dy")
    disc["map"] = torch.zeros(1, 1, 12, 8)  # the blur must not reach from one to the other
    disc["map"][0, 0, 2, 1], disc["map"][0, 0, 9, 6] = 1.0, 1 - gap
    assert choices(one_joint("udp"), disc) is tied
    for axis in "xy":  # of the bins' probabilities, on one axis only
        logits = {a: torch.linspace(0, 1, n).reshape(1, 1, n).clone() for a, n in (("x", 64), ("y", 96))}
        for a in logits:
            logits[a][..., 10] = 5.0
        logits[axis][..., 50] = 5.0 + float(np.log(1 - gap))
        assert choices(one_joint("simcc"), logits) is tied


def test_a_quarter_step_between_equal_sides_is_a_tie():
    def peak(left, right):
        maps = torch.zeros(1, 1, 12, 8)
        maps[0, 0, 3], maps[0, 0, 4] = 0.3, 0.1
        maps[0, 0, 3, 2], maps[0, 0, 3, 1], maps[0, 0, 3, 3] = 2.0, left, right
        return {"map": maps}

    assert choices(one_joint("heatmap"), peak(1.0, 1.0015)) is True
    assert choices(one_joint("heatmap"), peak(1.0, 1.0025)) is False
    assert choices(one_joint("heatmap", decode="argmax"), peak(1.0, 1.0)) is False


@pytest.mark.parametrize(
    "crops,match",
    [
        (noisy(2, (64, 48)), r"\(N, 64, 48, 3\) uint8.*not uint8 \(2, 48, 64, 3\)"),
        (noisy(2, (48, 64)) / 255, "float64"),
        (noisy(0, (48, 64)), "at least one"),
        ([1, 2], "list"),
    ],
)
def test_bad_crops(exported, tmp_path, crops, match):
    with pytest.raises(LowposeError, match=match):
        export_onnx(exported(SMALL)[0], tmp_path / "a.onnx", crops=crops)
    assert not list(tmp_path.iterdir())


def test_bad_arguments(exported, tmp_path, monkeypatch, traced):
    weights, _ = exported(SMALL)
    for out, match in ((tmp_path / "a.bin", "must end in .onnx"), (tmp_path / "f.onnx", "is a folder")):
        (tmp_path / "f.onnx").mkdir(exist_ok=True)
        monkeypatch.setattr(export, "translate", lambda *a: traced)
        with pytest.raises(LowposeError, match=match):
            export_onnx(weights, out, crops=noisy(2, (48, 64)))
    with pytest.raises(LowposeError, match="no such weights file"):
        export_onnx(tmp_path / "no.safetensors")
    (tmp_path / "x.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(LowposeError, match="not a readable safetensors file"):
        export_onnx(tmp_path / "x.safetensors")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(LowposeError, match=r"export needs onnxscript, which is not installed: pip install 'lowpose\[export\]'"):
        export_onnx(weights)


def test_a_model_that_onnx_cannot_hold_is_one_line(exported, tmp_path, monkeypatch):
    simcc = registry.find("head", "simcc").make
    true = simcc.forward

    def branching(self, feature):
        return true(self, feature if float(feature.sum()) > 0 else feature * 2)

    monkeypatch.setattr(simcc, "forward", branching)
    refused(exported(SMALL)[0], tmp_path / "a.onnx", "cannot translate this model to ONNX")
