"""`data get` against a server on the loopback: whole, broken off, resumed, wrong, hostile."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import socket
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from rich.console import Console

from lowpose.data import get as getting
from lowpose.data.classes import load_classes
from lowpose.data.get import SETS, Archive, DataSet, get
from lowpose.errors import LowposeError

FILES = {"images/a.bin": np.random.default_rng(0).bytes(300_000), "images/sub/b.bin": b"b" * 10, "joints.mat": b"joints"}


def zipped(files) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def tarred(files, link=None) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        if link:
            info = tarfile.TarInfo("images/link")
            info.type, info.linkname = tarfile.SYMTYPE, link
            archive.addfile(info)
    return out.getvalue()


class Server(ThreadingHTTPServer):
    """Serves `files`; `ranges`: whether it knows them; `breaks`: bytes after which answers end, one entry per answer."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.ranges, self.breaks, self.requests = True, [], []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server: Server = self.server  # type: ignore[assignment]
        name, asked = self.path.rsplit("/", 1)[-1], self.headers.get("Range")
        server.requests.append((name, asked))
        if name not in server.files:
            return self.send_error(404)
        data, start = server.files[name], 0
        if asked and server.ranges:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(data):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(data)}")
                self.end_headers()
                return None
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        end = server.breaks.pop(0) if server.breaks else len(data)
        self.wfile.write(data[start : start + end])
        return None

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    server = Server()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    archive = Archive(f"{server.url}/x/toy.zip", ("images", "joints.mat"))
    monkeypatch.setitem(SETS, "toy", DataSet("toy", "small", "Toy licence: be kind.", (archive,), "and then?"))
    server.files["toy.zip"] = zipped(FILES)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=200)


def content(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_whole(server, tmp_path, console):
    assert get("toy", tmp_path / "toy", console=console) == tmp_path / "toy"
    assert content(tmp_path / "toy") == FILES
    known = json.loads((tmp_path / "hashes.json").read_text())
    data = server.files["toy.zip"]
    assert known == {"toy/toy.zip": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}}
    text = console.file.getvalue()
    assert "Toy licence: be kind." in text and "and then?" in text


def test_what_is_there_is_left(server, tmp_path, console):
    get("toy", tmp_path / "toy", console=console)
    (tmp_path / "toy" / "joints.mat").write_bytes(b"mine")
    server.requests.clear()
    get("toy", tmp_path / "toy", console=console)
    assert (tmp_path / "toy" / "joints.mat").read_bytes() == b"mine" and server.requests == []
    assert "is there already" in console.file.getvalue()


@pytest.mark.parametrize("inner", ["", "top/"])
def test_tar_and_outer_folder(server, tmp_path, console, monkeypatch, inner):
    server.files["toy.tar.gz"] = tarred({inner + name: data for name, data in FILES.items()})
    monkeypatch.setitem(SETS, "toy", DataSet("toy", "", "", (Archive(f"{server.url}/toy.tar.gz", ("images", "joints.mat")),)))
    get("toy", tmp_path / "toy", console=console)
    assert content(tmp_path / "toy") == FILES


def test_mirror(server, tmp_path, console, monkeypatch):
    monkeypatch.setitem(SETS, "toy", DataSet("toy", "", "", (Archive("http://invalid.invalid/toy.zip", ("images",)),)))
    get("toy", tmp_path / "toy", mirror=server.url + "/some/folder/", console=console)
    assert (tmp_path / "toy" / "images" / "a.bin").is_file()


