"""The demo: train, measure and predict on synthetic people at 32, 64 and 128 pixels, with a sheet to look at."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from lowpose.cards import interval
from lowpose.checkpoint import WEIGHTS, load_model
from lowpose.config import RunConfig
from lowpose.data.crops import CropReader
from lowpose.draw import contact_sheet
from lowpose.evaluation import evaluate
from lowpose.files import write_json
from lowpose.images import write_image
from lowpose.loader import TrainingOrder, training_loader
from lowpose.nn.layers.precision import chosen
from lowpose.nn.model import build_model
from lowpose.plots import learning_curve
from lowpose.predict import predict_sources
from lowpose.recipe_files import load_config
from lowpose.runtime import load
from lowpose.samples import PoseData
from lowpose.sheet import person_tile
from lowpose.tasks.pose import predict_split, validation_data
from lowpose.training import compute_loss, train, training_data

SHARES = {32: 0.25, 64: 0.25, 128: 0.5}  # of the training time
RECIPE = "synthetic/simcc_hrnet-w18-small_{}"
# Backbones that have seen photographs; a few epochs from random weights learn little more than the mean pose.
INIT = {32: "lowpose-32", 64: "lowpose-64", 128: "lowpose-64"}
ENLARGE = {32: 2}  # as lowpose-32 does
SHOWN = 8


def run_demo(out: Path, minutes: float, console: Console) -> dict[str, Any]:
    """Runs, cards, sheet.png, curves and predicted pictures under `out`; prints a table and where the pictures are.

    Args: minutes: training time of the three sizes together; the number of epochs follows from the machine's speed.
    """
    cards, start = {}, time.monotonic()
    for size, share in SHARES.items():
        folder = out / f"{size}px"
        changes = [f"cache.dir={out / 'cache'}", f"init={INIT[size]}", f"model.enlarge={ENLARGE.get(size, 1)}"]
        config = load_config(RECIPE.format(size), changes)
        if not (folder / WEIGHTS).is_file():
            people = len(training_data(config))
            epochs = max(1, round(minutes * 60 * share * speed(config) / people))
            console.print(f"{size} x {size} pixels: trains on {epochs} x {people} synthetic people, beginning as {INIT[size]}")
            config = config.model_copy(update={"train": config.train.model_copy(update={"epochs": epochs})})
            train(config, folder, resume=True)
            learning_curve(folder)
        cards[size] = evaluate(folder)
    sheet = draw_demo_sheet(out, cards)
    pictures = predict_pictures(out)
    console.print(demo_table(cards))
    console.print(f"{(time.monotonic() - start) / 60:.1f} minutes. Look at:")
    for path in (sheet, pictures[0], out / "128px" / "learning_curve.png"):
        console.print(f"  {path}")
    return cards


def speed(config: RunConfig, steps: int = 4) -> float:
    """Training images per second on this machine, from a few steps."""
    data = training_data(config).subset(range(config.train.batch_size * (steps + 1)))
    model = build_model(config, data.skeleton).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters())
    order = TrainingOrder(len(data), config.train.batch_size, 0, 0, steps + 1)
    reader = CropReader(data, config.input, config.augment)
    batches = list(training_loader(reader, order, 0, False))  # drawing people is not training
    half = chosen(config.train.precision, torch.device("cpu")) == "bf16"
    seconds = []
    for batch in batches:
        begin = time.monotonic()
        terms = compute_loss(model, model.head, batch, lambda: torch.autocast("cpu", torch.bfloat16, half))
        sum(term.total / term.count for term in terms.values()).backward()
        optimizer.step()
        seconds.append(time.monotonic() - begin)
    return config.train.batch_size / (sum(seconds[1:]) / steps)


def draw_demo_sheet(out: Path, cards: dict[int, dict[str, Any]]) -> Path:
    """sheet.png: the same validation people at every size, predicted (solid) and true (dashed)."""
    tiles = []
    for size in SHARES:
        model, config = load_model(out / f"{size}px")
        data = validation_data(config).subset(range(SHOWN))
        found = predict_split(model, data, config)
        reader = CropReader(data, config.input)
        tiles += [person_tile(reader, found, i) for i in range(SHOWN)]
    caption = (
        "Synthetic people never seen in training, as the network sees them at 32, 64 and 128 pixels: "
        "predicted (solid) and true (dashed)"
    )
    path = out / "sheet.png"
    write_image(path, contact_sheet(tiles, SHOWN, caption=caption, rows=[f"{size} px" for size in cards], legend=True))
    return path


def predict_pictures(out: Path, count: int = 6) -> list[Path]:
    """Whole synthetic pictures through `predict`, with their boxes from a file, as a user would; paths of the drawn ones."""
    data: PoseData = validation_data(load_config(RECIPE.format(128), []))
    folder, boxes = out / "pictures", {}
    for sample in data.samples[:count]:
        name = f"{Path(sample.image).name}.png"
        write_image(folder / name, data.read(sample.image))
        boxes[name] = [sample.box.tolist()]
    write_json(out / "boxes.json", boxes)
    report = predict_sources(
        load(out / "128px"), [str(folder)], str(out / "boxes.json"), results=out / "poses" / "results.json", draw=out / "poses"
    )
    return report.drawn


def demo_table(cards: dict[int, dict[str, Any]]) -> Table:
    table = Table(
        "input",
        "params M",
        "GMAC",
        "PCK@0.2 [95%]",
        "AP",
        "error, % of crop",
        title=f"{cards[32]['measured_on']['persons']} synthetic people, not seen in training",
    )
    for size, card in cards.items():
        m, cost = card["metrics"], card["cost"]
        values = interval(m["PCK@0.2"]), f"{m['AP']['value']:.1f}", f"{100 * m['EPE_crop']['value'] / size:.1f}"
        table.add_row(f"{size} x {size}", f"{cost['params'] / 1e6:.2f}", f"{cost['macs'] / 1e9:.3f}", *values)
    return table
