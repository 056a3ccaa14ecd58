"""Verbs that say what there is: version, recipes, methods, info."""

from __future__ import annotations

from rich.table import Table

from lowpose.cli.printing import AsJson, Overrides, console, print_json

PUBLISHED = ("coco", "mpii", "crowdpose")


def version() -> None:
    """Versions of lowpose and of what it stands on."""
    from lowpose.cards import versions

    for name, number in versions().items():
        console.print(f"{name} {number}")


def recipes(as_json: AsJson = False) -> None:
    """List the recipes, with the published rows that they stand for."""
    from lowpose.listing import list_recipes

    rows = list_recipes()
    if as_json:
        return print_json(rows)
    table = Table("recipe", "published row", "metric", "value")
    for r in rows:
        p = r.get("paper")
        row = (
            f"{p['title'][:24]}..., {p['table'].split(' on ')[0]}: {p['row']}"
            if p
            else ("no printed row" if r["data"] in PUBLISHED else "ours")
        )
        table.add_row(r["name"], row, p["metric"] if p else "", str(p.get("value", "not printed")) if p else "")
    console.print(table)


def weights(as_json: AsJson = False) -> None:
    """List the weights that come with the package."""
    from lowpose.shipped import FOLDER, list_weights

    rows = list_weights()
    if as_json:
        return print_json(rows)
    metric = next(iter(rows[0]["metrics"]))
    table = Table("weights", "pixels", "params M", "MMAC", "MB", metric, "trained on")
    for r in rows:
        size, cost = "x".join(map(str, r["size"])), (f"{r['params'] / 1e6:.2f}", f"{r['macs'] / 1e6:.0f}")
        value, kind = f"{r['metrics'][metric]['value']:.1f}", r["trained_on"]["kind"]
        table.add_row(r["name"], size, *cost, f"{r['bytes']['onnx'] / 1e6:.1f}", value, kind)
    console.print(table)
    console.print(f"cards, by height in pixels, with terms: {FOLDER}", soft_wrap=True, highlight=False)


def methods() -> None:
    """List what a recipe can name: readers, heads, mixers, methods of distillation."""
    from lowpose import registry

    for kind in ("data", "head", "mixer", "distill", "curriculum", "classes", "classifier"):
        table = Table(kind, "what it is")
        for name in registry.names(kind):
            table.add_row(name, registry.find(kind, name).summary)
        console.print(table)


def info(recipe: str, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Parameters and MACs of a recipe's model, by part."""
    from lowpose.recipe_info import info as find

    found = find(recipe, overrides or [])
    if as_json:
        return print_json(found)
    predicts = found["skeleton"] if "skeleton" in found else f"{found['classes']} classes"
    title = f"{found['name']}  {found['size'][0]}x{found['size'][1]}, {predicts}"
    table = Table("part", "parameters", "MACs", title=title)
    for part, params in found["params_by_part"].items():
        table.add_row(part, f"{params:,}", f"{found['macs_by_part'].get(part, 0):,}")
    table.add_row("all", f"{found['params']:,}", f"{found['macs']:,}", style="bold")
    table.add_row("norms (beside)", "", f"{found['norm_macs']:,}")
    console.print(table)
    if "replaced" in found:
        table = Table("layer", "was", "M", "now", "MMAC", "now", title=f"{len(found['replaced'])} layers replaced")
        table.columns[0].overflow = "fold"
        for layer in found["replaced"]:
            numbers = (layer[f"{what}_{when}"] for what in ("params", "macs") for when in ("before", "after"))
            table.add_row(layer["path"], layer["was"], *(f"{n / 1e6:.2f}" for n in numbers))
        console.print(table)
    if "paper" in found:
        p = found["paper"]
        console.print(f"{p['title']}, {p['table']}: {p['row']}: {p['metric']} {p.get('value', 'not printed')}")
