"""Fills the tables of the pages beside it (PAGES) from their folders: comparisons, settings that were tried, cards.

python docs/results/studies.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from lowpose.cards import table_lines
from lowpose.comparison import cell

HERE = Path(__file__).parent
METRICS = ("PCKh@0.5", "PCKh@0.1", "PCK@0.2", "EPE_crop", "top-1")  # those that a comparison has
CDKD = {  # rows of its Table IV, of the released wiring and of the full comparison
    "simcc": "SimCC (baseline)",
    "projector": "+ projector",
    "ensemble": "+ ensemble of projectors",
    "sape": "+ SAU: all of SAPE",
    "cca": "CCA without ETHT",
    "cca-etht": "CCA with ETHT",
    "cdkd": "CDKD: SAPE, CCA, ETHT",
    "released": "what the released wiring teaches",
}
MGIL = {  # rows of its Table 5, and ours
    "simcc": "SimCC (baseline)",
    "spd": "SPD",
    "flie": "FLIE, two convolutions",
    "flie-cii": "FLIE + CII, added",
    "mgil": "MGIL: FLIE + CII + MGAF",
    "reduce": "light: channels reduced first",
    "depthwise": "light: depthwise",
    "below": "light: the stem stays",
    "wide": "control: plain HRNet-W18",
    "enlarged": "control: plain, crops enlarged twice",
    "cdkd": "CDKD",
    "mgil-cdkd": "MGIL taught by CDKD",
}
MIXERS = {
    "attention": "attention",
    "fft-static": "FFT, static",
    "fft-dynamic": "FFT, dynamic",
    "dct-static": "DCT, static",
    "dct-dynamic": "DCT, dynamic",
}
SEEDS = {  # the rows with three seeds
    "simcc_fft-static_64": "FFT, static",
    "simcc-kd_fft-static_64": "FFT, static, taught",
    "simcc_fft-dynamic_64": "FFT, dynamic",
    "simcc-kd_fft-dynamic_64": "FFT, dynamic, taught",
}
WARM = {  # regression that begins with a classification student's tokens
    "regression-warm_dct-static_64": "alone",
    "regression-warm-kd_dct-static_64": "taught",
    "regression-warm-l1_dct-static_64": "alone, L1",
}
ACROSS = {  # students of 32 pixels, whose grid is not the teacher's
    "across": "alone",
    "across-kd-average": "taught; keypoint tokens, marginals and visual tokens, the teacher's averaged to the grid",
    "across-kd-sape": "taught; keypoint tokens, marginals and visual tokens by SAPE",
    "across-kd": "taught; keypoint tokens and marginals",
}
CIFAR = {
    "cifar_plain": "ResNet-18 (baseline)",
    "cifar_spd": "SPD",
    "cifar_mgil": "MGIL",
    "cifar_wide": "control: plain, half again as wide",
}


def comparison(path: Path, rows: dict[str, str], costs: Path | None = None, lacking: str = METRICS[0]) -> str:
    """A Markdown table of recipes, by the stem of their file; those without a run say so.

    `costs`: file of `benchmarks/downsampling.py --json`, for columns of parameters, MACs and milliseconds. `lacking`: the metric
    named where nothing was run.
    """
    result = json.loads(path.read_text()) if path.is_file() else {"rows": [], "seeds": []}
    found = {Path(row["recipe"]).stem: row["metrics"] for row in result["rows"]}
    metrics = [m for m in METRICS if any(m in row for row in found.values())] or [lacking]
    cost = json.loads(costs.read_text())["rows"] if costs is not None and costs.is_file() else None
    heads = ["M", "MMAC", "ms"] if cost else []
    table = []
    for name, title in rows.items():
        row = found.get(name)
        cells = [cell(row[m]) for m in metrics] if row else ["not run"] * len(metrics)
        if cost:
            c = cost.get(name.rpartition("_")[0])
            cells = (
                [f"{c['params'] / 1e6:.2f}", f"{c['macs'] / 1e6:.1f}", f"{c['ms']['1']:.1f}", *cells]
                if c
                else ["", "", "", *cells]
            )
        table.append([title, *cells])
    out = table_lines(["", *heads, *metrics], table)
    if result["rows"]:
        b = result["budget"]
        seeds = ", ".join(map(str, result["seeds"]))
        out += ["", f"{b['epochs']} epochs, batches of {b['batch_size']}, seeds {seeds}; {b['data']}."]
    return "\n".join(out)


def sized(rows: dict[str, str], size: int, *names: str) -> dict[str, str]:
    """The rows of these names (default all) under their recipes' stems at a size."""
    return {f"{name}_{size}": rows[name] for name in names or rows}


