import numpy as np
import pytest

from lowpose.draw import LEFT, MIDDLE, PAPER, RIGHT, contact_sheet, draw_crop, draw_poses, track_colour
from lowpose.errors import LowposeError
from lowpose.samples import PoseResult
from lowpose.skeletons import Skeleton

BAR = Skeleton("bar", ("left_hand", "right_hand", "chin"), pairs=((0, 1),), edges=((0, 2), (1, 2)))
GREY = np.full((120, 200, 3), 90, np.uint8)
POINTS = np.array([[30.5, 60.5], [170.5, 60.5], [100.5, 60.5]])


def result(points=POINTS, scores=(1.0, 1.0, 1.0), skeleton=BAR, boxes=((10, 20, 150, 80),)) -> PoseResult:
    points = np.atleast_3d(np.asarray(points, np.float32)).reshape(-1, len(skeleton), 2)
    scores = np.broadcast_to(np.asarray(scores, np.float32), points.shape[:2])
    return PoseResult(points, scores, np.array(boxes, float).reshape(-1, 4), skeleton)


def painted(image, background) -> np.ndarray:
    return (image.astype(int) - background != 0).any(-1)


def test_colours_tell_the_sides_and_the_middle():
    out = draw_poses(GREY, result())
    assert out.shape == GREY.shape and out.dtype == np.uint8 and (GREY == 90).all()
    for x, colour in ((30, LEFT), (60, LEFT), (170, RIGHT), (140, RIGHT), (100, MIDDLE)):
        assert np.abs(out[60, x].astype(int) - colour).max() <= 3, x
    assert LEFT[0] > LEFT[2] and RIGHT[2] > RIGHT[0]  # warm and cool


def test_skeleton_lies_where_the_joints_are():
    """Centre of mass of the painted coverage against the closed form, to a tenth of a pixel, at odd sub-pixel places."""
    dot = Skeleton("dot", ("a",))
    for x, y in ((100.5, 60.5), (40.25, 33.75), (77.0, 80.0)):
        out = draw_poses(np.zeros((120, 200, 3), np.uint8), result([[x, y]], [1.0], dot))
        weight = out[..., 0].astype(float)
        rows, columns = np.indices(weight.shape) + 0.5
        assert abs((weight * columns).sum() / weight.sum() - x) < 0.1
        assert abs((weight * rows).sum() / weight.sum() - y) < 0.1


def test_scale_moves_the_skeleton_with_the_picture():
    out = draw_poses(GREY, result(), scale=2.5)
    assert out.shape == (300, 500, 3)
    for x, y in POINTS * 2.5:
        assert painted(out, 90)[int(y), int(x)]
    rows, columns = np.nonzero(painted(out, 90))
    assert abs(rows.mean() + 0.5 - 60.5 * 2.5) < 0.6 and abs(columns.mean() + 0.5 - 100.5 * 2.5) < 1.5


def test_joints_below_the_threshold_are_left_out_with_their_lines():
    out = painted(draw_poses(GREY, result(scores=(1.0, 0.19, 0.2)), threshold=0.2), 90)
    assert out[60, 30] and out[60, 60] and out[60, 100]
    assert not out[:, 112:].any()
    assert not painted(draw_poses(GREY, result(scores=(0.04, 0.04, 0.04))), 90).any()


def test_lines_are_as_thin_as_the_person_is_small():
    def height_of_line(length):
        points = np.array([[100 - length / 2, 60], [100 + length / 2, 60], [100, 60]])
        out = draw_poses(np.zeros_like(GREY), result(points))
        column = out[:, int(100 - length / 4)].astype(float)
        return column[:, 0].sum() / LEFT[0]  # rows of full colour

    small, middle, large = (height_of_line(n) for n in (24, 100, 190))
    assert 0.5 < small < 1.1 and 1.4 * small < middle < large / 1.4
    image = np.zeros_like(GREY)
    assert (painted(draw_poses(image, result(POINTS * 0.1 + 30)), 0)).sum() < 200  # 14 pixels long


