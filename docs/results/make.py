"""Writes docs/results/README.md and the results of the front page from the cards in this folder.

python docs/results/make.py
"""

from __future__ import annotations

import json
from pathlib import Path

from lowpose.cards import interval

HERE = Path(__file__).parent
FRONT = HERE.parents[1] / "README.md"
BEGIN, END = "<!-- results:begin -->\n", "<!-- results:end -->\n"
METRICS = {"lsp": ("PCKh@0.5", "PCKh@0.1", "PCK@0.2", "EPE"), "coco": ("AP", "PCK@0.2", "EPE")}


def table(cards: dict[str, dict], links: bool) -> str:
    """One Markdown table per protocol."""
    out = []
    for protocol in sorted({c["measured_on"]["protocol"] for c in cards.values()}, reverse=True):
        names = METRICS[protocol]
        out += ["| recipe | epochs | params | GMAC | " + " | ".join(names) + " |", "|---" * (4 + len(names)) + "|"]
        for folder, card in cards.items():
            if card["measured_on"]["protocol"] != protocol:
                continue
            name = f"[{card['name']}]({folder}/card.md)" if links else f"`{card['name']}`"
            cost = f"{card['cost']['params'] / 1e6:.2f}M | {card['cost']['macs'] / 1e9:.3f}"
            values = " | ".join(interval(card["metrics"][n]) for n in names)
            out.append(f"| {name} | {card['trained_on']['epochs']} | {cost} | {values} |")
        out.append("")
    return "\n".join(out)


def page(cards: dict[str, dict]) -> str:
    lines = [
        "# Results",
        "",
        "Made from the cards in these folders by `python docs/results/make.py`; each card states the command, versions, split,",
        "boxes and resampling. In brackets: 95% bootstrap interval over persons. Percent, and EPE in picture pixels.",
        "",
        table(cards, links=True),
        "Rows of published tables (COCO, MPII, CrowdPose, CIFAR-10, TinyImageNet): recipes are there (`lowpose recipes`),",
        "**not run** here.",
        "",
        "- [cdkd.md](cdkd.md), [kdgf.md](kdgf.md), [mgil.md](mgil.md), [integral.md](integral.md): studies on LSPET",
        "- [heights.md](heights.md): every trained model by the height of the person in pixels",
        "- [synthetic.md](synthetic.md): drawn people before photographs",
        "- [export.md](export.md): exported files beside torch, and 8 bits; [calibration](calibration/calibration.md) of scores",
        "- [robustness of the 64 pixel network](robustness/lspet_simcc_hrnet-w18-small_64/robustness.md), of",
        "  [`lowpose-64`](robustness/lowpose-64/robustness.md) and [`lowpose-32`](robustness/lowpose-32/robustness.md), "
        "which far-camera views taught, and of the",
        "  [token network](robustness/lspet_tokenpose_hrnet-w18-small_64/robustness.md) on 300 persons: "
        "[robustness.md](../robustness.md)",
        "- [sizes and models](sweep/sweep.md) by accuracy and cost on 600 persons: [sweep.md](../sweep.md)",
        "- [benchmarks.md](benchmarks.md): loader, training, distillation, mixers, students beside the machine's floor",
    ]
    return "\n".join(lines) + "\n"


def front(cards: dict[str, dict]) -> str:
    text = FRONT.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    lsp = {k: c for k, c in cards.items() if c["measured_on"]["protocol"] == "lsp"}
    return before + BEGIN + table(lsp, links=False) + END + after


def read_cards() -> dict[str, dict]:
    return {p.parent.name: json.loads(p.read_text()) for p in sorted(HERE.glob("*/card.json"))}


def main() -> None:
    cards = read_cards()
    (HERE / "README.md").write_text(page(cards))
    FRONT.write_text(front(cards))


if __name__ == "__main__":
    main()
