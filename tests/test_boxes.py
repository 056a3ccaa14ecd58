import json

import numpy as np
import pytest

from lowpose.boxes import load_boxes
from lowpose.errors import LowposeError
from lowpose.sources import Frame

IMAGE = np.zeros((30, 50, 3), np.uint8)


def frame(name="a.jpg", image_id=None, source=None, index=0, fps=None) -> Frame:
    return Frame(name, IMAGE, name if image_id is None else image_id, index, source or f"/data/val/{name}", fps)


def write(tmp_path, content, name="boxes.json") -> str:
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def expect(table, frame, rows):
    """rows: x, y, w, h, score."""
    boxes, scores = table(frame)
    assert boxes.dtype == scores.dtype == np.float64 and boxes.shape == (len(rows), 4) and scores.shape == (len(rows),)
    assert np.column_stack([boxes, scores]).tolist() == [[float(v) for v in row] for row in rows]


def test_whole_picture():
    table = load_boxes("whole")
    expect(table, frame(), [[0, 0, 50, 30, 1]])
    assert frame() in table


def test_coco_results(tmp_path):
    rows = [
        {"image_id": 139, "bbox": [1, 2, 3, 4], "score": 0.5, "category_id": 1},
        {"image_id": 139, "bbox": [5, 6, 7, 8], "score": 0.25, "category_id": 1},
        {"image_id": 139, "bbox": [0, 0, 9, 9], "score": 0.9, "category_id": 3},
        {"file_name": "val/b.jpg", "bbox": [1.5, 2, 3, 4]},
    ]
    table = load_boxes(write(tmp_path, rows))
    expect(table, frame("000000000139.jpg", 139), [[1, 2, 3, 4, 0.5], [5, 6, 7, 8, 0.25]])
    expect(table, frame("b.jpg"), [[1.5, 2, 3, 4, 1]])
    assert frame("c.jpg") not in table
    expect(table, frame("c.jpg"), [])
    expect(load_boxes(write(tmp_path, rows), min_score=0.5), frame("x.jpg", 139), [[1, 2, 3, 4, 0.5]])


def test_coco_annotations(tmp_path):
    data = {
        "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 8, "file_name": "nobody.jpg"}],
        "annotations": [
            {"id": 1, "image_id": 7, "bbox": [1, 2, 3, 4], "category_id": 5},
            {"id": 2, "image_id": 7, "bbox": [0, 0, 40, 20], "category_id": 5, "iscrowd": 1},
            {"id": 3, "image_id": 7, "bbox": [9, 9, 1, 1], "category_id": 6},
        ],
        "categories": [{"id": 5, "name": "person"}, {"id": 6, "name": "dog"}],
    }
    table = load_boxes(write(tmp_path, data))
    expect(table, frame("a.jpg", 99), [[1, 2, 3, 4, 1]])
    assert frame("nobody.jpg") in table and frame("other.jpg") not in table
    data["categories"][0]["name"] = "cat"
    with pytest.raises(LowposeError, match="none is called 'person'"):
        load_boxes(write(tmp_path, data))


def test_mapping_of_names(tmp_path):
    table = load_boxes(
        write(tmp_path, {"a.jpg": [[1, 2, 3, 4], [1, 2, 3, 4, 0.5]], "b.jpg": [], "street.mp4:12": [[0, 0, 5, 5]]})
    )
    expect(table, frame("a.jpg"), [[1, 2, 3, 4, 1], [1, 2, 3, 4, 0.5]])
    assert frame("b.jpg") in table
    expect(table, frame("street.mp4:12", 12, "/x/street.mp4", 12, 25.0), [[0, 0, 5, 5, 1]])
    expect(table, frame("street.mp4:11", 11, "/x/street.mp4", 11, 25.0), [])


