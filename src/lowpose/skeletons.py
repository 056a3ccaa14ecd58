"""Keypoint names, left/right pairs, edges, OKS sigmas and reporting groups; your own from YAML.

A skeleton file:

    name: hand5
    keypoints: [wrist, thumb, index, middle, ring]
    pairs: []                      # [[left, right], ...] by name; swapped when a picture is flipped
    edges: [[wrist, thumb]]        # optional, for drawing
    sigmas: [0.05, ...]            # optional, per keypoint; without them there is no OKS
    groups: {Tips: [thumb, index]} # optional, columns of PCK tables
    upper: [thumb]                 # optional, for half-body augmentation
    head: [neck, head_top]         # optional, whose distance is the head size
    torso: [left_shoulder, right_hip]
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from lowpose.errors import LowposeError, did_you_mean, yaml_problem


@dataclass(frozen=True)
class Skeleton:
    """A keypoint schema. All indices are 0-based positions in `keypoints`."""

    name: str
    keypoints: tuple[str, ...]
    pairs: tuple[tuple[int, int], ...] = ()
    edges: tuple[tuple[int, int], ...] = ()
    sigmas: tuple[float, ...] | None = None
    groups: dict[str, tuple[int, ...]] = field(default_factory=dict)
    upper: tuple[int, ...] = ()
    head: tuple[int, int] | None = None
    torso: tuple[int, int] | None = None

    def __post_init__(self):
        k = len(self.keypoints)
        if k == 0 or len(set(self.keypoints)) != k:
            raise LowposeError(f"skeleton '{self.name}': keypoint names must be at least one and all different")
        for a, b in self.pairs:
            if a == b:
                own = self.keypoints[a]
                raise LowposeError(f"skeleton '{self.name}': '{own}' is its own pair; a keypoint in the middle has none")
        seen = [i for pair in self.pairs for i in pair]
        if len(seen) != len(set(seen)):
            raise LowposeError(
                f"skeleton '{self.name}': a keypoint stands in two left/right pairs; flipping twice must give the original"
            )
        if self.sigmas is not None and len(self.sigmas) != k:
            raise LowposeError(f"skeleton '{self.name}': {len(self.sigmas)} sigmas for {k} keypoints")
        if self.sigmas is not None and not all(np.isfinite(s) and s > 0 for s in self.sigmas):
            raise LowposeError(f"skeleton '{self.name}': sigmas must be positive numbers")

    def __len__(self) -> int:
        return len(self.keypoints)

    @property
    def flip_index(self) -> np.ndarray:
        """(K,) int64: position k of a flipped picture holds keypoint flip_index[k] of the original."""
        index = np.arange(len(self))
        for a, b in self.pairs:
            index[a], index[b] = b, a
        return index

    def index(self, name: str) -> int:
        if name not in self.keypoints:
            raise LowposeError(f"skeleton '{self.name}' has no keypoint '{name}'{did_you_mean(name, self.keypoints)}")
        return self.keypoints.index(name)

    def to_dict(self) -> dict[str, Any]:
        """As in a skeleton file: keypoints by name."""
        n = self.keypoints

        def named(links):
            return [[n[i] for i in link] for link in links]

        out: dict[str, Any] = {"name": self.name, "keypoints": list(n), "pairs": named(self.pairs), "edges": named(self.edges)}
        if self.sigmas is not None:
            out["sigmas"] = list(self.sigmas)
        out["groups"] = {g: [n[i] for i in v] for g, v in self.groups.items()}
        out["upper"] = [n[i] for i in self.upper]
        for key in ("head", "torso"):
            if getattr(self, key) is not None:
                out[key] = [n[i] for i in getattr(self, key)]
        return out

    @classmethod
    def from_dict(cls, d: dict[str, Any], where: str = "skeleton") -> Skeleton:
        """Raises: LowposeError that names `where` and the key that is missing, unknown or of the wrong form."""
        known = {"name", "keypoints", "pairs", "edges", "sigmas", "groups", "upper", "head", "torso"}
        if not isinstance(d, dict):
            raise LowposeError(f"{where}: expected a mapping with 'name' and 'keypoints'")
        for key in d:
            if key not in known:
                raise LowposeError(f"{where}: unknown key '{key}'{did_you_mean(str(key), known)}")
        names = d.get("keypoints")
        if not isinstance(names, list) or not all(isinstance(x, str) for x in names):
            raise LowposeError(f"{where}: 'keypoints' must be a list of names")
        position = {name: i for i, name in enumerate(names)}

        def indices(items, what) -> tuple[int, ...]:
            if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
                raise LowposeError(f"{where}: '{what}' must be a list of keypoint names")
            for item in items:
                if item not in position:
                    raise LowposeError(f"{where}: '{what}' names an unknown keypoint '{item}'{did_you_mean(str(item), names)}")
            return tuple(position[item] for item in items)

        def links(what) -> tuple[tuple[int, int], ...]:
            rows = d.get(what) or []
            if not isinstance(rows, list) or not all(isinstance(r, list) and len(r) == 2 for r in rows):
                raise LowposeError(f"{where}: '{what}' must be a list of [a, b] pairs of keypoint names")
            return tuple(indices(r, what) for r in rows)  # type: ignore[misc]

        groups = d.get("groups") or {}
        if not isinstance(groups, dict):
            raise LowposeError(f"{where}: 'groups' must be a mapping of names to lists of keypoint names")
        for key in ("head", "torso"):
            if d.get(key) and not (isinstance(d[key], list) and len(d[key]) == 2):
                raise LowposeError(f"{where}: '{key}' must be two keypoint names")
        sigmas = d.get("sigmas")
        try:
            sigmas = None if sigmas is None else tuple(float(s) for s in sigmas)
        except (TypeError, ValueError):
            raise LowposeError(f"{where}: 'sigmas' must be a list of numbers") from None
        return cls(
            name=str(d.get("name", "custom")),
            keypoints=tuple(names),
            pairs=links("pairs"),
            edges=links("edges"),
            sigmas=sigmas,
            groups={g: indices(v, f"groups.{g}") for g, v in groups.items()},
            upper=indices(d.get("upper") or [], "upper"),
            head=indices(d["head"], "head") if d.get("head") else None,  # type: ignore[arg-type]
            torso=indices(d["torso"], "torso") if d.get("torso") else None,  # type: ignore[arg-type]
        )


def _sided(*parts: str) -> list[str]:
    return [f"{side}_{part}" for part in parts for side in ("left", "right")]


def _make(name, keypoints, edges, sigmas, groups, upper, head=None, torso=("left_shoulder", "right_hip")) -> Skeleton:
    lefts = [k for k in keypoints if k.startswith("left_")]
    return Skeleton.from_dict(
        {
            "name": name,
            "keypoints": keypoints,
            "pairs": [[k, "right_" + k[5:]] for k in lefts],
            "edges": [e.split("-") for e in edges.split()],
            "sigmas": sigmas,
            "groups": groups,
            "upper": upper,
            "head": list(head) if head else None,
            "torso": list(torso),
        },
        name,
    )


_LIMBS = {part: _sided(part.lower()) for part in ("Shoulder", "Elbow", "Wrist", "Hip", "Knee", "Ankle")}
_LIMB_EDGES = (
    "left_shoulder-left_elbow left_elbow-left_wrist right_shoulder-right_elbow right_elbow-right_wrist "
    "left_hip-left_knee left_knee-left_ankle right_hip-right_knee right_knee-right_ankle left_hip-right_hip "
    "left_shoulder-left_hip right_shoulder-right_hip "
)
_LIMB_SIGMAS = {"shoulder": 0.079, "elbow": 0.072, "wrist": 0.062, "hip": 0.107, "knee": 0.087, "ankle": 0.089}
_FACE_SIGMAS = {"nose": 0.026, "left_eye": 0.025, "right_eye": 0.025, "left_ear": 0.035, "right_ear": 0.035}
_COCO = ["nose", *_sided("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")]
_CROWD = [*_sided("shoulder", "elbow", "wrist", "hip", "knee", "ankle"), "head", "neck"]
_MPII = (
    "right_ankle right_knee right_hip left_hip left_knee left_ankle pelvis thorax upper_neck head_top "
    "right_wrist right_elbow right_shoulder left_shoulder left_elbow left_wrist"
).split()
_LSP = (
    "right_ankle right_knee right_hip left_hip left_knee left_ankle right_wrist right_elbow right_shoulder "
    "left_shoulder left_elbow left_wrist neck head_top"
).split()


def _limb_sigmas(names: list[str], other: float) -> list[float]:
    return [_FACE_SIGMAS.get(n, _LIMB_SIGMAS.get(n.split("_")[-1], other)) for n in names]


_UPPER = _sided("shoulder", "elbow", "wrist")
COCO17 = _make(
    "coco17",
    _COCO,
    _LIMB_EDGES + "left_shoulder-right_shoulder nose-left_eye nose-right_eye left_eye-left_ear right_eye-right_ear "
    "left_ear-left_shoulder right_ear-right_shoulder",
    _limb_sigmas(_COCO, 0.079),
    {"Head": _COCO[:5], **_LIMBS},
    _COCO[:5] + _UPPER,
)
CROWDPOSE14 = _make(
    "crowdpose14",
    _CROWD,
    _LIMB_EDGES + "head-neck neck-left_shoulder neck-right_shoulder",
    _limb_sigmas(_CROWD, 0.079),
    {"Head": ["head", "neck"], **_LIMBS},
    ["head", "neck", *_UPPER],
    head=("neck", "head"),
)
MPII16 = _make(
    "mpii16",
    _MPII,
    _LIMB_EDGES + "head_top-upper_neck upper_neck-thorax thorax-left_shoulder thorax-right_shoulder thorax-pelvis",
    None,
    {"Head": ["head_top"], **_LIMBS},
    ["thorax", "upper_neck", "head_top", *_UPPER],
    head=("upper_neck", "head_top"),
)
LSP14 = _make(
    "lsp14",
    _LSP,
    _LIMB_EDGES + "head_top-neck neck-left_shoulder neck-right_shoulder",
    _limb_sigmas(_LSP, 0.079),
    {"Head": ["neck", "head_top"], **_LIMBS},
    ["neck", "head_top", *_UPPER],
    head=("neck", "head_top"),
)
BUILT_IN = {s.name: s for s in (COCO17, CROWDPOSE14, MPII16, LSP14)}


def get_skeleton(name: str | Path) -> Skeleton:
    """A built-in skeleton by name, or the one in a YAML file.

    Raises: LowposeError for an unknown name (nearest offered) or a file that is not a skeleton.
    """
    if str(name) in BUILT_IN:
        return BUILT_IN[str(name)]
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        raise LowposeError(f"unknown skeleton '{name}'{did_you_mean(str(name), BUILT_IN)} (or give a .yaml file)")
    if not path.is_file():
        raise LowposeError(f"{path}: no such skeleton file")
    try:
        return Skeleton.from_dict(yaml.safe_load(path.read_text()), str(path))
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise LowposeError(f"{path}: not YAML ({yaml_problem(e)})") from None
    except LowposeError as e:
        raise e if str(e).startswith(str(path)) else LowposeError(f"{path}: {e}") from None
