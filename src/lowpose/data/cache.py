"""Crop cache: the native pixels around each person, decoded once into memory-mapped shards.

Pixels are only translated, never resampled, with margin for the largest scale and rotation, so crops made
from the cache are bit-equal to crops made from the pictures. `reduced` keeps block means of f x f pixels
instead (f: as coarse as leaves two stored pixels per crop pixel at the largest magnification): smaller,
close, not equal, and refused by `resample: paper`.

    DIR/KIND-SPLIT-KEY/manifest.json   what it was made from; written last
                       index.npy       (N, 10) int64, one Row per person
                       shard-000.bin   uint8 RGB rows

KEY hashes the annotation files, the size and time of every picture, the persons and the settings: a stale
cache has another key. A file of the wrong length is noticed on opening and the cache rebuilt; a crop whose
checksum differs is read from its picture instead, and the cache is rebuilt at the next start.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import shutil
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import track

from lowpose import __version__
from lowpose.config import AugmentConfig, CacheConfig, InputConfig
from lowpose.data._stored import MANY, Regions
from lowpose.data.resample import Window, cut
from lowpose.errors import LowposeError
from lowpose.samples import PoseData

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

VERSION = 2
SHARD_BYTES = 256 << 20
log = logging.getLogger("lowpose")


class Row(NamedTuple):
    """Where one person's pixels are. Positions and sizes in stored pixels; `factor`: picture pixels per stored pixel."""

    shard: int
    offset: int
    x0: int
    y0: int
    width: int  # 0: the picture could not be read
    height: int
    factor: int
    crc32: int
    picture_width: int
    picture_height: int


class CropCache:
    """Cached pixels of one split, in stored pixels (picture pixels divided by `factor`)."""

    def __init__(self, folder: Path):
        """Raises: ValueError if the folder does not hold a whole cache."""
        self.folder = folder
        manifest = json.loads((folder / "manifest.json").read_text())
        self.index = np.load(folder / "index.npy")
        self.broken: dict[str, str] = manifest["broken"]
        self._maps: dict[int, np.ndarray] = {}
        self._checked = np.zeros(len(self.index), bool)
        for i, size in enumerate(manifest["shards"]):
            if (folder / _shard(i)).stat().st_size != size:
                raise ValueError(f"{_shard(i)} has the wrong length")
        if zlib.crc32(self.index) != manifest["index"]:
            raise ValueError("index.npy is damaged")

    def __len__(self) -> int:
        return len(self.index)

    def factor(self, i: int) -> int:
        """Picture pixels per stored pixel: 1 unless the cache is reduced."""
        return int(self.index[i, Row._fields.index("factor")])

    def window(self, i: int, window: Window) -> np.ndarray | None:
        """What `cut(picture, window)` gives, in stored pixels of person i; None where the cache does not hold it."""
        r = Row(*self.index[i].tolist())
        a, b = max(window[0], 0), max(window[1], 0)
        c, d = min(window[2], r.picture_width), min(window[3], r.picture_height)
        outside = a < r.x0 or b < r.y0 or c > r.x0 + r.width or d > r.y0 + r.height
        if r.width == 0 or (a < c and b < d and outside):
            return None
        if r.shard not in self._maps:
            self._maps[r.shard] = np.memmap(self.folder / _shard(r.shard), np.uint8, "r")
        flat = self._maps[r.shard][r.offset : r.offset + r.width * r.height * 3]
        if not self._checked[i] and zlib.crc32(flat) != r.crc32:
            self._forget(i)
            return None
        self._checked[i] = True
        return cut(flat.reshape(r.height, r.width, 3), window, (r.x0, r.y0))

    def _forget(self, i: int) -> None:
        log.warning(
            "%s: crop %d is damaged; read from its picture instead, the cache is rebuilt at the next start", self.folder, i
        )
        self.index[i, Row._fields.index("width")] = 0
        with suppress(OSError):  # gone already, or a folder that cannot be written
            (self.folder / "manifest.json").unlink()


def open_cache(data: PoseData, settings: InputConfig, augment: AugmentConfig | None, config: CacheConfig) -> CropCache:
    """The cache of a split, built where it is missing, stale or damaged. Safe while another process builds it too.

    Raises: LowposeError if `reduced` is asked with `resample: paper`, or the folder cannot be written.
    """
    if config.reduced and settings.resample == "paper":
        raise LowposeError("cache.reduced stores averaged pixels, which 'resample: paper' does not read; use cache.reduced=false")
    facts = facts_of(data, settings, augment, config)
    folder = cache_folder(Path(config.dir), data, facts)
    cache = _open(folder)
    return cache if cache is not None else _build(folder, facts, data, settings, augment, config)


