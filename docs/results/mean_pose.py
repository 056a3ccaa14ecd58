"""The mean pose: every person predicted as the mean of the training split's joints in their crops. What a model must beat.

    python docs/results/mean_pose.py --data lsp:data/lsp [--split val]

Writes mean_pose.json; `studies.py` reads it. Boxes, padding and square crops are those of the studies.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from lowpose.config import InputConfig
from lowpose.data import load_data, parse_source
from lowpose.data.augment import view_keypoints
from lowpose.data.crops import CropReader
from lowpose.files import write_json
from lowpose.metrics import evaluate_predictions
from lowpose.samples import PoseData

HERE = Path(__file__).parent
METRICS = ("PCKh@0.5", "PCKh@0.1", "PCK@0.2", "EPE_crop")


def in_crops(data: PoseData, settings: InputConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N, K, 2) joints in crop pixels, (N, K) whether labelled, (N, 2, 3) picture -> crop."""
    reader = CropReader(data, settings)
    matrices = [reader.draw(i).matrix(settings.size, settings.padding) for i in range(len(data))]
    views = [view_keypoints(s, m, False, data.skeleton) for s, m in zip(data.samples, matrices, strict=True)]
    return np.stack([v[0] for v in views]), np.stack([v[1] for v in views]) > 0, np.stack(matrices)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default="val")
    args = parser.parse_args()
    source, settings = parse_source(args.data), InputConfig(size=(64, 64))
    points, labelled, _ = in_crops(load_data(*source, split="train"), settings)
    mean = np.mean(points, axis=0, where=labelled[..., None])
    data = load_data(*source, split=args.split)
    _, _, matrices = in_crops(data, settings)
    inverse = np.linalg.inv(matrices[:, :, :2])
    keypoints = np.einsum("nij,nkj->nki", inverse, mean - matrices[:, None, :, 2])
    certain = np.ones(keypoints.shape[:2])
    report = evaluate_predictions(
        data, keypoints, certain, certain, bootstrap=0, crop_scale=np.abs(np.linalg.det(inverse)) ** 0.5
    )
    found = {name: report["metrics"][name]["value"] for name in METRICS}
    write_json(
        HERE / "mean_pose.json", {"data": f"{data.kind}:train/{args.split}", "size": list(settings.size), "metrics": found}
    )
    print(found)


if __name__ == "__main__":
    main()
