"""COCO person keypoints, and any COCO-format file with any number of keypoints.

T.-Y. Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014. 17 joints. Keypoints get +0.5 (they are
pixel indices), boxes stay and are clipped to the picture.

Splits: 'train' and 'val' are `annotations/person_keypoints_train2017.json` and `..._val2017.json` (any other name alike);
a split that ends in .json is a file, under the root or absolute. Pictures are in SPLIT/, images/SPLIT/, images/ or the root.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lowpose.data._coco_format import annotation_file, coco_data, numbers, open_coco
from lowpose.data._problems import BadAnnotation
from lowpose.registry import register
from lowpose.samples import PoseData
from lowpose.skeletons import Skeleton

YEAR = {"train": "train2017", "val": "val2017"}


def _area(row: dict[str, Any], box: np.ndarray, where: str) -> float:
    if "area" not in row:
        raise BadAnnotation("missing-key", f"{where} has no 'area' (of the person in square pixels; OKS needs it)", row.get("id"))
    return float(numbers([row["area"]], 1, "area", where, annotation=row.get("id"))[0])


@register("data", "coco")
def coco(root: Path, split: str, *, boxes: str, skeleton: Skeleton | None, options: dict[str, Any]) -> PoseData:
    """COCO person keypoints, or any COCO-format file (ground-truth boxes, or a detector's result file)."""
    names = list(dict.fromkeys([YEAR.get(split, split), split]))
    path = annotation_file(
        root, split, [f"annotations/{prefix}{name}.json" for prefix in ("person_keypoints_", "") for name in names]
    )
    stem = path.stem.removeprefix("person_keypoints_")
    folders = [stem, f"images/{stem}", "images", "."]
    return coco_data("coco", split, root, boxes, open_coco(path, root, folders, skeleton, options), _area, "coco")