def test_names_fit_by_the_end_of_the_path(tmp_path):
    table = load_boxes(write(tmp_path, {"one/a.jpg": [[1, 1, 1, 1]], "two/a.jpg": [[2, 2, 2, 2]], "c": [[3, 3, 3, 3]]}))
    expect(table, frame("a.jpg", source="/data/one/a.jpg"), [[1, 1, 1, 1, 1]])
    expect(table, frame("a.jpg", source="/data/two/a.jpg"), [[2, 2, 2, 2, 1]])
    expect(table, frame("a.jpg", source="/data/three/a.jpg"), [])
    expect(table, frame("c.png", source="/data/c.png"), [[3, 3, 3, 3, 1]])


def test_csv(tmp_path):
    text = 'name,x,y,w,h,score\n# a remark\na.jpg, 1, 2, 3, 4, 0.5\n\n"b, c.jpg",5,6,7,8,1e-1\n139,1,1,1,1,1\n'
    table = load_boxes(write(tmp_path, text, "boxes.csv"))
    expect(table, frame("a.jpg"), [[1, 2, 3, 4, 0.5]])
    expect(table, frame("b, c.jpg"), [[5, 6, 7, 8, 0.1]])
    expect(table, frame("000000000139.jpg", 139), [[1, 1, 1, 1, 1]])
    expect(load_boxes(write(tmp_path, "a.jpg,1,2,3,4\r\n", "b.txt")), frame("a.jpg"), [[1, 2, 3, 4, 1]])


def test_mot_frames_count_from_one(tmp_path):
    table = load_boxes(write(tmp_path, "1,-1,10,20,30,40,0.9,-1,-1,-1\n3,-1,1,2,3,4,0.8,-1,-1,-1\n", "det.txt"))
    expect(table, frame("v.mp4:0", 0, "/x/v.mp4", 0, 30.0), [[10, 20, 30, 40, 0.9]])
    expect(table, frame("v.mp4:1", "v.mp4:1", "/x/v.mp4", 1, 30.0), [])
    expect(table, frame("v.mp4:2", "v.mp4:2", "/x/v.mp4", 2, 30.0), [[1, 2, 3, 4, 0.8]])
    expect(table, frame("000003.jpg", 3, index=0), [[1, 2, 3, 4, 0.8]])


def test_frames_of_mot_may_be_written_as_floats(tmp_path):
    table = load_boxes(write(tmp_path, "7.0,3,1,2,3,4,1,-1,-1,-1\n", "b.txt"))
    expect(table, frame(index=6, fps=25.0), [[1, 2, 3, 4, 1]])


def test_what_nobody_asked_for_is_known(tmp_path):
    table = load_boxes(write(tmp_path, "7,1,2,3,4\n8,1,2,3,4\nzwei.jpg,1,2,3,4\n", "b.csv"))
    assert table.left() == ["7", "8", "zwei.jpg"]
    table(frame("8.jpg", 8)), table(frame("other.jpg"))
    assert table.left() == ["7", "zwei.jpg"]
    table = load_boxes(write(tmp_path, {"a.jpg": [], "b.jpg": [[1, 2, 3, 4]]}))
    assert frame("b.jpg") in table and table.left() == [
        "b.jpg"
    ]  # a question is no use; a picture without persons is nothing lost
    number = "1" * 5000
    assert load_boxes(write(tmp_path, f"{number},1,2,3,4\n", "long.csv")).left() == [number]


def test_tracks_of_mot_come_in_the_order_of_their_ids(tmp_path):
    text = "2,7,10,20,30,40,0.9,-1,-1,-1\n1,7,1,2,3,4,0.8,-1,-1,-1\n2,-1,5,5,5,5,0.7,-1,-1,-1\n2,3,6,6,6,6,0.6,-1,-1,-1\n"
    table = load_boxes(write(tmp_path, text, "tracks.txt"))
    at = [frame(f"v.mp4:{i}", i, "/x/v.mp4", i, 30.0) for i in range(3)]
    boxes, scores, ids = table.people(at[1])
    assert ids.dtype == np.int64 and ids.tolist() == [3, 7, -1] and scores.tolist() == [0.6, 0.9, 0.7]
    assert boxes.tolist() == [[6, 6, 6, 6], [10, 20, 30, 40], [5, 5, 5, 5]]
    assert table.people(at[0])[2].tolist() == [7] and table.people(at[2])[2].shape == (0,)
    few = load_boxes(write(tmp_path, text, "tracks.txt"), min_score=0.65)
    assert few.people(at[1])[2].tolist() == [7, -1]


