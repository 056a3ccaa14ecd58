"""Batches are a function of (seed, step): not of workers, ranks or where a run was taken up again."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from lowpose.config import AugmentConfig, InputConfig
from lowpose.data import load_data
from lowpose.data.crops import CropReader
from lowpose.errors import LowposeError
from lowpose.loader import TrainingOrder, evaluation_batches, training_loader
from lowpose.samples import PoseData


@pytest.fixture(scope="module")
def data():
    return load_data("synthetic", split="train", options={"count": 11, "size": [64, 64], "height": [30, 50]})


def keys(persons=11, batch=4, seed=3, start=0, total=7, rank=0, ranks=1):
    return list(TrainingOrder(persons, batch, seed, start, total, rank, ranks))


def test_an_epoch_is_a_permutation_and_epochs_differ():
    batches = keys(persons=12, total=6)
    for epoch in (0, 1):
        part = sum(batches[3 * epoch : 3 * epoch + 3], [])
        assert {e for e, _ in part} == {epoch} and sorted(i for _, i in part) == list(range(12))
    assert [i for _, i in sum(batches[:3], [])] != [i for _, i in sum(batches[3:], [])]
    assert keys(seed=3) == keys(seed=3) != keys(seed=4)


def test_leftovers_change_from_epoch_to_epoch():
    batches = keys(persons=11, total=40)
    left = {next(iter(set(range(11)) - {i for _, i in sum(batches[e * 2 : e * 2 + 2], [])})) for e in range(20)}
    assert all(len(b) == 4 and len(set(b)) == 4 for b in batches) and len(left) > 3


@pytest.mark.parametrize("start", [1, 2, 3, 6, 7])
def test_resumed_order_is_the_tail(start):
    assert keys(start=start) == keys()[start:]


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_share_out_each_global_batch(ranks):
    parts = [keys(rank=rank, ranks=ranks) for rank in range(ranks)]
    assert [sum(step, []) for step in zip(*parts, strict=True)] == keys()


def test_few_persons():
    assert [len(b) for b in keys(persons=3, batch=8, total=2)] == [3, 3]
    assert [len(b) for b in keys(persons=3, batch=8, total=2, ranks=2)] == [1, 1]
    with pytest.raises(LowposeError, match="batch_size = 5 cannot be divided by 2 processes"):
        keys(batch=5, ranks=2)
    with pytest.raises(LowposeError, match="1 persons cannot be shared by 2 processes"):
        keys(persons=1, ranks=2)


@pytest.mark.parametrize("resample", ["area", "camera"])
def test_workers_change_nothing(data, resample):
    reader = CropReader(data, InputConfig(size=(32, 32), resample=resample), AugmentConfig(colour=0.2, half_body=0.5), seed=5)
    one, two = (list(training_loader(reader, TrainingOrder(11, 4, 5, 1, 5), workers, False)) for workers in (0, 2))
    assert len(one) == len(two) == 4
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a.images, b.images) and torch.equal(a.keypoints, b.keypoints) and torch.equal(a.weight, b.weight)
        assert torch.equal(a.index, b.index) and np.array_equal(a.matrices, b.matrices)
    crop = reader.crop(int(one[0].index[1]), 0)
    assert np.array_equal(one[0].images[1].permute(1, 2, 0).numpy(), crop.image)


def test_workers_leave_the_threads_of_opencv_alone(data):
    """A fork has the locks of its parent's threads without the threads: about one loader in a hundred waited for ever."""

    def read(key):
        return np.full((64, 64, 3), cv2.getNumThreads(), np.uint8)

    threads = PoseData("made", "train", ".", data.skeleton, data.samples, read)
    before = cv2.getNumThreads()
    try:
        cv2.setNumThreads(3)
        own, forked = (
            next(iter(evaluation_batches(CropReader(threads, InputConfig(size=(8, 8), padding=0.2)), 1, workers)))
            for workers in (0, 1)
        )
    finally:
        cv2.setNumThreads(before)
    assert own.images[0, 0, 4, 4] == 3 and forked.images[0, 0, 4, 4] == 1


def test_starting_a_loader_takes_no_random_number_of_torch(data):
    """Else a resumed run, which starts one more loader, would draw other dropout masks."""
    reader = CropReader(data, InputConfig(size=(32, 32)))
    torch.manual_seed(0)
    state = torch.get_rng_state()
    next(iter(training_loader(reader, TrainingOrder(11, 4, 0, 0, 2), 0, False)))
    next(iter(evaluation_batches(reader, 4)))
    assert torch.equal(state, torch.get_rng_state())


def test_batches_hold_what_they_say(data):
    reader = CropReader(data, InputConfig(size=(24, 32)))
    batches = list(evaluation_batches(reader, 4))
    assert torch.cat([b.index for b in batches]).tolist() == list(range(11)) and len(batches[-1].images) == 3
    batch = batches[0]
    assert batch.images.shape == (4, 3, 32, 24) and batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.keypoints.shape == (4, 17, 2) and batch.weight.shape == (4, 17) and batch.matrices.shape == (4, 2, 3)
    moved = batch.to("cpu")
    assert torch.equal(moved.images, batch.images) and moved.errors == batch.errors


@pytest.mark.parametrize("workers", [0, 2])
def test_what_a_teacher_needs_comes_with_its_view(data, workers):
    """`beside` is asked for the same (index, epoch) as the crop; pictures become (B, 3, H, W)."""
    reader = CropReader(data, InputConfig(size=(32, 32)), AugmentConfig(), seed=5)

    def beside(index, epoch):
        return {"x": np.full((2, 3), 100 * epoch + index, np.float16), "images": np.full((6, 4, 3), [epoch, index, 7], np.uint8)}

    order = TrainingOrder(11, 4, 5, 0, 5)
    for step, batch in enumerate(training_loader(reader, order, workers, False, beside)):
        epoch = step // 2
        assert batch.teacher["x"].dtype is torch.float16 and batch.teacher["x"].shape == (4, 2, 3)
        assert batch.teacher["x"][:, 1, 2].tolist() == [100 * epoch + i for i in batch.index.tolist()]
        pictures = batch.to("cpu").teacher["images"]
        assert pictures.shape == (4, 3, 6, 4) and pictures.is_contiguous(memory_format=torch.channels_last)
        assert pictures[:, :, 5, 3].tolist() == [[epoch, i, 7] for i in batch.index.tolist()]
    assert step == 4 and next(iter(training_loader(reader, order, 0, False))).teacher == {}


def test_an_epoch_of_views_is_read_in_order(data):
    """As the pass that keeps a teacher's answers reads them."""
    reader = CropReader(data, InputConfig(size=(32, 32)), AugmentConfig(views=3), seed=5)
    batches = list(evaluation_batches(reader, 4, epoch=2))
    images = torch.cat([b.images for b in batches])
    assert torch.cat([b.index for b in batches]).tolist() == list(range(11))
    assert all(np.array_equal(images[i].permute(1, 2, 0).numpy(), reader.crop(i, 5).image) for i in range(11))


def test_pictures_that_cannot_be_read_are_named(data):
    def read(key):
        if key.endswith("3"):
            raise LowposeError(f"{key}: truncated picture")
        return data.read(key)

    broken = PoseData("made", "train", ".", data.skeleton, data.samples, read)
    batch = next(iter(evaluation_batches(CropReader(broken, InputConfig(size=(32, 32))), 8, workers=1)))
    assert batch.errors == ["train/000003: truncated picture"]
    assert batch.weight[3].sum() == 0 and (batch.weight.sum(1) > 0).sum() == 7
