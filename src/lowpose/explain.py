"""Where a model looks, and where it fails: attention maps per joint and layer, and a grid of predictions, beside a baseline.

After Fig. 9 and Fig. 10 of CDKD (facts in nn/attention.py). Persons are taken by their rank, so failures are shown as they come.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lowpose.checkpoint import load_model, weights_path
from lowpose.config import RunConfig
from lowpose.data.crops import Crop, CropReader
from lowpose.draw import INK, OUTLINE, PAPER, TRUTH, contact_sheet, draw_crop
from lowpose.errors import LowposeError
from lowpose.evaluation import measured_data
from lowpose.geometry import transform
from lowpose.images import write_image
from lowpose.nn.attention import attention, cam_class, layer_paths
from lowpose.nn.model import PoseModel
from lowpose.samples import PoseData
from lowpose.sheet import person_tile, ranked
from lowpose.shipped import home
from lowpose.skeletons import Skeleton
from lowpose.tasks.pose import Predictions, check_fits, predict_split, validation_data

NEAR = 1 / 8  # of the crop's longer side: attention within this distance of the joint counts as on it
FOUND = (40, 255, 120)  # RGB of predicted joints
TILE = 192


@dataclass
class Side:
    """One of the compared models. label: '' where there is only one. errors: (N,), as a share of the student's crop."""

    label: str
    model: PoseModel
    config: RunConfig
    reader: CropReader
    found: Predictions
    errors: np.ndarray
    layers: dict[str, str]


def explain(
    weights: str | Path,
    beside: str | Path | None = None,
    joints: Iterable[str] | None = None,
    layers: Iterable[str] | None = None,
    persons: int = 6,
    out: str | Path | None = None,
    source: str | None = None,
    method: str = "grad-cam",
) -> list[Path]:
    """attention.png and grid.png: thirds of `persons` with the least, middle and largest mean error on the validation split.

    attention.png has a row per person and joint: the crop, then every layer of the baseline and of the student. grid.png has
    the predictions; with a baseline also the persons where the student gains and loses most.

    Args:
        weights: run folder or weights file. beside: those of a baseline with the same skeleton; its input size may differ.
        joints: keypoint names; default the head, the pelvis or a hip, and the left knee.
        layers: 'head' (what the prediction head reads; of a token model the visual tokens before their first layer), a stage,
            as 'stage4' (its final convolution), or the dotted path of a module that gives (B, C, h, w); default 'head' and
            the last two stages.
        persons: in grid.png, with a baseline, 5/3 of them: also a third each that gain and lose most.
        out: folder, default that of the weights. source: 'KIND:ROOT', default the recipe's validation data.
        method: 'grad-cam', as published, or 'hires-cam', which says more of SimCC heads (see nn/attention.py).

    Raises: LowposeError for unknown joints, layers or method, another skeleton, fewer than three labelled persons, or where the
        package grad-cam is missing.
    """
    cam_class(method)  # before anything that takes time
    model, config = load_model(weights)
    names = _joint_names(model.skeleton, joints)
    wanted = None if layers is None else list(layers)
    own = layer_paths(model, wanted, str(weights))
    if beside is not None:
        other, other_config = load_model(beside)
        _check_same_keypoints(other, model, beside)
        others = layer_paths(other, wanted, str(beside))
    data = validation_data(config.model_copy(update={"data": measured_data(config, source, None, None)}))
    check_fits(model, data)
    found = predict_split(model, data, config)
    order, errors = ranked(data, found, config)
    if len(order) < 3:
        raise LowposeError(f"an explanation needs at least three labelled persons; split '{data.split}' has {len(order)}")
    student = Side("student" if beside else "", model, config, CropReader(data, config.input), found, errors, own)
    sides = [student]
    if beside is not None:
        theirs = predict_split(other, data, other_config)
        _, their_errors = ranked(data, replace(theirs, crop_scale=found.crop_scale), config)
        baseline = Side("baseline", other, other_config, CropReader(data, other_config.input), theirs, their_errors, others)
        sides = [baseline, student]
    chosen = choose(order, sides, persons)
    folder = Path(out) if out else home(weights_path(weights))
    pictures = {"attention.png": draw_attention(sides, names, chosen, method), "grid.png": draw_grid(sides, order, chosen)}
    for name, picture in pictures.items():
        write_image(folder / name, picture)
    return [folder / name for name in pictures]


def _joint_names(skeleton: Skeleton, joints: Iterable[str] | None) -> list[str]:
    if joints is not None:
        names = list(dict.fromkeys(joints))
        for name in names:
            skeleton.index(name)
        if not names:
            raise LowposeError(f"no joints: name some of skeleton '{skeleton.name}', as {', '.join(skeleton.keypoints[:3])}")
        return names
    sought = [("head_top", "head", "nose"), ("pelvis", "left_hip"), ("left_knee",)]
    names = [next((n for n in group if n in skeleton.keypoints), None) for group in sought]
    known = [n for n in names if n]
    spread = np.unique(np.linspace(0, len(skeleton) - 1, 3).astype(int))
    return known or [skeleton.keypoints[i] for i in spread]


