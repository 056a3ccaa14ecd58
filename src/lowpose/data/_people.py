"""Synthetic people: clothes over a posed body, placed in a picture, and painted.

A person is a list of solids with materials. Where its joints lie and which of them its own body hides
is computed from the solids alone; pixels are only made by `paint`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lowpose.data._poses import SIDES, Build, Figure, Pose, assemble, draw_build, draw_pose
from lowpose.data._quadrics import SolidList, Solids

MATERIALS = ("skin", "top", "bottom", "shoe", "sole", "hair", "white", "dark", "lips", "extra", "prop")
SKIN, TOP, BOTTOM, SHOE, SOLE, HAIR, WHITE, DARK, LIPS, EXTRA, PROP = range(len(MATERIALS))
_SKIN_TONES = np.array(
    [(244, 208, 180), (232, 190, 158), (214, 164, 128), (188, 134, 98), (150, 100, 70), (112, 72, 50), (80, 52, 38)], float
)
_HAIR_TONES = np.array(
    [(28, 22, 20), (52, 36, 26), (88, 58, 36), (130, 84, 48), (196, 154, 92), (226, 200, 150), (150, 148, 146), (140, 62, 34)],
    float,
)
PATTERNS = ("plain", "across", "along", "checks", "dots", "halves")
TUCKED = -0.055
# A joint is hidden where something lies more than this in front of it, in statures: about the depth of its own flesh.
_FLESH = {
    "nose": 0.02, "eye": 0.016, "ear": 0.02, "shoulder": 0.075, "elbow": 0.05, "wrist": 0.045, "hip": 0.115, "knee": 0.07,
    "ankle": 0.06, "neck": 0.1, "thorax": 0.12, "pelvis": 0.13, "top": 0.07, "head": 0.07, "waist": 0.13,
}  # fmt: skip
_DRAWING_ONLY = {"skull", *(f"{side}_{part}" for side, _ in SIDES for part in ("hand", "heel", "toe"))}


@dataclass
class Look:
    """Colours (M, 3) RGB by material, their patterns (kind, repeats per stature, second colour), and the cut of the clothes."""

    colours: np.ndarray
    patterns: dict[int, tuple[str, float, np.ndarray]]
    sleeve: float  # share of the arm that is covered: 0, about a quarter, or 1
    leg: float  # share of the leg that is covered
    skirt: float  # its length in statures, 0: none
    hem: float  # of the top below the pelvis, statures
    loose: float
    hair: str
    pack: bool


@dataclass
class Person:
    """A person in picture pixels: solids, joints {name: (3,) x, y, z}, `hidden` {name: bool}, stature in pixels."""

    solids: Solids
    joints: dict[str, np.ndarray]
    hidden: dict[str, bool]
    look: Look
    stature: float
    extent: np.ndarray  # (4,) x0, y0, x1, y1 of the silhouette
    ground: float  # y of the floor under the feet


def cloth_colour(rng: np.random.Generator) -> np.ndarray:
    """(3,) RGB: half of clothes are muted, the rest vivid, blues and reds more often than purples."""
    muted = rng.random() < 0.55
    hue = (0.0, 0.35, 0.8, 2.2, 3.0, 3.4, 3.7, 4.0, 5.3)[int(9 * rng.random())] + rng.normal(0, 0.25)
    saturation, value = rng.uniform(0, 0.35) if muted else rng.uniform(0.4, 0.85), rng.uniform(0.12, 0.98)
    ramp = (min(max(abs((hue + k) % 6 - 3) - 1, 0.0), 1.0) for k in (0, 4, 2))
    return np.array([255 * value * (1 - saturation * (1 - r)) for r in ramp])


def draw_look(rng: np.random.Generator, woman: bool, skirt_fits: bool) -> Look:
    tone = rng.random() * (len(_SKIN_TONES) - 1)
    low = int(tone)
    skin = _SKIN_TONES[low] + (tone - low) * (_SKIN_TONES[low + 1] - _SKIN_TONES[low]) + rng.normal(0, 4, 3)
    hair = _HAIR_TONES[int(len(_HAIR_TONES) * rng.random() ** 1.5)] * rng.uniform(0.85, 1.1)
    top, bottom, shoe, extra = (cloth_colour(rng) for _ in range(4))
    if rng.random() < 0.4:  # denim, black or khaki
        bottom = np.array([(58, 78, 118), (36, 36, 42), (150, 134, 104)][rng.integers(3)], float) * rng.uniform(0.75, 1.15)
    sole = np.array((225.0, 222, 215)) if rng.random() < 0.6 else shoe * 0.5
    fixed = [(238, 236, 232), (36, 26, 24), skin * (0.72, 0.5, 0.5)]
    colours = np.clip(np.array([skin, top, bottom, shoe, sole, hair, *fixed, extra, cloth_colour(rng) * 0.6 + 40]), 8, 250)
    patterns = {}
    for material, chance in ((TOP, 0.5), (BOTTOM, 0.2)):
        kind, repeats, second = PATTERNS[1 + int(5 * rng.random())], rng.uniform(14, 34), cloth_colour(rng)
        if rng.random() < chance:
            patterns[material] = (kind, repeats, second)
    cut, leg = rng.random(), rng.random()
    skirt = rng.uniform(0.16, 0.36) if woman and skirt_fits and rng.random() < 0.35 else 0.0
    if skirt and rng.random() < 0.5:  # a dress
        colours[BOTTOM] = colours[TOP]
        patterns.pop(BOTTOM, None)
        if TOP in patterns:
            patterns[BOTTOM] = patterns[TOP]
    styles = ("long", "long", "bun", "tail", "tail", "short", "cap") if woman else ("short",) * 4 + ("bald", "cap", "curls")
    return Look(
        colours,
        patterns,
        sleeve=0.0 if cut < 0.12 else rng.uniform(0.2, 0.34) if cut < 0.6 else 1.0,
        leg=0.0 if skirt else rng.uniform(0.2, 0.42) if leg < 0.35 else 1.0,
        skirt=skirt,
        hem=rng.uniform(0.01, 0.05) if rng.random() < 0.55 else TUCKED,
        loose=rng.uniform(1.04, 1.28),
        hair=styles[int(len(styles) * rng.random())],
        pack=bool(rng.random() < 0.1),
    )


def _mix(a: np.ndarray, b: np.ndarray, t: float) -> np.ndarray:
    return a + t * (b - a)


def _arm(out: SolidList, f: Figure, side: str, b: Build, look: Look) -> None:
    j, upper, lower, g = f.joints, f.frames[f"{side}_arm"], f.frames[f"{side}_forearm"], b.girth
    shoulder, elbow, wrist = j[f"{side}_shoulder"], j[f"{side}_elbow"], j[f"{side}_wrist"]
    covered = look.sleeve >= 1
    cloth, wide = (TOP, look.loose * 1.06) if covered else (SKIN, 1.0)
    out.ball(shoulder, upper, np.array([0.030, 0.032, 0.030]) * g * (1.08 if look.sleeve else 1.0), TOP if look.sleeve else SKIN)
    out.limb(shoulder, elbow, 0.028 * g * wide, 0.0215 * g * wide, cloth, upper[:, 0])
    out.ball(elbow, upper, np.full(3, 0.0215 * g * wide), cloth)
    out.limb(elbow, _mix(elbow, wrist, 0.3), 0.0215 * g * wide, 0.023 * g * wide, cloth, lower[:, 0])
    out.limb(_mix(elbow, wrist, 0.3), wrist, 0.023 * g * wide, 0.0145 * g * (wide * 1.1 if covered else 1), cloth, lower[:, 0])
    if 0 < look.sleeve < 1:
        out.limb(shoulder, _mix(shoulder, elbow, look.sleeve * 1.9), 0.034 * g, 0.031 * g * look.loose, TOP, upper[:, 0])
    out.ball(wrist, lower, np.full(3, 0.0145 * g), SKIN)
    out.ball(j[f"{side}_hand"], lower, np.array([0.013, 0.036, 0.021]) * (0.9 + 0.1 * g), SKIN)


def _leg(out: SolidList, f: Figure, side: str, b: Build, look: Look) -> None:
    j, thigh, shank, foot, g = f.joints, f.frames[f"{side}_thigh"], f.frames[f"{side}_shank"], f.frames[f"{side}_foot"], b.girth
    hip, knee, ankle = j[f"{side}_hip"], j[f"{side}_knee"], j[f"{side}_ankle"]
    covered = look.leg >= 1
    cloth, wide = (BOTTOM, look.loose) if covered else (SKIN, 1.0)
    out.ball(hip, thigh, np.array([0.047, 0.058, 0.056]) * g, BOTTOM)
    out.limb(hip, knee, 0.056 * g, 0.036 * g * wide, cloth, thigh[:, 0])
    out.ball(knee, thigh, np.full(3, 0.036 * g * wide), cloth)
    calf = _mix(knee, ankle, 0.35) - 0.006 * shank[:, 2]
    out.limb(knee, calf, 0.035 * g * wide, 0.0365 * g * wide, cloth, shank[:, 0])
    out.ball(calf, shank, np.full(3, 0.0365 * g * wide), cloth)
    out.limb(calf, ankle, 0.0365 * g * wide, 0.021 * g * (wide * 1.35 if covered else 1), cloth, shank[:, 0])
    if 0 < look.leg < 1:
        out.limb(hip, _mix(hip, knee, look.leg * 2), 0.058 * g, 0.05 * g * look.loose, BOTTOM, thigh[:, 0])
    heel, toe = j[f"{side}_heel"], j[f"{side}_toe"]
    out.ball(ankle, shank, np.full(3, 0.023 * g), SHOE if covered or look.loose > 1.15 else SKIN)
    out.limb(ankle, heel, 0.024 * g, 0.025, SHOE, shank[:, 0])
    out.ball(heel, foot, np.array([0.026, 0.022, 0.03]), SHOE)
    out.limb(heel, toe, 0.026, 0.022, SHOE, foot[:, 0], 0.8)
    out.ball(toe, foot, np.array([0.026, 0.018, 0.034]), SHOE)
    out.ball(_mix(heel, toe, 0.52) + 0.011 * foot[:, 1], foot, np.array([0.029, 0.013, 0.084]), SOLE)


def _trunk(out: SolidList, f: Figure, b: Build, look: Look) -> None:
    j, root, belly, chest, g = f.joints, f.frames["root"], f.frames["belly"], f.frames["chest"], b.girth
    rib, hips = (b.shoulders - 0.012) * (0.6 + 0.4 * g), (b.hips + 0.043) * (0.5 + 0.5 * g)
    waist, deep = rib * b.waist * (0.5 + 0.5 * g), 0.66 * (0.8 + 0.2 * g)
    armpit = j["thorax"] + 0.052 * chest[:, 1]
    out.limb(j["waist"], armpit, waist, rib, TOP, chest[:, 0], deep)
    out.ball(armpit, chest, np.array([rib, 0.06, rib * deep]), TOP)
    out.ball(j["waist"], belly, np.array([waist, 0.05, waist * deep]), TOP)
    hem = j["pelvis"] + look.hem * root[:, 1]
    over = hips + 0.015 if look.hem > 0 else _mix(hips, waist, 0.5)
    out.limb(hem, j["waist"], over, waist, TOP, belly[:, 0], 0.82 if look.hem > 0 else deep)
    out.limb(j["pelvis"], _mix(j["pelvis"], j["waist"], 0.6), hips, _mix(hips, waist, 0.5), BOTTOM, belly[:, 0], deep)
    out.ball(j["pelvis"] + 0.008 * root[:, 1], root, np.array([hips, 0.06, hips * deep]), BOTTOM)
    for side, s in SIDES:
        out.ball(j["pelvis"] + root @ np.array([0.042 * s, 0.022, -0.026]), root, np.full(3, 0.05 * g), BOTTOM)
        out.limb(j["neck"] - 0.004 * chest[:, 1], j[f"{side}_shoulder"] - 0.003 * chest[:, 1], 0.031, 0.029 * g, TOP, chest[:, 1])
        if b.woman:
            breast = armpit + chest @ np.array([0.036 * s, 0.022, rib * deep - 0.03])
            out.ball(breast, chest, np.array([0.044, 0.042, 0.038]), TOP)
    out.limb(j["neck"], j["upper_neck"] - 0.03 * chest[:, 1], 0.029 * g, 0.026 * g, SKIN, chest[:, 0])
    if look.skirt:
        middle = (f.frames["left_thigh"][:, 1] + f.frames["right_thigh"][:, 1]) / 2
        start = j["pelvis"] - 0.03 * root[:, 1]
        spread = np.linalg.norm(j["left_knee"] - j["right_knee"]) * look.skirt / (2 * b.thigh)
        end, wide = start + (look.skirt + 0.03) * middle, max(0.1 + 0.16 * look.skirt, spread + 0.055)
        out.limb(start, end, hips * 0.96, wide, BOTTOM, root[:, 0], 0.8)
    if look.pack:
        out.ball(armpit + chest @ np.array([0, 0.04, -rib * deep - 0.03]), chest, np.array([0.075, 0.11, 0.05]), EXTRA)


def _head(out: SolidList, f: Figure, b: Build, look: Look) -> None:
    skull, h, middle = f.frames["skull"], b.head, f.joints["skull"]

    def put(x, y, z, radii, material):
        out.ball(middle + skull @ (np.array([x, y, z]) * h), skull, np.array(radii) * h, material)

    put(0, -0.06, 0.0, (0.335, 0.44, 0.41), SKIN)
    put(0, 0.17, 0.085, (0.265, 0.33, 0.31), SKIN)
    put(0, 0.09, 0.40, (0.05, 0.085, 0.07), SKIN)
    put(0, 0.27, 0.355, (0.11, 0.028, 0.04), LIPS)
    for s in (1, -1):
        put(0.145 * s, -0.04, 0.345, (0.075, 0.045, 0.04), WHITE)
        put(0.145 * s, -0.04, 0.367, (0.04, 0.045, 0.03), DARK)
        put(0.145 * s, -0.125, 0.355, (0.085, 0.018, 0.04), HAIR)
        put(0.33 * s, 0.02, -0.02, (0.04, 0.1, 0.065), SKIN)
    if look.hair == "bald":
        return
    if look.hair == "cap":
        put(0, -0.17, -0.03, (0.37, 0.345, 0.43), EXTRA)
        put(0, -0.23, 0.36, (0.27, 0.035, 0.27), EXTRA)
        put(0, 0.04, -0.14, (0.335, 0.3, 0.32), HAIR)
        return
    size = 1.12 if look.hair == "curls" else 1.0
    put(0, -0.12, -0.075, (0.375 * size, 0.43 * size, 0.42 * size), HAIR)
    if look.hair == "long":
        put(0, 0.28, -0.2, (0.37, 0.55, 0.25), HAIR)
    elif look.hair == "bun":
        put(0, -0.42, -0.3, (0.17, 0.17, 0.17), HAIR)
    elif look.hair == "tail":
        put(0, 0.2, -0.5, (0.12, 0.42, 0.12), HAIR)


def _stool(out: SolidList, f: Figure, b: Build) -> None:
    root = f.frames["root"]
    top = f.joints["pelvis"] + root @ np.array([0, 0.07, 0.03])
    out.ball(top, root, np.array([0.11, 0.018, 0.11]), PROP)
    out.limb(top, top + (b.shank * 0.95) * root[:, 1], 0.05, 0.085, PROP, root[:, 0])


def make_person(rng: np.random.Generator, height: tuple[float, float], place) -> Person:
    """A random person of a stature drawn from `height` (least, most; pixels); `place` as in `build_person`."""
    build, pose = draw_build(rng), draw_pose(rng)
    facing = rng.random()
    yaw = rng.normal(0, 30) if facing < 0.38 else 180 + rng.normal(0, 28) if facing < 0.56 else rng.uniform(-180, 180)
    elevation = min(max(rng.normal(7, 8), -12.0), 32.0)
    stature = math.exp(rng.uniform(math.log(height[0]), math.log(height[1])))
    left, right = pose.legs
    skirt_fits = not pose.seat and abs(left[0] - right[0]) < 32 and left[1] + right[1] < 35 and max(left[0], right[0]) < 50
    look = draw_look(rng, build.woman, skirt_fits)
    return build_person(build, pose, look, yaw, elevation, stature, lambda extent: place(extent, rng))


def build_person(build: Build, pose: Pose, look: Look, yaw: float, elevation: float, stature: float, place) -> Person:
    """The person with these clothes in this pose, seen from this side (degrees, as in `assemble`), `stature` pixels tall.

    Args:
        place: extent (4,) of the silhouette in pixels about the pelvis -> (x, y) of the pelvis in the picture.
    """
    figure = assemble(build, pose, yaw, elevation)
    out = SolidList()
    _trunk(out, figure, build, look)
    _head(out, figure, build, look)
    for side, _ in SIDES:
        _arm(out, figure, side, build, look)
        _leg(out, figure, side, build, look)
    if pose.seat:
        _stool(out, figure, build)
    solids = out.build()
    own, boxes = solids.material != PROP, solids.boxes()
    extent = np.concatenate([boxes[own, :2].min(0), boxes[own, 2:].max(0)]) * stature
    names = [n for n in figure.joints if n not in _DRAWING_ONLY]
    points = np.array([figure.joints[n] for n in names])
    in_front = solids.surface(points[:, :2]).max(1) - points[:, 2]
    hidden = in_front > np.array([_FLESH[n.split("_")[-1]] for n in names])
    x, y = place(extent)
    shift = np.array([x, y, 0.0])
    return Person(
        solids.moved(stature, shift),
        dict(zip(names, points * stature + shift, strict=True)),
        dict(zip(names, hidden.tolist(), strict=True)),
        look,
        stature,
        extent + (x, y, x, y),
        float((boxes[:, 3].max() + pose.aloft) * stature + y),
    )
