"""Downloads of data sets: `lowpose data get NAME`.

A file comes into TARGET/NAME.part, by HTTP ranges where the server has them, so that a download that broke off goes on
where it stopped. Its size is compared with the server's and its SHA-256 with the known one; where none is known, the
first download is trusted and its hash kept in `hashes.json` beside the target, for all later ones. Archives are
unpacked into a temporary folder, whose content is then renamed into place: what stands under its name is whole.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shutil
import stat
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from lowpose.errors import LowposeError, did_you_mean
from lowpose.files import os_problem, write_json

CHUNK = 1 << 20
TRIES = 5  # downloads that break off are taken up again so often, as long as each brings some bytes
TIMEOUT = 60.0  # seconds without a byte


@dataclass(frozen=True)
class Archive:
    """One file to download. `makes`: what it leaves in the target once it is unpacked. `sha256`: None if not known."""

    url: str
    makes: tuple[str, ...]
    sha256: str | None = None

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class DataSet:
    """`folder`: name of the default target. `note`: what remains to be done by hand. No archives: nothing can be fetched."""

    folder: str
    size: str
    licence: str
    archives: tuple[Archive, ...]
    note: str = ""


_COCO, _MPII = "http://images.cocodataset.org", "https://datasets.d2.mpi-inf.mpg.de/andriluka14cvpr"
SETS = {
    "lspet": DataSet(
        "lsp",
        "10,000 pictures",
        "Leeds Sports Pose Extended (Johnson and Everingham, CVPR 2011): photographs from Flickr, whose rights stay with their "
        "photographers; the authors name no licence and ask to be cited. https://sam.johnson.io/research/lspet.html",
        (Archive("https://sam.johnson.io/research/lspet_dataset.zip", ("images", "joints.mat")),),
    ),
    "coco": DataSet(
        "coco",
        "about 20 GB",
        "COCO 2017 (Lin et al., ECCV 2014): annotations under CC BY 4.0; the photographs are subject to Flickr's terms of use "
        "and each photographer's licence. https://cocodataset.org/#termsofuse",
        (
            Archive(f"{_COCO}/annotations/annotations_trainval2017.zip", ("annotations",)),
            Archive(f"{_COCO}/zips/val2017.zip", ("val2017",)),
            Archive(f"{_COCO}/zips/train2017.zip", ("train2017",)),
        ),
    ),
    "mpii": DataSet(
        "mpii",
        "about 13 GB",
        "MPII Human Pose (Andriluka et al., CVPR 2014): free for research; commercial use is not allowed, as its authors do not "
        "hold the rights to the pictures. http://human-pose.mpi-inf.mpg.de",
        (Archive(f"{_MPII}/mpii_human_pose_v1.tar.gz", ("images",)),),
        "The annotations as JSON (train.json, valid.json, gt_valid.mat) have no plain address: get them from the links in "
        "the README of https://github.com/leoxiaobin/deep-high-resolution-net.pytorch "
        "(section on MPII data) and put them into annot/.",
    ),
    "cifar-10": DataSet(
        "cifar-10",
        "162 MB",
        "CIFAR-10 (Krizhevsky, 2009), 60,000 pictures of 32 x 32 pixels in ten classes: the author names no licence and asks to "
        "be cited. https://www.cs.toronto.edu/~kriz/cifar.html",
        (
            Archive(
                "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
                (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"),
            ),
        ),
    ),
    "tiny-imagenet": DataSet(
        "tiny-imagenet",
        "237 MB",
        "Tiny ImageNet (Le and Yang, Stanford CS231n, 2015), 110,000 labelled pictures of 64 x 64 pixels in 200 classes of "
        "ImageNet, whose terms hold: for non-commercial research and education. https://image-net.org/download",
        (Archive("http://cs231n.stanford.edu/tiny-imagenet-200.zip", ("train", "val", "wnids.txt")),),
    ),
    "crowdpose": DataSet(
        "crowdpose",
        "20,000 pictures",
        "CrowdPose (Li et al., CVPR 2019): the authors name no licence; the pictures come from COCO, MPII and AI Challenger, "
        "whose terms hold.",
        (),
        "CrowdPose lies on Google Drive, which has no plain address: open the two links in the README of "
        "https://github.com/Jeff-sjtu/CrowdPose (images, annotations), and unpack them into images/ and json/ of the root",
    ),
}


def get(name: str, target: str | Path | None = None, *, mirror: str | None = None, console: Console | None = None) -> Path:
    """Download a data set and unpack it. Returns its folder; what is there already is left as it is.

    Args:
        name: lspet, coco, mpii, crowdpose, cifar-10 or tiny-imagenet.
        target: folder; default data/KIND, where readers look for it.
        mirror: address of a folder with the same files, instead of the official server.
        console: prints the licence terms and progress; default: standard error.

    Raises: LowposeError for an unknown name, no network, a file that the server lacks, another size or hash than
        expected, an archive that is damaged or would write outside of the target, a full disk, no permission.
    """
    console = console or Console(stderr=True)
    if name.lower() not in SETS:
        raise LowposeError(f"unknown data set '{name}'{did_you_mean(name.lower(), SETS)}")
    data = SETS[name.lower()]
    folder = Path(target) if target is not None else Path("data") / data.folder
    missing = [a for a in data.archives if not all((folder / made).exists() for made in a.makes)]
    if data.archives and not missing:
        console.print(f"{folder}: {name} is there already", soft_wrap=True)
        return folder
    console.print(f"{name}, {data.size}\n{data.licence}", soft_wrap=True, highlight=False)
    if not data.archives:
        raise LowposeError(data.note)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for archive in missing:
            url = f"{mirror.rstrip('/')}/{archive.name}" if mirror else archive.url
            part = folder / f"{archive.name}.part"
            with _progress(console) as progress:
                _download(url, part, progress)
                record, key = folder.parent / "hashes.json", f"{name.lower()}/{archive.name}"
                size, digest = _verify(archive, part, record, key, progress)
                _unpack(archive, part, folder, progress)
            known = _recorded(record)  # only now: an archive that unpacks well is one to trust
            if key not in known:
                write_json(record, {**known, key: {"sha256": digest, "size": size}})
            part.unlink()
    except OSError as e:
        raise os_problem(e.filename or folder, e) from None
    finally:
        with suppress(OSError):  # a folder that stayed empty is not left behind
            folder.rmdir()
    if data.note:
        console.print(data.note, soft_wrap=True, highlight=False)
    return folder


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)


def _download(url: str, part: Path, progress: Progress) -> None:
    """Bring `part` to its full length. Raises: LowposeError; `part` keeps what came."""
    task = progress.add_task(f"downloading {part.stem}", total=None)
    for _ in range(TRIES):
        before = part.stat().st_size if part.exists() else 0
        total, problem = _fetch(url, part, before, progress, task)
        have = part.stat().st_size
        if total is None and problem is None or have == total:
            return
        if total is not None and have > total:
            part.unlink()
            raise LowposeError(f"{url}: {have} bytes came, the server says {total}; the file was removed, start again")
        if have <= before:
            break
    raise LowposeError(
        f"{url}: broke off at {have} of {total or 'unknown'} bytes ({problem or 'connection closed'}); start again to go on"
    )


def _fetch(url: str, part: Path, start: int, progress: Progress, task) -> tuple[int | None, str | None]:
    """One request from byte `start` on. Returns the file's full length, if the server tells, and what ended it too early."""
    headers = {"User-Agent": "lowpose", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as e:
        total = e.headers.get("Content-Range", "").rpartition("/")[2] if e.code == 416 else ""
        if total.isdigit():  # nothing is left to fetch, or `part` is longer than the file
            return int(total), None
        if e.code == 416 and start:
            part.unlink()
            return _fetch(url, part, 0, progress, task)
        raise LowposeError(f"{url}: HTTP {e.code} {e.reason}") from None
    except (OSError, ValueError, http.client.HTTPException) as e:  # URLError is an OSError
        raise LowposeError(f"{url}: cannot connect ({_reason(e)})") from None
    with response:
        resumed = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        length = response.headers.get("Content-Length", "")
        start = start if resumed else 0
        total = start + int(length) if length.isdigit() else None
        free = shutil.disk_usage(part.parent).free
        if total is not None and total - start > free:
            raise LowposeError(f"{part.parent}: no space left for {url}: {total - start} bytes to come, {free} free")
        progress.update(task, completed=start, total=total)
        with open(part, "ab" if resumed else "wb") as out:
            while True:
                try:
                    chunk = response.read(CHUNK)
                except (OSError, http.client.HTTPException) as e:
                    return total, _reason(e)
                if not chunk:
                    return total, None
                out.write(chunk)
                progress.advance(task, len(chunk))


def _reason(error: Exception) -> str:
    inner = getattr(error, "reason", error)
    return str(getattr(inner, "strerror", None) or inner or type(inner).__name__)


def _verify(archive: Archive, part: Path, record: Path, key: str, progress: Progress) -> tuple[int, str]:
    """Size and SHA-256, equal to the known or recorded one where there is one. Raises: LowposeError."""
    task = progress.add_task(f"checking {archive.name}", total=part.stat().st_size)
    sha = hashlib.sha256()
    with open(part, "rb") as file:
        while chunk := file.read(CHUNK):
            sha.update(chunk)
            progress.advance(task, len(chunk))
    size, digest = part.stat().st_size, sha.hexdigest()
    expected = archive.sha256 or _recorded(record).get(key, {}).get("sha256")
    if expected is not None and digest != expected:
        part.unlink()
        source = "the known one" if archive.sha256 else f"the one in {record}"
        raise LowposeError(
            f"{archive.name}: SHA-256 {digest} ({size} bytes) is not {source}, {expected}; the download was removed"
        )
    return size, digest


def _recorded(record: Path) -> dict:
    if not record.exists():
        return {}
    try:
        known = json.loads(record.read_text())
        assert isinstance(known, dict) and all(isinstance(entry, dict) for entry in known.values())
    except (ValueError, AssertionError):
        raise LowposeError(f"{record}: not a record of hashes; mend it, or remove it to trust the next downloads anew") from None
    return known


def _unpack(archive: Archive, part: Path, folder: Path, progress: Progress) -> None:
    """Unpack aside, then rename what the archive makes into the folder. Raises: LowposeError."""
    aside = folder / f".{archive.name}.unpacking"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    task = progress.add_task(f"unpacking {archive.name}", total=None)
    try:
        for name, file in _members(part, archive.name):
            to = aside / _safe(name, archive.name)
            to.parent.mkdir(parents=True, exist_ok=True)
            with open(to, "wb") as out:
                while chunk := file.read(CHUNK):
                    out.write(chunk)
                    progress.advance(task, len(chunk))
        top = _top(aside, archive)
        for made in archive.makes:
            if not (folder / made).exists():
                os.replace(top / made, folder / made)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, RuntimeError) as e:
        part.unlink()
        raise LowposeError(f"{archive.name}: damaged archive ({e}); the download was removed, start again") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _members(part: Path, name: str) -> Iterator[tuple[str, IO[bytes]]]:
    """The files of a zip or tar archive, opened, in its order. Raises: LowposeError for links and devices."""
    if name.endswith(".zip"):
        with zipfile.ZipFile(part) as archive:
            for info in archive.infolist():
                if stat.S_ISLNK(info.external_attr >> 16):
                    raise LowposeError(f"{name}: holds a link, '{info.filename}'; refused")
                if not info.is_dir():
                    with archive.open(info) as file:
                        yield info.filename, file
        return
    with tarfile.open(part, "r|*") as archive:
        for member in archive:
            if member.isfile():
                yield member.name, archive.extractfile(member)  # type: ignore[misc]
            elif not member.isdir():
                raise LowposeError(f"{name}: holds a link or device, '{member.name}'; refused")


def _safe(member: str, archive: str) -> Path:
    """The member's path, if it stays inside of the folder it is unpacked to. Raises: LowposeError."""
    path = PurePosixPath(member)
    if path.is_absolute() or ".." in path.parts or "\\" in member or ":" in member or not path.parts:
        raise LowposeError(f"{archive}: holds a file that would be written outside of its folder, '{member}'; refused")
    return Path(*path.parts)


def _top(aside: Path, archive: Archive) -> Path:
    """The unpacked folder that holds what the archive makes: the outermost, or the only folder in it."""
    for top in (aside, *(p for p in sorted(aside.iterdir()) if p.is_dir())):
        if all((top / made).exists() for made in archive.makes):
            return top
    raise LowposeError(f"{archive.name}: has no {' and '.join(archive.makes)}; not the archive that was expected")
