"""The sheet of best, median and worst predictions, and the results page that is made from cards."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny

from lowpose.checkpoint import save_weights
from lowpose.errors import LowposeError
from lowpose.images import read_image
from lowpose.nn.model import build_model
from lowpose.sheet import draw_sheet, ranked
from lowpose.skeletons import COCO17
from lowpose.tasks.pose import Predictions, validation_data

RESULTS = Path(__file__).parents[1] / "docs" / "results"


def test_ranked_by_mean_error_as_a_share_of_the_crop():
    config = tiny()
    data = validation_data(config)
    n = len(data)
    truth = np.stack([s.keypoints for s in data.samples]).astype(float)
    shift = np.random.default_rng(0).permutation(n) + 1.0
    found = Predictions(truth + [[[3.0, 4.0]]] * shift[:, None, None], None, None, np.full(n, 2.0), [])
    order, errors = ranked(data, found, config)
    assert np.allclose(errors, 5 * shift / (2.0 * 32))
    assert list(order) == list(np.argsort(shift))


def test_sheet_of_a_run(tmp_path):
    config = tiny()
    torch.manual_seed(0)
    save_weights(tmp_path / "weights.safetensors", build_model(config, COCO17), config)
    picture = read_image(draw_sheet(tmp_path, persons=6, columns=2))
    assert picture.shape[0] > 3 * 192 and picture.shape[1] > 2 * 192
    with pytest.raises(LowposeError, match="at least three labelled persons; split 'val' has 2"):
        few = tiny(data={"options": {"count": 2, "size": [64, 64], "height": [30, 50]}})
        save_weights(tmp_path / "few.safetensors", build_model(few, COCO17), few)
        draw_sheet(tmp_path / "few.safetensors")


def test_results_page_is_current():
    """docs/results/README.md and the front page say what the cards say."""
    make = runpy.run_path(str(RESULTS / "make.py"))
    cards = make["read_cards"]()
    assert (RESULTS / "README.md").read_text() == make["page"](cards)
    assert make["FRONT"].read_text() == make["front"](cards)


def test_study_pages_are_current():
    """The tables of the studies' pages are those of the comparisons beside them."""
    study = runpy.run_path(str(RESULTS / "studies.py"))
    for name, tables in study["PAGES"].items():
        page = (RESULTS / f"{name}.md").read_text()
        assert study["fill"](page, tables(RESULTS / name)) == page
