"""Breakdowns against loops over persons in fractions and plain Python, pycocotools, and the counts that the paper prints."""

from __future__ import annotations

import json
import math
import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from lowpose.data import _coco_format, load_data
from lowpose.errors import LowposeError
from lowpose.metrics import breakdown as module
from lowpose.metrics import evaluate_predictions
from lowpose.metrics.breakdown import breakdown, by_rendered_height, check_heights, joint_bounds, person_sums
from lowpose.samples import PersonSample, PoseData
from lowpose.skeletons import COCO17, LSP14, MPII16, Skeleton

ROOT = Path(__file__).resolve().parents[2]


def make_data(skeleton=COCO17, n=120, protocol="coco", seed=0, **more):
    """Persons of all sizes, with 0 to K labelled joints and every share of occluded ones; and predictions near them."""
    rng = np.random.default_rng(seed)
    k, samples = len(skeleton), []
    for i in range(n):
        w, h = np.round(np.exp(rng.uniform(np.log(8), np.log(300), 2)), 1)
        number = int(rng.integers(0, k + 1)) if i else 0  # the first has no labelled joint
        visibility = np.zeros(k, np.uint8)
        share = rng.choice([0, 0.2, 0.5, 1])
        visibility[rng.permutation(k)[:number]] = np.where(rng.random(number) < share, 1, 2)
        points = np.where(visibility[:, None] > 0, rng.uniform(0, 1, (k, 2)) * [w, h] + 5, 0).astype(np.float32)
        area = float(rng.uniform(0.3, 0.9) * w * h)
        samples.append(
            PersonSample(f"{i}.jpg", np.array([5.0, 5, w, h]), points, visibility, i + 1, i + 1, area=area, head_size=h / 7)
        )
    data = PoseData("test", "val", "", skeleton, samples, lambda key: None, protocol=protocol, **more)
    truth = np.array([s.keypoints for s in samples], np.float64)
    scale = np.array([max(s.box[2:]) / 50 for s in samples])
    return data, truth + rng.normal(0, 2, truth.shape) * scale[:, None, None], scale


def restated(sample, k, sizes):
    """Names of the bins of one person, in exact arithmetic."""
    labelled = [int(v) for v in sample.visibility if v > 0]
    if not labelled:
        return None
    share = Fraction(len(labelled), k)
    occluded = Fraction(labelled.count(1), len(labelled))
    x, y, w, h = (float(v) for v in sample.box)
    square, cuts = (sample.area, (64, 96, 128)) if sizes == "area" else (w * h, (96, 144, 192))
    edges = (16, 24, 32, 48, 64, 96, 128)
    below = [e for e in edges if e <= h]
    height = "<16" if not below else ">=128" if len(below) == 7 else f"{below[-1]}-{edges[len(below)]}"
    return {
        "joints": "few" if share <= Fraction(5, 17) else "some" if share <= Fraction(10, 17) else "many",
        "occlusion": "few" if occluded < Fraction(1, 5) else "some" if occluded < Fraction(1, 2) else "many",
        "size": ["M", "L", "XL", "XXL"][sum(square >= c * c for c in cuts)],
        "height": height,
    }


def plain(data, keypoints, scale, chosen):
    """EPE, EPE_crop, PCK@0.2 and OKS of some persons: loops in plain Python; a figure that nobody has is missing."""
    errors, crops, hits, similar = [], [], [], []
    a, b = data.skeleton.torso
    for i in chosen:
        s = data.samples[i]
        d = {j: math.dist(keypoints[i, j], s.keypoints[j].astype(float)) for j in range(len(s.keypoints)) if s.visibility[j]}
        errors += d.values()
        crops += [v / scale[i] for v in d.values()]
        if a in d and b in d:
            torso = math.dist(s.keypoints[a].astype(float), s.keypoints[b].astype(float))
            hits += [v / torso <= 0.2 for v in d.values()]
        if data.skeleton.sigmas and d:
            e = [math.exp(-(v**2) / (2 * s.area * (2 * data.skeleton.sigmas[j]) ** 2)) for j, v in d.items()]
            similar.append(sum(e) / len(e))
    found = {"EPE": errors, "EPE_crop": crops, "PCK@0.2": [100 * h for h in hits], "OKS": [100 * v for v in similar]}
    return {name: sum(values) / len(values) for name, values in found.items() if values}


