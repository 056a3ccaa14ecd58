"""CrowdPose: persons in crowds, 14 joints, pictures graded by a crowd index.

J. Li et al., "CrowdPose: Efficient Crowded Scenes Pose Estimation and A New Benchmark", CVPR 2019, arXiv:1812.00324.
COCO format without areas: the official evaluation takes 0.53 of the annotated box. Keypoints get +0.5, boxes stay.

Splits: 'train', 'val', 'trainval', 'test' are `json/crowdpose_SPLIT.json` or `annotations/crowdpose_SPLIT.json`; a split that
ends in .json is a file, under the root or absolute. Pictures are in images/ or the root.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lowpose.data._coco_format import annotation_file, coco_data, numbers, open_coco
from lowpose.data._problems import BadAnnotation, tolerate
from lowpose.registry import register
from lowpose.samples import PoseData
from lowpose.skeletons import CROWDPOSE14, Skeleton


def _area(row: dict[str, Any], box: np.ndarray, where: str) -> float:
    w, h = numbers(row["bbox"], 4, "bbox", where, annotation=row.get("id"))[2:]
    return float(0.53 * w * h)


@register("data", "crowdpose")
def crowdpose(root: Path, split: str, *, boxes: str, skeleton: Skeleton | None, options: dict[str, Any]) -> PoseData:
    """CrowdPose: 14 joints, crowd index of each picture (ground-truth boxes, or a detector's result file)."""
    path = annotation_file(root, split, [f"{folder}/crowdpose_{split}.json" for folder in ("json", "annotations")])
    file = open_coco(path, root, ["images", "."], skeleton or CROWDPOSE14, options)
    for picture in file.pictures.values():
        with tolerate():
            if "crowdIndex" not in picture.row:
                raise BadAnnotation("missing-key", f"{path}: picture {picture.id} has no 'crowdIndex'", image=picture.name)
            numbers([picture.row["crowdIndex"]], 1, "crowdIndex", f"{path}: picture {picture.id}", image=picture.name)
    return coco_data("crowdpose", split, root, boxes, file, _area, "crowdpose", "boxes")
