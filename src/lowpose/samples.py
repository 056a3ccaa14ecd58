"""What moves along the path: persons in pictures, batches of crops, and predicted poses.

Coordinates are continuous pixels, (x, y): pixel i covers [i, i + 1), its centre is i + 0.5.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from lowpose.errors import LowposeError
from lowpose.skeletons import Skeleton


@dataclass(frozen=True)
class PersonSample:
    """One person in one picture.

    Attributes:
        image: key of the picture, as `PoseData.read` takes it (for files: the path under the root).
        box: (4,) float64, picture pixels, (x, y, width, height).
        keypoints: (K, 2) float32, picture pixels, (x, y); 0 where not labelled.
        visibility: (K,) uint8; 0 not labelled, 1 labelled but occluded, 2 labelled and visible.
        id: annotation id, unique in its data set. `image_id`: the picture's id in result files.
        score: of the detector for this box; 1 for ground truth.
        area: of the person in square pixels, for OKS. `head_size`: in pixels, for PCKh; None if unknown.
        crowd: CrowdPose's crowd index of the picture; None elsewhere.
        extra: anything else an evaluation needs.
    """

    image: str
    box: np.ndarray
    keypoints: np.ndarray
    visibility: np.ndarray
    id: int
    image_id: int | str
    score: float = 1.0
    area: float | None = None
    head_size: float | None = None
    crowd: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def labelled(self) -> np.ndarray:
        """(K,) bool."""
        return self.visibility > 0


@dataclass(frozen=True)
class PoseData:
    """One split of a data set: its persons, and how to read their pictures.

    Attributes:
        read: image key -> (H, W, 3) uint8 RGB. Raises LowposeError naming a picture that cannot be read.
        sources: files that the samples were made from; their content decides whether a cache is stale.
        boxes: where the boxes come from, as written on cards: 'gt', 'joints', or a detector's file name.
        protocol: metrics that the data set's users report: 'coco', 'crowdpose', 'mpii' or 'lsp'.
        areas: where the samples' areas come from: 'labelled' (outlines of the persons), or made from 'boxes' or 'joints'.
    """

    kind: str
    split: str
    root: str
    skeleton: Skeleton
    samples: list[PersonSample]
    read: Callable[[str], np.ndarray]
    sources: tuple[Path, ...] = ()
    boxes: str = "gt"
    protocol: str = "coco"
    annotations: Path | None = None
    areas: str = "labelled"

    def __len__(self) -> int:
        return len(self.samples)

    def subset(self, indices) -> PoseData:
        return replace(self, samples=[self.samples[int(i)] for i in indices])


@dataclass(frozen=True)
class PictureSample:
    """A picture of one class.

    Attributes: image: key of the picture, as `ClassData.read` takes it. label: position of its class in `ClassData.classes`.
    """

    image: str
    label: int


@dataclass(frozen=True)
class ClassData:
    """One split of a data set of pictures in classes (task: classification). Attributes as of `PoseData`."""

    kind: str
    split: str
    root: str
    classes: tuple[str, ...]
    samples: list[PictureSample]
    read: Callable[[str], np.ndarray]

    def __len__(self) -> int:
        return len(self.samples)


@dataclass
class PoseResult:
    """Predicted persons of one picture.

    Attributes:
        keypoints: (P, K, 2) float32, picture pixels, (x, y).
        scores: (P, K) float32 in 0..1: probability mass within one input pixel of the peak, relative to a perfect answer's; of
            calibrated weights the probability that the keypoint is right.
        boxes: (P, 4) float64, picture pixels, (x, y, width, height).
        box_scores: (P,) float64.
        published: (P, K) float32, the score of the published method, which COCO AP ranks by.
        ids: (P,) int64, the tracks that the persons belong to, -1 for none; None where the boxes come without tracks.
    """

    keypoints: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    skeleton: Skeleton
    box_scores: np.ndarray | None = None
    published: np.ndarray | None = None
    ids: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.keypoints)

    def to_coco(self, image_id: int | str = 0, category_id: int = 1) -> list[dict[str, Any]]:
        """COCO result rows: keypoints as x, y, score with COCO's pixel indices (ours minus 0.5); "track_id" of tracks."""
        return [
            coco_result(
                self.keypoints[i],
                self.scores[i],
                float(self.scores[i].mean()) * self._box_score(i),
                self.boxes[i],
                image_id,
                category_id,
            )
            | ({} if self.ids is None or self.ids[i] < 0 else {"track_id": int(self.ids[i])})
            for i in range(len(self))
        ]

    def _box_score(self, i: int) -> float:
        return 1.0 if self.box_scores is None else float(self.box_scores[i])


def coco_result(keypoints, scores, score: float, box, image_id, category_id: int = 1) -> dict[str, Any]:
    """One row of a COCO keypoint result file; (K, 2) continuous pixels become pixel indices (-0.5)."""
    flat = np.column_stack([np.asarray(keypoints, float) - 0.5, np.asarray(scores, float)])
    return {
        "image_id": image_id,
        "category_id": category_id,
        "keypoints": [round(float(v), 3) for v in flat.ravel()],
        "score": round(float(score), 6),
        "bbox": [round(float(v), 3) for v in box],
    }


def check_sample(sample: PersonSample, skeleton: Skeleton, where: str) -> PersonSample:
    """The same sample, if it fits the skeleton and holds only finite numbers.

    Raises: LowposeError naming `where` and the annotation.
    """
    if sample.keypoints.shape != (len(skeleton), 2):
        raise LowposeError(
            f"{where}: annotation {sample.id} has {len(sample.keypoints)} keypoints, "
            f"skeleton '{skeleton.name}' has {len(skeleton)}"
        )
    if not np.isfinite(sample.keypoints[sample.labelled]).all():
        raise LowposeError(f"{where}: annotation {sample.id} has keypoints that are not finite numbers")
    if not np.isfinite(sample.box).all():
        raise LowposeError(f"{where}: annotation {sample.id} has a box that is not four finite numbers")
    return sample