def tried(path: Path) -> str:
    """Settings that were tried on 'tune', a part of the training split."""
    found = json.loads(path.read_text()) if path.is_file() else []
    rows = [[row["settings"], *(f"{row['metrics'][m]:.2f}" for m in METRICS[:3])] for row in found]
    return "\n".join(table_lines(["settings", *METRICS[:3]], rows))


def fill(text: str, tables: dict[str, str]) -> str:
    """`text` with each table between its marks."""
    for name, table in tables.items():
        marks = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        text, n = re.subn(marks, lambda m, t=table: f"{m[1]}{t}\n{m[2]}", text, flags=re.DOTALL)
        assert n == 1, f"the page has no place for {name}"
    return text


def cdkd(folder: Path) -> dict[str, str]:
    """Name of a place in cdkd.md -> its table."""
    return {
        "tried": tried(folder / "tune_32.json"),
        "screen_32": comparison(folder / "screen_32.json", sized(CDKD, 32)),
        "compare_32": comparison(folder / "compare_32.json", sized(CDKD, 32, "simcc", "projector", "cdkd")),
        "compare_64": comparison(folder / "compare_64.json", sized(CDKD, 64, "simcc", "projector", "cdkd")),
    }


def kdgf(folder: Path) -> dict[str, str]:
    """Of kdgf.md: token students alone and taught; a comparison of two rows for each mixer and kind of output."""
    mean = f"{json.loads((HERE / 'mean_pose.json').read_text())['metrics']['PCKh@0.5']:.2f}"
    students = [["none: the mean pose of the training split", "", "", mean, "", mean, ""]]
    for mixer, title in MIXERS.items():
        cells, cost = [], ["", ""]
        for head in ("simcc", "regression"):
            path = folder / f"{head}_{mixer}_64.json"
            if not path.is_file():
                cells += ["not run"] * 2
                continue
            alone, taught = json.loads(path.read_text())["rows"]
            cost = [f"{alone['params'] / 1e6:.2f}", f"{alone['macs'] / 1e6:.1f}"]
            cells += [cell(row["metrics"]["PCKh@0.5"]) for row in (alone, taught)]
        students.append([title, *cost, *cells])
    columns = ["mixer", "M", "MMAC", "classification", "taught", "regression", "taught"]
    alone = {f"simcc_{mixer}_64": title for mixer, title in MIXERS.items()}
    return {
        "students": "\n".join(table_lines(columns, students)),
        "mixers": comparison(folder / "mixers_64.json", alone),
        "seeds": comparison(folder / "seeds_64.json", SEEDS),
        "warm": comparison(folder / "warm_64.json", WARM),
        "across": comparison(folder / "across_32.json", sized(ACROSS, 32)),
    }


def mgil(folder: Path) -> dict[str, str]:
    """Of mgil.md."""
    costs = folder / "cost_32.json"
    screen = ("simcc", "spd", "flie", "flie-cii", "mgil", "reduce", "depthwise", "below", "wide", "enlarged")
    seeds = ("simcc", "mgil", "reduce", "cdkd", "mgil-cdkd")
    return {
        "screen_32": comparison(folder / "screen_32.json", sized(MGIL, 32, *screen), costs),
        "compare_32": comparison(folder / "compare_32.json", sized(MGIL, 32, *seeds)),
        "compare_64": comparison(folder / "compare_64.json", sized(MGIL, 64, "simcc", "mgil", "mgil-cdkd")),
        "cifar": comparison(folder / "cifar.json", CIFAR, lacking="top-1"),
    }


def synthetic(folder: Path) -> dict[str, str]:
    """Of synthetic.md: photographs after drawn people, beside fewer and as many steps on photographs alone."""
    measured = {name: json.loads((folder / f"{name}_32.json").read_text())["rows"] for name in ("simcc", "longer")}
    titles = {"simcc": "20 epochs of photographs", "longer": "40 epochs of photographs"}
    rows = [[titles[name], *(cell(measured[name][0]["metrics"][m]) for m in METRICS[:4])] for name in titles]
    rows += [
        [f"20 of drawn people, then 20 of photographs; beside {titles[name]}", *(cell(after["metrics"][m]) for m in METRICS[:4])]
        for name, (_, after) in measured.items()
    ]
    return {"prepared": "\n".join(table_lines(["", *METRICS[:4]], rows))}


