"""What `lowpose sweep` shows: tables in Markdown, and the figure (matplotlib, extra `train`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lowpose.cards import interval, table_lines
from lowpose.plots import lead_of

COLOURS = ("#4477aa", "#cc6677", "#117733", "#ddaa33", "#aa4499", "#88ccee")
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")


def markdown(report: dict[str, Any], picture: str) -> str:
    """The page, with a link to the figure beside it."""
    m, metric = report["measured_on"], report["metric"]
    two = any(row["passes"] == 2 for row in report["rows"])
    lines = [
        "# Sizes and models",
        "",
        f"Measured on {m['kind']} `{m['split']}`: {m['persons']} persons, boxes: {m['boxes']}, protocol: {m['protocol']}. "
        "In square brackets: 95% bootstrap interval over persons (AP: pictures).",
        "",
        "- Crops: their height in pixels, all that is known of the person. Enlarged: crops are rendered that small (`area`) and",
        "  enlarged bilinearly to the model's input, the baseline of a small model.",
        f"- GMAC: multiply-accumulates for a person{', both passes of the flip test where it is on' if two else ''}.",
        f"- Milliseconds: `model.predict` of torch {report['versions'].get('torch', '')} in eager mode on one thread of the CPU; "
        f"median of {report['rounds']} rounds in which all models take turns [quartiles]; batch: {report['batch']}. Rendering "
        "and enlarging are not in it.",
        f"- Front: no other row for crops of this size has as much {metric} for as few MACs (macs) or milliseconds of one person",
        "  (ms).",
        *([f"- Pictures that could not be read: {len(report['skipped_pictures'])}."] if report["skipped_pictures"] else []),
        "",
        f"![{metric} over cost]({picture})",
        "",
        *table_lines(
            ["crops", "model", "input", metric, "EPE", "GMAC", "ms, one person", "ms per person, batch", "front"],
            cost_rows(report),
        ),
    ]
    for title, kind in (("the same persons in every column", "same"), ("everybody who is as high", "enough")):
        if report["heights"]:
            name, heights = height_metric(report), report["rows"][0]["heights"]
            note = f", boxes of at least {heights['tallest']} pixels" if kind == "same" else ""
            lines += ["", f"## {name} of persons brought down to a height by a far camera: {title}{note}", ""]
            lines += table_lines(
                ["crops", "model", *(f"{h} px" for h in report["heights"]), "as they are"], height_rows(report, kind)
            )
    if report.get("command"):
        lines += ["", "```", report["command"], "```"]
    return "\n".join(lines) + "\n"


def label(row: dict[str, Any]) -> str:
    return f"{row['name']}{', enlarged' if row['enlarged'] else ''}"


def cost_rows(report: dict[str, Any]) -> list[list[str]]:
    """A row per model and size: crops, model, input, the main metric, EPE, cost, and the fronts that it is on."""
    out = []
    for row in report["rows"]:
        epe = row["metrics"].get("EPE")
        times = (f"{t['median']:.1f} [{t['low']:.1f}, {t['high']:.1f}]" for t in row["ms"].values())
        out.append(
            [
                f"{row['size']} px",
                label(row),
                f"{row['input'][0]}x{row['input'][1]}",
                interval(row["metrics"][report["metric"]]),
                interval(epe) if epe else "-",
                f"{row['macs'] / 1e9:.3f}",
                *times,
                ", ".join(kind for kind, on in row["front"].items() if on) or "-",
            ]
        )
    return out


def height_metric(report: dict[str, Any]) -> str | None:
    """The figure in percent of persons at rendered heights."""
    return lead_of({"metrics": report["rows"][0]["heights"]["plain"]["enough"]["figures"]})


def height_rows(report: dict[str, Any], kind: str) -> list[list[str]]:
    """A row per model and size, a column per height and one for the persons as they are. kind: 'same' or 'enough'."""
    name = height_metric(report)
    cells = [(row, [*(h[kind] for h in row["heights"]["rows"]), row["heights"]["plain"][kind]]) for row in report["rows"]]
    return [
        [f"{row['size']} px", label(row), *(interval(c["figures"][name], 1) if name in c["figures"] else "-" for c in own)]
        for row, own in cells
    ]


def draw_sweep(report: dict[str, Any], path: Path) -> None:
    """PNG: the main metric over MACs, over milliseconds of one person, and over rendered height where that was measured.

    A colour per size of the crops, a mark per model, hollow where crops were enlarged; rings and lines: fronts; bars: intervals.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = report["rows"]
    sizes, names = list(dict.fromkeys(r["size"] for r in rows)), list(dict.fromkeys(r["name"] for r in rows))
    colours = {size: COLOURS[i % len(COLOURS)] for i, size in enumerate(sizes)}
    marks = {name: MARKS[i % len(MARKS)] for i, name in enumerate(names)}
    panels = 3 if report["heights"] else 2
    figure, axes = plt.subplots(1, panels, figsize=(5.2 * panels, 5.6), layout="constrained")
    kinds = {
        "macs": (lambda r: r["macs"] / 1e9, "multiply-accumulates per person, 10^9"),
        "ms": (lambda r: r["ms"]["one"]["median"], "milliseconds per person, one thread, batch 1"),
    }
    for ax, (kind, (cost, title)) in zip(axes, kinds.items(), strict=False):
        _costs(ax, rows, kind, cost, report["metric"], colours, marks)
        ax.set(xscale="log", xlabel=title, ylabel=f"{report['metric']}, percent")
        ticks = _ticks([cost(r) for r in rows])
        ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
        ax.minorticks_off()
    if report["heights"]:
        _heights(axes[2], report, colours, marks)
    top = max(ax.get_ylim()[1] for ax in axes)
    for ax in axes:
        ax.set_ylim(0, top)
        ax.grid(alpha=0.3)
    plain = {"color": "#444444", "ls": ""}
    handles = [plt.Line2D([], [], color=colours[s], lw=3, label=f"crops of {s} pixels") for s in sizes]
    handles += [plt.Line2D([], [], marker=marks[n], label=n, **plain) for n in names]
    if any(r["enlarged"] for r in rows):
        handles.append(plt.Line2D([], [], marker="o", mfc="white", label="hollow, dotted: crops enlarged to its input", **plain))
    handles.append(plt.Line2D([], [], marker="o", ms=13, mfc="none", label="ring: on the Pareto front of its size", **plain))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    m = report["measured_on"]
    figure.suptitle(f"{m['kind']} {Path(m['split']).stem}, {m['persons']} persons; 95% intervals")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _ticks(values: list[float]) -> list[float]:
    """1, 2, 5 times powers of ten from below the least to above the largest value."""
    steps = [d * 10.0**e for e in range(-6, 7) for d in (1, 2, 5)]
    first = max(i for i, s in enumerate(steps) if s <= min(values))
    last = min(i for i, s in enumerate(steps) if s >= max(values))
    return steps[first : last + 1]


