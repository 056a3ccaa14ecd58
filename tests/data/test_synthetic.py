"""Synthetic people: what is labelled is what is drawn, and a key alone decides every pixel."""

from __future__ import annotations

import hashlib
import pickle
import subprocess
import sys
from dataclasses import fields, replace

import cv2
import numpy as np
import pytest

from lowpose.data import load_data
from lowpose.data._paint import paint
from lowpose.data._people import DARK, EXTRA, HAIR, SKIN, TOP, Look, build_person
from lowpose.data._poses import Pose, draw_build, turn
from lowpose.data._quadrics import SolidList
from lowpose.data.synthetic import SyntheticConfig, make_scene
from lowpose.errors import LowposeError
from lowpose.skeletons import BUILT_IN, Skeleton

LIGHT = np.array([0.0, -0.5, 0.866], np.float32)


def people(split="train", skeleton=None, **options):
    return load_data("synthetic", split=split, skeleton=skeleton, options={"count": 12, **options})


def plain_look(colours=None) -> Look:
    colours = np.full((11, 3), 200.0) if colours is None else colours
    return Look(colours, {}, sleeve=1.0, leg=1.0, skirt=0.0, hem=0.03, loose=1.1, hair="short", pack=False)


def figure(yaw=0.0, arms=((0, 8, 0, 5), (0, 8, 0, 5)), colours=None, elevation=0.0):
    """A person of 150 px who stands straight, pelvis at (128, 128)."""
    pose = Pose(np.array(arms, float), np.array([[0, 4, 0, 2], [0, 4, 0, 2]], float))
    build = draw_build(np.random.default_rng(5))
    return build_person(build, pose, plain_look(colours), yaw, elevation, 150.0, lambda extent: (128.0, 128.0))


def drawn(person, **changes) -> np.ndarray:
    """(256, 256, 3) the person alone over black."""
    canvas = np.zeros((256, 256, 3), np.float32)
    paint(canvas, replace(person, **changes), LIGHT, np.random.default_rng(0))
    return canvas


def only(solids, keep):
    return replace(solids, **{f.name: getattr(solids, f.name)[keep] for f in fields(solids)})


def test_solids_are_where_their_parametric_surface_is():
    rng = np.random.default_rng(0)
    for _ in range(30):
        start, end, lateral = rng.normal(0, 20, 3), rng.normal(0, 20, 3), rng.normal(0, 1, 3)
        r0, r1, flat, radii = rng.uniform(2, 6), rng.uniform(2, 6), rng.uniform(0.5, 1), rng.uniform(2, 9, 3)
        frame = turn("x", rng.uniform(0, 360)) @ turn("y", rng.uniform(0, 360)) @ turn("z", rng.uniform(0, 360))
        out = SolidList()
        out.limb(start, end, r0, r1, 0, lateral, flat)
        out.ball(start, frame, radii, 0)
        solids = out.build()
        t, angle = rng.random(300)[:, None], rng.uniform(0, 2 * np.pi, 300)[:, None]
        axis = end - start
        u = lateral - axis * (lateral @ axis) / (axis @ axis)
        u /= np.linalg.norm(u)
        v = np.cross(axis, u) / np.linalg.norm(axis)
        tube = start + t * axis + (r0 + (r1 - r0) * t) * (np.cos(angle) * u + flat * np.sin(angle) * v)
        sphere = rng.normal(0, 1, (300, 3))
        ball = start + (sphere / np.linalg.norm(sphere, axis=1, keepdims=True) * radii) @ frame.T
        for s, surface in enumerate((tube, ball)):
            inner = surface + 1e-4 * (surface.mean(0) - surface)  # off the silhouette, where the root is double
            depth = solids.surface(inner[:, :2])[:, s]
            front = np.isfinite(depth)
            assert (depth[front] > inner[front, 2] - 0.05).all()  # nothing of the surface lies before the front
            assert (np.abs(depth - inner[:, 2]) < 0.2).mean() > 0.25  # and much of it is the front
            low, high = surface[:, :2].min(0), surface[:, :2].max(0)
            box = solids.boxes()[s]
            assert (box[:2] <= low + 1e-9).all() and (box[2:] >= high - 1e-9).all()
        assert np.allclose(solids.boxes()[1, 2:], start[:2] + np.sqrt(((frame * radii) ** 2).sum(1))[:2])


