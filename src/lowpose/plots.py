"""Plots of a run, drawn with matplotlib (extra `train`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lowpose.errors import LowposeError
from lowpose.files import whole
from lowpose.progress import read_log

LEADS = ("PCKh@0.5", "pck_neck_head@0.5", "OKS", "PCK@0.2")  # the first that a breakdown has is drawn
INKS = ("#4477aa", "#cc6677")
SOLID = 10  # persons; the interval of fewer says little
AXES = {
    "joints": "labelled joints",
    "occlusion": "occluded share",
    "size": "size (pixels)",
    "height": "height of the box (pixels)",
}


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


def lead_of(report: dict[str, Any]) -> str | None:
    """The figure in percent that stands for a breakdown, or None."""
    return next((name for name in LEADS if name in report["metrics"]), None)


def error_of(report: dict[str, Any]) -> str:
    """The end-point error that stands for a breakdown: in crop pixels where it has them."""
    return "EPE_crop" if "EPE_crop" in report["metrics"] else "EPE"


def breakdown_plot(report: dict[str, Any], path: Path) -> None:
    """PNG of a breakdown: a row of panels for the figure in percent and one for the error, by all that persons are sorted by.

    Where persons were brought down to heights, a row of those curves follows. Bars and bands are 95% intervals.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [name for name in (lead_of(report), error_of(report)) if name]
    groups, heights = report["by"], report.get("heights")
    rows = [2.7 * len(shown) + 1.0, 3.6] if heights else [2.7 * len(shown) + 1.0]
    widths = [len(bins) + 0.8 for bins in groups.values()]
    figure = plt.figure(figsize=(max(9.0, 0.72 * sum(widths)), sum(rows)), layout="constrained")
    parts = figure.subfigures(len(rows), 1, height_ratios=rows, squeeze=False)[:, 0]
    panels = parts[0].subplots(len(shown), len(groups), squeeze=False, sharey="row", width_ratios=widths)
    for metric, line, ink in zip(shown, panels, INKS, strict=False):
        for axes, (name, bins) in zip(line, groups.items(), strict=True):
            _by_bin(axes, bins, report["all"], metric, ink)
            axes.set_xlabel(AXES[name] if metric == shown[-1] else "")
        line[0].set_ylabel(_unit(metric))
        line[0].set_ylim(0, None)
    parts[0].suptitle(
        f"{report.get('name', 'breakdown')}\n95% intervals; hollow: fewer than {SOLID} persons; dashed: all persons"
    )
    if heights:
        curves = parts[1].subplots(1, len(shown), squeeze=False)[0]
        for axes, metric in zip(curves, shown, strict=True):
            _by_rendered_height(axes, heights, metric)
        parts[1].suptitle("the same pictures, persons brought down to a height by a far camera")
        parts[1].legend(*curves[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _unit(metric: str) -> str:
    return {"EPE": "EPE, picture pixels", "EPE_crop": "EPE_crop, input pixels"}.get(metric, f"{metric}, percent")


def _ends(figure: dict[str, Any]) -> tuple[float, float]:
    """Low and high; the value itself where there is no interval."""
    return tuple(figure["value"] if figure[end] is None else figure[end] for end in ("low", "high"))


def _by_bin(axes, bins: dict[str, Any], everybody: dict[str, Any], metric: str, ink: str) -> None:
    for i, cell in enumerate(bins.values()):
        figure = cell["figures"].get(metric)
        if figure is not None:
            axes.vlines(i, *_ends(figure), color=ink, lw=2.5, alpha=0.5)
            axes.plot(i, figure["value"], "o", color=ink, mfc=ink if figure["n"] >= SOLID else "white")
    if metric in everybody["figures"]:
        axes.axhline(everybody["figures"][metric]["value"], ls="--", lw=1, color="#888888")
    names = [f"{name}\n{c['bounds']}" if name != c["bounds"] else name.replace(" ", "\n") for name, c in bins.items()]
    axes.set_xticks(range(len(bins)), [f"{n}\nn={c['persons']}" for n, c in zip(names, bins.values(), strict=True)], fontsize=8)
    axes.set_xlim(-0.6, len(bins) - 0.4)
    axes.grid(axis="y", alpha=0.3)


def _by_rendered_height(axes, heights: dict[str, Any], metric: str) -> None:
    tallest = f"boxes of at least {heights['tallest']} pixels"
    for kind, style, colour, what in (
        ("enough", "s:", "#888888", "everybody whose box is at least as high"),
        ("same", "o-", "#332288", f"the same persons: {tallest}"),
    ):
        cells = [(row["height"], row[kind]["figures"][metric]) for row in heights["rows"] if metric in row[kind]["figures"]]
        x = [height for height, _ in cells]
        axes.plot(x, [figure["value"] for _, figure in cells], style, ms=4, color=colour, label=what)
        if cells:
            axes.fill_between(x, *zip(*(_ends(figure) for _, figure in cells), strict=True), color=colour, alpha=0.15, lw=0)
    plain = heights["plain"]["same"]["figures"].get(metric)
    if plain:
        axes.axhline(plain["value"], ls="--", lw=1, color="#332288", label="the same persons as they are")
    axes.set_xscale("log", base=2)
    axes.set_xticks([row["height"] for row in heights["rows"]], [str(row["height"]) for row in heights["rows"]])
    axes.minorticks_off()
    axes.set(xlabel="rendered height (pixels)", ylabel=_unit(metric))
    axes.set_ylim(0, None)
    axes.grid(alpha=0.3)
