"""Run a model over a split and measure it, with intervals: the data set's protocol for poses, accuracy for classes; as a card.

What is predicted and how it is measured is the task's own (`lowpose.tasks`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lowpose.breakdown_page import write_breakdown
from lowpose.cards import make_card, write_card
from lowpose.checkpoint import describe_weights, load_model, weights_path
from lowpose.config import DataConfig, RunConfig, parse_config, recipe_values
from lowpose.data import parse_source
from lowpose.errors import LowposeError
from lowpose.files import write_json
from lowpose.metrics.breakdown import check_breakdown, check_heights
from lowpose.nn.cost import count
from lowpose.recipe_files import apply_overrides, shorten_paths
from lowpose.samples import ClassData, PoseData
from lowpose.shipped import home
from lowpose.tasks import task_of

# overrides that only pace a measurement; its card keeps its name
PACE = ("cache.", "train.workers=", "eval.batch_size=")
# what an override of `lowpose eval` may change
MEASURING = ("input.resample", "input.padding", "input.camera", "eval.", "cache.", "data.options", "train.workers", "head.")


def evaluate(
    weights: str | Path,
    source: str | None = None,
    split: str | None = None,
    *,
    boxes: str | None = None,
    results: str | Path | None = None,
    out: str | Path | None = None,
    overrides: tuple[str, ...] | list[str] = (),
    bootstrap: int = 1000,
    command: str | None = None,
    breakdown: bool = False,
    heights: Sequence[int] = (),
    sizes: str = "area",
) -> dict[str, Any]:
    """Measure a run or weights file on a data set; writes card.json, card.md and predictions.npz, returns the card.

    Args:
        weights: run folder or weights file. source: 'KIND:ROOT', default the recipe's validation data. split: its split.
        boxes: 'gt' or a detector's result file. results: also write COCO result rows there. Both are for poses only.
        out: folder of the card, default where the weights are; a card for other data than the recipe's is named after it.
        overrides: of this measurement: input.resample, input.padding, input.camera, eval, cache, data.options, train.workers,
            or head settings that leave its layers as they are, as 'head.decode=argmax'.
        breakdown: also by labelled joints, occlusion, size and height of the persons: breakdown.json, .md and .png beside the
            card, and 'breakdown' in what is returned. heights: of it, pixels that everybody is brought down to. sizes: of it,
            'area' of the person or 'box'. See `lowpose.breakdown`.

    Raises: LowposeError for weights of another skeleton or other classes, data that cannot be read, overrides of what is trained.
    """
    model, own = load_model(weights, task=None)
    path = weights_path(weights)
    config = measuring_config(own, overrides)
    task = task_of(config)
    if results:
        task.check_results()
    check_asked(config, breakdown, heights, sizes)
    if config.head != own.head:
        model.head = task.read_as(config, model)
    where = measured_data(config, source, split, boxes)
    data = task.validation_data(config.model_copy(update={"data": where}))
    task.check_fits(model, data)
    if breakdown:
        check_breakdown(data, sizes)
    found = task.predict_split(model, data, config)
    report = task.measure(model, config, data, found, bootstrap)
    rows = task.result_rows(model, config, data, found) if results else None
    facts = training_facts(path) | {"command": command, "overrides": [shorten_paths(item) for item in overrides]}
    card = make_card(config, data, report, path, asdict(count(model, config.input.size)), **facts)
    folder = Path(out) if out else home(path)
    changed = [item for item in overrides if not item.startswith(PACE)]
    stem = "card" if where == own.data and not changed else card_name(data, changed)
    write_card(folder, card, stem)
    task.save_predictions(folder / f"{stem.replace('card', 'predictions')}.npz", data, found)
    if results:
        write_json(results, rows)
    if breakdown:
        about = {k: card[k] for k in ("name", "weights", "measured_on", "input", "flip_test", "command", "overrides")}
        card["breakdown"] = about | task.break_down(model, config, data, found, heights, sizes, bootstrap)
        write_breakdown(folder, stem.replace("card", "breakdown"), card["breakdown"])
    return card


def check_asked(config: RunConfig, breakdown: bool, heights: Sequence[int], sizes: str) -> None:
    """Raises: LowposeError for a breakdown of classes, or parts of one that was not asked for."""
    if breakdown and config.task != "pose":
        raise LowposeError(f"task {config.task}: a breakdown is by joints, occlusion and size of persons; leave it out")
    if not breakdown and (heights or sizes != "area"):
        raise LowposeError("heights and sizes are parts of a breakdown: ask for it too (--breakdown)")
    check_heights(heights)


def measured_data(config: RunConfig, source: str | None, split: str | None, boxes: str | None) -> DataConfig:
    """The recipe's data settings with another source, split or boxes; what belongs to another kind does not go along."""
    d = config.data
    kind, root = parse_source(source, task_of(config).READERS) if source else (d.kind, d.root)
    values: dict[str, Any] = {"kind": kind, "root": root, "val": split or d.val, "boxes": boxes or d.boxes}
    if kind != d.kind:
        values |= {"val": split or "val", "boxes": boxes or "gt", "skeleton": None, "options": {}}
    return d.model_copy(update=values)


def measuring_config(own: RunConfig, overrides: tuple[str, ...] | list[str]) -> RunConfig:
    """The recipe of weights with overrides of how they are measured. Raises: LowposeError for others."""
    for item in overrides:
        if not item.startswith(MEASURING):
            raise LowposeError(f"'{item}': the weights are trained; a measurement can change {', '.join(MEASURING)}")
    values = recipe_values(own)
    return parse_config(apply_overrides(values, overrides), "overrides")


def card_name(data: PoseData | ClassData, changed: list[str]) -> str:
    """File name of a card for other data, boxes or settings than the recipe's; `changed`: overrides, as 'head.decode=dark'."""
    parts = ["card", data.kind, Path(data.root).name, Path(data.split).stem]
    boxes = getattr(data, "boxes", "gt")
    parts += [Path(boxes).stem] if boxes not in ("gt", "joints") else []
    return re.sub(r"[^\w.-]+", "_", "-".join([*parts, *(item.replace("=", "-") for item in changed)]))[:120]


def training_facts(weights: Path) -> dict[str, Any]:
    """What the weights file says of its training."""
    about = describe_weights(weights)
    return {k: about[k] for k in ("step", "precision", "teacher", "not_loaded", "skipped_in_training") if about.get(k)}