def test_smooth_edges():
    slanted = np.array([[30, 30], [170, 95], [100, 62.5]])
    values = draw_poses(np.zeros_like(GREY), result(slanted))[..., 0]
    assert len(np.unique(values[(values > 30) & (values < LEFT[0] - 10)])) > 20


def test_points_far_away_and_not_finite_do_no_harm():
    wild = np.array([[[np.nan, 5], [1e30, -1e30], [50, 50]], [[-300, 60], [500, 60], [100, 60]]])
    out = painted(draw_poses(GREY, result(wild, boxes=np.tile([0, 0, 10, 10], (2, 1)))), 90)
    assert out[50, 50] and out[60, 1] and out[60, 198] and not out[:40].any() and not out[80:].any()
    outside = np.array([[-50, -50], [-60, -80], [-70, -60]])
    assert not painted(draw_poses(GREY, result(outside)), 90).any()


def tracked(ids, boxes, picture=GREY, scores=(0, 0, 0)):
    """Drawn persons of tracks, by default without joints: the numbers alone."""
    out = PoseResult(np.tile(POINTS, (len(ids), 1, 1)), np.tile(np.float32(scores), (len(ids), 1)), np.array(boxes, float), BAR)
    out.ids = np.array(ids)
    return draw_poses(picture, out)


def test_tracks_have_colours_of_their_own_and_joints_keep_their_sides():
    out = {i: tracked([i], [[10, 40, 180, 40]], scores=(1, 1, 1)) for i in (4, 5, 400)}
    for i, image in out.items():
        for x in (60, 140):
            assert np.abs(image[60, x].astype(int) - track_colour(i)).max() <= 3
        for x, colour in ((30, LEFT), (170, RIGHT), (100, MIDDLE)):
            assert np.abs(image[60, x].astype(int) - colour).max() <= 3
    for i in range(40):
        assert np.abs(np.subtract(track_colour(i), track_colour(i + 1))).max() > 60, i  # neighbours can be told apart
    none = tracked([-1], [[10, 40, 180, 40]], scores=(1, 1, 1))
    assert (none == draw_poses(GREY, result(boxes=((10, 40, 180, 40),)))).all()


def test_number_of_a_track_stands_where_there_is_room():
    """Above the box, else below, else beside; not where it would cover a box, and not outside the picture."""
    black = np.zeros_like(GREY)
    cases = [
        ([50, 40, 40, 60], (slice(20, 40), slice(50, 90))),
        ([50, 2, 40, 60], (slice(62, 82), slice(50, 90))),
        ([50, 2, 40, 116], (slice(0, 40), slice(20, 50))),
        ([2, 2, 40, 116], (slice(0, 40), slice(42, 80))),
    ]
    for box, place in cases:
        drawn = painted(tracked([7], [box], black), 0)
        assert drawn.sum() > 20 and drawn[place].sum() == drawn.sum(), box
    assert not painted(tracked([7], [[1, 1, 198, 118]], black), 0).any()  # no room
    two = painted(tracked([7, 8], [[50, 40, 40, 60], [50, 0, 40, 39]], black), 0)
    assert not two[40:100, 50:90].any() and not two[:39, 50:90].any() and two[100:, 50:90].any() and two[:, 20:50].any()
    ten = [painted(tracked([i], [cases[0][0]], black), 0) for i in range(10)]
    assert len({image.tobytes() for image in ten}) == 10  # every number looks different


def test_boxes_and_nobody():
    out = painted(draw_poses(GREY, result(scores=(0, 0, 0)), boxes=True), 90)
    assert out[20, 80] and out[99:101, 80].any() and out[60, 10] and not out[60, 80] and not out[5].any()
    empty = PoseResult(np.zeros((0, 3, 2)), np.zeros((0, 3)), np.zeros((0, 4)), BAR)
    assert (draw_poses(GREY, empty, boxes=True) == GREY).all()


