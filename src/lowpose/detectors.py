"""Person boxes of whole frames from a detector: torchvision's, a Hugging Face model folder, or any function of the user's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lowpose.errors import LowposeError, did_you_mean
from lowpose.sources import Frame

TORCHVISION = ("ssdlite320_mobilenet_v3_large", "fasterrcnn_mobilenet_v3_large_320_fpn", "fasterrcnn_mobilenet_v3_large_fpn")
LEAST = 0.5  # score of a box that is taken for a person


class Detector(Protocol):
    """Any function that finds the persons of a picture."""

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(H, W, 3) uint8 RGB -> (P, 4) boxes, picture pixels, (x, y, width, height), and (P,) scores, higher is surer."""
        ...


@dataclass
class Detected:
    """The boxes of each frame from a detector, as `Boxes` gives those of a file.

    Attributes: source: what messages call it. min_score: boxes with a lower score are left out.
    """

    source: str
    detector: Detector
    min_score: float | None = None

    def people(self, frame: Frame) -> tuple[Any, Any, None]:
        """Boxes (P, 4), scores (P,), and no ids. Raises: LowposeError for a detector that does not answer with these two."""
        answer = self.detector(frame.image)
        if not isinstance(answer, (tuple, list)) or len(answer) != 2:
            raise LowposeError(f"{self.source}: {frame.name}: a detector answers with boxes (P, 4) and scores (P,)")
        boxes, scores = (np.asarray(value) for value in answer)
        if self.min_score is None or scores.ndim != 1 or len(boxes) != len(scores):
            return boxes, scores, None  # forms that do not fit are refused where all boxes are checked
        return boxes[scores >= self.min_score], scores[scores >= self.min_score], None

    def __contains__(self, frame: Frame) -> bool:
        return True


def load_detector(name: str = TORCHVISION[0], weights: str | Path | None = None, device: str | None = None) -> Detector:
    """A detector of persons, trained on COCO. Boxes come with all scores, most of them low: leave out those below about 0.5.

    Args:
        name: of torchvision's ssdlite320_mobilenet_v3_large (the smallest), fasterrcnn_mobilenet_v3_large_320_fpn or
            fasterrcnn_mobilenet_v3_large_fpn, or a folder of a Hugging Face model for object detection (D-FINE, RT-DETR, ...).
        weights: state dict of one of torchvision's, .pth or .safetensors; default its own, from its cache or the network.
        device: default the GPU if there is one.

    Raises: LowposeError for a name that is none of these, weights that do not fit or cannot be had, or a missing package.
    """
    folder = Path(name)
    if name not in TORCHVISION and not folder.is_dir():
        raise LowposeError(f"unknown detector '{name}', and no such folder{did_you_mean(name, TORCHVISION)}")
    if name not in TORCHVISION and weights is not None:
        raise LowposeError(f"{weights}: the detector in {name} has its weights in its folder")
    try:
        from lowpose.nn.detection import hugging_face, torchvision_detector

        return torchvision_detector(name, weights, device) if name in TORCHVISION else hugging_face(folder, device)
    except ImportError as e:
        missing = (e.name or "torch").split(".")[0]
        raise LowposeError(f"detector '{name}' needs {missing}, which is not installed: pip install 'lowpose[detect]'") from None