def test_same_key_gives_same_bytes_also_in_another_process_and_after_pickling():
    data = people(seed=3)
    key = data.samples[7].image
    assert key == "train/000007"
    here = hashlib.sha256(data.read(key).tobytes()).hexdigest()
    again = pickle.loads(pickle.dumps(data.read))
    assert hashlib.sha256(again(key).tobytes()).hexdigest() == here
    code = (
        "import hashlib; from lowpose.data import load_data\n"
        "d = load_data('synthetic', split='train', options={'count': 1, 'seed': 3})\n"
        f"print(hashlib.sha256(d.read('{key}').tobytes()).hexdigest())"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert there == here


def test_count_does_not_change_a_picture_and_seed_split_and_index_do():
    few, many = people(count=2), people(count=5)
    assert np.array_equal(few.samples[1].keypoints, many.samples[1].keypoints)
    first = many.read("train/000001")
    assert first.shape == (256, 256, 3) and first.dtype == np.uint8
    others = [many.read("train/000002"), people("val").read("val/000001"), people("test").read("test/000001")]
    others.append(people(seed=1).read("train/000001"))
    assert all((other != first).mean() > 0.5 for other in others)
    keypoints = [people(split).samples[0].keypoints for split in ("train", "val", "test")]
    assert len({k.tobytes() for k in keypoints}) == 3


def test_default_counts():
    assert len(load_data("synthetic", split="val")) == 500


@pytest.mark.parametrize("name", ["shoulder", "elbow", "wrist", "hip", "knee", "ankle"])
def test_joint_is_the_centre_of_the_ball_that_is_drawn_there(name):
    for index in range(6):
        person = make_scene(SyntheticConfig(height=(150, 150)), "train", index).person
        shift = np.array([100.37, 90.81, 0]) - person.joints[f"left_{name}"]
        solids = person.solids.moved(1.0, shift)
        centred = np.linalg.norm(solids.origin - (100.37, 90.81, 0), axis=1) < 1e-6
        ball = centred & (solids.c == -1) & (solids.a == 1)
        assert ball.any()
        alone = only(solids, ball)
        joints = {n: p + shift for n, p in person.joints.items()}
        mask = drawn(figure(), solids=alone, joints=joints).sum(2) > 0
        y, x = np.nonzero(mask)
        assert abs(x.mean() + 0.5 - 100.37) < 0.2 and abs(y.mean() + 0.5 - 90.81) < 0.2


def test_visible_joints_show_their_own_limb_and_hidden_ones_another():
    own = {0: [], 1: []}
    for index in range(80):
        person = make_scene(SyntheticConfig(height=(180, 180)), "train", index).person
        shift = np.array([128, 128, 0]) - person.joints["pelvis"]
        person = replace(person, solids=person.solids.moved(1.0, shift))
        for side in ("left", "right"):
            for part in ("elbow", "wrist", "knee", "ankle"):
                joint = person.joints[f"{side}_{part}"] + shift
                starts, ends = person.solids.origin, person.solids.origin + person.solids.axes[:, :, 2]
                at = np.minimum(np.linalg.norm(starts - joint, axis=1), np.linalg.norm(ends - joint, axis=1)) < 0.03 * 180
                colours = np.zeros((11, 3))
                colours[EXTRA] = 255
                marked = replace(person.solids, material=np.where(at, EXTRA, DARK))
                picture = drawn(person, solids=marked, look=plain_look(colours))
                x, y = np.floor(joint[:2]).astype(int)
                own[int(person.hidden[f"{side}_{part}"])].append(picture[y, x, 0] > 40)
    assert len(own[1]) > 40
    assert np.mean(own[0]) > 0.93 and np.mean(own[1]) < 0.2


def test_left_and_right_in_front_and_back_view():
    front, back, side = figure(0), figure(180), figure(90)
    for part in ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle"):
        assert front.joints[f"left_{part}"][0] > front.joints[f"right_{part}"][0] + 1
        assert back.joints[f"left_{part}"][0] < back.joints[f"right_{part}"][0] - 1
    assert side.joints["nose"][0] > side.joints["upper_neck"][0] + 3  # yaw 90 faces picture right
    assert side.joints["left_shoulder"][2] < side.joints["right_shoulder"][2]  # its right side is near
    for name in ("nose", "left_eye", "right_eye"):
        assert not front.hidden[name] and back.hidden[name]
    assert side.hidden["left_hip"] and not side.hidden["right_hip"]
    assert side.hidden["left_ear"] and not side.hidden["right_ear"]


def test_a_face_is_drawn_in_front_and_hair_at_the_back():
    colours = np.zeros((11, 3))
    colours[SKIN], colours[HAIR], colours[TOP] = (255, 0, 0), (0, 255, 0), (0, 0, 255)

    def at_head(yaw):
        person = figure(yaw, colours=colours)
        x, y = np.floor((person.joints["nose"] + person.joints["upper_neck"])[:2] / 2 + (0, -3)).astype(int)
        return drawn(person)[y, x]

    assert at_head(0)[0] > 60 > at_head(0)[1]
    assert at_head(180)[1] > 40 > at_head(180)[0]


def test_an_arm_behind_the_back_is_hidden_from_the_front_only():
    arms = ((-35, 10, -75, 95), (0, 8, 0, 5))
    front, back = figure(0, arms), figure(180, arms)
    assert front.hidden["left_wrist"] and not front.hidden["right_wrist"]
    assert not back.hidden["left_wrist"]


def test_box_is_the_extent_of_what_is_drawn():
    for yaw in (0, 40, 90, 200):
        person = figure(yaw, arms=((60, 60, 10, 30), (0, 20, 0, 50)), elevation=10)
        y, x = np.nonzero(drawn(person).sum(2) > 0)
        found = [x.min(), y.min(), x.max() + 1, y.max() + 1]
        assert np.abs(np.array(found) - person.extent).max() < 1.1


def test_stature_is_the_height_of_an_upright_person():
    low, high = figure().extent[1], figure().extent[3]
    assert 0.96 * 150 < high - low < 1.06 * 150
    statures = [make_scene(SyntheticConfig(height=(50, 60)), "train", i).person.stature for i in range(20)]
    assert 50 <= min(statures) < max(statures) <= 60


def test_a_joint_behind_an_occluder_is_marked_occluded_and_one_outside_not_labelled():
    data = people(count=300)
    covered = outside = 0
    for index, sample in enumerate(data.samples):
        scene = make_scene(SyntheticConfig(), "train", index)
        canvas = np.zeros((256, 256), np.uint8)
        for occluder in scene.occluders:
            for points, _ in occluder.parts:
                cv2.fillPoly(canvas, [np.round((points - 0.5) * 16).astype(np.int32)], 255, cv2.LINE_8, 4)
        deep = cv2.erode(canvas, np.ones((3, 3))) > 0
        for k, name in enumerate(data.skeleton.keypoints):
            x, y = scene.person.joints[name][:2]
            if not (0 <= x < 256 and 0 <= y < 256):
                assert sample.visibility[k] == 0 and not sample.keypoints[k].any()
                outside += 1
                continue
            assert np.allclose(sample.keypoints[k], (x, y), atol=1e-4)
            if deep[int(y), int(x)]:
                assert sample.visibility[k] == 1
                covered += 1
            elif not cv2.dilate(canvas, np.ones((3, 3)))[int(y), int(x)]:
                assert sample.visibility[k] == (1 if scene.person.hidden[name] else 2)
    assert covered > 50 and outside > 20


def test_samples_are_complete():
    data = people(count=200)
    assert len({s.id for s in data.samples}) == len({s.image_id for s in data.samples}) == 200
    for s in data.samples:
        x, y, w, h = s.box
        assert min(x, y) >= 0 and x + w <= 256 and y + h <= 256 and min(w, h) > 5
        assert s.area == pytest.approx(0.53 * w * h)
        assert (s.visibility > 0).sum() >= 6
        assert s.head_size is None and s.crowd is None
        inside = s.keypoints[s.labelled]
        assert (inside >= (x - 1e-3, y - 1e-3)).all() and (inside <= (x + w + 1e-3, y + h + 1e-3)).all()
    poses = np.array([s.box[2] / s.box[3] for s in data.samples])
    assert poses.min() < 0.4 and poses.max() > 1  # upright and stretched out
    turned = [s.keypoints[5, 0] - s.keypoints[6, 0] for s in data.samples]
    assert 0.25 < np.mean(np.array(turned) > 0) < 0.85  # front and back views


def test_all_skeletons_share_joints_by_name():
    sets = {name: people(skeleton=name) for name in BUILT_IN}
    protocols = {"coco17": "coco", "mpii16": "mpii", "crowdpose14": "crowdpose", "lsp14": "lsp"}
    for name, data in sets.items():
        assert data.protocol == protocols[name] and data.skeleton.name == name
        for reference, sample in zip(sets["coco17"].samples, data.samples, strict=True):
            assert np.array_equal(reference.box, sample.box)
            for k, joint in enumerate(data.skeleton.keypoints):
                if joint in sets["coco17"].skeleton.keypoints:
                    i = sets["coco17"].skeleton.index(joint)
                    assert np.array_equal(sample.keypoints[k], reference.keypoints[i])
                    assert sample.visibility[k] == reference.visibility[i]
            if data.skeleton.head is not None and sample.visibility[list(data.skeleton.head)].all():
                a, b = sample.keypoints[list(data.skeleton.head)].astype(float)
                assert sample.head_size == pytest.approx(np.hypot(*(a - b)), abs=1e-3)
    crowd = [s.crowd for s in people(skeleton="crowdpose14", count=200).samples]
    assert set(np.round(crowd, 2)) == {0, 0.33, 0.67, 1}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cuont": 3}, "did you mean 'count'"),
        ({"count": 0}, "'count'"),
        ({"seed": -1}, "'seed'"),
        ({"height": [90, 300]}, "height must be"),
        ({"height": [120, 60]}, "height must be"),
        ({"size": [16, 256]}, "size must be"),
        ({"size": 256}, "'size"),
    ],
)
def test_wrong_options_are_refused_by_name(options, words):
    with pytest.raises(LowposeError, match=words) as refused:
        load_data("synthetic", options=options)
    assert "\n" not in str(refused.value)