def cache_folder(root: Path, data: PoseData, facts: dict, prefix: str = "") -> Path:
    """Where what depends on these facts is kept: PREFIX KIND-SPLIT-KEY, the key a hash of the facts."""
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    return root / f"{prefix}{data.kind}-{Path(data.split).stem}-{key}"


def _open(folder: Path) -> CropCache | None:
    try:
        return CropCache(folder)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, OSError, EOFError) as e:
        log.warning("%s: %s; building the cache again", folder, e)
        return None


def _shard(i: int) -> str:
    return f"shard-{i:03d}.bin"


def facts_of(data: PoseData, settings: InputConfig, augment: AugmentConfig | None, config: CacheConfig) -> dict:
    """Everything that the stored pixels depend on."""
    persons = hashlib.sha256()
    stamps: dict[str, list[int]] = {}
    for s in data.samples:
        persons.update(f"{s.image}|{s.id}|{s.box.tolist()}|{s.keypoints.tolist()}".encode())
        path = Path(data.root) / s.image
        if s.image not in stamps and path.is_file():
            stat = path.stat()
            stamps[s.image] = [stat.st_size, stat.st_mtime_ns]
    files = {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in data.sources if p.is_file()}
    region = {"padding": settings.padding, "aspect": settings.size[0] / settings.size[1]}
    if augment is not None:
        region |= augment.model_dump(include={"scale", "rotation", "rotation_probability", "shift"})
    return {
        "version": [VERSION, __version__],  # drawn people depend on the package itself
        "kind": data.kind,
        "drawn": None if data.sources else data.root,  # people that are drawn have no files; their root says how
        "split": data.split,
        "sources": files,
        "pictures": hashlib.sha256(json.dumps(stamps, sort_keys=True).encode()).hexdigest(),
        "persons": persons.hexdigest(),
        "region": region,
        "reduced": list(settings.size) if config.reduced else None,
    }


def _build(
    folder: Path, facts: dict, data: PoseData, settings: InputConfig, augment: AugmentConfig | None, config: CacheConfig
) -> CropCache:
    aside = folder.with_name(f"{folder.name}.building-{secrets.token_hex(4)}")
    try:
        aside.mkdir(parents=True, exist_ok=True)
        _write(aside, facts, data, settings, augment, config)
        with _alone(folder.parent):  # or a good cache that another process has just put there could be removed
            if folder.exists() and _open(folder) is None:
                shutil.rmtree(folder, ignore_errors=True)
            try:
                aside.rename(folder)
            except OSError:  # another process was quicker; its cache is the same
                if _open(folder) is None:
                    raise
    except OSError as e:
        raise LowposeError(f"{folder}: the crop cache cannot be written ({e.strerror or e})") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return CropCache(folder)


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Others that replace a cache in `root` wait, where the system has locks."""
    if fcntl is None:
        yield
        return
    folder = os.open(root, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _write(
    aside: Path, facts: dict, data: PoseData, settings: InputConfig, augment: AugmentConfig | None, config: CacheConfig
) -> None:
    regions = Regions(data, settings, augment, config.reduced)
    pictures = len(regions.persons)
    quiet = pictures < MANY or not sys.stderr.isatty()
    index = np.zeros((len(data), len(Row._fields)), np.int64)
    broken: dict[str, str] = {}
    shards: list[int] = []
    out = None
    try:
        for stored in track(
            regions.read_all(), "crop cache", pictures, console=Console(stderr=True), disable=quiet, transient=True
        ):
            if stored.error is not None:
                broken[stored.key] = stored.error
            for i, place, pixels in stored.persons:
                if out is None or shards[-1] + pixels.size > SHARD_BYTES:
                    if out is not None:
                        out.close()
                    shards.append(0)
                    out = open(aside / _shard(len(shards) - 1), "wb")
                index[i] = Row(shard=len(shards) - 1, offset=shards[-1], crc32=zlib.crc32(pixels), **place)
                out.write(pixels)
                shards[-1] += pixels.size
    finally:
        if out is not None:
            out.close()
    np.save(aside / "index.npy", index)
    manifest = facts | {"index": zlib.crc32(index), "shards": shards, "broken": broken}
    (aside / "manifest.json").write_text(json.dumps(manifest, indent=1))
