"""Cards: what was trained on what, how good it is, and what it costs; JSON for programs, Markdown for people."""

from __future__ import annotations

import hashlib
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from lowpose import __version__
from lowpose.config import RunConfig, portable, recipe_values
from lowpose.files import write_json, write_text
from lowpose.samples import ClassData, PoseData

CONVENTION = "continuous pixels (pixel i covers [i, i+1)), also for recipes of published rows; see docs/conventions.md"
SHOWN = 6  # of long lists of names
PACKAGES = ("torch", "torchvision", "timm", "accelerate", "numpy", "opencv-python-headless", "faster-coco-eval", "onnxruntime")


def versions() -> dict[str, str]:
    """Versions of lowpose, Python and the packages that decide a result."""
    out = {"lowpose": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            out[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return out


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make_card(
    config: RunConfig, data: PoseData | ClassData, report: dict[str, Any], weights: Path, cost: dict[str, Any], **facts: Any
) -> dict[str, Any]:
    """A card as a mapping.

    Args:
        report: of `lowpose.evaluate`. cost: 'params' and 'macs'. facts: anything else worth stating (step, command, notes).
    """
    card = {
        "name": config.name,
        "weights": {"file": weights.name, "sha256": sha256(weights)},
        "trained_on": {
            "kind": config.data.kind,
            "split": config.data.train,
            "epochs": config.train.epochs,
            "seed": config.train.seed,
        },
        "measured_on": measured_on(data),
        "input": {"size": list(config.input.size), "padding": config.input.padding, "resample": config.input.resample},
        "flip_test": config.eval.flip,
        "metrics": report["metrics"],
        "not_measured": report.get("not_measured", {}),
        "persons_left_out": report.get("persons_left_out", {}),
        "groups": report.get("groups", {}),
        "cost": cost,
        "skipped_pictures": report.get("skipped_pictures", []),
        **({} if isinstance(data, ClassData) else {"convention": CONVENTION}),
        "versions": versions(),
        "machine": f"{platform.machine()} {platform.system()}",
        "recipe": recipe_values(portable(config)),
    }
    if config.paper is not None:
        card["paper"] = config.paper.model_dump(exclude_none=True)
    return card | facts


def measured_on(data: PoseData | ClassData) -> dict[str, Any]:
    where = {"kind": data.kind, "split": data.split}
    if isinstance(data, ClassData):
        return where | {"pictures": len(data), "classes": len(data.classes)}
    return where | {"persons": len(data), "boxes": data.boxes, "protocol": data.protocol}


def write_card(folder: Path, card: dict[str, Any], stem: str = "card") -> None:
    write_json(folder / f"{stem}.json", card)
    write_text(folder / f"{stem}.md", markdown(card))


def table_lines(columns: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table."""
    return [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


def interval(metric: dict[str, Any], digits: int = 2) -> str:
    """'53.02 [51.91, 54.13]', or the value alone where there is no interval."""
    if metric.get("value") is None:
        return "not defined"
    text = f"{metric['value']:.{digits}f}"
    if metric.get("low") is not None and metric.get("high") is not None:
        text += f" [{metric['low']:.{digits}f}, {metric['high']:.{digits}f}]"
    return text


def markdown(card: dict[str, Any]) -> str:
    m, i, t = card["measured_on"], card["input"], card["trained_on"]
    lines = [
        f"# {card['name']}",
        "",
        f"Trained on {t['kind']} `{t['split']}`, {t['epochs']} epochs, seed {t['seed']}{_half(card)}{_began(card['recipe'])}. "
        f"Measured on {m['kind']} `{m['split']}`: {_persons(m)}.",
        f"Input {i['size'][0]}x{i['size'][1]} pixels (width x height), padding {i['padding']}, resampling `{i['resample']}`, "
        f"{_enlarged(card['recipe'])}flip test {'on' if card['flip_test'] else 'off'}.",
        f"Cost: {card['cost']['params'] / 1e6:.2f}M parameters, {card['cost']['macs'] / 1e9:.3f} GMAC.",
        "",
        *table_lines(
            ["metric", f"value [95% interval over {'pictures' if 'classes' in m else 'persons; AP and AR: over pictures'}]", "n"],
            [[name, interval(v), str(v.get("n", ""))] for name, v in card["metrics"].items()],
        ),
    ]
    if card.get("exported"):
        lines += ["", *_exported(card)]
    if card.get("teacher"):
        lines += ["", _teacher(card["teacher"])]
    left_out = _left_out(card)
    lines += ["", *left_out] if left_out else []
    if card["recipe"].get("note"):
        lines += ["", f"Note: {card['recipe']['note']}."]
    if "paper" in card:
        p = card["paper"]
        value = "not printed for this size" if p.get("value") is None else p["value"]
        lines += ["", f"Published: {p['title']}, {p['table']}, {p['row']}: {p['metric']} {value}."]
        lines += [f"Note: {p['note']}"] if p.get("note") else []
    lines += _by_class(card) if "classes" in m else _by_joint(card)
    if card["skipped_pictures"]:
        lines += ["", f"Pictures that could not be read: {len(card['skipped_pictures'])}"]
        lines += [f"- {line}" for line in card["skipped_pictures"][:10]]
    if card.get("skipped_in_training"):
        lines += ["", f"Pictures that training could not read: {len(card['skipped_in_training'])} (named in card.json)"]
    lines += ["", f"Coordinates: {card['convention']}."] if "convention" in card else []
    lines += [
        "",
        "Versions: " + ", ".join(f"{k} {v}" for k, v in card["versions"].items()) + ".",
    ]
    if card.get("command"):
        lines += ["", "```", card["command"], "```"]
    return "\n".join(lines) + "\n"


def _half(card: dict[str, Any]) -> str:
    return f", in {card['precision']}" if card.get("precision", "no") != "no" else ""


def _began(recipe: dict[str, Any]) -> str:
    return f", beginning as `{recipe['init']}`" if recipe.get("init") else ""


def _enlarged(recipe: dict[str, Any]) -> str:
    factor = recipe.get("model", {}).get("enlarge", 1)
    return f"enlarged {factor} times by the network, " if factor > 1 else ""


def _persons(measured_on: dict[str, Any]) -> str:
    if "classes" in measured_on:
        return f"{measured_on['pictures']} pictures of {measured_on['classes']} classes"
    return "{persons} persons, boxes: {boxes}, protocol: {protocol}".format(**measured_on)


def _by_joint(card: dict[str, Any]) -> list[str]:
    groups = {k: v for k, v in card["groups"].items() if v}
    if not groups:
        return []
    names = list(next(iter(groups.values())))
    return ["", *table_lines(["by joint", *names], [[k, *(_number(v.get(n)) for n in names)] for k, v in groups.items()])]


def _by_class(card: dict[str, Any], ends: int = 10) -> list[str]:
    """The classes that are told worst and best; all are in card.json."""
    ranked = sorted(card["groups"]["top-1"].items(), key=lambda item: item[1])
    shown = ranked if len(ranked) <= 2 * ends else [*ranked[:ends], *ranked[-ends:]]
    return ["", *table_lines(["class", "top-1"], [[name, f"{value:.1f}"] for name, value in shown])]


def _left_out(card: dict[str, Any]) -> list[str]:
    """What the table does not show: figures that could not be measured, persons without a length, tensors not loaded."""
    lines = [f"Not measured: {name}: {why}." for name, why in card["not_measured"].items()]
    lines += [
        f"{name}: {n} persons left out, whose normalising length is not known."
        for name, n in card["persons_left_out"].items()
        if n
    ]
    if card.get("not_loaded"):
        names = card["not_loaded"]
        told = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more (named in card.json)" if len(names) > SHOWN else "")
        lines.append(f"Not loaded from `init`: {told}.")
    return [f"- {line}" for line in lines]


def _exported(card: dict[str, Any]) -> list[str]:
    """What a smaller file lost against the float32 file of the same weights."""
    e = card["exported"]
    kept = ", ".join(e["float32_parts"]) or "nothing"
    ranges = f"; ranges from {e['calibration']['crops']} crops of `{e['calibration']['split']}`" if e["calibration"] else ""
    before = {name: v["value"] for name, v in e["before"].items() if v.get("value") is not None}
    rows = [
        [name, f"{before[name]:.2f}", f"{d['mean']:.2f}", f"{d['difference']:+.2f} [{d['low']:+.2f}, {d['high']:+.2f}]"]
        for name, d in e["difference"].items()
        if name in before
    ]
    return [
        f"Exported as {e['precision']} from {e['from']['file']} ({e['layers']} layers; in float32: {kept}{ranges}): "
        f"{e['bytes'] / 1e6:.2f} MB, float32 {e['bytes_float32'] / 1e6:.2f} MB. Before and after, on the same persons:",
        "",
        *table_lines(["metric", "float32", e["precision"], "difference [95% interval]"], rows),
    ]


def _teacher(t: dict[str, Any]) -> str:
    kept = "live" if t["cache"] == "none" else f"answers kept ({t['cache']})"
    return (
        f"Teacher: {t['name']} ({t['backbone']}, {t['size'][0]}x{t['size'][1]}, head {t['head']}, precision {t['precision']}, "
        f"flip test {'on' if t['flip'] else 'off'}, {kept}), sha256 {t['sha256'][:12]}."
    )


def _number(value: Any) -> str:
    if isinstance(value, dict):
        value = value.get("value")
    return "-" if value is None else f"{value:.1f}"
