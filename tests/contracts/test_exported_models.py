"""Every listed backbone and mixer exports with every head, and the file answers as torch does."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxscript")
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import parity  # noqa: E402

from lowpose import registry  # noqa: E402

POSE_HEADS = set(registry.names("head")) - {"linear"}
ON_TOKENS = {name for name in POSE_HEADS if registry.find("head", name).make.reads_tokens}


def test_twelve_backbones_are_listed():
    assert len(set(parity.BACKBONES)) == 12


@pytest.mark.parametrize("name", parity.listed())
def test_every_head_exports_and_answers_as_torch_does(name):
    section, heads = parity.listed()[name], set()
    for _, head, found, operators in parity.parity(name, section, 6):
        heads.add(head)
        # the limits are written here again: parity raises by the package's own
        assert found.pixels <= 0.05 and found.score <= 1e-3 and found.maps <= 1e-4
        assert found.keypoints == 6 * 14 and found.ties < 0.2 * found.keypoints
        assert not operators & {"DFT", "STFT"}  # tens of times slower than products
    assert heads == (ON_TOKENS if "tokens" in section else POSE_HEADS)