def test_what_comes_of_the_sets_of_classes_can_be_read(server, tmp_path, console):
    """Archives as the servers have them: each in a folder of its own name, beside files that no reader needs."""
    picture = bytes(range(256)) * 12
    batches = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    cifar = {f"cifar-10-batches-bin/{name}": bytes([i]) + picture for i, name in enumerate(batches)}
    server.files["cifar-10-binary.tar.gz"] = tarred({**cifar, "cifar-10-batches-bin/readme.html": b"<html>"})
    tiny = {"train/n01/images/n01_0.JPEG": b"", "train/n01/n01_boxes.txt": b"", "val/images/val_0.JPEG": b"", "words.txt": b""}
    tiny |= {"wnids.txt": b"n01\n", "val/val_annotations.txt": b"val_0.JPEG\tn01\t0\t0\t9\t9\n", "test/images/test_0.JPEG": b""}
    server.files["tiny-imagenet-200.zip"] = zipped({f"tiny-imagenet-200/{name}": data for name, data in tiny.items()})
    for name, other in (("cifar-10", "test"), ("tiny-imagenet", "val")):
        root = get(name, tmp_path / name, mirror=server.url, console=console)
        found = [load_classes(name, root, split) for split in ("train", other)]
        assert [len(data) for data in found] == ([5, 1] if name == "cifar-10" else [1, 1])
        assert not list(root.glob("*.part")) and not list(root.glob(".*"))
    assert found[0].classes == ("n01",) and not (tmp_path / "cifar-10" / "readme.html").exists()


def test_broken_off_and_taken_up_in_one_call(server, tmp_path, console):
    server.breaks = [100_000, 50_000]
    get("toy", tmp_path / "toy", console=console)
    assert content(tmp_path / "toy") == FILES
    assert [asked for _, asked in server.requests] == [None, "bytes=100000-", "bytes=150000-"]


def test_broken_off_and_resumed_by_the_next_call(server, tmp_path, console):
    server.breaks = [100_000, 0]
    with pytest.raises(LowposeError, match=f"broke off at 100000 of {len(server.files['toy.zip'])} bytes"):
        get("toy", tmp_path / "toy", console=console)
    assert list(content(tmp_path)) == ["toy/toy.zip.part"]
    get("toy", tmp_path / "toy", console=console)
    assert content(tmp_path / "toy") == FILES and server.requests[-1][1] == "bytes=100000-"


def test_server_without_ranges_starts_again(server, tmp_path, console):
    server.ranges, server.breaks = False, [100_000]
    get("toy", tmp_path / "toy", console=console)
    assert content(tmp_path / "toy") == FILES


def test_killed_after_the_last_byte(server, tmp_path, console):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "toy.zip.part").write_bytes(server.files["toy.zip"])
    get("toy", tmp_path / "toy", console=console)
    assert content(tmp_path / "toy") == FILES


def test_longer_than_the_server_says(server, tmp_path, console):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "toy.zip.part").write_bytes(server.files["toy.zip"] + b"more")
    with pytest.raises(LowposeError, match="bytes came, the server says"):
        get("toy", tmp_path / "toy", console=console)
    assert content(tmp_path) == {}


def test_another_hash_than_recorded(server, tmp_path, console):
    get("toy", tmp_path / "toy", console=console)
    server.files["toy.zip"] = zipped(FILES | {"joints.mat": b"JOINTS"})
    with pytest.raises(LowposeError, match=r"toy.zip: SHA-256 .* is not the one in .*hashes.json"):
        get("toy", tmp_path / "other", console=console)
    assert not (tmp_path / "other").exists()


def test_another_hash_than_known(server, tmp_path, console, monkeypatch):
    right = hashlib.sha256(server.files["toy.zip"]).hexdigest()
    for sha256 in (right, "0" * 64):
        monkeypatch.setitem(SETS, "toy", DataSet("toy", "", "", (Archive(f"{server.url}/toy.zip", ("images",), sha256),)))
        if sha256 == right:
            get("toy", tmp_path / "a", console=console)
        else:
            with pytest.raises(LowposeError, match="is not the known one, 000"):
                get("toy", tmp_path / "b", console=console)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("member", ["../evil", "/evil", "images/../../evil", "a\\..\\evil", "C:evil"])
def test_paths_out_of_the_folder_are_refused(server, tmp_path, console, member):
    hostile = zipfile.ZipInfo("x")
    hostile.filename = member
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(hostile, b"evil")
    server.files["toy.zip"] = out.getvalue()
    with pytest.raises(LowposeError, match="outside of its folder.*refused"):
        get("toy", tmp_path / "deep" / "toy", console=console)
    assert list(content(tmp_path)) == ["deep/toy/toy.zip.part"]