def _ends(figure: dict[str, Any]) -> tuple[float, float]:
    """Low and high; the value itself where there is no interval."""
    return tuple(figure["value"] if figure[end] is None else figure[end] for end in ("low", "high"))


def _costs(ax, rows, kind: str, cost, metric: str, colours, marks) -> None:
    for row in rows:
        x, figure, ink = cost(row), row["metrics"][metric], colours[row["size"]]
        ax.vlines(x, *_ends(figure), color=ink, lw=2, alpha=0.4)
        ax.plot(x, figure["value"], marks[row["name"]], color=ink, ms=8, mfc="white" if row["enlarged"] else ink, mew=1.6)
        if row["front"][kind]:
            ax.plot(x, figure["value"], "o", color=ink, ms=17, mfc="none", mew=1)
    for size, ink in colours.items():
        front = sorted((cost(r), r["metrics"][metric]["value"]) for r in rows if r["size"] == size and r["front"][kind])
        ax.plot(*zip(*front, strict=True), color=ink, lw=1.3, zorder=0)


def _heights(ax, report: dict[str, Any], colours, marks) -> None:
    metric = height_metric(report)
    for row in report["rows"]:
        points = [(h["height"], h["same"]["figures"][metric]) for h in row["heights"]["rows"] if metric in h["same"]["figures"]]
        ink, fill = colours[row["size"]], "white" if row["enlarged"] else colours[row["size"]]
        style = ":" if row["enlarged"] else "-"
        ax.plot([x for x, _ in points], [f["value"] for _, f in points], marks[row["name"]] + style, color=ink, mfc=fill, ms=5)
    heights = report["heights"]
    ax.set_xscale("log", base=2)
    ax.set_xticks(heights, [str(h) for h in heights])
    ax.minorticks_off()
    tallest = report["rows"][0]["heights"]["tallest"]
    ax.set(xlabel=f"rendered height, pixels (boxes of at least {tallest})", ylabel=f"{metric}, percent")