def test_detections_without_tracks_have_no_ids_and_stay_in_their_order(tmp_path):
    table = load_boxes(write(tmp_path, "1,-1,9,9,9,9,0.1,-1,-1,-1\n1,-1,1,2,3,4,0.8,-1,-1,-1\n", "det.txt"))
    boxes, _, ids = table.people(frame("v.mp4:0", 0, "/x/v.mp4", 0, 30.0))
    assert ids is None and boxes[:, 0].tolist() == [9, 1]
    assert load_boxes("whole").people(frame())[2] is None


def test_ground_truth_of_mot_keeps_pedestrians(tmp_path):
    lines = ["1,1,10,20,30,40,1,1,0.9", "1,2,11,20,30,40,0,1,1", "1,3,12,20,30,40,1,7,1", "1,4,13,20,30,40,1,1,0"]
    table = load_boxes(write(tmp_path, "\n".join(lines), "gt.txt"))
    boxes, scores, ids = table.people(frame("000001.jpg", 1))
    assert ids.tolist() == [1, 4] and boxes[:, 0].tolist() == [10, 13] and scores.tolist() == [1, 1]
    with pytest.raises(LowposeError, match="no line of class 1"):
        load_boxes(write(tmp_path, "\n".join(lines[1:3]), "gt.txt"))