def test_links_are_refused(server, tmp_path, console, monkeypatch):
    server.files["toy.tar.gz"] = tarred(FILES, link="/etc/passwd")
    monkeypatch.setitem(SETS, "toy", DataSet("toy", "", "", (Archive(f"{server.url}/toy.tar.gz", ("images",)),)))
    with pytest.raises(LowposeError, match="a link or device, 'images/link'; refused"):
        get("toy", tmp_path / "toy", console=console)
    link = zipfile.ZipInfo("images/link")
    link.external_attr = 0o120777 << 16
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(link, b"/etc/passwd")
    server.files["toy.zip"] = out.getvalue()
    monkeypatch.setitem(SETS, "toy", DataSet("toy", "", "", (Archive(f"{server.url}/toy.zip", ("images",)),)))
    with pytest.raises(LowposeError, match="holds a link"):
        get("toy", tmp_path / "toy", console=console)
    assert not (tmp_path / "toy" / "images").exists()


@pytest.mark.parametrize(
    "data, expected", [(b"<html>moved</html>", "damaged archive"), (zipped({"readme": b""}), "has no images and joints.mat")]
)
def test_not_the_archive(server, tmp_path, console, data, expected):
    server.files["toy.zip"] = data
    with pytest.raises(LowposeError, match=expected):
        get("toy", tmp_path / "toy", console=console)
    assert not (tmp_path / "toy" / "images").exists() and not (tmp_path / "hashes.json").exists()


def test_a_damaged_byte_is_noticed_and_not_trusted(server, tmp_path, console):
    data = bytearray(server.files["toy.zip"])
    data[150_000] ^= 255
    server.files["toy.zip"] = bytes(data)
    with pytest.raises(LowposeError, match="damaged archive"):
        get("toy", tmp_path / "toy", console=console)
    assert content(tmp_path) == {}


def test_not_found(server, tmp_path, console):
    server.files.clear()
    with pytest.raises(LowposeError, match="toy.zip: HTTP 404"):
        get("toy", tmp_path / "toy", console=console)
    assert not (tmp_path / "toy").exists()


def test_refused_connection(server, tmp_path, console):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        mirror = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(LowposeError, match=r"cannot connect \(Connection refused\)") as e:
            get("toy", tmp_path / "toy", mirror=mirror, console=console)
    assert "\n" not in str(e.value) and not (tmp_path / "toy").exists()


def test_full_disk(server, tmp_path, console, monkeypatch):
    monkeypatch.setattr(getting.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(LowposeError, match="no space left for .* 1000 free"):
        get("toy", tmp_path / "toy", console=console)
    monkeypatch.undo()
    monkeypatch.setitem(SETS, "toy", DataSet("toy", "", "", (Archive(f"{server.url}/toy.zip", ("images", "joints.mat")),)))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(getting, "_unpack", full)
    with pytest.raises(LowposeError, match="toy: no space left on device"):
        get("toy", tmp_path / "toy", console=console)
    assert list(content(tmp_path)) == ["toy/toy.zip.part"]


def test_folder_that_cannot_be_made(server, tmp_path, console):
    (tmp_path / "file").write_text("")
    with pytest.raises(LowposeError, match="not a directory|file exists"):
        get("toy", tmp_path / "file" / "toy", console=console)


def test_damaged_record(server, tmp_path, console):
    (tmp_path / "hashes.json").write_text("[]")
    with pytest.raises(LowposeError, match="hashes.json: not a record of hashes"):
        get("toy", tmp_path / "toy", console=console)


def test_names(tmp_path, console):
    with pytest.raises(LowposeError, match="unknown data set 'coc'; did you mean 'coco'"):
        get("coc", tmp_path, console=console)
    with pytest.raises(LowposeError, match="Google Drive.*github.com/Jeff-sjtu/CrowdPose"):
        get("crowdpose", tmp_path / "c", console=console)
    assert not (tmp_path / "c").exists() and "COCO, MPII and AI Challenger" in console.file.getvalue()


@pytest.mark.parametrize("name", ["lspet", "coco", "mpii"])
def test_published_addresses(name):
    assert all(a.url.startswith("http") and a.name.endswith((".zip", ".tar.gz")) and a.makes for a in SETS[name].archives)