def test_wrong_split_boxes_key_and_skeleton_are_refused():
    with pytest.raises(LowposeError, match="unknown split 'vall'; did you mean 'val'"):
        people("vall")
    with pytest.raises(LowposeError, match="no detector boxes"):
        load_data("synthetic", boxes="found.json", options={"count": 1})
    for key in ("train/x", "000001", "other/000001"):
        with pytest.raises(LowposeError, match="no picture"):
            people(count=1).read(key)


def test_own_skeleton_of_known_joints_works_and_unknown_joints_are_named(tmp_path):
    ours = Skeleton("arm", ("left_wrist", "left_elbow"))
    path = tmp_path / "arm.yaml"
    path.write_text("name: arm\nkeypoints: [left_wrist, left_elbow]\n")
    data = people(skeleton=str(path))
    assert data.skeleton.keypoints == ours.keypoints and data.protocol == "coco"
    path.write_text("name: arm\nkeypoints: [left_wrist, left_thumb, tail]\n")
    with pytest.raises(LowposeError, match="no joint left_thumb, tail"):
        people(skeleton=str(path))


def test_other_sizes():
    data = people(size=[96, 160], height=[40, 80], count=2)
    picture = data.read("train/000001")
    assert picture.shape == (160, 96, 3)
    assert picture.std() > 5
