"""The bias of soft-argmax, measured against eq. 9, on drawn maps and on the maps of a trained network.

K. Gu, L. Yang, A. Yao: Removing the Bias of Integral Pose Regression. ICCV 2021; the equations stand in nn/heads/integral.py.

On a drawn map the joint is known, so what eq. 9 predicts from N / C and the joint is a test of its assumption, that the excess
of the map is centred on the joint: a blob that the border cuts is not, nor one that a high beta makes narrower than a cell. On a
network's map the centre of the excess is the compensated reading, and then eq. 9 holds for any map without negative cells: there
the difference tests the arithmetic, and the labels tell whether the network puts the excess where the joint is.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from torch import Tensor

from lowpose.bias_page import draw_bias, markdown
from lowpose.checkpoint import load_model
from lowpose.config import RunConfig
from lowpose.data.crops import CropReader
from lowpose.errors import LowposeError
from lowpose.evaluation import measured_data
from lowpose.files import check_writable, whole
from lowpose.loader import evaluation_batches
from lowpose.nn.heads.heatmap import Heatmap, find_peak
from lowpose.nn.heads.integral import Integral, IntegralConfig, background, biased, compensated, soft_argmax
from lowpose.nn.model import PoseModel
from lowpose.samples import PoseData
from lowpose.tasks.pose import check_fits, validation_data

FILES = ("bias.json", "bias.md", "bias.png")
SIDE = 16  # cells, of the map that is drawn unless its size is what changes: a crop of 64 pixels at stride 4
SIDES = (8, 12, 16, 24, 32, 48, 64, 96)
PEAKS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
SWEEP = tuple(float(b) for b in np.geomspace(0.1, 100, 25).round(3))
BINS = 10  # of labelled positions, across the map
SHOWN = 2000  # joints in the scatter of shifts


def study_bias(
    out: str | Path,
    weights: str | Path | None = None,
    source: str | None = None,
    *,
    sigma: float = 1.0,
    betas: Sequence[float] = (1, 3, 10, 30),
    persons: int = 1000,
) -> dict[str, Any]:
    """Measured against predicted bias over beta, position, peak and map size; writes bias.json, bias.md and bias.png into `out`.

    Args:
        weights: run folder or weights file of head `heatmap` or `integral`: its maps for real pictures are studied too.
        source: 'KIND:ROOT' of those pictures, default the validation data of its recipe.
        sigma: of the drawn Gaussian, cells. betas: those that are drawn as curves. persons: at most so many, from the start.

    Returns: what bias.json holds: 'synthetic', with a list of rows for each thing that changes, and 'network'; in cells.
    Raises: LowposeError for numbers out of range, weights without such maps, data that cannot be read or have no labelled joint.
    """
    betas = [float(b) for b in betas]
    if not betas or not all(0.01 <= b <= 1000 for b in betas):
        raise LowposeError(f"betas {list(betas)}: give numbers from 0.01 to 1000, as 1,3,10,30")
    if not 0.25 <= sigma <= SIDE:
        raise LowposeError(f"sigma {sigma}: give the Gaussian's width in cells, 0.25 to {SIDE}")
    if source is not None and weights is None:
        raise LowposeError(f"data {source}: a drawn map needs no pictures; give weights whose maps are to be studied")
    paths = [Path(out) / name for name in FILES]
    check_writable(*paths)
    network = network_bias(weights, source, betas, persons) if weights is not None else None
    report = {"synthetic": synthetic_bias(sigma, betas), **({"network": network} if network else {})}
    with whole(paths[0]) as values, whole(paths[1]) as page, whole(paths[2]) as picture:  # all three or none
        values.write_text(json.dumps(report) + "\n")
        page.write_text(markdown(report))
        draw_bias(report, picture)
    return report


# --- drawn maps -----------------------------------------------------------------------------------------------------


def synthetic_bias(sigma: float, betas: Sequence[float]) -> dict[str, Any]:
    """Rows over position (of x; y in the middle), beta, peak and side of the map, for a Gaussian of `sigma` cells."""
    quarter = (SIDE / 4 + 0.3, SIDE / 4 + 0.3)  # between cell centres, as joints are
    across = [(float(x), SIDE / 2) for x in np.linspace(0, SIDE, 8 * SIDE + 1)]
    return {
        "sigma": sigma,
        "side": SIDE,
        "betas": list(betas),
        "position": [drawn(SIDE, sigma, b, 1.0, p) for b in betas for p in across],
        "beta": [drawn(n, sigma, b, 1.0, (n / 4 + 0.3, n / 4 + 0.3)) for n in SIDES[::2] for b in SWEEP],
        "peak": [drawn(SIDE, sigma, b, p, quarter) for b in betas for p in PEAKS],
        "size": [drawn(n, sigma, b, 1.0, (n / 4 + 0.3, n / 4 + 0.3)) for b in betas for n in SIDES],
    }


def drawn(side: int, sigma: float, beta: float, peak: float, joint: tuple[float, float]) -> dict[str, Any]:
    """One map (side x side cells): 'measured' and 'predicted' bias and what compensation leaves, 'left': (x, y), cells.

    'share' is N / C. The prediction is made of the share and the joint alone.
    """
    centres = torch.arange(side, dtype=torch.float64) + 0.5
    gx, gy = (torch.exp(-0.5 * ((centres - at) / sigma).square()) for at in joint)
    maps, at = peak * gy[:, None] * gx[None], torch.tensor(joint, dtype=torch.float64)
    share = background(maps, beta)
    return {
        "side": side,
        "beta": beta,
        "peak": peak,
        "joint": list(joint),
        "share": share.item(),
        "measured": (soft_argmax(maps, beta) - at).tolist(),
        "predicted": (biased(at, (side, side), share) - at).tolist(),
        "left": (compensated(maps, beta) - at).tolist(),
    }


# --- maps of a network ----------------------------------------------------------------------------------------------


@dataclass
class Readings:
    """Of M joints: float64, cells, (x, y).

    Attributes:
        joints, highest: (M, 2), labels and centres of the highest cells. share: beta -> (M,) N / C. plain, compensated: beta ->
            (M, 2). skipped: a line per picture that could not be read.
    """

    joints: Tensor
    highest: Tensor
    share: dict[float, Tensor]
    plain: dict[float, Tensor]
    compensated: dict[float, Tensor]
    skipped: list[str]


def network_bias(weights: str | Path, source: str | None, betas: Sequence[float], persons: int) -> dict[str, Any]:
    """Shift, prediction and errors of a network's maps, as its recipe makes them (the flip test averages maps).

    Cells below 0 count as 0. 'readings': per beta the mean N / C, and mean errors in crop pixels; 'by_position': means over
    joints whose label lies in a tenth of the map, x and y together, at the network's own beta; 'shift' and 'shift_predicted': of
    x and y of up to SHOWN joints at that beta, plain reading minus compensated one, cells.
    """
    model, config = load_model(weights)
    name = config.head["name"]
    if not isinstance(model.head, Heatmap):
        raise LowposeError(f"{weights}: head '{name}' gives no map whose mean is a joint; give a run of head heatmap or integral")
    data = validation_data(config.model_copy(update={"data": measured_data(config, source, None, None)}))
    check_fits(model, data)
    integral = model.head if isinstance(model.head, Integral) else None
    beta = float(integral.beta) if integral else IntegralConfig().beta
    every = sorted({*betas, *SWEEP[::2], beta})
    found = read_maps(model, data.subset(range(min(persons, len(data.samples)))), config, every)
    if not len(found.joints):
        raise LowposeError(f"{data.kind}:{data.root}: split '{data.split}' has no labelled joint inside its crop")
    size, (width, height) = model.head.map_size, model.input_size
    stride = torch.tensor([width / size[0], height / size[1]], dtype=torch.float64)
    plain, mean, share = found.plain[beta], found.compensated[beta], found.share[beta]
    shift, predicted = plain - mean, biased(mean, size, share) - mean
    step = 1 + len(shift) // SHOWN
    return {
        "name": config.name,
        "head": name,
        "rectified": integral is None or integral.config.rectify,
        "data": f"{data.kind} {Path(data.split).stem}",
        "size": list(size),
        "beta": beta,
        "joints": len(found.joints),
        "skipped_pictures": found.skipped,
        "largest_difference": (shift - predicted).abs().max().item(),
        "argmax_error": _error(found.highest, found.joints, stride),
        "readings": [
            {
                "beta": b,
                "share": found.share[b].mean().item(),
                "plain_error": _error(found.plain[b], found.joints, stride),
                "compensated_error": _error(found.compensated[b], found.joints, stride),
            }
            for b in every
        ],
        "by_position": by_position(found.joints, size, plain, biased(found.joints, size, share), mean),
        "shift": shift[::step].flatten().tolist(),
        "shift_predicted": predicted[::step].flatten().tolist(),
    }


@torch.no_grad()
def read_maps(model: PoseModel, data: PoseData, config: RunConfig, betas: Sequence[float]) -> Readings:
    """The maps of all labelled joints inside their crops, read at each beta."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, head = model.to(device).eval(), model.head
    (w, h), pixels = head.map_size, torch.tensor(model.input_size)
    found = Readings(torch.zeros(0, 2).double(), torch.zeros(0, 2).double(), {}, {}, {}, [])
    batches = evaluation_batches(CropReader(data, config.input), config.eval.batch_size, config.train.workers)
    for batch in track(batches, "maps", console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True):
        images = batch.images.to(device)
        outputs = model(images)
        if config.eval.flip:
            outputs = head.merge(outputs, head.flip(model(images.flip(-1))))
        inside = ((batch.keypoints >= 0) & (batch.keypoints < pixels)).all(-1) & (batch.weight > 0)
        maps = F.relu(outputs["map"].float().cpu()[inside]).double()
        joints = batch.keypoints[inside].double() * torch.tensor([w, h]) / pixels
        _, x, y = find_peak(maps[:, None])
        found.joints, found.highest = torch.cat([found.joints, joints]), torch.cat([found.highest, torch.cat([x, y], 1) + 0.5])
        for b in betas:
            for kept, read in ((found.share, background), (found.plain, soft_argmax), (found.compensated, compensated)):
                now = read(maps, b)
                kept[b] = torch.cat([kept[b], now]) if b in kept else now
        found.skipped = sorted({*found.skipped, *batch.errors})
    return found


def _error(found: Tensor, joints: Tensor, stride: Tensor) -> float:
    """Mean distance, crop pixels."""
    return ((found - joints) * stride).norm(dim=-1).mean().item()


def by_position(
    joints: Tensor, size: tuple[int, int], plain: Tensor, predicted: Tensor, compensated: Tensor
) -> list[dict[str, Any]]:
    """Rows of BINS equal parts of both axes together: mean offset of each reading (M, 2), cells, from `joints` (M, 2), and its
    standard error, as shares of the side."""
    sides = joints.new_tensor(size)
    place = ((joints / sides).flatten() * BINS).long().clamp(0, BINS - 1).numpy()
    read = {"plain": plain, "predicted": predicted, "compensated": compensated}
    values = {name: ((at - joints) / sides).flatten().numpy() for name, at in read.items()}
    rows = []
    for i in range(BINS):
        inside = place == i
        row: dict[str, Any] = {"from": i / BINS, "to": (i + 1) / BINS, "n": int(inside.sum())}
        for name, value in values.items():
            if row["n"] > 1:
                row[name] = float(value[inside].mean())
                row[f"{name}_se"] = float(value[inside].std(ddof=1) / row["n"] ** 0.5)
        rows.append(row)
    return rows