def cells_of(report, names):
    """(cell, indices of its persons): every cell of the report, by the names of each person's bins."""
    labelled = [i for i, n in enumerate(names) if n]
    yield report["all"], labelled
    for group, bins in report["by"].items():
        for bin_, cell in bins.items():
            yield cell, [i for i in labelled if names[i][group] == bin_]
    for cross, rows in report["cross"].items():
        a, b = cross.split(" x ")
        for row, columns in rows.items():
            for column, cell in columns.items():
                yield cell, [i for i in labelled if (names[i][a], names[i][b]) == (row, column)]


@pytest.mark.parametrize("sizes", ["area", "box"])
@pytest.mark.parametrize("skeleton", [COCO17, LSP14], ids=lambda s: s.name)
def test_every_cell_is_the_plain_computation_on_its_persons(skeleton, sizes):
    data, keypoints, scale = make_data(skeleton)
    report = breakdown(data, keypoints, scale, sizes=sizes, bootstrap=0)
    names = [restated(s, len(skeleton), sizes) for s in data.samples]
    used = 0
    for cell, chosen in cells_of(report, names):
        assert cell["persons"] == len(chosen)
        wanted = plain(data, keypoints, scale, chosen)
        assert set(cell["figures"]) == set(wanted)
        for name, value in wanted.items():
            assert cell["figures"][name]["value"] == pytest.approx(value, rel=1e-9)
        used += bool(chosen)
    assert used > 30, "most cells are filled"
    assert report["unlabelled"] == sum(n is None for n in names) > 0
    assert report["not_measured"] == {} and report["unsorted"] == 0


def test_every_cell_is_what_the_protocol_measures_on_its_persons():
    """Value, interval and n of PCK and EPE are those of `evaluate_predictions` on the subset, for MPII's protocol."""
    data, keypoints, scale = make_data(MPII16, protocol="mpii")
    report = breakdown(data, keypoints, scale, bootstrap=50, seed=3)
    assert report["metrics"] == ["PCKh@0.5", "PCKh@0.1", "EPE", "EPE_crop"] and "no sigmas" in report["not_measured"]["OKS"]
    names = [restated(s, 16, "area") for s in data.samples]
    seen = 0
    for cell, chosen in cells_of(report, names):
        if len(chosen) < 2:
            continue
        score = np.ones((len(chosen), 16))
        wanted = evaluate_predictions(
            data.subset(chosen), keypoints[chosen], score, score, bootstrap=50, seed=3, crop_scale=scale[chosen]
        )["metrics"]
        for name, figure in cell["figures"].items():
            if figure["n"] > 1:
                assert figure == wanted[name]
                seen += 1
    assert seen > 100


def test_cells_add_up_to_the_whole():
    data, keypoints, scale = make_data()
    report = breakdown(data, keypoints, scale, bootstrap=0)
    everybody, oks = report["all"]["persons"], report["all"]["figures"]["OKS"]["value"]
    assert everybody == len(data) - report["unlabelled"]
    groups = [list(bins.values()) for bins in report["by"].values()]
    groups += [[cell for row in rows.values() for cell in row.values()] for rows in report["cross"].values()]
    assert len(groups) == 6
    for cells in groups:
        assert sum(c["persons"] for c in cells) == everybody
        total = sum(c["figures"]["OKS"]["value"] * c["figures"]["OKS"]["n"] for c in cells if c["figures"])
        assert total / everybody == pytest.approx(oks, rel=1e-12)
    for cross, rows in report["cross"].items():
        a, b = cross.split(" x ")
        for row, columns in rows.items():
            assert sum(c["persons"] for c in columns.values()) == report["by"][a][row]["persons"]
        for column, cell in report["by"][b].items():
            assert sum(columns[column]["persons"] for columns in rows.values()) == cell["persons"]


def test_intervals_hold_the_value_and_narrow_with_persons():
    data, keypoints, scale = make_data(n=300)
    report = breakdown(data, keypoints, scale, bootstrap=300)
    width = {}
    for cell, _ in cells_of(report, [restated(s, 17, "area") for s in data.samples]):
        for name, f in cell["figures"].items():
            if f["n"] == 1:
                assert f["low"] is None and f["high"] is None
            elif f["n"] > 5:
                assert f["low"] < f["value"] < f["high"]
                if name == "OKS":
                    width[f["n"]] = f["high"] - f["low"]
    least, most = min(width), max(width)
    assert width[most] < width[least] / 2