def test_tracks_of_coco_rows(tmp_path):
    rows = [{"image_id": 4, "bbox": [1, 2, 3, 4], "score": 0.5, "track_id": 9}, {"image_id": 4, "bbox": [5, 6, 7, 8]}]
    assert load_boxes(write(tmp_path, rows)).people(frame("4.jpg", 4))[2].tolist() == [9, -1]
    data = {"images": [{"id": 7, "file_name": "a.jpg"}], "annotations": [rows[0] | {"image_id": 7}]}
    assert load_boxes(write(tmp_path, data)).people(frame("a.jpg"))[2].tolist() == [9]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("b.json", '[\n{"image_id": 1,\n]', "line 3: not JSON"),
        ("b.json", "3", "expected COCO results"),
        ("b.json", [{"image_id": 1}], "row 0: expected image_id"),
        ("b.json", [5], "row 0: expected image_id"),
        ("b.json", [{"image_id": None, "bbox": [1, 2, 3, 4]}], "row 0: expected a file name or a number"),
        ("b.json", [{"image_id": 1, "bbox": [1, 2, 3]}], r"row 0: expected four numbers .* \[1, 2, 3\]"),
        ("b.json", [{"image_id": 1, "bbox": "1234"}], "row 0: expected four numbers"),
        ("b.json", [{"image_id": 1, "bbox": [1, 2, 3, 4], "score": None}], "row 0: expected four numbers"),
        ("b.json", [{"image_id": 1, "bbox": [1, 2, 0, 4]}], "row 0: box .* has no area"),
        ("b.json", [{"image_id": 1, "bbox": [1, 2, 3, -4]}], "row 0: box .* has no area"),
        ("b.json", '[{"image_id": 1, "bbox": [NaN, 2, 3, 4]}]', "row 0: .* finite"),
        ("b.json", '[{"image_id": 1, "bbox": [1, 2, 3, 4], "score": Infinity}]', "row 0: .* finite"),
        ("b.json", [{"image_id": 1, "bbox": [1, 2, 3, 4], "category_id": 2}], "all 1 rows have a category_id other than 1"),
        ("b.json", {"a.jpg": 3}, r"'a.jpg': expected a list of boxes"),
        ("b.json", {"a.jpg": [1, 2, 3, 4]}, r"'a.jpg': box 0: expected four numbers"),
        ("b.json", {"images": [{}], "annotations": []}, "not COCO annotations"),
        ("b.json", {"images": [], "annotations": [{"id": 4, "image_id": 9, "bbox": [1, 2, 3, 4]}]}, "annotation 4: image_id 9"),
        ("b.json", {"images": [], "annotations": [7]}, "not COCO annotations"),
        ("b.csv", "a.jpg,1,2,3,4\nb.jpg,1,2,3\n", "line 2: 4 fields"),
        ("b.csv", "a.jpg,1,2,3,4\nb.jpg,1,2,x,4\n", "line 2: expected four numbers"),
        ("b.csv", "a.jpg,1,2,3,4\n\nb.jpg,1,2,3,0\n", "line 3: .* has no area"),
        ("b.csv", "a.jpg,1,2,nan,4\n", "line 1: .* finite"),
        ("b.csv", "0,1,1,2,3,4,1\n", "line 1: MOT frames are whole numbers from 1, got '0'"),
        ("b.csv", "1,x,1,2,3,4,1\n", "line 1: track ids are whole numbers from 0, or -1 without a track, got 'x'"),
        ("b.csv", "1,1.5,1,2,3,4,1\n", "line 1: track ids .* got '1.5'"),
        ("b.csv", "1,-2,1,2,3,4,1\n", "line 1: track ids .* got '-2'"),
        ("b.csv", "1,nan,1,2,3,4,1\n", "line 1: track ids .* got 'nan'"),
        ("b.csv", "1,5,1,2,3,4,1\n2,5,1,2,3,4,1\n2,5,9,2,3,4,1\n", "'2' has two boxes of track 5"),
        ("b.csv", "1,5,1,2,3,4,1,person,1\n", "line 1: expected numbers for flag and class, got '1', 'person'"),
        ("b.json", [{"image_id": 1, "bbox": [1, 2, 3, 4], "track_id": True}], "row 0: track ids .* got True"),
        ("b.csv", "1,7,10,10,40,80\n", "line 1: 6 numbers, the last 80, are no name,x,y,w,h,score; lines of MOT have 7 or more"),
        ("b.csv", "1.5,7,10,10,40,80,1\n", "line 1: MOT frames are whole numbers from 1, got '1.5'"),
        ("b.csv", f"{'a' * 200_000},1,2,3,4\n", "not a list of boxes .*field"),
        ("b.csv", "", "no boxes in this file"),
        ("b.csv", "name,x,y,w,h\n", "no boxes in this file"),
        ("b.xml", "<a/>", "boxes come from a .json, .csv or .txt file, or 'whole'"),
    ],
)
def test_malformed_files(tmp_path, name, content, message):
    path = write(tmp_path, content, name)
    with pytest.raises(LowposeError, match=message) as e:
        load_boxes(path)
    assert str(e.value).startswith(path) and "\n" not in str(e.value)


def test_no_file_and_no_text(tmp_path):
    with pytest.raises(LowposeError, match=r"none.json: no such file or directory$"):
        load_boxes(str(tmp_path / "none.json"))
    (tmp_path / "b.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LowposeError, match="not a text file"):
        load_boxes(str(tmp_path / "b.json"))


@pytest.mark.photographs
def test_detector_file_of_coco(shared):
    path = shared / "coco-4" / "test_coco_det_AP_H_56.json"
    rows = json.loads(path.read_text())
    table = load_boxes(str(path), min_score=0.3)
    for image_id in {row["image_id"] for row in rows}:
        wanted = [
            [*map(float, r["bbox"]), r["score"]]
            for r in rows
            if r["image_id"] == image_id and r.get("category_id", 1) == 1 and r["score"] >= 0.3
        ]
        expect(table, frame(f"{image_id:012d}.jpg", image_id), wanted)
    truth = shared / "coco-4" / "test_coco.json"
    data = json.loads(truth.read_text())
    names = {image["id"]: image["file_name"] for image in data["images"]}
    table = load_boxes(str(truth))
    for image_id, name in names.items():
        wanted = [[*map(float, a["bbox"]), 1.0] for a in data["annotations"] if a["image_id"] == image_id and not a["iscrowd"]]
        expect(table, frame(name), wanted)
