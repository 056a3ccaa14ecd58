"""Left/right labels that look exchanged: one person's, and a whole data set's.

A person looks wrong if

- exchanging one pair (the knees, say) would shorten the limbs that join it to other pairs by a factor of 1.2 and by 4
  pixels: limbs that cross are longer than limbs that do not (the sides of a quadrilateral against its diagonals);
- the lines left to right through shoulders and hips run against each other (cosine below -0.5), each at least a fifth of the
  torso long; or those through eyes and shoulders, these at least half of the torso, as heads do turn beside the shoulders;
- nose, left eye and right eye turn the wrong way round, which a face that is seen cannot do.

People do cross legs and arms, so the first is a hint, not a proof: of the first 8,500 persons of LSPET 1.5% are named by it,
about half of them wrong labels when looked at (20 were), and 2.2% by the second, most of them wrong. Of pairs exchanged on
purpose there, 88% of shoulders and elbows are found, 83% of hips, 77% of wrists, 59% of knees and 54% of ankles.

A data set looks wrong in a pair if, over at least 20 persons, its line left to right runs against those of the other pairs on
average (mean cosine below zero by two standard errors; 0.6 to 0.9 is usual), and as a whole if fewer than half of the people
face the camera by their labels (95% Wilson bound; 70 to 85% is usual, so this too is a hint).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lowpose.skeletons import Skeleton

SHORTER, LEAST = 1.2, 4.0  # of limbs, ratio and pixels
AGAINST, SEEN, BROAD = -0.5, 0.2, 0.5  # cosine; of the torso
ENOUGH = 20  # persons, to judge a data set


@dataclass(frozen=True)
class Sides:
    """How the left/right pairs of a data set agree.

    Attributes:
        agreement: pair -> mean cosine between its line left to right and those of the other pairs, and persons counted.
        facing: share of the people who face the camera by their shoulders and hips, and persons counted; None if unknown.
        exchanged: one line for each pair, or the whole, that looks exchanged.
    """

    agreement: dict[str, tuple[float, int]]
    facing: tuple[float, int] | None
    exchanged: list[str]


def pair_name(skeleton: Skeleton, pair: tuple[int, int]) -> str:
    """'knee' for left_knee and right_knee; both names where they do not differ by left and right."""
    left, right = (skeleton.keypoints[i] for i in pair)
    part = left.lower().replace("left", "").strip("_ ")
    return part if part and part == right.lower().replace("right", "").strip("_ ") else f"{left}/{right}"


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _length(a: np.ndarray) -> np.ndarray:
    return np.linalg.norm(a, axis=-1)


class _Bodies:
    """Points by name: (N, 2) differences and middles of left/right pairs, NaN where not labelled."""

    def __init__(self, points: np.ndarray, labelled: np.ndarray, skeleton: Skeleton):
        self.points = np.where(labelled[..., None], points.astype(np.float64), np.nan)
        self.position = {name: i for i, name in enumerate(skeleton.keypoints)}

    def has(self, *names: str) -> bool:
        return set(names) <= set(self.position)

    def pair(self, part: str) -> tuple[np.ndarray, np.ndarray]:
        left, right = (self.points[:, self.position[f"{side}_{part}"]] for side in ("left", "right"))
        return left - right, (left + right) / 2


def crossed(points: np.ndarray, labelled: np.ndarray, skeleton: Skeleton) -> list[tuple[int, str]]:
    """Persons whose left/right labels look exchanged: position and reasons, each person once, in order.

    Args:
        points: (N, K, 2) picture pixels. labelled: (N, K) bool.
    """
    found = _long_limbs(points, labelled, skeleton)
    bodies = _Bodies(points, labelled, skeleton)
    if bodies.has("left_shoulder", "right_shoulder", "left_hip", "right_hip"):
        torso = _length(bodies.pair("shoulder")[1] - bodies.pair("hip")[1])
        found += _against(bodies, "shoulder", "hip", SEEN * torso, SEEN * torso)
        if bodies.has("left_eye", "right_eye"):
            found += _against(bodies, "eye", "shoulder", np.full(len(points), LEAST / 2), BROAD * torso)
    if bodies.has("left_eye", "right_eye", "nose"):
        eyes, middle = bodies.pair("eye")
        down = bodies.points[:, bodies.position["nose"]] - middle
        size = _length(eyes) * _length(down)
        wrong = (_cross(eyes, down) < AGAINST * size) & (np.minimum(_length(eyes), _length(down)) >= LEAST / 2)
        found += [
            (int(i), "nose and eyes turn the wrong way round: left and right eye look exchanged") for i in np.flatnonzero(wrong)
        ]
    reasons: dict[int, list[str]] = {}
    for i, reason in found:
        reasons.setdefault(i, []).append(reason)
    return [(i, "; ".join(reasons[i])) for i in sorted(reasons)]


def _long_limbs(points: np.ndarray, labelled: np.ndarray, skeleton: Skeleton) -> list[tuple[int, str]]:
    edges = {frozenset(edge) for edge in skeleton.edges}
    n, pairs = len(points), skeleton.pairs
    saved, ratio = np.zeros((n, len(pairs))), np.ones((n, len(pairs)))
    for i, (a, b) in enumerate(pairs):
        now, other = np.zeros(n), np.zeros(n)
        for c, d in pairs:
            if a == c or frozenset((a, c)) not in edges or frozenset((b, d)) not in edges:
                continue
            p = {k: points[:, k].astype(np.float64) for k in (a, b, c, d)}
            here = labelled[:, [a, b, c, d]].all(1)
            now += here * (_length(p[a] - p[c]) + _length(p[b] - p[d]))
            other += here * (_length(p[b] - p[c]) + _length(p[a] - p[d]))
        saved[:, i] = now - other
        ratio[:, i] = now / np.maximum(other, 1e-9)
    if not pairs:
        return []
    name = [pair_name(skeleton, pair) for pair in pairs]
    saved = np.where((ratio > SHORTER) & (saved > LEAST), saved, 0)  # one wrong pair lengthens its neighbours' limbs too:
    worst = saved.argmax(1)  # the pair whose exchange saves most is named
    return [
        (int(i), f"left and right {name[worst[i]]} look exchanged: limbs {ratio[i, worst[i]]:.1f} times as long as otherwise")
        for i in np.flatnonzero(saved.max(1) > 0)
    ]


def _against(bodies: _Bodies, upper: str, lower: str, least_upper: np.ndarray, least_lower: np.ndarray) -> list[tuple[int, str]]:
    a, b = bodies.pair(upper)[0], bodies.pair(lower)[0]
    la, lb = _length(a), _length(b)
    wrong = (la >= least_upper) & (lb >= least_lower) & ((a * b).sum(1) < AGAINST * la * lb)  # False where NaN
    return [(int(i), f"left and right of {upper}s and {lower}s run against each other") for i in np.flatnonzero(wrong)]


def agreement(points: np.ndarray, labelled: np.ndarray, skeleton: Skeleton) -> Sides:
    """Whether the pairs of a whole data set agree. points: (N, K, 2) picture pixels; labelled: (N, K) bool."""
    pairs = np.array(skeleton.pairs, int).reshape(-1, 2)
    bodies = _Bodies(points, labelled, skeleton)
    lines = bodies.points[:, pairs[:, 0]] - bodies.points[:, pairs[:, 1]]  # (N, P, 2)
    low, high = (np.where(labelled[..., None], points, fill) for fill in (np.inf, -np.inf))
    size = _length(np.where(labelled.any(1)[:, None], high.max(1) - low.min(1), 0))
    length = _length(lines)
    clear = length > np.maximum(0.05 * size, 1.0)[:, None]
    unit = np.where(clear[..., None], lines / np.maximum(length, 1e-9)[..., None], 0.0)
    others = unit.sum(1, keepdims=True) - unit
    count = clear.sum(1, keepdims=True) - clear
    cosine = (unit * others).sum(-1) / np.maximum(count, 1)
    table, exchanged = {}, []
    for i, pair in enumerate(skeleton.pairs):
        values = cosine[clear[:, i] & (count[:, i] > 0), i]
        if not len(values):
            continue
        table[pair_name(skeleton, pair)] = (float(values.mean()), len(values))
        if len(values) >= ENOUGH and values.mean() + 2 * values.std(ddof=1) / np.sqrt(len(values)) < 0:
            exchanged.append(
                f"left and right {pair_name(skeleton, pair)} look exchanged in the whole data set: they run against the other "
                f"pairs (mean cosine {values.mean():.2f} over {len(values)} persons)"
            )
    facing = _facing(bodies)
    if facing and facing[1] >= ENOUGH and _wilson_upper(*facing) < 0.5:
        exchanged.append(
            f"left and right look exchanged in the whole data set: only {facing[0]:.0%} of {facing[1]} people face the camera"
        )
    return Sides(table, facing, exchanged)


def _facing(bodies: _Bodies) -> tuple[float, int] | None:
    if not bodies.has("left_shoulder", "right_shoulder", "left_hip", "right_hip"):
        return None
    (shoulders, top), (hips, bottom) = bodies.pair("shoulder"), bodies.pair("hip")
    down = bottom - top
    a, b, least = _cross(shoulders, down), _cross(hips, down), SEEN * (down * down).sum(1)
    clear = (np.minimum(np.abs(a), np.abs(b)) > least) & (a * b > 0)
    return (float((a[clear] > 0).mean()), int(clear.sum())) if clear.any() else None


def _wilson_upper(share: float, n: int, z: float = 1.96) -> float:
    centre = share + z * z / (2 * n)
    return (centre + z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))) / (1 + z * z / n)