def test_oks_is_pycocotools():
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    data, keypoints, _ = make_data(n=12)
    truth, found = COCO(), COCO()
    images = [{"id": s.image_id} for s in data.samples]
    rows = []
    for s in data.samples:
        flat = np.column_stack([s.keypoints.astype(float), s.visibility]).ravel().tolist()
        number = int(s.labelled.sum())
        row = {"id": s.id, "image_id": s.image_id, "category_id": 1, "bbox": s.box.tolist(), "area": s.area, "iscrowd": 0}
        rows.append(row | {"keypoints": flat, "num_keypoints": number, "ignore": 0})
    guesses = [
        {"id": i + 1, "image_id": i + 1, "category_id": 1, "score": 1.0, "keypoints": np.c_[p, np.ones(17)].ravel().tolist()}
        | {"area": 1.0, "bbox": [0, 0, 1, 1]}
        for i, p in enumerate(keypoints)
    ]
    for coco, persons in ((truth, rows), (found, guesses)):
        coco.dataset = {"images": images, "annotations": persons, "categories": [{"id": 1}]}
        coco.createIndex()
    judge = COCOeval(truth, found, "keypoints")
    judge._prepare()
    total, counted = person_sums(data, keypoints)["OKS"]
    for i, s in enumerate(data.samples):
        if s.labelled.any():
            assert total[i] / 100 == pytest.approx(judge.computeOks(s.image_id, 1)[0, 0], rel=1e-6)
            assert counted[i] == 1
        else:
            assert (total[i], counted[i]) == (0, 0)


def one_person(visibility, box=(0, 0, 10, 10), area: float | None = 100.0):
    visibility = np.array(visibility, np.uint8)
    return PersonSample("a.jpg", np.array(box, float), np.zeros((len(visibility), 2), np.float32), visibility, 1, 1, area=area)


def bins_of(sample, sizes="area"):
    """Of a person among two others that make every group known."""
    others = [one_person([1] * 17), one_person([2] * 17)]
    data = PoseData("test", "val", "", COCO17, [sample, *others], lambda key: None)
    found = {
        "joints": module.by_joints(data),
        "occlusion": module.by_occlusion(data),
        "size": module.by_size(data, sizes),
        "height": module.by_height(data),
    }
    return {group: bins.names[bins.index[0]] for group, bins in found.items()}


def test_bounds_belong_to_the_upper_bin():
    assert bins_of(one_person([1] + [2] * 4 + [0] * 12))["occlusion"] == "some"  # 20%
    assert bins_of(one_person([1] + [2] * 5 + [0] * 11))["occlusion"] == "few"
    assert bins_of(one_person([1] * 3 + [2] * 3 + [0] * 11))["occlusion"] == "many"  # 50%
    assert bins_of(one_person([1] * 5 + [2] * 6 + [0] * 6))["occlusion"] == "some"
    assert [bins_of(one_person([2] * n + [0] * (17 - n)))["joints"] for n in (1, 5, 6, 10, 11, 17)] == (
        ["few"] * 2 + ["some"] * 2 + ["many"] * 2
    )
    for side, below, here in ((64, "M", "L"), (96, "L", "XL"), (128, "XL", "XXL")):
        assert bins_of(one_person([2] * 17, area=side**2))["size"] == here
        assert bins_of(one_person([2] * 17, area=side**2 - 0.01))["size"] == below
    for side, below, here in ((96, "M", "L"), (144, "L", "XL"), (192, "XL", "XXL")):
        box = (0, 0, side / 2, side * 2)
        assert bins_of(one_person([2] * 17, box, area=1.0), "box")["size"] == here
        assert bins_of(one_person([2] * 17, (0, 0, side / 2, side * 2 - 0.01), area=1e6), "box")["size"] == below
    assert bins_of(one_person([2] * 17, (0, 0, 500, 16)))["height"] == "16-24"
    assert bins_of(one_person([2] * 17, (0, 0, 500, 15.99)))["height"] == "<16"
    assert bins_of(one_person([2] * 17, (0, 0, 5, 128)))["height"] == ">=128"


@pytest.mark.parametrize("joints", [1, 2, 3, 5, 14, 16, 17, 21, 133])
def test_bounds_of_joints_follow_the_skeleton(joints):
    """Every number of joints stands in one bin, the one of its share; no bin is empty by its bounds."""
    bounds = joint_bounds(joints)
    for number in range(1, joints + 1):
        share = Fraction(number, joints)
        wanted = "few" if share <= Fraction(5, 17) else "some" if share <= Fraction(10, 17) else "many"
        assert [name for name, (low, high) in bounds.items() if low <= number <= high] == [wanted]
    assert all(1 <= low <= high <= joints for low, high in bounds.values())
    if joints == 17:
        assert bounds == {"few": (1, 5), "some": (6, 10), "many": (11, 17)}