def test_enlarged_crop_shows_its_pixels():
    crop = np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8)
    out = draw_crop(crop, None, None, BAR, size=160)
    assert (out == np.kron(crop, np.ones((20, 20, 1), np.uint8))).all()
    assert draw_crop(crop, None, None, BAR, size=160, smooth=True).std() < out.std()


def test_crop_with_prediction_and_truth():
    crop = np.full((32, 32, 3), 90, np.uint8)
    predicted = np.array([[4.0, 10], [28, 10], [16, 10]])
    truth = predicted + [0, 12 + 1 / 12]  # in the middle of row 132 of the enlarged crop
    out = draw_crop(crop, predicted, None, BAR, size=192, gt=truth)
    for (x, y), colour in zip(predicted * 6, (LEFT, RIGHT, MIDDLE), strict=True):
        assert np.abs(out[int(y) - 1 : int(y) + 1, int(x) - 1 : int(x) + 1].astype(int) - colour).max() <= 3
    line = out[132, 24:168].astype(int)
    white = (line > 200).all(-1)
    assert 0.2 < white.mean() < 0.9 and np.abs(np.diff(white.astype(int))).sum() > 8  # dashed
    solid = out[int(10 * 6) - 1, 40:80].astype(int)
    assert (np.abs(solid - LEFT) <= 3).all()


def test_unlabelled_truth_is_left_out():
    crop = np.full((32, 32, 3), 90, np.uint8)
    gt = np.array([[4.0, 10], [np.nan, np.nan], [16, 10]])
    out = painted(draw_crop(crop, None, None, BAR, size=192, gt=gt), 90)
    assert out[60, 24] and not out[:, 110:].any()


def test_sheet_places_its_tiles():
    tiles = [np.full((64, 64, 3), v, np.uint8) for v in (10, 60, 110)] + [None, np.full((64, 32, 3), 200, np.uint8)]
    sheet = contact_sheet(tiles, 3, tile=64)
    gap = 6
    assert sheet.shape == (gap + 2 * (64 + gap), gap + 3 * (64 + gap), 3)
    for i, value in ((0, 10), (1, 60), (2, 110)):
        x = gap + i * (64 + gap)
        assert (sheet[gap : gap + 64, x : x + 64] == value).all()
    below = sheet[2 * gap + 64 : 2 * gap + 128]
    assert (below[:, gap : gap + 64] == PAPER).all()
    x = gap + 64 + gap
    assert (below[:, x + 16 : x + 48] == 200).all() and (below[:, x : x + 16] == PAPER).all()


def test_sheet_with_words():
    tiles = [np.zeros((96, 96, 3), np.uint8)] * 4
    plain = contact_sheet(tiles, 2, tile=96)
    titles = ["a", "b" * 200, "c", ""]
    sheet = contact_sheet(tiles, 2, titles, "several words " * 12, tile=96, rows=["32 px", "64 px"], legend=True)
    assert sheet.shape[0] > plain.shape[0] and sheet.shape[1] > plain.shape[1]
    dark = (sheet < 80).all(-1)
    black = (sheet == 0).all(-1)
    assert black.sum() == 4 * 96 * 96  # no word covers a tile
    assert (dark & ~black).sum() > 500
    edge = np.ones_like(dark)
    edge[2:-2, 2:-2] = False
    assert not (dark & edge).any()  # no word runs out of the sheet
    for colour in (LEFT, RIGHT):
        assert (sheet == colour).all(-1).sum() > 50


def test_large_tiles_are_brought_down():
    sheet = contact_sheet([np.full((400, 200, 3), 50, np.uint8)], 1, tile=100)
    assert (sheet == 50).all(-1).sum() == 100 * 50


def test_sheets_that_do_not_fit():
    tile = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(LowposeError, match="2 titles for 1 tiles"):
        contact_sheet([tile], 1, ["a", "b"])
    with pytest.raises(LowposeError, match="1 row labels for 2 rows"):
        contact_sheet([tile] * 3, 2, rows=["a"])
    for tiles, columns in (([], 3), ([tile], 0)):
        with pytest.raises(LowposeError, match="no tiles, or no columns"):
            contact_sheet(tiles, columns)
