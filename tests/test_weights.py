"""The weights in the repository do what their cards say, on the photographs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lowpose.evaluation import evaluate

ROOT = Path(__file__).parents[1]
PACKED = sorted((ROOT / "weights").glob("*.safetensors"))


@pytest.mark.photographs
@pytest.mark.parametrize("path", PACKED, ids=lambda p: p.stem)
def test_packed_weights_equal_their_card(path, shared, tmp_path):
    """fp16 may move a joint by a bin: the figures agree to a fifth of a point."""
    card = json.loads((ROOT / "docs" / "results" / path.stem / "card.json").read_text())
    found = evaluate(path, f"lsp:{shared / 'lspet'}", "val", out=tmp_path, bootstrap=0)["metrics"]
    for name in ("PCKh@0.5", "PCKh@0.1", "PCK@0.2", "AP"):
        assert found[name]["value"] == pytest.approx(card["metrics"][name]["value"], abs=0.2), name


def test_weights_are_small_and_have_cards():
    assert PACKED
    for path in PACKED:
        assert path.stat().st_size < 8e6
        assert (ROOT / "docs" / "results" / path.stem / "card.md").is_file()
