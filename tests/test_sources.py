import os

import cv2
import numpy as np
import pytest

from lowpose.errors import LowposeError
from lowpose.images import write_image
from lowpose.sources import VideoWriter, count_frames, frames


def picture(path, value=100, size=(12, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, np.full((*size, 3), value, np.uint8))
    return str(path)


def video(path, n=8, size=(48, 64), fps=10.0):
    """Written by OpenCV alone; frame i is grey 20 i, with a red left half."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), fps, size[::-1])
    for i in range(n):
        image = np.full((*size, 3), 20 * i % 256, np.uint8)
        image[:, : size[1] // 2] = (0, 0, 200)
        writer.write(image)
    writer.release()
    return str(path)


def test_named_pictures_in_their_order(tmp_path):
    a, b = picture(tmp_path / "b.png", 10), picture(tmp_path / "a.png", 20)
    found = list(frames([a, b]))
    assert [(f.name, f.index, f.source, f.fps, int(f.image[0, 0, 0])) for f in found] == [
        ("b.png", 0, a, None, 10),
        ("a.png", 1, b, None, 20),
    ]
    assert found[0].image.shape == (12, 16, 3) and count_frames([a, b]) == 2


def test_folders_are_sorted_and_recursive(tmp_path):
    for name in ("z.png", "sub/b.JPG", "sub/a.png", ".thumbs/x.png", "._z.png"):
        picture(tmp_path / name)
    (tmp_path / "notes.txt").write_text("x")
    assert [f.name for f in frames([str(tmp_path)])] == ["sub/a.png", "sub/b.JPG", "z.png"]
    assert count_frames([str(tmp_path)]) == 3


def test_picture_named_twice_is_read_once(tmp_path):
    one = picture(tmp_path / "a.png")
    assert [f.name for f in frames([one, str(tmp_path), one])] == ["a.png"]


def test_names_stay_unique(tmp_path):
    paths = [picture(tmp_path / f / "a.png") for f in ("one", "two")] + [picture(tmp_path / "b.png")]
    assert [f.name for f in frames([str(tmp_path / "one"), str(tmp_path / "two"), paths[2]])] == [*paths[:2], "b.png"]


@pytest.mark.parametrize(
    "name, number",
    [
        ("000000000139.png", 139),
        ("im00042.png", 42),
        ("COCO_val2014_000000000042.png", 42),
        ("2020-01-05.png", "2020-01-05.png"),
        ("cat.png", "cat.png"),
    ],
)
def test_image_id_is_the_number_in_the_name(tmp_path, name, number):
    (frame,) = frames([picture(tmp_path / name)])
    assert frame.image_id == number


def test_image_id_is_the_name_where_numbers_meet(tmp_path):
    paths = [picture(tmp_path / n) for n in ("a_1.png", "b_1.png", "c_2.png")]
    assert [f.image_id for f in frames(paths)] == ["a_1.png", "b_1.png", 2]


def test_what_is_not_there(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.txt").write_text("x")
    for sources, message in (
        ([], "no source given"),
        ([str(tmp_path / "x.png")], "x.png: no such file or folder"),
        ([str(tmp_path / "empty")], "empty: no pictures in this folder"),
    ):
        with pytest.raises(LowposeError, match=message):  # at the call, before anything is read
            frames(sources)
        with pytest.raises(LowposeError, match=message):
            count_frames(sources)


def test_broken_picture_among_good_ones_is_reported(tmp_path):
    picture(tmp_path / "a.png", 1)
    (tmp_path / "b.jpg").write_bytes(b"nothing")
    picture(tmp_path / "c.png", 3)
    said = []
    assert [(f.name, f.index) for f in frames([str(tmp_path)], said.append)] == [("a.png", 0), ("c.png", 2)]
    assert len(said) == 1 and said[0].startswith(f"{tmp_path / 'b.jpg'}: not a picture")
    with pytest.raises(LowposeError, match="b.jpg"):
        list(frames([str(tmp_path)]))
    with pytest.raises(LowposeError, match="b.jpg"):
        list(frames([str(tmp_path / "b.jpg")], said.append))


def test_video_frames(tmp_path):
    path = video(tmp_path / "v.avi")
    found = list(frames([path]))
    assert [(f.name, f.image_id, f.index, f.fps) for f in found] == [(f"v.avi:{i}", i, i, 10.0) for i in range(8)]
    assert count_frames([path]) == 8
    for i, frame in enumerate(found):
        assert frame.image.shape == (48, 64, 3)
        assert np.abs(frame.image[:, 40:].mean((0, 1)) - 20 * i).max() < 4
        assert np.abs(frame.image[:, :24].mean((0, 1)) - [200, 0, 0]).max() < 8  # RGB


def test_video_beside_pictures(tmp_path):
    sources = [video(tmp_path / "v.avi", 2), picture(tmp_path / "7.png")]
    assert [(f.name, f.image_id) for f in frames(sources)] == [("v.avi:0", "v.avi:0"), ("v.avi:1", "v.avi:1"), ("7.png", 7)]
    assert count_frames(sources) == 3


def test_video_that_cannot_be_opened(tmp_path, capfd):
    (tmp_path / "v.mp4").write_bytes(b"no video" * 100)
    with pytest.raises(LowposeError, match=r"v.mp4: not a video that can be opened$"):
        list(frames([str(tmp_path / "v.mp4")]))
    said = []
    assert len(list(frames([str(tmp_path / "v.mp4"), picture(tmp_path / "a.png")], said.append))) == 1
    assert len(said) == 1 and "v.mp4" in said[0]


def test_video_that_ends_early(tmp_path):
    path = tmp_path / "v.avi"
    video(path, 40)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    capture = cv2.VideoCapture(str(path))
    announced, there = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0
    while capture.read()[0]:
        there += 1
    capture.release()
    assert 0 < there < announced - 2
    said = []
    assert len(list(frames([str(path)], said.append))) == there
    assert said == [f"{path}: the video ends early, after {there} of {announced} frames"]
    with pytest.raises(LowposeError, match="ends early"):
        list(frames([str(path)]))


@pytest.mark.photographs
def test_street_video(shared):
    path = shared / "people.mp4"
    found = list(frames([str(path)]))
    assert len(found) == count_frames([str(path)]) > 1
    capture = cv2.VideoCapture(str(path))
    for frame in found:
        there, image = capture.read()
        assert there and (frame.image == image[..., ::-1]).all()
    assert found[0].fps == capture.get(cv2.CAP_PROP_FPS)


# --- writing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mov", ".mkv"])
def test_written_video_comes_back(tmp_path, suffix):
    path = tmp_path / f"out{suffix}"
    images = [np.full((41, 63, 3), (200, 20 * i, 30), np.uint8) for i in range(7)]
    with VideoWriter(path, 12.5) as out:
        for image in images:
            out.write(image)
            assert not path.exists()
    assert os.listdir(tmp_path) == [path.name]
    capture = cv2.VideoCapture(str(path))
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(12.5)
    for image in images:
        there, back = capture.read()
        assert there and back.shape == (42, 64, 3)
        assert np.abs(back[..., ::-1].mean((0, 1)) - image.mean((0, 1))).max() < 5
    assert not capture.read()[0]


def test_failed_video_leaves_the_old_one(tmp_path):
    path = tmp_path / "out.mp4"
    path.write_text("old")
    frame = np.zeros((32, 32, 3), np.uint8)
    with pytest.raises(KeyboardInterrupt), VideoWriter(path, 25) as out:
        out.write(frame)
        raise KeyboardInterrupt
    with pytest.raises(LowposeError, match="a frame of 16 x 16 in a video of 32 x 32"), VideoWriter(path, 25) as out:
        out.write(frame)
        out.write(frame[:16, :16])
    with pytest.raises(LowposeError, match="no frames"), VideoWriter(path, 25):
        pass
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["out.mp4"]
    with pytest.raises(LowposeError, match="videos are written as .mp4"):
        VideoWriter(tmp_path / "out.gif", 25)


def test_full_disk_under_a_video_is_noticed(tmp_path):
    """FFmpeg drops frames silently: the file is cut behind its back, as a full disk does."""
    path = tmp_path / "out.avi"
    noise = np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), dtype=np.uint8)
    with pytest.raises(LowposeError, match=r"out.avi: only \d+ of 20 frames could be written"), VideoWriter(path, 25) as out:
        for image in noise:
            out.write(image)
        out._video.release()
        (temporary,) = tmp_path.iterdir()
        os.truncate(temporary, 100)
    assert os.listdir(tmp_path) == []