def test_occlusion_that_is_not_labelled_is_said():
    data, keypoints, _ = make_data(LSP14, protocol="lsp")
    for only, word in ((2, "occluded"), (1, "visible")):
        samples = [
            PersonSample(s.image, s.box, s.keypoints, np.where(s.labelled, only, 0), s.id, s.image_id, area=s.area)
            for s in data.samples
        ]
        report = breakdown(
            PoseData("test", "val", "", LSP14, samples, data.read, protocol="lsp"), keypoints, sizes="box", bootstrap=0
        )
        assert f"is marked as {word}" in report["not_measured"]["occlusion"]
        assert set(report["by"]) == {"joints", "size", "height"} and set(report["cross"]) == {"size x joints"}


@pytest.mark.parametrize("made_from", ["boxes", "joints"])
def test_areas_that_are_not_labelled_are_said(made_from):
    data, keypoints, _ = make_data(areas=made_from)
    report = breakdown(data, keypoints, bootstrap=0)
    assert f"made from the {made_from}" in report["not_measured"]["size"]
    assert "size" not in report["by"] and set(report["cross"]) == {"occlusion x joints"}
    assert "size" in breakdown(data, keypoints, sizes="box", bootstrap=0)["by"]
    assert "OKS" in report["metrics"], "it takes the data set's areas wherever they come from"


def test_unknown_areas():
    data, keypoints, _ = make_data()
    nobody = [PersonSample(s.image, s.box, s.keypoints, s.visibility, s.id, s.image_id) for s in data.samples]
    report = breakdown(PoseData("test", "val", "", COCO17, nobody, data.read), keypoints, bootstrap=0)
    assert "no person's area is known" in report["not_measured"]["size"] and "OKS" in report["not_measured"]
    nothing = [PersonSample(s.image, s.box, s.keypoints, s.visibility, s.id, s.image_id, area=0.0) for s in data.samples]
    assert breakdown(PoseData("test", "val", "", COCO17, nothing, data.read), keypoints, bootstrap=0) == report
    half = [full if i % 2 else empty for i, (full, empty) in enumerate(zip(data.samples, nobody, strict=True))]
    report = breakdown(PoseData("test", "val", "", COCO17, half, data.read), keypoints, bootstrap=0)
    unknown = sum(s.area is None and s.labelled.any() for s in half)
    assert report["unsorted"] == unknown > 0
    assert sum(c["persons"] for c in report["by"]["size"].values()) == report["all"]["persons"] - unknown
    assert report["all"]["figures"]["OKS"]["n"] == report["all"]["persons"] - unknown


def test_nobody_one_person_and_empty_cells():
    unlabelled = PoseData("test", "val", "", COCO17, [one_person([0] * 17)] * 3, lambda key: None)
    report = breakdown(unlabelled, np.zeros((3, 17, 2)))
    assert report["all"] == {"persons": 0, "figures": {}} and report["unlabelled"] == 3 and report["metrics"] == []
    assert "occlusion" in report["not_measured"]
    single = PoseData("test", "val", "", COCO17, [one_person([2] * 8 + [1] * 2 + [0] * 7)], lambda key: None)
    report = breakdown(single, np.full((1, 17, 2), 3.0))
    figure = report["all"]["figures"]["EPE"]
    assert figure == {"value": pytest.approx(math.sqrt(18)), "low": None, "high": None, "n": 1}
    assert report["by"]["joints"]["some"]["figures"]["EPE"] == figure
    empty = report["by"]["joints"]["many"]
    assert empty == {"bounds": "11-17", "persons": 0, "figures": {}}
    for found in (report, breakdown(unlabelled, np.zeros((3, 17, 2)))):
        assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_skeleton_without_sigmas_and_without_a_torso():
    skeleton = Skeleton("three", ("a", "b", "c"))
    data, keypoints, scale = make_data(skeleton)
    report = breakdown(data, keypoints, scale, bootstrap=0)
    assert report["metrics"] == ["EPE", "EPE_crop"]
    assert [c["bounds"] for c in report["by"]["joints"].values()] == ["1", "2-3"]


