"""A sheet of predictions of a run on its validation split: the best, the median and the worst, into the run folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lowpose.checkpoint import load_model, weights_path
from lowpose.config import RunConfig
from lowpose.data.crops import CropReader
from lowpose.draw import contact_sheet, draw_crop
from lowpose.errors import LowposeError
from lowpose.geometry import transform
from lowpose.images import write_image
from lowpose.samples import PoseData
from lowpose.shipped import home
from lowpose.tasks.pose import Predictions, check_fits, predict_split, validation_data


def draw_sheet(weights: str | Path, persons: int = 24, out: str | Path | None = None, columns: int = 8) -> Path:
    """sheet.png: thirds of `persons` crops with the least, middle and largest mean error, as a share of the crop.

    Args:
        weights: run folder or weights file. out: PNG file, default sheet.png beside the weights.

    Raises: LowposeError for weights or data that cannot be read, or fewer than three labelled persons.
    """
    model, config = load_model(weights)
    data = validation_data(config)
    check_fits(model, data)
    found = predict_split(model, data, config)
    order, errors = ranked(data, found, config)
    third = max(1, min(persons, len(order)) // 3)
    if len(order) < 3:
        raise LowposeError(f"a sheet needs at least three labelled persons; split '{data.split}' has {len(order)}")
    middle = len(order) // 2 - third // 2
    chosen = [*order[:third], *order[middle : middle + third], *order[-third:]]
    reader = CropReader(data, config.input)
    tiles = [person_tile(reader, found, int(i)) for i in chosen]
    titles = [
        f"{part}  {100 * errors[i]:.1f}%" for part, i in zip(np.repeat(["best", "median", "worst"], third), chosen, strict=True)
    ]
    caption = (
        f"{config.name}: {len(order)} persons of {data.kind} {data.split}, "
        f"{config.input.size[0]} x {config.input.size[1]} pixels; "
        "mean error of the labelled joints as a share of the crop; solid: predicted, dashed: labelled"
    )
    path = Path(out) if out else home(weights_path(weights)) / "sheet.png"
    write_image(path, contact_sheet(tiles, columns, titles, caption))
    return path


def ranked(data: PoseData, found: Predictions, config: RunConfig) -> tuple[np.ndarray, np.ndarray]:
    """Indices of labelled persons from the least to the largest mean error, and (N,) errors as a share of the crop."""
    truth = np.stack([s.keypoints for s in data.samples])
    labelled = np.stack([s.labelled for s in data.samples])
    distance = np.linalg.norm(found.keypoints - truth, axis=-1) * labelled
    crop = found.crop_scale * max(config.input.size)
    errors = distance.sum(1) / np.maximum(labelled.sum(1), 1) / crop
    order = np.argsort(errors, kind="stable")
    return order[labelled[order].any(1)], errors


def person_tile(reader: CropReader, found: Predictions, i: int, size: int = 192) -> np.ndarray:
    """(size, size, 3) crop as the model saw it, enlarged, with all predicted joints and the labelled skeleton."""
    crop = reader.crop(i)
    keypoints = transform(crop.matrix, found.keypoints[i])
    truth = np.where(crop.weight[:, None] > 0, crop.keypoints, np.nan)
    return draw_crop(crop.image, keypoints, None, reader.data.skeleton, size, gt=truth)
