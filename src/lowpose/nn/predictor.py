"""Weights -> predictor, with torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from lowpose.checkpoint import describe_weights, load_model
from lowpose.confidence import read_calibration
from lowpose.errors import LowposeError
from lowpose.runtime import PosePredictor


def load_torch(
    path: str | Path, flip: bool | None = None, device: str | None = None, threads: int | None = None
) -> PosePredictor:
    """A predictor from weights or a run folder; scores are calibrated where the weights hold a calibration.

    Args:
        flip: average with the mirror image; default as the recipe evaluates. device: default the GPU if there is one.
        threads: of torch in this process, as `torch.set_num_threads`; default as it is.

    Raises: LowposeError for a file that is missing or not lowpose's, or threads below 1.
    """
    if threads is not None and threads < 1:
        raise LowposeError(f"threads = {threads}: give 1 or more")
    model, config = load_model(path)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if threads:
        torch.set_num_threads(threads)
    model.to(device, memory_format=torch.channels_last)
    flip = config.eval.flip if flip is None else flip

    def infer(crops: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        images = torch.from_numpy(crops).to(device).permute(0, 3, 1, 2)
        return tuple(v.cpu().numpy() for v in model.predict(images, flip=flip))

    calibration = read_calibration(describe_weights(path), len(model.skeleton), str(path))
    return PosePredictor(infer, config.input, model.skeleton, calibration=calibration)
