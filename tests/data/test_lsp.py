"""LSP and LSPET reader: both layouts, hand-made, and the shared photographs."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from lowpose.data import load_data
from lowpose.errors import LowposeError


def lspet(n=2):
    joints = np.zeros((14, 3, n))
    joints[:, 0] = np.arange(14)[:, None] + 10
    joints[:, 1] = 2 * np.arange(14)[:, None] + 20
    joints[:, 2] = 1
    return joints


def test_lspet_by_hand(tmp_path):
    joints = lspet()
    joints[4, :, 1] = 0
    savemat(tmp_path / "joints.mat", {"joints": joints})
    first, second = load_data("lsp", tmp_path, "all").samples
    assert first.keypoints[3].tolist() == [13, 26] and (first.visibility == 2).all()
    assert first.box.tolist() == [10, 20, 13, 26] and first.area == 13 * 26
    assert first.head_size == pytest.approx(5**0.5)  # neck 12, top 13: (1, 2) apart
    assert second.visibility[4] == 0 and second.image == "images/im00002.jpg"


def test_lsp_by_hand(tmp_path):
    """LSP stores 3 x 14 x N and flags occluded joints; what is not labelled is negative."""
    joints = np.transpose(lspet(), (1, 0, 2)).copy()
    joints[2] = 0
    joints[2, 5, 0] = 1
    joints[:2, 6, 0] = -20
    savemat(tmp_path / "joints.mat", {"joints": joints})
    train = load_data("lsp", tmp_path, "train").samples
    assert len(train) == 1 and train[0].image == "images/im0001.jpg"
    assert train[0].visibility.tolist() == [2] * 5 + [1, 0] + [2] * 7
    assert load_data("lsp", tmp_path, "test").samples[0].id == 2


def test_problems(tmp_path):
    with pytest.raises(LowposeError, match="joints.mat: no such file"):
        load_data("lsp", tmp_path, "train")
    (tmp_path / "joints.mat").write_bytes(b"nothing of the kind")
    with pytest.raises(LowposeError, match="not a readable MATLAB file"):
        load_data("lsp", tmp_path, "train")
    savemat(tmp_path / "joints.mat", {"joints": np.zeros((14, 2, 5))})
    with pytest.raises(LowposeError, match="14 x 3 x N"):
        load_data("lsp", tmp_path, "train")
    savemat(tmp_path / "joints.mat", {"joints": lspet()})
    with pytest.raises(LowposeError, match="unknown split 'valid'"):
        load_data("lsp", tmp_path, "valid")
    with pytest.raises(LowposeError, match="must be 'gt'"):
        load_data("lsp", tmp_path, "train", boxes="x.json")
    joints = lspet()
    joints[3, 0, 1] = np.nan
    savemat(tmp_path / "joints.mat", {"joints": joints})
    with pytest.raises(LowposeError, match="annotation 2 has keypoints that are not finite"):
        load_data("lsp", tmp_path, "all")


@pytest.mark.photographs
def test_shared_photographs(shared):
    raw = loadmat(shared / "lspet" / "joints.mat")["joints"]
    train, val = (load_data("lsp", shared / "lspet", split) for split in ("train", "val"))
    assert (len(train), len(val)) == (7500, 1000)
    assert {s.id for s in train.samples}.isdisjoint(s.id for s in val.samples)
    for sample in val.samples[::100]:
        column = raw[:, :, sample.id - 1]
        assert np.array_equal(sample.labelled, column[:, 2] > 0)
        assert np.allclose(sample.keypoints[sample.labelled], column[sample.labelled, :2])
