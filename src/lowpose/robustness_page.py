"""What `lowpose robustness` shows: tables in Markdown, and the figure (matplotlib, extra `train`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lowpose.cards import interval, table_lines
from lowpose.data.degradations import OPERATORS

COLOURS = ("#4477aa", "#cc6677", "#117733", "#ddaa33")
MARKS = ("o", "s", "^", "D")


def markdown(report: dict[str, Any], picture: str) -> str:
    """The page, with a link to the figure beside it."""
    m, i = report["measured_on"], report["input"]
    lead = report["metrics"][0]
    lines = [
        f"# {report['name']}: robustness",
        "",
        f"Measured on {m['kind']} `{m['split']}`: {m['persons']} persons, boxes: {m['boxes']}, protocol: {m['protocol']}. "
        f"Input {i['size'][0]}x{i['size'][1]} pixels, resampling `{i['resample']}`, "
        f"flip test {'on' if report['flip_test'] else 'off'}. Random directions and noise from seed {report['seed']}.",
        "In square brackets: 95% bootstrap interval over persons (AP: pictures). Relative accuracy: percent of that on plain",
        "crops, its interval paired. EPE_crop: mean distance in pixels of the plain input.",
        "",
        f"![relative accuracy over severity]({picture})",
        "",
        *(f"- Relative {name} is not defined: {why}." for name, why in report["not_defined"].items()),
        *([f"- Pictures that could not be read: {len(report['skipped_pictures'])}."] if report["skipped_pictures"] else []),
        *([""] if report["not_defined"] or report["skipped_pictures"] else []),
        "## Mean relative accuracy",
        "",
        *table_lines(["operator", *report["overall"]], mean_rows(report)),
        "",
        "On plain crops: " + ", ".join(f"{name} {interval(value)}" for name, value in report["clean"].items()) + ".",
    ]
    for name in report["metrics"]:
        lines += ["", f"## {name}, and percent of plain" if name in report["overall"] else f"## {name}", ""]
        lines += table_lines(["operator", "1", "2", "3", "4", "5"], severity_rows(report, name, intervals=name == lead))
    lines += ["", "## Severities", "", *table_lines(["operator", "1", "2", "3", "4", "5", "unit"], _values())]
    if report.get("command"):
        lines += ["", "```", report["command"], "```"]
    return "\n".join(lines) + "\n"


def mean_rows(report: dict[str, Any], digits: int = 1) -> list[list[str]]:
    """A row per operator, mean over its severities, and one over all."""
    rows = {name: o["mean"] for name, o in report["operators"].items()} | {"all": report["overall"]}
    return [[name, *(interval(cell, digits) for cell in cells.values())] for name, cells in rows.items()]


def severity_rows(report: dict[str, Any], metric: str, intervals: bool = False) -> list[list[str]]:
    """A row per operator: the figure at each severity, for accuracies with percent of plain in brackets."""
    return [
        [name, *(_figure(row["figures"][metric], intervals) for row in o["severities"])]
        for name, o in report["operators"].items()
    ]


def _figure(cell: dict[str, Any], intervals: bool) -> str:
    text = interval(cell, 1) if intervals else f"{cell['value']:.1f}"
    share = cell.get("relative", {}).get("value")
    return text if share is None else f"{text} ({share:.0f}%)"


def _values() -> list[list[str]]:
    return [[o.name, *(f"{v:g}" for v in o.values), o.unit] for o in OPERATORS]


def draw_robustness(report: dict[str, Any], path: Path) -> None:
    """PNG: a panel per group of operators, a curve per operator, of the main metric; bands are 95% intervals.

    Relative accuracy; the accuracy itself where that is not defined.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    metric, operators = report["metrics"][0], report["operators"]
    relative = metric in report["overall"] and metric not in report["not_defined"]
    groups = list(dict.fromkeys(o["group"] for o in operators.values()))
    figure, panels = plt.subplots(1, len(groups), figsize=(4.6 * len(groups), 5.2), sharey=True, layout="constrained")
    for axes, group in zip(panels, groups, strict=True):
        own = {name: o for name, o in operators.items() if o["group"] == group}
        for (name, operator), colour, mark in zip(own.items(), COLOURS, MARKS, strict=False):
            _curve(axes, name, operator, report["clean"][metric], metric, relative, colour, mark)
        axes.set(xlabel="severity", title=group, xticks=range(6))
        axes.set_xticklabels(["plain", *"12345"])
        axes.grid(alpha=0.3)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), fontsize=9, frameon=False)
    panels[0].set_ylabel(f"{metric}, percent of that on plain crops" if relative else _unit(metric))
    panels[0].set_ylim(0, None)
    m = report["measured_on"]
    figure.suptitle(f"{report['name']}: robustness\n{m['kind']} {Path(m['split']).stem}, {m['persons']} persons; 95% intervals")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _curve(axes, name: str, operator: dict[str, Any], clean: dict[str, Any], metric: str, relative: bool, colour, mark) -> None:
    cells = [row["figures"][metric]["relative"] if relative else row["figures"][metric] for row in operator["severities"]]
    start = {"value": 100.0, "low": 100.0, "high": 100.0} if relative else clean
    cells = [start, *cells]
    ends = [[cell["value"] if cell[end] is None else cell[end] for cell in cells] for end in ("low", "high")]
    values = ", ".join(f"{row['value']:g}" for row in operator["severities"])
    label = f"{name}: {values} {operator['unit']}"
    axes.fill_between(range(len(cells)), *ends, color=colour, alpha=0.15, lw=0)
    axes.plot([cell["value"] for cell in cells], color=colour, marker=mark, ms=5, label=label)


def _unit(metric: str) -> str:
    return f"{metric}, crop pixels" if metric == "EPE_crop" else f"{metric}, percent"
