"""What `lowpose study bias` shows: tables in Markdown, and the figure (matplotlib, extra `train`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lowpose.cards import table_lines

COLOURS = ("#4477aa", "#cc6677", "#ddaa33", "#117733", "#aa4499", "#88ccee")
Rows = list[dict[str, Any]]


# --- tables ---------------------------------------------------------------------------------------------------------


def markdown(report: dict[str, Any]) -> str:
    """bias.md: measured, predicted and what compensation leaves, in x."""
    s = report["synthetic"]
    lines = [
        "# Bias of soft-argmax",
        "",
        f"Drawn maps: a Gaussian of sigma {s['sigma']:g} cells on {s['side']} x {s['side']} cells, peak 1, a quarter of the side "
        "from the corner, where nothing else is said. Bias in x, cells: measured / predicted by eq. 9 / left by compensation.",
        *_table("x of the joint", s["betas"], s["position"], lambda r: r["joint"][0], every=8),
        *_table("peak", s["betas"], s["peak"], lambda r: r["peak"]),
        *_table("side of the map", s["betas"], s["size"], lambda r: r["side"]),
        *_beta_table(s["beta"]),
    ]
    if "network" in report:
        lines += _network_tables(report["network"])
    return "\n".join(lines) + "\n"


def _table(what: str, betas: list[float], rows: Rows, key, every: int = 1) -> list[str]:
    by = {(key(r), r["beta"]): r for r in rows}
    values = list(dict.fromkeys(key(r) for r in rows))[every // 4 :: every]
    cells = [[f"{value:g}", *(_cell(by[value, b]) for b in betas)] for value in values]
    return ["", *table_lines([what, *(f"beta {b:g}" for b in betas)], cells)]


def _beta_table(rows: Rows) -> list[str]:
    sides = list(dict.fromkeys(r["side"] for r in rows))
    by = {(r["beta"], r["side"]): r for r in rows}
    betas = list(dict.fromkeys(r["beta"] for r in rows))[::2]
    cells = [[f"{beta:g}", *(_cell(by[beta, n]) for n in sides)] for beta in betas]
    return ["", *table_lines(["beta", *(f"{n} x {n} cells" for n in sides)], cells)]


def _cell(row: dict[str, Any]) -> str:
    return " / ".join(f"{row[name][0] + 0.0:.3f}".replace("-0.000", "0.000") for name in ("measured", "predicted", "left"))


def _network_tables(n: dict[str, Any]) -> list[str]:
    ways = ("plain", "predicted", "compensated")
    places = [
        [f"{r['from']:.1f} to {r['to']:.1f}", str(r["n"]), *(f"{100 * r[k]:.2f}" if k in r else "" for k in ways)]
        for r in n["by_position"]
    ]
    lines = [
        "",
        f"## {n['name']}",
        "",
        f"Head `{n['head']}`, maps of {n['size'][0]} x {n['size'][1]} cells, {n['joints']} labelled joints of {n['data']}. Plain "
        f"reading minus compensated one is eq. 9's shift to {n['largest_difference']:.1e} cells, as it must be for any map "
        "without negative cells (those below 0 count as 0)."
        + ("" if n["rectified"] else " The network was trained with them (rectify: false), so its own reading is another."),
        "",
        f"Mean distance from the labels, crop pixels; the highest cell's centre: {n['argmax_error']:.3f}.",
        "",
        *table_lines(
            ["beta", "N / C", "plain", "compensated"],
            [[f"{r['beta']:g}", *(f"{r[k]:.3f}" for k in ("share", "plain_error", "compensated_error"))] for r in n["readings"]],
        ),
        "",
        f"Mean offset from the label at beta {n['beta']:g}, percent of the side, x and y together; positive: to the right or "
        "down. Predicted: eq. 9 from the label and N / C. Mistakes of any kind fall towards the middle of where labels can be, "
        "so the compensated reading has some offset too; the bias is what the plain one has beyond that.",
        "",
        *table_lines(["label at", "joints' coordinates", *ways], places),
    ]
    if n["skipped_pictures"]:
        lines += ["", f"Pictures that could not be read: {len(n['skipped_pictures'])}."]
    return lines


# --- figure ---------------------------------------------------------------------------------------------------------


def draw_bias(report: dict[str, Any], path: Path) -> None:
    """bias.png: curves are eq. 9's predictions, dots what is measured."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    s, network = report["synthetic"], report.get("network")
    rows = 3 if network else 2
    figure, axes = plt.subplots(rows, 3, figsize=(14, 4.2 * rows), layout="constrained")
    _sections(axes[0, 0], s)
    _curves(axes[0, 1], s["position"], "beta", lambda r: r["joint"][0], every=5)
    axes[0, 1].set(xlabel=f"joint's x, cells of {s['side']}", ylabel="bias in x, cells", title="position")
    _curves(axes[0, 2], s["beta"], "side", lambda r: r["beta"])
    axes[0, 2].set(xscale="log", xlabel="beta", ylabel="bias in x, cells", title="beta, joint at a quarter of the map")
    _curves(axes[1, 0], s["peak"], "beta", lambda r: r["peak"])
    axes[1, 0].set(xlabel="peak of the map", ylabel="bias in x, cells", title="height of the peak")
    _curves(axes[1, 1], s["size"], "beta", lambda r: r["side"])
    axes[1, 1].set(xlabel="side of the map, cells", ylabel="bias in x, cells", title="size of the map")
    _left_over(axes[1, 2], s["position"])
    if network:
        _shift(axes[2, 0], network)
        _by_position(axes[2, 1], network)
        _errors(axes[2, 2], network)
    for ax in axes.flat[1:]:
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8)
    figure.suptitle(
        f"Bias of soft-argmax: curves are eq. 9, dots are measured. Gaussian of sigma {s['sigma']:g}, {s['side']} x {s['side']} "
        "cells, peak 1, unless it is what changes" + (f"\nlast row: {network['name']} on {network['data']}" if network else ""),
        fontsize=11,
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _curves(ax, rows: Rows, group: str, key, every: int = 1) -> None:
    """A curve of predictions and dots of measurements per value of `group`."""
    for value, colour in zip(dict.fromkeys(r[group] for r in rows), COLOURS * 9, strict=False):
        own = [r for r in rows if r[group] == value]
        label = f"{value} x {value} cells" if group == "side" else f"{group} {value:g}"
        ax.plot([key(r) for r in own], [r["predicted"][0] for r in own], color=colour, lw=1.4, label=label)
        dots = own[::every]
        ax.plot([key(r) for r in dots], [r["measured"][0] for r in dots], "o", ms=3.5, color=colour)


def _sections(ax, s: dict[str, Any]) -> None:
    """The derivation's picture: a joint in the upper left, the section that it is the centre of, and where it is read."""
    import numpy as np

    row = next(r for r in s["peak"] if r["peak"] == 1)
    n, (x, y) = s["side"], row["joint"]
    centres = np.arange(n) + 0.5
    g = np.exp(-0.5 * ((centres - x) / s["sigma"]) ** 2)[None] * np.exp(-0.5 * ((centres - y) / s["sigma"]) ** 2)[:, None]
    ax.imshow(g, extent=(0, n, n, 0), cmap="Blues", vmax=1.3)
    ax.axvline(2 * x, color="0.4", lw=1)
    ax.axhline(2 * y, color="0.4", lw=1)
    for (across, down), name in {(0.5, 0.5): 1, (1.5, 0.5): 2, (0.5, 1.5): 3, (1.5, 1.5): 4}.items():
        at = (2 * x * across if across < 1 else x + n / 2, 2 * y * 0.9 if down < 1 else y + n / 2)
        ax.text(*at, f"section {name}", ha="center", va="center", fontsize=9, color="0.3")
    ax.plot(n / 2, n / 2, "+", color="0.3", ms=10)
    ax.annotate("middle", (n / 2, n / 2), xytext=(8, 6), textcoords="offset points", fontsize=8, color="0.3")
    moved = (x + row["measured"][0], y + row["measured"][1])
    ax.annotate("", moved, (x, y), arrowprops={"arrowstyle": "->", "color": COLOURS[1], "lw": 1.6})
    ax.plot(x, y, "o", color="black", ms=5, label="joint")
    ax.plot(*moved, "s", color=COLOURS[1], ms=5, label=f"soft-argmax, beta {row['beta']:g}")
    ax.legend(fontsize=8, loc="lower right")
    ax.set(title="every empty cell pulls to the middle of the map", xlabel="x, cells", ylabel="y, cells")


def _left_over(ax, rows: Rows) -> None:
    for beta, colour in zip(dict.fromkeys(r["beta"] for r in rows), COLOURS * 9, strict=False):
        own = [r for r in rows if r["beta"] == beta]
        ax.plot([r["joint"][0] for r in own], [r["left"][0] for r in own], color=colour, lw=1.2, label=f"beta {beta:g}")
    side = rows[0]["side"]
    text = "edges: the border cuts the blob\nwaves: beta makes it narrower than a cell"
    ax.text(0.5, 0.03, text, transform=ax.transAxes, ha="center", va="bottom", fontsize=8, color="0.3")
    ax.set(
        xlabel=f"joint's x, cells of {side}",
        ylabel="error in x, cells",
        title="left after compensation",
    )


def _shift(ax, n: dict[str, Any]) -> None:
    found, predicted = n["shift"], n["shift_predicted"]
    low, high = min(predicted), max(predicted)
    ax.plot([low, high], [low, high], color=COLOURS[0], lw=1.2, label="eq. 9")
    ax.plot(predicted, found, "o", ms=2, alpha=0.4, color=COLOURS[1], label="x and y of joints")
    ax.set(
        xlabel="predicted shift, cells", ylabel="plain minus compensated, cells", title=f"shift of each joint, beta {n['beta']:g}"
    )


def _by_position(ax, n: dict[str, Any]) -> None:
    rows = [r for r in n["by_position"] if "plain" in r]
    at = [(r["from"] + r["to"]) / 2 for r in rows]
    ax.axhline(0, color="0.5", lw=0.8)
    for name, colour, style in (("plain", COLOURS[1], "o"), ("compensated", COLOURS[3], "s")):
        mean, error = [100 * r[name] for r in rows], [196 * r[f"{name}_se"] for r in rows]
        ax.errorbar(at, mean, error, fmt=style, ms=4, lw=1, color=colour, label=name)
    ax.plot(at, [100 * r["predicted"] for r in rows], color=COLOURS[1], lw=1.2, label="eq. 9 from the labels")
    ax.set(xlabel="label, share of the side", ylabel="mean offset, % of the side", title=f"against labels, beta {n['beta']:g}")


def _errors(ax, n: dict[str, Any]) -> None:
    betas = [r["beta"] for r in n["readings"]]
    ax.axhline(n["argmax_error"], color="0.4", lw=1, ls="--", label="highest cell")
    ax.plot(betas, [r["plain_error"] for r in n["readings"]], "o-", ms=3, color=COLOURS[1], label="plain")
    ax.plot(betas, [r["compensated_error"] for r in n["readings"]], "s-", ms=3, color=COLOURS[3], label="compensated")
    ax.set(xscale="log", xlabel="beta", ylabel="mean distance, crop pixels", title="error of the readings", ylim=(0, None))