def export(folder: Path) -> dict[str, str]:
    """Of export.md: what exported files answer beside torch."""
    found = json.loads((HERE / "parity.json").read_text())
    differences = ("pixels", "score", "maps")
    models = [
        [r["model"], r["head"], *(f"{r[name]:.1g}" for name in differences), f"{r['ties']:.0f} of {r['keypoints']:.0f}"]
        for r in found["models"]
    ]
    photographs = [
        [name, str(r["persons"]), f"{r['mean']:.2g}", f"{r['largest']:.2g}", str(r["over_1px"])]
        for name, r in found["photographs"].items()
    ]
    eight = []
    for path in sorted(folder.glob("card-*-int8.json")):
        e = json.loads(path.read_text())["exported"]
        size = f"{e['bytes_float32'] / 1e6:.2f} to {e['bytes'] / 1e6:.2f}"
        figures = (f"{e['before'][name]['value']:.2f} to {cell(e['difference'][name])}" for name in METRICS[:4])
        eight.append([path.stem.removeprefix("card-").removesuffix("-int8"), size, *figures])
    tables = {
        "parity": table_lines(["model", "head", *differences, "ties"], models),
        "photographs": table_lines(["weights", "persons", "mean", "largest", "keypoints over 1 pixel"], photographs),
        "int8": table_lines(["float32 to INT8", "MB", *METRICS[:4]], eight),
    }
    return {name: "\n".join(lines) for name, lines in tables.items()}


INTEGRAL = {
    "detection": "detection: heatmap, DARK",
    "plain": "regression: soft-argmax, beta 1",
    "compensated": "regression: without the bias, and the prior",
    "compensated-no-prior": "the same without the prior",
}
READINGS = {  # settings of `lowpose eval` -> what they mean
    "argmax": "highest cell",
    "dark": "DARK",
    "plain": "soft-argmax, beta as trained",
    "compensated": "without the bias, beta as trained",
    "compensated-beta-3": "without the bias, beta 3",
    "plain-beta-10": "soft-argmax, beta 10",
}


def integral(folder: Path) -> dict[str, str]:
    """Of integral.md: detection and regression, trained and read as such, and the parts of the split where they err."""
    figures, readings = ("PCKh@0.5", "PCKh@0.1", "EPE_crop"), []
    for name, title in INTEGRAL.items():
        for reading, told in READINGS.items():
            path = folder / "readings" / f"{name}_{reading}.json"
            if path.is_file():
                metrics = json.loads(path.read_text())["metrics"]
                readings.append([title, told, *(f"{metrics[m]['value']:.2f}" for m in figures)])
    models = json.loads((HERE / "parts.json").read_text())["models"]
    ours = {title: models[f"integral/{name}_64"] for name, title in INTEGRAL.items() if f"integral/{name}_64" in models}
    return {
        "compare": comparison(folder / "compare.json", sized(INTEGRAL, 64, "detection", "plain", "compensated")),
        "prior": comparison(folder / "prior.json", sized(INTEGRAL, 64)),
        "readings": "\n".join(table_lines(["trained as", "read as", *figures], readings)),
        **{part: parts_table(ours, part, "EPE_crop", 2) for part in ("joints", "size", "height")},
    }


def parts_table(models: dict[str, dict], part: str, metric: str, digits: int) -> str:
    """Models by the bins of a part of the split, a figure each; bins without anybody are left out."""
    if not models:
        return "not run"
    bins = {b: c["persons"] for b, c in next(iter(models.values()))["parts"][part].items() if c["persons"]}
    rows = [["persons", *map(str, [sum(bins.values()), *bins.values()])]]
    for name, model in models.items():
        cells = [model["parts"]["all"]["all"], *(model["parts"][part][b] for b in bins)]
        rows.append([name, *("-" if c[metric] is None else f"{c[metric]:.{digits}f}" for c in cells)])
    return "\n".join(table_lines(["", "all", *bins], rows))


def heights(folder: Path) -> dict[str, str]:
    """Of heights.md: every trained model by the natural height of persons, and shipped ones by rendered height."""
    models = json.loads((HERE / "parts.json").read_text())["models"]
    names = {f"{n} ({m['seeds']})" if m["seeds"] > 1 else n: m for n, m in models.items()}
    cards = [*sorted((HERE.parents[1] / "src/lowpose/weights").glob("*.json")), *sorted(folder.glob("*.json"))]
    found = {path.stem: json.loads(path.read_text())["heights"]["rows"] for path in cards}
    columns = ["", *(f"{r['height']} px" for r in next(iter(found.values())))]
    rows = [[name, *(f"{r['same']['figures']['PCKh@0.5']['value']:.1f}" for r in values)] for name, values in found.items()]
    return {"natural": parts_table(names, "height", "PCKh@0.5", 1), "rendered": "\n".join(table_lines(columns, rows))}


PAGES = {
    "cdkd": cdkd,
    "kdgf": kdgf,
    "mgil": mgil,
    "export": export,
    "integral": integral,
    "heights": heights,
    "synthetic": synthetic,
}


def main() -> None:
    for name, tables in PAGES.items():
        page = HERE / f"{name}.md"
        page.write_text(fill(page.read_text(), tables(HERE / name)))


if __name__ == "__main__":
    main()
