"""Poses of synthetic people: joint angles, body proportions, and the kinematic chain that turns them into joints.

The body's own axes: x to the person's left, y down, z forward; lengths in statures (1 = height when upright).
A person seen from the front with no rotation has the same axes as the picture (x right, y down, z to the viewer).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

SIDES = (("left", 1.0), ("right", -1.0))


def turn(axis: str, degrees: float) -> np.ndarray:
    """(3, 3) rotation. x: y towards z (a hanging limb swings forward). y: z towards x. z: x towards y."""
    a = math.radians(degrees)
    c, s = math.cos(a), math.sin(a)
    if axis == "x":
        return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    if axis == "y":
        return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


@dataclass
class Pose:
    """Angles in degrees. arms, legs: (2, 4), left and right: forward, outward, turn outward, elbow or knee bend."""

    arms: np.ndarray
    legs: np.ndarray
    lean: float = 0.0  # of the trunk forward; side: to the person's left; twist: of the chest to the left
    side: float = 0.0
    twist: float = 0.0
    pitch: float = 0.0  # of the whole body forward; roll: clockwise in the picture
    roll: float = 0.0
    seat: bool = False  # sits on a stool
    aloft: float = 0.0  # height of the feet over the ground, statures
    neck: tuple[float, float, float] = (0.0, 0.0, 0.0)  # nod, shake to the left, tilt


def _both(rng, *spans) -> np.ndarray:
    """(2, len(spans)): each side draws from the same spans (low, high)."""
    low, high = np.array(spans, float).T
    return rng.uniform(low, high, (2, len(spans)))


def _stand(rng) -> Pose:
    pose = Pose(_both(rng, (-8, 10), (3, 16), (-35, 0), (3, 30)), _both(rng, (-4, 8), (0, 9), (0, 22), (0, 8)))
    pose.legs[0, 0], pose.side = pose.legs[0, 0] + 6 * rng.random(), rng.uniform(-5, 5)
    return pose


def _gait(rng, swing: float, knee: float, elbow: tuple[float, float], arm: float) -> Pose:
    phase = rng.uniform(0, 2 * np.pi) + np.array([0.0, np.pi])
    bend = 5 + knee * (0.5 + 0.5 * np.cos(phase - 0.5) + 0.35 * np.maximum(np.sin(phase), 0))
    legs = np.stack([swing * np.sin(phase) + 6, rng.uniform(-1, 4, 2), rng.uniform(0, 8, 2), bend], 1)
    arms = np.stack([-arm * np.sin(phase) + 2, rng.uniform(4, 14, 2), rng.uniform(-35, -5, 2), rng.uniform(*elbow, 2)], 1)
    return Pose(arms, legs, twist=-8 * np.sin(phase[0]))


def _walk(rng) -> Pose:
    return _gait(rng, rng.uniform(14, 30), rng.uniform(22, 45), (8, 40), rng.uniform(10, 30))


def _run(rng) -> Pose:
    pose = _gait(rng, rng.uniform(35, 55), rng.uniform(70, 105), (70, 110), rng.uniform(30, 50))
    pose.lean, pose.aloft = rng.uniform(5, 20), rng.uniform(0, 0.06)
    return pose


def _arms_up(rng) -> Pose:
    pose = _stand(rng)
    pose.arms = _both(rng, (-10, 20), (105, 172), (20, 100), (0, 60))
    return pose


def _one_arm(rng) -> Pose:
    """Waving, pointing or throwing with one arm."""
    pose = _walk(rng) if rng.random() < 0.4 else _stand(rng)
    arm = ((20, 130, 70, 60), (80, 15, -20, 10), (150, 25, 0, 25), (10, 88, 0, 8), (-35, 75, 80, 85))[rng.integers(5)]
    pose.arms[rng.integers(2)] = np.array(arm) + rng.normal(0, 12, 4)
    return pose


def _akimbo(rng) -> Pose:
    pose = _stand(rng)
    arm = ((-12, 46, -68, 96), (38, 6, -62, 108), (25, 8, -25, 118), (38, 4, -40, 35))[rng.integers(4)]
    pose.arms = np.array(arm) + rng.normal(0, 5, (2, 4))
    return pose


def _spread(rng) -> Pose:
    """A star, a T, a gymnast's or dancer's open shape."""
    arms = _both(rng, (-20, 20), (70, 140), (-10, 90), (0, 30))
    return Pose(arms, _both(rng, (-5, 15), (12, 40), (0, 25), (0, 15)), side=rng.uniform(-12, 12))


def _jump(rng) -> Pose:
    legs = _both(rng, (0, 45), (2, 25), (0, 15), (20, 95))
    arms = _both(rng, (-20, 60), (50, 165), (0, 80), (5, 60))
    return Pose(arms, legs, lean=rng.uniform(-12, 12), aloft=rng.uniform(0.06, 0.2))


def _lunge(rng) -> Pose:
    """A deep step, a fencer's or server's."""
    legs = np.array([[60.0, 6, 5, 75], [-28, 4, 8, 22]]) + rng.normal(0, 7, (2, 4))
    arms = _both(rng, (-30, 100), (10, 95), (-30, 60), (5, 80))
    order = [0, 1] if rng.random() < 0.5 else [1, 0]
    return Pose(arms, legs[order], lean=rng.uniform(0, 22), twist=rng.uniform(-20, 20))


def _kick(rng) -> Pose:
    pose = _spread(rng)
    pose.legs = np.array([[rng.uniform(45, 95), rng.uniform(0, 25), 0, rng.uniform(0, 30)], [-4, 4, 8, 12]])
    pose.legs = pose.legs[[0, 1] if rng.random() < 0.5 else [1, 0]]
    pose.lean = rng.uniform(-22, 5)
    return pose


def _sit(rng) -> Pose:
    legs = _both(rng, (78, 96), (2, 18), (0, 12), (70, 105))
    arms = _both(rng, (15, 50), (3, 16), (-30, 0), (30, 85))
    return Pose(arms, legs, lean=rng.uniform(-10, 18), seat=True)


def _crouch(rng) -> Pose:
    legs = _both(rng, (70, 122), (6, 30), (5, 25), (95, 140))
    arms = _both(rng, (25, 90), (4, 30), (-35, 0), (15, 90))
    return Pose(arms, legs, lean=rng.uniform(10, 45), pitch=rng.uniform(0, 20))


def _bend(rng) -> Pose:
    pose = _stand(rng)
    pose.lean, pose.pitch = rng.uniform(15, 45), rng.uniform(15, 60)
    pose.legs = _both(rng, (0, 20), (2, 16), (0, 12), (0, 35)) + (pose.pitch, 0, 0, 0)
    pose.arms = _both(rng, (35, 100), (2, 25), (-20, 10), (0, 50))
    return pose


def _lie(rng) -> Pose:
    pose = (_stand, _spread, _walk, _crouch)[rng.integers(4)](rng)
    pose.roll = (90 if rng.random() < 0.5 else -90) + rng.normal(0, 15)
    return pose


def _upside_down(rng) -> Pose:
    pose = _kick(rng) if rng.random() < 0.5 else _spread(rng)
    pose.arms = _both(rng, (150, 185), (5, 22), (-10, 30), (0, 12))
    pose.roll = 180 + rng.normal(0, 20)
    return pose


_POSES = (
    (0.15, _stand), (0.17, _walk), (0.13, _run), (0.08, _arms_up), (0.08, _one_arm), (0.06, _akimbo), (0.05, _spread),
    (0.06, _jump), (0.05, _lunge), (0.04, _kick), (0.05, _sit), (0.03, _crouch), (0.03, _bend), (0.01, _lie),
    (0.01, _upside_down),
)  # fmt: skip
_SHARES = np.cumsum([share for share, _ in _POSES])


def draw_pose(rng: np.random.Generator) -> Pose:
    """A random pose: one of the named ones, every angle jittered within what joints allow."""
    pose = _POSES[int(np.searchsorted(_SHARES, rng.random() * _SHARES[-1]))][1](rng)
    pose.arms = pose.arms + rng.normal(0, 5, (2, 4))
    pose.legs = pose.legs + rng.normal(0, 3, (2, 4))
    for limbs in (pose.arms, pose.legs):  # elbows and knees bend one way only
        limbs[:, 3] = np.minimum(np.maximum(limbs[:, 3], 0), 142)
    pose.lean += rng.normal(0, 4)
    pose.twist += rng.normal(0, 6)
    pose.roll += rng.normal(0, 3)
    pose.neck = tuple(rng.normal(0, (9, 18, 6)) + (4, 0, 0))
    return pose


@dataclass
class Build:
    """Lengths and widths in statures; `girth` scales every radius."""

    head: float
    neck: float
    trunk: float
    thigh: float
    shank: float
    ankle: float
    upper_arm: float
    forearm: float
    shoulders: float  # half the distance of the shoulder joints
    hips: float
    girth: float
    waist: float  # relative width
    woman: bool


def draw_build(rng: np.random.Generator) -> Build:
    """An adult or (one in six) a child, made to one stature in all."""
    child = rng.uniform(0.4, 1.0) if rng.random() < 0.17 else 0.0
    vary = rng.normal(1, 0.04, 9)
    woman = rng.random() < 0.5
    head = (0.132 + 0.045 * child) * vary[0]
    lengths = np.array([0.036, 0.293 - 0.012 * child, 0.245 - 0.03 * child, 0.243 - 0.035 * child, 0.04]) * vary[1:6]
    neck, trunk, thigh, shank, ankle = lengths * (1 - head) / lengths.sum()
    return Build(
        head,
        neck,
        trunk,
        thigh,
        shank,
        ankle,
        upper_arm=0.172 * vary[7] * (1 - 0.08 * child),
        forearm=0.142 * vary[8] * (1 - 0.08 * child),
        shoulders=(0.098 if woman else 0.110) * (1 - 0.08 * child) * vary[6],
        hips=0.052 * vary[6],
        girth=float(np.clip(rng.normal(1.0, 0.12), 0.8, 1.4)) * (1 + 0.1 * child),
        waist=rng.uniform(0.74, 0.86) if woman else rng.uniform(0.84, 0.98),
        woman=bool(woman),
    )


@dataclass
class Figure:
    """A posed body in statures: named joints {name: (3,)} and the frame (3, 3) of each bone."""

    joints: dict[str, np.ndarray]
    frames: dict[str, np.ndarray] = field(default_factory=dict)


def assemble(build: Build, pose: Pose, yaw: float, elevation: float) -> Figure:
    """Forward kinematics. yaw: 0 facing the viewer, 90 facing picture right. elevation: of the camera, degrees.

    Joints: COCO's 17, pelvis, thorax, neck, upper_neck, head_top, head, and `waist`, `hand`, `toe`, `heel` for drawing.
    """
    root = turn("x", -elevation) @ turn("z", pose.roll) @ turn("y", yaw) @ turn("x", -pose.pitch)
    belly = root @ turn("z", -0.5 * pose.side) @ turn("y", 0.4 * pose.twist) @ turn("x", -0.45 * pose.lean)
    chest = root @ turn("z", -pose.side) @ turn("y", pose.twist) @ turn("x", -pose.lean)
    nod, shake, tilt = pose.neck
    skull = chest @ turn("x", 0.4 * pose.lean) @ turn("y", shake) @ turn("z", tilt) @ turn("x", -nod)
    j, frames = {}, {"root": root, "belly": belly, "chest": chest, "skull": skull}
    j["pelvis"] = np.zeros(3)
    j["waist"] = j["pelvis"] - 0.36 * build.trunk * belly[:, 1]
    j["thorax"] = j["waist"] - 0.62 * build.trunk * chest[:, 1]
    j["neck"] = j["thorax"] - 0.02 * build.trunk * chest[:, 1]
    j["upper_neck"] = j["neck"] - build.neck * (0.7 * chest[:, 1] + 0.3 * skull[:, 1]) + 0.004 * skull[:, 2]
    h = build.head
    middle = j["upper_neck"] + skull @ (np.array([0, -0.42, 0.1]) * h)
    j["skull"] = middle
    j["head_top"] = j["head"] = middle + skull @ (np.array([0, -0.5, -0.05]) * h)
    j["nose"] = middle + skull @ (np.array([0, 0.1, 0.44]) * h)
    for (side, s), arm, leg in zip(SIDES, pose.arms, pose.legs, strict=True):
        j[f"{side}_eye"] = middle + skull @ (np.array([0.145 * s, -0.04, 0.35]) * h)
        j[f"{side}_ear"] = middle + skull @ (np.array([0.33 * s, 0.02, -0.02]) * h)
        forward, outward, outturn, bend = arm
        lift = max(outward - 70, forward - 90, 0) / 110  # a raised arm takes the shoulder up with it
        j[f"{side}_shoulder"] = j["thorax"] + chest @ np.array([s * build.shoulders * (1 - 0.16 * lift), 0.014 - 0.035 * lift, 0])
        upper = chest @ turn("x", forward) @ turn("z", -s * outward) @ turn("y", s * outturn)
        lower = upper @ turn("x", bend)
        j[f"{side}_elbow"] = j[f"{side}_shoulder"] + build.upper_arm * upper[:, 1]
        j[f"{side}_wrist"] = j[f"{side}_elbow"] + build.forearm * lower[:, 1]
        j[f"{side}_hand"] = j[f"{side}_wrist"] + 0.3 * build.forearm * lower[:, 1]
        frames[f"{side}_arm"], frames[f"{side}_forearm"] = upper, lower
        forward, outward, outturn, bend = leg
        j[f"{side}_hip"] = j["pelvis"] + root @ np.array([s * build.hips, 0.005, 0])
        thigh = root @ turn("x", forward) @ turn("z", -s * outward) @ turn("y", s * outturn)
        shank = thigh @ turn("x", -bend)
        foot = shank @ turn("x", -max(0.0, bend - forward) * 0.3)
        j[f"{side}_knee"] = j[f"{side}_hip"] + build.thigh * thigh[:, 1]
        j[f"{side}_ankle"] = j[f"{side}_knee"] + build.shank * shank[:, 1]
        j[f"{side}_heel"] = j[f"{side}_ankle"] + foot @ np.array([0, 0.62 * build.ankle, -0.02])
        j[f"{side}_toe"] = j[f"{side}_ankle"] + foot @ np.array([0.008 * s, 0.72 * build.ankle, 0.092])
        frames[f"{side}_thigh"], frames[f"{side}_shank"], frames[f"{side}_foot"] = thigh, shank, foot
    return Figure(j, frames)
