"""Plots of a run, drawn with matplotlib (extra `train`)."""

from __future__ import annotations

from pathlib import Path

from lowpose.errors import LowposeError
from lowpose.files import whole
from lowpose.progress import read_log


def learning_curve(folder: Path) -> Path:
    """learning_curve.png of a run folder: the training loss, and validation metrics where they were taken.

    Raises: LowposeError if the folder has no metrics.jsonl.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    path = folder / "metrics.jsonl"
    if not path.is_file():
        raise LowposeError(f"{path}: no such file; has this run been trained here?")
    lines = read_log(path)
    train = [(x["epoch"], x["loss"]) for x in lines if "loss" in x]
    per_epoch = next((x["step"] / x["epoch"] for x in lines if x.get("epoch")), 1.0)
    val: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        for name, value in line.get("val", {}).items():
            if not name.startswith("EPE"):
                val.setdefault(name, []).append((line["step"] / per_epoch, value))
    figure, left = plt.subplots(figsize=(8, 4.5), layout="constrained")
    left.plot(*_smooth(train), color="#4477aa", label="training loss")
    left.set(xlabel="epoch", ylabel="training loss", title=folder.name)
    left.grid(alpha=0.3)
    if val:
        right = left.twinx()
        right.set_ylabel("validation, percent")
        shown = [n for n in val if n.startswith(("PCK", "pck"))] or [n for n in ("AP", "AP50", "top-1", "top-5") if n in val]
        for name, colour in zip(shown, ("#cc6677", "#ddaa33", "#117733"), strict=False):
            right.plot(*zip(*val[name], strict=True), "o-", ms=3, color=colour, label=name)
        right.set_ylim(0, None)
        figure.legend(loc="outside lower center", ncols=4)
    out = folder / "learning_curve.png"
    with whole(out) as aside:
        figure.savefig(aside, dpi=120)
    plt.close(figure)
    return out


def _smooth(points: list[tuple[float, float]], most: int = 400) -> tuple[list[float], list[float]]:
    """Means over blocks, so that a long run draws as one readable line."""
    size = max(1, len(points) // most)
    blocks = [points[i : i + size] for i in range(0, len(points), size)]
    return [b[len(b) // 2][0] for b in blocks], [sum(y for _, y in b) / len(b) for b in blocks]
