"""Scores that are probabilities: what a weights file or an exported file holds of its calibration, and how it is applied.

    logit(probability) = logit(score) / temperature + bias of the keypoint

C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger: On Calibration of Modern Neural Networks. ICML 2017 (temperature scaling); the bias
is J. Platt's (Probabilistic Outputs for Support Vector Machines, 1999). A score here is the mass within one input pixel of the
peak, a much smaller circle than the one in which a keypoint counts as right, so that a temperature alone, which leaves a
score of 1/2 as it is, cannot make it a probability.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import ConfigDict, Field

from lowpose.errors import LowposeError
from lowpose.strict import Strict, validate

EDGE = 1e-4  # scores nearer to 0 or 1 than this count as this near: 0 and 1 have no logit


class Calibration(Strict):
    """A temperature, a bias for each keypoint, and what they were fitted on.

    Attributes:
        bias: (K,), in the order of the skeleton's keypoints. correct: when a keypoint was right, as 'PCKh@0.5'.
        kind, split: the data; persons: those of the fitted half. flip: whether the scores were those of the flip test.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    temperature: float = Field(gt=0)
    bias: tuple[float, ...]
    correct: str
    kind: str
    split: str
    persons: int
    flip: bool

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """Scores (..., K) in 0..1 -> probabilities that the keypoint is right, float32, strictly between 0 and 1."""
        return calibrated(scores, self.temperature, np.array(self.bias)).astype(np.float32)


def read_calibration(about: dict[str, Any], keypoints: int, where: str) -> Calibration | None:
    """The calibration in a file's description of itself; None if it has none.

    Raises: LowposeError for a damaged one, or one for another number of keypoints.
    """
    if about.get("calibration") is None:
        return None
    found = validate(Calibration, about["calibration"], f"{where}: its calibration")
    if len(found.bias) != keypoints:
        raise LowposeError(f"{where}: its calibration is of {len(found.bias)} keypoints and its skeleton has {keypoints}")
    return found


def calibrated(scores: np.ndarray, temperature: float, bias: np.ndarray | float) -> np.ndarray:
    """float64: sigmoid(logit(scores) / temperature + bias)."""
    return sigmoid(logit(scores) / temperature + bias)


def logit(scores: np.ndarray) -> np.ndarray:
    """float64, finite for scores of 0 and 1 too."""
    inside = np.clip(np.asarray(scores, np.float64), EDGE, 1 - EDGE)
    return np.log(inside) - np.log1p(-inside)


def sigmoid(values: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(np.asarray(values, np.float64) / 2))
