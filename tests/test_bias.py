"""The study of the bias: its numbers against sums in plain NumPy, its files whole or not at all."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from tiny import tiny

from lowpose.bias import FILES, by_position, drawn, network_bias, study_bias, synthetic_bias
from lowpose.checkpoint import load_model, save_weights
from lowpose.cli import main
from lowpose.data.crops import CropReader
from lowpose.errors import LowposeError
from lowpose.images import read_image
from lowpose.nn.model import build_model
from lowpose.skeletons import COCO17, LSP14, Skeleton
from lowpose.tasks.pose import validation_data


def make_run(folder, head: dict, skeleton: Skeleton = COCO17, **sections):
    """Untrained weights whose maps stand out: values about 0 with a deviation of 0.4."""
    torch.manual_seed(1)
    config = tiny(head=head, **sections)
    model = build_model(config, skeleton).eval()
    with torch.no_grad():
        w, h = config.input.size
        model.head.final.weight.mul_(0.4 / model(torch.rand(8, 3, h, w) * 255)["map"].std())
    save_weights(folder / "weights.safetensors", model, config)
    return folder


def centre(weights: np.ndarray) -> np.ndarray:
    """(..., 2) mean of the cell centres, (x, y), under weights (..., h, w) float64."""
    h, w = weights.shape[-2:]
    total = weights.sum((-2, -1))
    x, y = (weights.sum(-2) * (np.arange(w) + 0.5)).sum(-1), (weights.sum(-1) * (np.arange(h) + 0.5)).sum(-1)
    return np.stack([x / total, y / total], -1)


@pytest.mark.parametrize(("side", "sigma", "beta", "peak"), [(16, 1.0, 3.0, 1.0), (8, 1.7, 10.0, 0.3), (31, 2.0, 0.5, 0.9)])
def test_drawn_maps_are_those_of_numpy(side, sigma, beta, peak):
    at = np.array([0.31, 0.62]) * side
    cells = np.arange(side) + 0.5
    m = peak * np.exp(-((cells[None] - at[0]) ** 2 + (cells[:, None] - at[1]) ** 2) / (2 * sigma**2))
    e = np.exp(beta * m)
    row = drawn(side, sigma, beta, peak, tuple(at))
    share = side**2 / e.sum()
    assert row["share"] == pytest.approx(share, rel=1e-12)
    np.testing.assert_allclose(row["measured"], centre(e) - at, atol=1e-12)
    np.testing.assert_allclose(row["predicted"], share * (side / 2 - at), atol=1e-12)
    np.testing.assert_allclose(row["left"], centre(e - 1) - at, atol=1e-10)


def test_prediction_holds_where_the_blob_is_whole_and_wider_than_a_cell():
    rows = synthetic_bias(1.0, (1, 3, 30))["position"]
    off = {(r["beta"], r["joint"][0]): r["measured"][0] - r["predicted"][0] for r in rows}
    assert max(abs(d) for (beta, x), d in off.items() if beta < 30 and 4 <= x <= 12) < 0.01
    assert abs(off[1, 0.0]) > 0.01, "cut by the border"
    assert abs(off[30, 4.25]) > 0.2, "one cell holds all of the excess"
    assert all(r["measured"][0] * (8 - r["joint"][0]) >= 0 for r in rows if r["beta"] < 30), "towards the middle"


def test_every_sweep_changes_one_thing():
    found = synthetic_bias(1.0, (1, 10))
    for name, keys in {"position": ("joint",), "beta": ("side", "beta"), "peak": ("peak",), "size": ("side",)}.items():
        rows = found[name]
        assert len({json.dumps([r["beta"], *(r[k] for k in keys)]) for r in rows}) == len(rows) > 10
        for fixed in {"side", "peak"} - set(keys):
            assert len({r[fixed] for r in rows}) == 1


def numpy_readings(folder, betas, flip: bool):
    """Labels, highest cells and both readings (per beta) of all labelled joints inside their crops, cells, by NumPy."""
    model, config = load_model(folder)
    data = validation_data(config)
    crops = [CropReader(data, config.input).crop(i) for i in range(len(data.samples))]
    images = torch.from_numpy(np.stack([c.image for c in crops])).permute(0, 3, 1, 2)
    with torch.no_grad():
        maps = model(images)["map"].numpy()
        if flip:
            mirrored = model(images.flip(-1))["map"].numpy()[:, data.skeleton.flip_index, :, ::-1]
            maps = (maps + mirrored) / 2
    points = np.stack([c.keypoints for c in crops])
    keep = np.stack([c.weight for c in crops]) > 0
    keep &= ((points >= 0) & (points < np.array(config.input.size))).all(-1)
    m, labels = np.maximum(maps[keep].astype(np.float64), 0), points[keep] * np.array(maps.shape[:-3:-1]) / config.input.size
    index = m.reshape(len(m), -1).argmax(1)
    highest = np.stack([index % m.shape[2], index // m.shape[2]], -1) + 0.5
    return labels, highest, {b: (centre(np.exp(b * m)), centre(np.expm1(b * m)), np.exp(b * m).sum((1, 2))) for b in betas}


@pytest.mark.parametrize(
    ("head", "beta", "size", "flip"),
    [({"name": "heatmap"}, 10.0, (32, 32), False), ({"name": "integral", "beta": 4.0}, 4.0, (32, 48), True)],
    ids=["heatmap", "integral-flipped"],
)
def test_maps_of_a_network_are_read_as_numpy_reads_them(tmp_path, head, beta, size, flip):
    run = make_run(tmp_path, head, input={"size": size}, eval={"flip": flip})
    found = network_bias(run, None, (1.0, 3.0), persons=100)
    cells = (size[0] // 4, size[1] // 4)
    labels, highest, read = numpy_readings(run, [1.0, 3.0, beta], flip)
    assert (found["joints"], found["beta"], tuple(found["size"])) == (len(labels), beta, cells) and len(labels) > 50
    rows = {r["beta"]: r for r in found["readings"]}
    for b, (plain, mean, c) in read.items():
        for name, at in (("plain_error", plain), ("compensated_error", mean)):
            assert rows[b][name] == pytest.approx(4 * np.linalg.norm(at - labels, axis=1).mean(), rel=1e-5)
        assert rows[b]["share"] == pytest.approx((cells[0] * cells[1] / c).mean(), rel=1e-5)
    assert found["argmax_error"] == pytest.approx(4 * np.linalg.norm(highest - labels, axis=1).mean(), rel=1e-5)
    plain, mean, c = read[beta]
    np.testing.assert_allclose(np.reshape(found["shift"], (-1, 2)), plain - mean, atol=1e-4)
    share = (cells[0] * cells[1] / c)[:, None]
    np.testing.assert_allclose(np.reshape(found["shift_predicted"], (-1, 2)), share * (np.array(cells) / 2 - mean), atol=1e-4)
    assert found["largest_difference"] < 1e-9


def test_offsets_by_position_are_means_and_their_standard_errors():
    rng = np.random.default_rng(0)
    size, joints = (16, 8), rng.uniform(0, 1, (500, 2)) * (16, 8)
    read = [joints + rng.normal(0.3 * i, 1, joints.shape) for i in range(3)]
    rows = by_position(torch.from_numpy(joints), size, *(torch.from_numpy(r) for r in read))
    assert sum(r["n"] for r in rows) == 1000
    for row in rows:
        inside = ((joints / size) >= row["from"]) & ((joints / size) < row["to"])
        assert row["n"] == inside.sum()
        for name, at in zip(("plain", "predicted", "compensated"), read, strict=True):
            values = ((at - joints) / size)[inside]
            assert row[name] == pytest.approx(values.mean()) and row[f"{name}_se"] == pytest.approx(
                values.std(ddof=1) / np.sqrt(len(values))
            )


def test_a_network_that_knows_its_joints_has_the_bias_of_eq_9(tmp_path):
    """Perfect maps: the plain reading is off by what eq. 9 says of the labels, the compensated one is right."""
    joints = torch.from_numpy(np.random.default_rng(3).uniform(4, 12, (400, 2)))
    cells = torch.arange(16) + 0.5
    g = [torch.exp(-0.5 * ((cells - joints[:, a, None]) / 1.0).square()) for a in (0, 1)]
    maps = g[1][:, :, None] * g[0][:, None]
    e = torch.exp(3 * maps)
    plain, mean = (torch.from_numpy(centre(w.numpy())) for w in (e, e - 1))
    predicted = joints + (256 / e.sum((1, 2)))[:, None] * (8 - joints)
    for row in by_position(joints, (16, 16), plain, predicted, mean):
        if row["n"]:
            assert row["plain"] == pytest.approx(row["predicted"], abs=1e-3) and row["compensated"] == pytest.approx(0, abs=1e-3)


def run_command(words: list[str], monkeypatch, capsys) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["lowpose", *words])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code, *capsys.readouterr()


def test_command_writes_table_values_and_figure(tmp_path, monkeypatch, capsys):
    run = make_run(tmp_path / "run", {"name": "integral"})
    out = tmp_path / "study"
    words = ["study", "bias", "--weights", str(run), "--betas", "2,7.5", "--sigma", "1.5", "--persons", "4", "--out", str(out)]
    code, printed, _ = run_command(words, monkeypatch, capsys)
    assert code == 0 and printed.split() == [str(out / name) for name in FILES]
    assert sorted(p.name for p in out.iterdir()) == sorted(FILES)
    report = json.loads((out / "bias.json").read_text())
    assert report["synthetic"]["sigma"] == 1.5 and report["synthetic"]["betas"] == [2, 7.5]
    assert 0 < report["network"]["joints"] <= 4 * 17
    page = (out / "bias.md").read_text()
    assert "| x of the joint | beta 2 | beta 7.5 |" in page and "## tiny" in page and "nan" not in page
    tall = read_image(out / "bias.png").shape
    study_bias(tmp_path / "drawn", sigma=1.5)
    flat = read_image(tmp_path / "drawn/bias.png").shape
    assert tall[1] == flat[1] and tall[0] == pytest.approx(1.5 * flat[0], rel=0.01), "a third row of panels"
    assert "network" not in json.loads((tmp_path / "drawn/bias.json").read_text())


def test_numbers_of_the_page_are_those_of_the_report(tmp_path):
    report = study_bias(tmp_path, betas=(3,))
    lines = (tmp_path / "bias.md").read_text().splitlines()
    row = next(r for r in report["synthetic"]["size"] if r["side"] == 32)
    cell = " / ".join(f"{row[k][0]:.3f}" for k in ("measured", "predicted", "left"))
    assert f"| 32 | {cell} |" in lines


def test_all_files_or_none(tmp_path, monkeypatch):
    study_bias(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lowpose.bias.draw_bias", full)
    with pytest.raises(LowposeError, match="bias.png: no space left on device"):
        study_bias(tmp_path, betas=(2,))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    with pytest.raises(LowposeError):
        study_bias(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_other_maps_are_refused(tmp_path):
    """SimCC's keypoint map and UDP's disc have other means than joints."""
    for head in ("simcc", "udp"):
        run = tmp_path / head
        config = tiny(head={"name": head})
        save_weights(run / "weights.safetensors", build_model(config, COCO17), config)
        with pytest.raises(LowposeError, match=f"head '{head}' gives no map whose mean is a joint; give a run of head heatmap"):
            study_bias(tmp_path / "out", run)
    assert not (tmp_path / "out").exists()


@pytest.mark.photographs
def test_maps_for_photographs(tmp_path, shared):
    run = make_run(tmp_path / "run", {"name": "heatmap"}, LSP14, data={"kind": "lsp", "options": {}})
    report = study_bias(tmp_path / "out", run, f"lsp:{shared / 'lspet'}", persons=20)
    assert report["network"]["data"] == "lsp val" and 100 < report["network"]["joints"] <= 20 * 14
