"""The crop cache: equal to the pictures bit for bit, and never trusted when it is stale or damaged."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import shutil
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from lowpose.config import AugmentConfig, CacheConfig, InputConfig
from lowpose.data import _stored, load_data
from lowpose.data import cache as cache_module
from lowpose.data._stored import block_mean
from lowpose.data.cache import open_cache
from lowpose.data.crops import CropReader
from lowpose.data.lsp import read_picture
from lowpose.errors import LowposeError
from lowpose.images import write_image
from lowpose.samples import PersonSample, PoseData
from lowpose.skeletons import COCO17

AUGMENT = AugmentConfig(scale=0.35, rotation=45, half_body=0.5, shift=0.05)
POLICIES = ["area", "paper", "camera"]


@pytest.fixture
def pictures(tmp_path):
    """Six persons in three files, some at the border, and an annotation file."""
    rng = np.random.default_rng(0)
    root = tmp_path / "root"
    for name in "abc":
        noise = rng.integers(0, 255, (30, 40, 3), np.uint8).repeat(8, 0).repeat(8, 1)
        write_image(root / f"{name}.png", noise[: 230 + 3 * ord(name) % 7])
    (root / "annotations.json").write_text("{}")
    samples = []
    for i in range(6):
        box = np.array([*rng.uniform(-20, 200, 2), *rng.uniform(30, 160, 2)])
        points = (box[:2] + rng.uniform(0, 1, (17, 2)) * box[2:]).astype(np.float32)
        samples.append(PersonSample("abc"[i % 3] + ".png", box, points, np.full(17, 2, np.uint8), i + 1, i))
    return PoseData("made", "train", str(root), COCO17, samples, partial(read_picture, root), (root / "annotations.json",))


def opened(data, tmp_path, settings=None, augment=AUGMENT, **options):
    return open_cache(data, settings or InputConfig(size=(48, 64)), augment, CacheConfig(dir=str(tmp_path / "cache"), **options))


def blind(data):
    """The same split, whose pictures cannot be read: what comes out of it came from a cache."""

    def read(key):
        raise LowposeError(f"{key}: read")

    return PoseData(data.kind, data.split, data.root, data.skeleton, data.samples, read, data.sources)


def same_crops(data, cache, settings, augment, epochs=2, only_cache=False):
    plain, cached = (
        CropReader(data, settings, augment, 3),
        CropReader(blind(data) if only_cache else data, settings, augment, 3, cache),
    )
    for i in range(len(data)):
        for epoch in range(epochs):
            a, b = plain.crop(i, epoch), cached.crop(i, epoch)
            assert a.error is None and b.error is None and a.image.any()
            assert np.array_equal(a.image, b.image) and np.array_equal(a.keypoints, b.keypoints)


@pytest.mark.parametrize("resample", POLICIES)
def test_equal_bits_with_and_without(pictures, tmp_path, resample):
    settings = InputConfig(size=(48, 64), resample=resample)
    same_crops(pictures, opened(pictures, tmp_path, settings), settings, AUGMENT, epochs=6)


@pytest.mark.parametrize("augment", [None, AUGMENT.model_copy(update={"half_body": 0.0})])
def test_whole_body_views_never_open_a_picture(pictures, tmp_path, augment):
    settings = InputConfig(size=(48, 64))
    same_crops(pictures, opened(pictures, tmp_path, settings, augment), settings, augment, epochs=8, only_cache=True)


@pytest.mark.parametrize("resample", POLICIES)
def test_equal_bits_on_synthetic_people(tmp_path, resample):
    data = load_data("synthetic", split="train", options={"count": 6})
    settings = InputConfig(size=(32, 32), resample=resample)
    same_crops(data, opened(data, tmp_path, settings), settings, AUGMENT)


@pytest.mark.photographs
@pytest.mark.parametrize("resample", POLICIES)
def test_equal_bits_on_photographs(shared, tmp_path, resample):
    data = load_data("lsp", shared / "lspet", "val").subset(range(0, 1000, 25))
    settings = InputConfig(size=(64, 64), resample=resample)
    same_crops(data, opened(data, tmp_path, settings), settings, AUGMENT)


def folders(tmp_path):
    return sorted(p.name for p in (tmp_path / "cache").iterdir())


def test_a_second_opening_reads_no_picture(pictures, tmp_path):
    opened(pictures, tmp_path)
    before = folders(tmp_path)
    same_crops(pictures, opened(blind(pictures), tmp_path), InputConfig(size=(48, 64)), AUGMENT)
    assert folders(tmp_path) == before and len(before) == 1


def test_stale_caches_are_not_used(pictures, tmp_path):
    """Another annotation file, picture, person or setting that counts gives another cache."""
    root, seen = Path(pictures.root), set()

    def look(data=pictures, settings=None, augment=AUGMENT, **options):
        cache = opened(data, tmp_path, settings, augment, **options)
        new = cache.folder.name not in seen
        seen.add(cache.folder.name)
        return new

    assert look() and not look()
    (root / "annotations.json").write_text("{} ")
    assert look()
    picture = np.full((230, 320, 3), 99, np.uint8)
    write_image(root / "a.png", picture)
    assert look()
    assert (CropReader(pictures, InputConfig(size=(48, 64)), AUGMENT, 0, opened(pictures, tmp_path)).crop(0).image == 99).any()
    stat = (root / "b.png").stat()
    os.utime(root / "b.png", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert look()
    assert look(pictures.subset([0, 1, 2])) and look(pictures.subset([2, 1, 0]))
    assert look(settings=InputConfig(size=(48, 48))) and look(settings=InputConfig(size=(48, 64), padding=1.5))
    assert look(augment=None) and look(augment=AUGMENT.model_copy(update={"scale": 0.4}))
    assert look(reduced=True)
    assert not look(settings=InputConfig(size=(96, 128)))  # the region depends on the aspect alone
    assert not look(settings=InputConfig(size=(48, 64), resample="paper"))


def flip_byte(path: Path, at: int):
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


def rebuilt(folder: Path, shard: bytes, index: bytes) -> bool:
    return (folder / "shard-000.bin").read_bytes() == shard and (folder / "index.npy").read_bytes() == index


@pytest.mark.parametrize(
    "damage", ["truncated shard", "no shard", "index", "index cut", "manifest cut", "manifest gone", "manifest of another"]
)
def test_damage_is_noticed_at_opening(pictures, tmp_path, damage):
    folder = opened(pictures, tmp_path).folder
    shard, index, manifest = folder / "shard-000.bin", folder / "index.npy", folder / "manifest.json"
    good = shard.read_bytes(), index.read_bytes()
    if damage == "truncated shard":
        shard.write_bytes(good[0][:-1])
    elif damage == "no shard":
        shard.unlink()
    elif damage == "index":
        flip_byte(index, 128 + 2 * 8)  # x0 of the first person: other pixels, whose checksum is right
    elif damage == "index cut":
        index.write_bytes(good[1][:-9])
    elif damage == "manifest cut":
        manifest.write_text(manifest.read_text()[:-20])
    elif damage == "manifest gone":
        manifest.unlink()
    else:
        manifest.write_text(json.dumps({"broken": {}}))
    same_crops(pictures, opened(pictures, tmp_path), InputConfig(size=(48, 64)), AUGMENT)
    assert rebuilt(folder, *good) and json.loads(manifest.read_text())["shards"] == [len(good[0])]
    assert folders(tmp_path) == [folder.name]


def test_one_flipped_byte_is_noticed(pictures, tmp_path, caplog):
    cache = opened(pictures, tmp_path)
    good = (cache.folder / "shard-000.bin").read_bytes(), (cache.folder / "index.npy").read_bytes()
    flip_byte(cache.folder / "shard-000.bin", len(good[0]) // 2)
    cache = opened(pictures, tmp_path)
    with caplog.at_level(logging.WARNING, "lowpose"):
        same_crops(pictures, cache, InputConfig(size=(48, 64)), AUGMENT)
    warned = [r.message for r in caplog.records if "damaged" in r.message]
    assert len(warned) == 1 and str(cache.folder) in warned[0]
    same_crops(pictures, opened(pictures, tmp_path), InputConfig(size=(48, 64)), AUGMENT)
    assert rebuilt(cache.folder, *good)


def build(data, directory, barrier, results):
    barrier.wait()
    cache = open_cache(data, InputConfig(size=(48, 64)), AUGMENT, CacheConfig(dir=str(directory)))
    crops = CropReader(blind(data), InputConfig(size=(48, 64)), None, 0, cache)
    time.sleep(0.12)  # pixels are mapped when they are first needed; no other process may have removed them by then
    results.put([int(crops.crop(i).image.sum()) for i in range(len(data))])


@pytest.mark.parametrize("damaged", [False, True])
def test_three_processes_build_one_good_cache(pictures, tmp_path, monkeypatch, damaged):
    context = multiprocessing.get_context("fork")
    if damaged:
        remove, turn = shutil.rmtree, context.Value("i", 0)

        def slowly(folder, **more):
            """One after the other, so that who comes later meets what the first has made, and with time to miss it."""
            if ".building-" in folder.name:
                return remove(folder, **more)
            with turn:
                turn.value += 1
                mine = turn.value
            time.sleep(0.2 * (mine - 1))
            remove(folder, **more)
            time.sleep(0.15)

        monkeypatch.setattr(cache_module.shutil, "rmtree", slowly)
        shard = opened(pictures, tmp_path).folder / "shard-000.bin"
        shard.write_bytes(b"short")
    barrier, results = context.Barrier(3), context.Queue()
    started = [context.Process(target=build, args=(pictures, tmp_path / "cache", barrier, results)) for _ in range(3)]
    for process in started:
        process.start()
    sums = [results.get(timeout=60) for _ in started]
    for process in started:
        process.join(60)
    plain = CropReader(pictures, InputConfig(size=(48, 64)))
    assert sums == [[int(plain.crop(i).image.sum()) for i in range(6)]] * 3
    assert len(folders(tmp_path)) == 1
    same_crops(pictures, opened(blind(pictures), tmp_path), InputConfig(size=(48, 64)), AUGMENT)


def test_many_shards(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "SHARD_BYTES", 100_000)
    cache = opened(pictures, tmp_path)
    assert len(list(cache.folder.glob("shard-*.bin"))) > 2
    same_crops(pictures, cache, InputConfig(size=(48, 64)), AUGMENT)


def test_many_pictures_are_read_by_processes(pictures, tmp_path, monkeypatch):
    """The same files, bit for bit; the processes that could not read a picture are others than this one."""
    (Path(pictures.root) / "b.png").write_bytes(b"no picture")
    alone = opened(pictures, tmp_path / "alone").folder

    def read(key):
        if key == "b.png":
            raise LowposeError(f"read by {os.getpid()}")
        return pictures.read(key)

    monkeypatch.setattr(_stored, "MANY", 2)
    monkeypatch.setattr(_stored, "AHEAD", 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    together = opened(replace(pictures, read=read), tmp_path / "together")
    assert together.broken.keys() == {"b.png"} and together.broken["b.png"] != f"read by {os.getpid()}"
    for name in ("index.npy", "shard-000.bin"):
        assert (alone / name).read_bytes() == (together.folder / name).read_bytes()


def test_a_process_that_is_ended_while_it_reads(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(_stored, "MANY", 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    with pytest.raises(LowposeError, match="^crop cache: a process that read pictures was ended, perhaps for want of memory$"):
        opened(replace(pictures, read=lambda key: os.kill(os.getpid(), signal.SIGKILL)), tmp_path)
    assert list((tmp_path / "cache").iterdir()) == []


def test_reduced_is_refused_by_paper_and_close_by_area(tmp_path):
    data = load_data("synthetic", split="train", options={"count": 8, "size": [480, 480], "height": [350, 450]})
    with pytest.raises(LowposeError, match="'resample: paper' does not read; use cache.reduced=false"):
        opened(data, tmp_path, InputConfig(size=(32, 32), resample="paper"), reduced=True)
    settings, augment = InputConfig(size=(32, 32)), AugmentConfig(scale=0.2)
    small, whole = (opened(data, tmp_path, settings, augment, reduced=r) for r in (True, False))
    assert all(small.factor(i) >= 3 for i in range(8)) and all(whole.factor(i) == 1 for i in range(8))
    stored = [sum(p.stat().st_size for p in c.folder.glob("shard-*")) for c in (small, whole)]
    assert stored[0] * 8 < stored[1]
    native, reduced = CropReader(data, settings, augment), CropReader(blind(data), settings, augment, 0, small)
    for i in range(8):
        a, b = native.crop(i, 1), reduced.crop(i, 1)
        assert b.error is None and np.array_equal(a.keypoints, b.keypoints) and np.array_equal(a.matrix, b.matrix)
        assert 0 < np.abs(a.image.astype(int) - b.image).mean() < 2


def test_block_mean():
    image = np.random.default_rng(0).integers(0, 255, (7, 8, 3), np.uint8)
    out = block_mean(image, 3)
    assert out.shape == (3, 3, 3)
    assert np.abs(out[0, 1] - image[:3, 3:6].mean((0, 1))).max() <= 0.5
    assert np.abs(out[2, 2] - image[[6]][:, [6, 7, 7]].mean((0, 1))).max() <= 0.5


def test_a_broken_picture_has_no_weight_and_is_named(pictures, tmp_path):
    whole = (Path(pictures.root) / "b.png").read_bytes()
    (Path(pictures.root) / "b.png").write_bytes(whole[: len(whole) // 2])
    for cache in (None, opened(pictures, tmp_path)):
        reader = CropReader(pictures, InputConfig(size=(48, 64)), AUGMENT, 0, cache)
        for i in range(6):
            crop = reader.crop(i)
            broken = pictures.samples[i].image == "b.png"
            assert (crop.error is not None and "b.png" in crop.error) if broken else crop.error is None
            assert (not crop.weight.any() and not crop.image.any()) if broken else (crop.weight.all() and crop.image.any())
    (Path(pictures.root) / "b.png").write_bytes(whole)
    same_crops(pictures, opened(pictures, tmp_path), InputConfig(size=(48, 64)), AUGMENT)


def test_a_folder_that_cannot_be_written(pictures, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(LowposeError, match="the crop cache cannot be written") as e:
        opened(pictures, tmp_path)
    assert "\n" not in str(e.value)
    (tmp_path / "cache").unlink()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(LowposeError, match="cannot be written \\(No space left on device\\)"):
        opened(pictures, tmp_path)
    assert not list((tmp_path / "cache").iterdir())  # nothing half-written stays


def test_damage_in_a_folder_that_is_read_only(pictures, tmp_path, monkeypatch):
    """Without permission to mark the cache, crops still come right."""
    cache = opened(pictures, tmp_path)
    flip_byte(cache.folder / "shard-000.bin", 5)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    same_crops(pictures, cache, InputConfig(size=(48, 64)), AUGMENT)


def test_the_cache_moves_to_another_folder(pictures, tmp_path):
    folder = opened(pictures, tmp_path).folder
    shutil.copytree(folder, tmp_path / "other" / folder.name)
    cache = open_cache(blind(pictures), InputConfig(size=(48, 64)), AUGMENT, CacheConfig(dir=str(tmp_path / "other")))
    same_crops(pictures, cache, InputConfig(size=(48, 64)), AUGMENT)