def test_what_is_refused():
    data, keypoints, scale = make_data(n=5)
    with pytest.raises(LowposeError, match="sizes must be one of area, box, not 'boxs'"):
        breakdown(data, keypoints, sizes="boxs")
    with pytest.raises(LowposeError, match="boxes of a detector have no labels"):
        breakdown(PoseData("test", "val", "", COCO17, data.samples, data.read, boxes="found.json"), keypoints)
    with pytest.raises(LowposeError, match="keypoints must be"):
        breakdown(data, keypoints[:4])
    with pytest.raises(LowposeError, match="keypoints must be"):
        breakdown(data, np.where(np.arange(17)[:, None] == 2, np.nan, keypoints))
    with pytest.raises(LowposeError, match="crop_scale"):
        breakdown(data, keypoints, -scale)


@pytest.mark.parametrize("heights", [[0], [7], [16, 16], [32, 16], [16, 5000], [float("nan")]])
def test_heights_that_are_refused(heights):
    with pytest.raises(LowposeError, match="heights must rise and be 8 to 4096 pixels"):
        check_heights(heights)


def test_rendered_heights_count_those_who_are_as_high():
    data, keypoints, scale = make_data(n=80)
    data.samples[7].box[3], data.samples[8].box[3] = 150, 60  # exactly as high: they count
    assert data.samples[7].labelled.any() and data.samples[8].labelled.any()
    renders = {20: keypoints + 1.0, 60: keypoints + 0.5, 150: keypoints + 0.1}
    report = by_rendered_height(data, renders, keypoints, scale, bootstrap=0)
    assert report["tallest"] == 150 and [row["height"] for row in report["rows"]] == [20, 60, 150]
    labelled = [i for i, s in enumerate(data.samples) if s.labelled.any()]
    same = [i for i in labelled if data.samples[i].box[3] >= 150]
    assert 3 < len(same) < len(labelled)

    def agrees(cell, points, chosen):
        assert cell["persons"] == len(chosen)
        for name, value in plain(data, points, scale, chosen).items():
            assert cell["figures"][name]["value"] == pytest.approx(value, rel=1e-9)

    for row in report["rows"]:
        enough = [i for i in labelled if data.samples[i].box[3] >= row["height"]]
        agrees(row["enough"], renders[row["height"]], enough)
        agrees(row["same"], renders[row["height"]], same)
        assert row["smaller"] == len(labelled) - len(enough)
    agrees(report["plain"]["enough"], keypoints, labelled)
    agrees(report["plain"]["same"], keypoints, same)


def test_nobody_is_as_high():
    data, keypoints, scale = make_data(n=20)
    report = by_rendered_height(data, {16: keypoints, 4000: np.zeros((0, 0, 2))}, keypoints, scale)
    assert report["rows"][1]["enough"] == report["rows"][1]["same"] == {"persons": 0, "figures": {}}
    assert report["rows"][1]["smaller"] == sum(s.labelled.any() for s in data.samples)
    assert report["rows"][0]["same"]["persons"] == 0 < report["rows"][0]["enough"]["persons"]


def test_counts_of_the_paper_on_the_whole_of_coco(monkeypatch):
    """Tables 2 and 3 of the supplement: 6352 persons of val2017. Only the annotations are needed, no pictures."""
    root = Path(os.environ.get("LOWPOSE_COCO", ROOT / "data" / "coco"))
    path = root / "annotations" / "person_keypoints_val2017.json"
    if not path.is_file():
        pytest.skip(f"the full annotations of COCO val2017 are not there: {path} (set LOWPOSE_COCO to COCO's folder)")
    monkeypatch.setattr(_coco_format, "picture_folder", lambda *args: ".")
    data = load_data("coco", root, "val")
    report = breakdown(data, np.zeros((len(data), 17, 2)), bootstrap=0)

    def persons(cells):
        return [cell["persons"] for cell in cells.values()]

    assert report["all"]["persons"] == 6352
    assert persons(report["by"]["joints"]) == [934, 1792, 3626]
    assert persons(report["by"]["occlusion"]) == [4616, 1368, 368]
    assert {row: persons(cells) for row, cells in report["cross"]["occlusion x joints"].items()} == {
        "few": [585, 1059, 2972],
        "some": [182, 584, 602],
        "many": [167, 149, 52],
    }
    assert persons(report["by"]["size"]) == [2413, 1248, 782, 1909]
    assert {row: persons(cells) for row, cells in report["cross"]["size x joints"].items()} == {
        "M": [401, 794, 1218],
        "L": [174, 327, 747],
        "XL": [103, 187, 492],
        "XXL": [256, 484, 1169],
    }
