"""The files of a breakdown: breakdown.json for programs, breakdown.md for people, breakdown.png to look at."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from lowpose.cards import interval, table_lines
from lowpose.files import write_report
from lowpose.metrics.breakdown import CROSSED, TITLES
from lowpose.plots import breakdown_plot, error_of, lead_of

SIDES = {"area": "square root of the person's area", "box": "square root of the box's area"}


class Lines(NamedTuple):
    """A table of text: its title, its columns, and its rows, each as long as the columns."""

    title: str
    columns: list[str]
    rows: list[list[str]]


def write_breakdown(folder: Path, stem: str, report: dict[str, Any]) -> None:
    """STEM.json, STEM.md and STEM.png, all or none. Raises: LowposeError naming a path that cannot be written."""
    paths = [folder / f"{stem}.{suffix}" for suffix in ("json", "md", "png")]
    write_report(paths, report, markdown, breakdown_plot)


def main_figures(report: dict[str, Any]) -> list[str]:
    """The figure in percent, the error and OKS: what a narrow table shows."""
    return list(dict.fromkeys(name for name in (lead_of(report), error_of(report), "OKS") if name in report["metrics"]))


def tables(report: dict[str, Any], metrics: Iterable[str] | None = None, digits: int = 2) -> list[Lines]:
    """A table of the figures, default all of them, for each thing that persons are sorted by, and of all persons."""
    metrics = list(metrics or report["metrics"])
    out = [Lines("All persons", ["", "persons", *metrics], [["all", *_cells(report["all"], metrics, digits)]])]
    for name, bins in report["by"].items():
        rows = [[label(bin_, cell), *_cells(cell, metrics, digits)] for bin_, cell in bins.items()]
        out.append(Lines(f"By {title(report, name)}", [name, "persons", *metrics], rows))
    return out


def cross_tables(report: dict[str, Any], metric: str, intervals: bool = True) -> list[Lines]:
    """One figure by two things at once, laid out as the paper's tables: number of persons in brackets, a dash for nobody."""
    out = []
    for a, b in CROSSED:
        cross = report["cross"].get(f"{a} x {b}")
        if cross is None:
            continue
        columns = report["by"][b]
        rows = [
            [label(row, report["by"][a][row]), *(_crossed(c, metric, intervals) for c in [*cells.values(), report["by"][a][row]])]
            for row, cells in cross.items()
        ]
        rows.append(["all", *(_crossed(c, metric, intervals) for c in [*columns.values(), report["all"]])])
        name = f"{metric} by {title(report, a)} and {title(report, b)}"
        out.append(Lines(name, [f"{a} / {b}", *(label(n, c) for n, c in columns.items()), "all"], rows))
    return out


def height_tables(report: dict[str, Any], metrics: Iterable[str] | None = None, digits: int = 2) -> list[Lines]:
    """The figures at rendered heights: of everybody who is as high, and of the same persons in every row."""
    heights = report.get("heights")
    if heights is None:
        return []
    metrics = list(metrics or report["metrics"])
    tallest = heights["tallest"]
    out = []
    for kind, name in (
        ("enough", "Brought down to a height: everybody whose box is at least as high"),
        ("same", f"Brought down to a height: the same persons, boxes of at least {tallest} pixels"),
    ):
        rows = [[f"{row['height']} px", *_cells(row[kind], metrics, digits)] for row in heights["rows"]]
        rows.append(["as they are", *_cells(heights["plain"][kind], metrics, digits)])
        out.append(Lines(name, ["height", "persons", *metrics], rows))
    return out


def title(report: dict[str, Any], name: str) -> str:
    """What a group of bins sorts by, as 'labelled joints of 14'."""
    detail = {"joints": f" of {report['joints']}", "size": f" ({SIDES[report['sizes']]}, pixels)"}
    return TITLES[name] + detail.get(name, "")


def label(name: str, cell: dict[str, Any]) -> str:
    """'few: 1-5', or the bounds alone where they are the name."""
    return name if name == cell["bounds"] else f"{name}: {cell['bounds']}"


def remarks(report: dict[str, Any]) -> list[str]:
    """What the tables do not show: missing figures and groups, persons who are in no cell."""
    lines = [f"Not measured: {TITLES.get(name, name)}: {why}." for name, why in report["not_measured"].items()]
    for key, why in (("unlabelled", "have no labelled joint and stand in no table"), ("unsorted", "have no area and no size")):
        if report[key]:
            lines.append(f"{report[key]} persons {why}.")
    if "heights" in report:
        smaller = ", ".join(f"{r['smaller']} at {r['height']} px" for r in report["heights"]["rows"] if r["smaller"])
        lines += [f"Nobody is enlarged; persons who are smaller than a height are left out there: {smaller}."] if smaller else []
    return lines


def markdown(report: dict[str, Any], picture: str) -> str:
    """The page, with a link to the plot beside it."""
    lines = [f"# {report['name']}: where its errors come from", "", *_about(report), "", f"![curves]({picture})", ""]
    lines += [f"- {remark}" for remark in remarks(report)]
    parts = [*tables(report)]
    for metric in dict.fromkeys((error_of(report), lead_of(report))):
        parts += cross_tables(report, metric) if metric else []
    for part in [*parts, *height_tables(report)]:
        lines += ["", f"## {part.title}", "", *table_lines(part.columns, part.rows)]
    if report.get("command"):
        lines += ["", "```", report["command"], "```"]
    return "\n".join(lines) + "\n"


def _about(report: dict[str, Any]) -> list[str]:
    m, i = report["measured_on"], report["input"]
    lines = [
        f"Measured on {m['kind']} `{m['split']}`: {m['persons']} persons, boxes: {m['boxes']}, protocol: {m['protocol']}. "
        f"Input {i['size'][0]}x{i['size'][1]} pixels, resampling `{i['resample']}`, "
        f"flip test {'on' if report['flip_test'] else 'off'}.",
        "Percent; EPE is the mean distance in pixels of the picture, EPE_crop in pixels of the input. In square brackets: 95%",
        "bootstrap interval over persons, none with fewer than two. A bin holds its lower bound. All figures: the JSON file.",
    ]
    if "heights" in report:
        c = report["heights"]["camera"]
        moved = f", movement {_span(c['motion'])} pixels" if "motion" in c else ""
        lines.append(
            f"Rendered heights: `camera` resampling, blur {_span(c['blur'])} pixels, noise {_span(c['noise'])} grey levels, "
            f"JPEG quality {_span(c['jpeg'])}{moved}, drawn for every person from seed {c['seed']}."
        )
    return lines


def _span(ends: list[float]) -> str:
    return f"{ends[0]:g} to {ends[1]:g}" if ends[0] != ends[1] else f"{ends[0]:g}"


def _cells(cell: dict[str, Any], metrics: list[str], digits: int) -> list[str]:
    return [str(cell["persons"]), *(interval(cell["figures"][m], digits) if m in cell["figures"] else "-" for m in metrics)]


def _crossed(cell: dict[str, Any], metric: str, intervals: bool) -> str:
    figure = cell["figures"].get(metric)
    if figure is None:
        return f"- ({cell['persons']})"
    return f"{interval(figure) if intervals else format(figure['value'], '.2f')} ({cell['persons']})"
