import errno
import json
import math
import os
import stat
from pathlib import Path

import numpy as np
import pytest

from lowpose import files
from lowpose.errors import LowposeError


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_bytes_and_text_arrive_unchanged(tmp_path):
    files.write_bytes(tmp_path / "a.bin", b"\x00\r\n\xff")
    files.write_text(tmp_path / "b.txt", "Größe\r\n")
    assert (tmp_path / "a.bin").read_bytes() == b"\x00\r\n\xff"
    assert (tmp_path / "b.txt").read_bytes() == "Größe\r\n".encode()
    assert names(tmp_path) == ["a.bin", "b.txt"]


def test_missing_folders_are_made(tmp_path):
    files.write_text(tmp_path / "runs" / "one" / "note.txt", "x")
    assert (tmp_path / "runs" / "one" / "note.txt").read_text() == "x"


def test_rights_are_those_of_an_ordinary_new_file(tmp_path):
    (tmp_path / "plain").write_text("x")
    files.write_text(tmp_path / "ours", "x")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_json_of_numpy_paths_and_nan(tmp_path):
    value = {"a": np.float32(0.5), "b": np.arange(3), "c": Path("x/y"), "d": [1, (2.5, None, True)]}
    files.write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 0.5, "b": [0, 1, 2], "c": "x/y", "d": [1, [2.5, None, True]]}
    files.write_json(tmp_path / "b.json", {"x": math.nan, "y": [np.array([1.0, np.inf]), 3], "z": np.float32("nan"), "ok": True})
    text = (tmp_path / "b.json").read_text()
    assert json.loads(text) == {"x": None, "y": [[1.0, None], 3], "z": None, "ok": True}
    assert "NaN" not in text and text.endswith("\n")


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path):
    (tmp_path / "a.json").write_text("old")
    with pytest.raises(TypeError, match="set"):
        files.write_json(tmp_path / "a.json", {"x": {1}})
    assert (tmp_path / "a.json").read_text() == "old" and names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("step", ["write_bytes", "fsync", "replace"])
def test_full_disk_is_one_line_and_changes_nothing(tmp_path, monkeypatch, step):
    path = tmp_path / "card.json"
    path.write_text("old")
    monkeypatch.setattr(Path if step == "write_bytes" else os, step, full_disk)
    with pytest.raises(LowposeError) as e:
        files.write_json(path, {"x": 1})
    assert str(e.value) == f"{path}: no space left on device"
    assert path.read_text() == "old" and names(tmp_path) == ["card.json"]


def test_no_permission_names_the_file(tmp_path, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(LowposeError) as e:
        files.write_text(tmp_path / "a.txt", "x")
    assert str(e.value) == f"{tmp_path / 'a.txt'}: permission denied"
    assert names(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may write anywhere")
def test_folder_without_write_permission(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(LowposeError, match="permission denied"):
            files.write_text(tmp_path / "a.txt", "x")
    finally:
        tmp_path.chmod(0o700)


def test_folder_or_file_in_the_way(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(LowposeError, match=r"folder: is a folder; give the name of a file$"):
        files.write_text(tmp_path / "folder", "x")
    (tmp_path / "file").write_text("x")
    with pytest.raises(LowposeError) as e:
        files.write_text(tmp_path / "file" / "a.txt", "x")
    assert str(tmp_path / "file") in str(e.value) and "\n" not in str(e.value)
    assert names(tmp_path) == ["file", "folder"]


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="no /dev/null")
def test_devices_are_not_replaced():
    with pytest.raises(LowposeError, match="is a device"):
        files.write_text("/dev/null", "x")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


@pytest.mark.parametrize("raised", [KeyboardInterrupt, ValueError])
def test_block_that_fails_leaves_nothing(tmp_path, raised):
    (tmp_path / "a.mp4").write_text("old")
    with pytest.raises(raised), files.whole(tmp_path / "a.mp4") as temporary:
        assert temporary.parent == tmp_path and temporary.suffix == ".mp4" and temporary.is_file()
        temporary.write_text("half")
        assert (tmp_path / "a.mp4").read_text() == "old"
        raise raised
    assert (tmp_path / "a.mp4").read_text() == "old" and names(tmp_path) == ["a.mp4"]


def test_several_files_appear_together(tmp_path):
    (tmp_path / "b.txt").write_text("old")
    with files.all_whole(tmp_path / "new" / "folder") as aside:
        (aside / "in").mkdir()
        (aside / "in" / "a.txt").write_text("1")
        assert names(tmp_path / "new" / "folder") == [aside.name]
    assert (tmp_path / "new" / "folder" / "in" / "a.txt").read_text() == "1" and names(tmp_path / "new" / "folder") == ["in"]
    with files.all_whole(tmp_path) as aside:
        (aside / "b.txt").write_text("new")
        assert (tmp_path / "b.txt").read_text() == "old"
    assert (tmp_path / "b.txt").read_text() == "new" and names(tmp_path) == ["b.txt", "new"]


@pytest.mark.parametrize("raised", [KeyboardInterrupt, ValueError])
def test_several_files_that_fail_leave_nothing(tmp_path, raised):
    (tmp_path / "a.txt").write_text("old")
    for folder in (tmp_path, tmp_path / "new" / "folder"):
        with pytest.raises(raised), files.all_whole(folder) as aside:
            (aside / "a.txt").write_text("half")
            raise raised
    assert (tmp_path / "a.txt").read_text() == "old" and names(tmp_path) == ["a.txt"]


def test_errors_of_several_files_name_where_they_would_be(tmp_path):
    with pytest.raises(LowposeError) as e, files.all_whole(tmp_path / "new") as aside:
        raise LowposeError(f"{aside / 'a.mp4'}: no frames to write")
    assert str(e.value) == f"{tmp_path / 'new' / 'a.mp4'}: no frames to write" and names(tmp_path) == []
    (tmp_path / "file").write_text("x")
    with pytest.raises(LowposeError, match=f"^{tmp_path / 'file'}: file exists"), files.all_whole(tmp_path / "file"):
        pass


def test_paths_are_tried_before_the_work(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "old.txt").write_text("old")
    files.check_writable(tmp_path / "new" / "a.txt", tmp_path / "old.txt")
    assert (tmp_path / "old.txt").read_text() == "old" and names(tmp_path) == ["folder", "old.txt"]
    with pytest.raises(LowposeError, match="folder: is a folder"):
        files.check_writable(tmp_path / "new.txt", tmp_path / "folder")
    assert names(tmp_path) == ["folder", "old.txt"]


def test_error_about_another_file_names_that_file(tmp_path):
    with pytest.raises(LowposeError) as e, files.whole(tmp_path / "out.txt"):
        (tmp_path / "input.txt").read_text()
    assert str(e.value) == f"{tmp_path / 'input.txt'}: no such file or directory"
    assert names(tmp_path) == []


def test_symbolic_link_is_kept(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to(tmp_path / "real" / "a.txt")
    files.write_text(tmp_path / "link.txt", "new")
    assert (tmp_path / "link.txt").is_symlink() and (tmp_path / "real" / "a.txt").read_text() == "new"


def test_content_reaches_the_disk_before_the_rename(tmp_path, monkeypatch):
    order = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda d: (order.append("sync"), sync(d)))
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("rename"), replace(a, b)))
    files.write_text(tmp_path / "a.txt", "x")
    assert order == ["sync", "rename"]
