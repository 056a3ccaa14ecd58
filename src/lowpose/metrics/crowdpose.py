"""CrowdPose's average precision (J. Li et al., CVPR 2019, arXiv:1812.00324): all, easy, medium, hard.

CrowdPose has no segments: OKS takes 0.53 of the box's area. Pictures are easy below a crowd index of 0.2,
medium from 0.2, hard from 0.8: the split of the official evaluation code, which published figures use (the
paper's text says 0.1 and 0.8). That code rounds the three to four digits; here they are not rounded.
"""

from __future__ import annotations

import numpy as np

from lowpose.metrics.average_precision import MatchTable, table_stats

NAMES = ("AP", "AP50", "AP75", "AR", "AP_easy", "AP_medium", "AP_hard")


def difficulties(crowd: np.ndarray) -> dict[str, np.ndarray]:
    """'easy', 'medium', 'hard' -> (I,) bool, from the crowd index of each picture, (I,)."""
    crowd = np.asarray(crowd, np.float64)
    return {"easy": crowd < 0.2, "medium": (crowd >= 0.2) & (crowd < 0.8), "hard": crowd >= 0.8}


def crowd_stats(table: MatchTable, crowd: np.ndarray, weights: np.ndarray | None = None) -> dict[str, float]:
    """The seven figures in 0..1 with picture i counted `weights[i]` times; NaN where there is no person.

    Args:
        crowd: (I,) crowd index of each picture. `weights`: (I,) whole numbers; None: every picture once.
    """
    weights = np.ones(len(crowd)) if weights is None else np.asarray(weights, np.float64)
    whole = table_stats(table, weights)
    out = {name: whole[name] for name in NAMES[:4]}
    for name, inside in difficulties(crowd).items():
        out[f"AP_{name}"] = table_stats(table, weights * inside)["AP"]
    return out
