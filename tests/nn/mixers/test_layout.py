"""Where tokens stand on the shared grid, against index arithmetic in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mixer_oracle import array, noise, place, shared_grid, take

from lowpose.errors import LowposeError
from lowpose.nn.mixers.base import TokenGrid
from lowpose.nn.mixers.layout import Layout

COLUMNS = {  # keypoints, rows, columns -> columns of the shared grid, cells without a token
    (16, 16, 16): (17, 0),
    (14, 8, 6): (8, 2),
    (17, 16, 12): (14, 15),
    (17, 1, 3): (20, 0),
    (1, 4, 5): (6, 3),
    (1, 1, 1): (2, 0),
    (5, 2, 2): (5, 1),
}
VIEW = {(16, 16, 16): 17, (8, 4, 3): 5, (3, 1, 4): 7, (1, 1, 1): 2}
CASES = [("columns", *c) for c in COLUMNS] + [("view", *c) for c in VIEW]
every_case = pytest.mark.parametrize("arrangement,k,h,w", CASES)


@pytest.mark.parametrize("k,h,w", COLUMNS)
def test_keypoint_tokens_stand_in_extra_columns(k, h, w):
    layout, (width, spare) = Layout(TokenGrid(k, h, w)), COLUMNS[k, h, w]
    assert (layout.height, layout.width) == (h, width)
    assert (shared_grid(k, h, w) < 0).sum() == spare


@pytest.mark.parametrize("k,h,w", VIEW)
def test_the_view_fills_its_rows(k, h, w):
    layout = Layout(TokenGrid(k, h, w), "view")
    assert (layout.height, layout.width) == (h, VIEW[k, h, w])


@every_case
def test_tokens_stand_where_index_arithmetic_says(arrangement, k, h, w):
    layout, tokens = Layout(TokenGrid(k, h, w), arrangement), noise(2, k + h * w, 3)
    cells = layout.arrange(tokens)
    np.testing.assert_array_equal(array(cells), place(array(tokens), shared_grid(k, h, w, arrangement)))
    assert cells.shape == (2, layout.height, layout.width, 3)


@every_case
def test_restored_tokens_are_read_from_their_cells(arrangement, k, h, w):
    """Of any cells, not only of those that `arrange` gave."""
    layout = Layout(TokenGrid(k, h, w), arrangement)
    cells = noise(2, layout.height, layout.width, 3)
    np.testing.assert_array_equal(array(layout.restore(cells)), take(array(cells), shared_grid(k, h, w, arrangement)))


@every_case
def test_there_and_back(arrangement, k, h, w):
    layout, tokens = Layout(TokenGrid(k, h, w), arrangement), noise(2, k + h * w, 3).bfloat16()
    back = layout.restore(layout.arrange(tokens))
    assert back.dtype == torch.bfloat16 and torch.equal(back, tokens)


@pytest.mark.parametrize("k,h,w", [c for c, (_, spare) in COLUMNS.items() if spare])
def test_what_a_filter_leaves_in_padded_cells_is_dropped(k, h, w):
    layout, empty = Layout(TokenGrid(k, h, w)), torch.from_numpy(shared_grid(k, h, w) < 0)
    cells = layout.arrange(noise(2, k + h * w, 3))
    assert (cells[:, empty] == 0).all() and (cells[:, ~empty] != 0).all()
    soiled = cells.clone()
    soiled[:, empty] = torch.nan
    assert torch.equal(layout.restore(soiled), layout.restore(cells))


@every_case
def test_blank_leaves_what_stands_in_a_token_s_cell(arrangement, k, h, w):
    layout, empty = Layout(TokenGrid(k, h, w), arrangement), shared_grid(k, h, w, arrangement) < 0
    cells = noise(2, layout.height, layout.width, 3)
    np.testing.assert_array_equal(array(layout.blank(cells)), np.where(empty[..., None], 0, array(cells)))
    assert not layout.state_dict()


@pytest.mark.parametrize("k,h,w", [(14, 8, 6), (17, 16, 12), (1, 4, 5)])
def test_a_view_without_whole_rows_is_refused_by_name(k, h, w):
    said = f"layout=view: {k} keypoint tokens and {h} x {w} visual tokens do not fill {h} rows; use layout=columns"
    with pytest.raises(LowposeError, match=said):
        Layout(TokenGrid(k, h, w), "view")
