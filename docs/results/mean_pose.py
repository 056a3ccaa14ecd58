"""The mean pose: every person predicted as the mean of the training split's joints in their crops. What a model must beat.

    python docs/results/mean_pose.py --data lsp:data/lsp [--split val]

Writes mean_pose.json; `studies.py` reads it. Boxes, padding and square crops are those of the studies.
"""

from __future__ import annotations

import argparse

import numpy as np
from studies import HERE, METRICS

from lowpose.config import InputConfig
from lowpose.data import load_data, parse_source
from lowpose.data.augment import view_keypoints
from lowpose.data.crops import CropReader
from lowpose.files import write_json
from lowpose.geometry import invert, reduction, transform
from lowpose.metrics import evaluate_predictions
from lowpose.samples import PoseData

SETTINGS = InputConfig(size=(64, 64))


def crops_of(data: PoseData) -> list[np.ndarray]:
    """(2, 3) picture -> plain crop, for every person."""
    reader = CropReader(data, SETTINGS)
    return [reader.draw(i).matrix(SETTINGS.size, SETTINGS.padding) for i in range(len(data))]


def mean_pose(data: PoseData) -> np.ndarray:
    """(K, 2) crop pixels: the mean over the persons in whom a joint is labelled."""
    views = [view_keypoints(s, m, False, data.skeleton) for s, m in zip(data.samples, crops_of(data), strict=True)]
    points, weights = (np.stack(parts) for parts in zip(*views, strict=True))
    return np.mean(points, axis=0, where=weights[..., None] > 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default="val")
    args = parser.parse_args()
    source = parse_source(args.data)
    mean = mean_pose(load_data(*source, split="train"))
    data = load_data(*source, split=args.split)
    matrices = crops_of(data)
    keypoints = np.stack([transform(invert(m), mean) for m in matrices])
    certain = np.ones(keypoints.shape[:2])
    scale = np.array([reduction(m) for m in matrices])
    report = evaluate_predictions(data, keypoints, certain, certain, bootstrap=0, crop_scale=scale)
    found = {name: report["metrics"][name]["value"] for name in METRICS[:4]}
    about = {"data": f"{data.kind}:train/{args.split}", "size": list(SETTINGS.size), "metrics": found}
    write_json(HERE / "mean_pose.json", about)
    print(found)


if __name__ == "__main__":
    main()