def _check_same_keypoints(other: PoseModel, model: PoseModel, where: str | Path) -> None:
    if other.skeleton.keypoints != model.skeleton.keypoints:
        raise LowposeError(
            f"{where}: predicts skeleton '{other.skeleton.name}' ({len(other.skeleton)} keypoints), which cannot stand beside "
            f"'{model.skeleton.name}' ({len(model.skeleton)} keypoints); give a baseline of the same skeleton"
        )


def choose(order: np.ndarray, sides: list[Side], persons: int) -> dict[str, list[int]]:
    """Group -> indices, by rank alone: thirds of `persons` with the least, middle and largest error of the last side.

    With two sides also those whose error falls most and rises most from the first to the second.
    """
    third = max(1, min(persons, len(order)) // 3)
    middle = len(order) // 2 - third // 2
    groups = {"best": order[:third], "median": order[middle : middle + third], "worst": order[-third:]}
    if len(sides) == 2:
        gain = sides[0].errors[order] - sides[1].errors[order]
        by_gain = order[np.argsort(-gain, kind="stable")]
        groups |= {"most gained": by_gain[:third], "most lost": by_gain[-third:][::-1]}
    return {name: [int(i) for i in indices] for name, indices in groups.items()}


def share_near(attention: np.ndarray, point: np.ndarray) -> float | None:
    """Share of a map (H, W) within NEAR of the longer side around point (2,), crop pixels, (x, y); None if the map is 0."""
    height, width = attention.shape
    y, x = np.mgrid[:height, :width] + 0.5
    inside = np.hypot(x - point[0], y - point[1]) <= NEAR * max(height, width)
    total = float(attention.sum())
    return float(attention[inside].sum()) / total if total > 0 else None


# --- pictures -------------------------------------------------------------------------------------------------------


def draw_attention(sides: list[Side], joints: list[str], chosen: dict[str, list[int]], method: str) -> np.ndarray:
    """(H, W, 3) uint8 RGB: a row per person of the ranked groups and joint, columns the crop and every layer of every side."""
    persons = [(group, i) for group in ("best", "median", "worst") for i in chosen[group]]
    student, skeleton = sides[-1], sides[-1].model.skeleton
    crops = [[side.reader.crop(i) for _, i in persons] for side in sides]
    columns = [
        (side, own, layer)
        for layers in zip_longest(*(s.layers.items() for s in sides))
        for side, own, layer in zip(sides, crops, layers, strict=True)
    ]
    tiles: list[np.ndarray | None] = [None] * (len(persons) * len(joints) * (1 + len(columns)))
    titles, rows = [""] * len(tiles), [""] * (len(persons) * len(joints))
    for j, name in enumerate(joints):
        joint = skeleton.index(name)
        for c, (side, own, layer) in enumerate(columns):
            if layer is None:
                continue
            maps = attention(side.model, _batch(own, side.model), joint, layer[1], method)
            for p, crop in enumerate(own):
                at = (p * len(joints) + j) * (1 + len(columns)) + 1 + c
                point = transform(crop.matrix, side.found.keypoints[persons[p][1]])[joint]
                tiles[at] = overlay(crop, maps[p], joint, point, skeleton)
                share = share_near(maps[p], crop.keypoints[joint]) if crop.weight[joint] > 0 else None
                number = "" if share is None else f"  {100 * share:.0f}%"
                titles[at] = f"{_short(layer[0])} {side.label}".strip() + number
        for p, (group, i) in enumerate(persons):
            row = p * len(joints) + j
            rows[row] = name.replace("_", " ")
            tiles[row * (1 + len(columns))] = overlay(crops[-1][p], None, joint, None, skeleton)
            titles[row * (1 + len(columns))] = f"{group}, error {100 * student.errors[i]:.1f}%"
    caption = (
        f"Attention ({method}) of {_who(sides)} on {_where(student)}. head: {_at_head(sides)}; else the last "
        "convolution of a stage, or the module. Each map is scaled to its own maximum.\n"
        "Percent under a map: how much of it lies within an eighth of the crop of the labelled joint "
        f"({100 * np.pi * NEAR**2:.0f}% if it were even; none if unlabelled). "
        "Error: mean of all labelled joints as a share of the crop."
    )
    return _with_legend(contact_sheet(tiles, 1 + len(columns), titles, caption, TILE, rows))


def draw_grid(sides: list[Side], order: np.ndarray, chosen: dict[str, list[int]]) -> np.ndarray:
    """(H, W, 3) uint8 RGB: a row per group, each person as every side predicts it."""
    tiles, titles = [], []
    for indices in chosen.values():
        for i in indices:
            for side in sides:
                tiles.append(person_tile(side.reader, side.found, i, TILE))
                titles.append(f"{side.label}  {100 * side.errors[i]:.1f}%".strip())
    means = ", ".join(f"{side.label} {100 * side.errors[order].mean():.1f}%".strip() for side in sides)
    caption = (
        f"Predictions of {_who(sides)} on {_where(sides[-1])}.\n"
        "Under each crop the mean error of the labelled joints as a share of the crop; "
        f"mean of all {len(order)} persons: {means}. "
        + ("Best, median, worst: of the student; gained, lost: against the baseline. " if len(sides) == 2 else "")
        + "Solid: predicted, dashed: labelled."
    )
    columns = len(tiles) // len(chosen)
    return contact_sheet(tiles, columns, titles, caption, TILE, list(chosen), legend=columns > 2)


def _who(sides: list[Side]) -> str:
    def one(side: Side) -> str:
        width, height = side.config.input.size
        return f"{side.label + ' ' if side.label else ''}{side.config.name} ({width} x {height} pixels)"

    return " beside ".join(one(side) for side in reversed(sides))


def _at_head(sides: list[Side]) -> str:
    kinds = {side.model.tokens is not None: side.label for side in sides}
    said = {False: "what the prediction head reads", True: "the visual tokens before their first layer"}
    return " and ".join(f"{said[k]} ({label})" if len(kinds) > 1 else said[k] for k, label in sorted(kinds.items()))


def _short(layer: str) -> str:
    """A module's path from its end, so that the side and the number fit under the tile."""
    return layer if len(layer) <= 14 else f"..{layer[-12:]}"


def _where(side: Side) -> str:
    data: PoseData = side.reader.data
    return f"{data.kind} {Path(data.split).stem}"


def _batch(crops: list[Crop], model: PoseModel) -> Tensor:
    return torch.from_numpy(np.stack([c.image for c in crops])).permute(0, 3, 1, 2).to(model.mean.device)


def overlay(crop: Crop, heat: np.ndarray | None, joint: int, found: np.ndarray | None, skeleton: Skeleton) -> np.ndarray:
    """A crop, enlarged, under its attention map (H, W) 0..1, with the labelled joint as a ring and the predicted as a dot.

    found: (2,) crop pixels, (x, y). Without a map the picture keeps its colours.
    """
    picture = draw_crop(crop.image, None, None, skeleton, TILE)
    factor = TILE / max(crop.image.shape[:2])
    if heat is not None:
        height, width = picture.shape[:2]
        picture = _tint(picture, cv2.resize(heat, (width, height), interpolation=cv2.INTER_LINEAR))
    if crop.weight[joint] > 0:
        _mark(picture, crop.keypoints[joint] * factor, TRUTH, TILE / 22, 2)
    if found is not None:
        _mark(picture, found * factor, FOUND, TILE / 50, -1)
    return picture


def _tint(picture: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Grey, darker where nothing is looked at, and the colours of the map over it as it rises."""
    heat = heat.clip(0, 1)
    grey = picture.mean(-1, keepdims=True) * 0.75
    cover = 0.8 * np.sqrt(heat)[..., None]
    return np.rint(grey * (1 - cover) + _colours(heat) * cover).astype(np.uint8)


def _colours(heat: np.ndarray) -> np.ndarray:
    """(h, w) 0..1 -> (h, w, 3) RGB, from purple to yellow."""
    return cv2.applyColorMap(np.rint(40 + 215 * heat).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]


def _mark(picture: np.ndarray, point: np.ndarray, colour: tuple[int, int, int], radius: float, thickness: int) -> None:
    """A ring, or with thickness -1 a dot, at a point (2,) of the picture, with a dark rim."""
    if not (np.abs(point) < 4 * max(picture.shape)).all():
        return
    x, y = (int(v) for v in np.rint((np.asarray(point, float) - 0.5) * 16))
    for more, ink in ((2, OUTLINE), (0, colour)):
        r = radius + (more if thickness < 0 else 0)
        cv2.circle(picture, (x, y), round(r * 16), ink, thickness if thickness < 0 else thickness + more, cv2.LINE_AA, 4)


def _with_legend(page: np.ndarray) -> np.ndarray:
    """The page and below it what colours and marks mean."""
    strip = np.full((40, page.shape[1], 3), PAPER, np.uint8)
    grey = np.full((14, 160, 3), 110, np.uint8)
    strip[13:27, 12:172] = _tint(grey, np.tile(np.linspace(0, 1, 160, dtype=np.float32), (14, 1)))
    _mark(strip, np.array([372, 20]), TRUTH, TILE / 22, 2)
    _mark(strip, np.array([522, 20]), FOUND, TILE / 50, -1)
    image = Image.fromarray(strip)
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(15)
    for x, text in ((182, "attention, 0 to maximum"), (392, "labelled joint"), (534, "predicted joint")):
        pen.text((x, 20), text, INK, font, anchor="lm")
    return np.concatenate([page, np.array(image)])
