"""Token mixers on a CPU: one layer and whole models, global filters against fused attention, in one run.

    python benchmarks/mixers.py [--sizes 256 512 1024] [--batches 1 32] [--rounds 9] [--threads 1] [--parts layer model]

Tokens of 16 x 16 pixels, width 192; models have 12 layers, no backbone and SimCC outputs (KDGF's models without backbone, the
filters as the equations have them). Milliseconds are medians over rounds in which all ways take turns, so that other work on
the machine falls on all of them; ratios are medians over rounds of attention's time divided by the way's. `ideal`: the ratio of
multiply-accumulates. A line whose rounds would take longer than `--seconds` gets fewer of them, at least one.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from lowpose.config import TokensConfig, parse_config
from lowpose.nn.cost import count
from lowpose.nn.mixers.base import TokenGrid
from lowpose.nn.model import build_model
from lowpose.nn.tokens import make_mixer
from lowpose.skeletons import MPII16
from lowpose.turns import measure

PATCH, WIDTH = 16, 192
WAYS = {
    "attention": {"name": "attention"},
    "static, FFT": {"name": "gfl-static", "way": "fft"},
    "static, FFT by matrices": {"name": "gfl-static", "way": "matrix"},
    "static, DCT": {"name": "gfl-static", "transform": "dct"},
    "dynamic, FFT": {"name": "gfl-dynamic", "way": "fft"},
    "dynamic, FFT by matrices": {"name": "gfl-dynamic", "way": "matrix"},
    "dynamic, DCT": {"name": "gfl-dynamic", "transform": "dct"},
}


def layers(size: int, batch: int) -> dict:
    """Way -> a function that runs one mixer on random tokens."""
    grid = TokenGrid(len(MPII16), size // PATCH, size // PATCH)
    tokens = torch.randn(batch, grid.count, WIDTH)
    built = {way: make_mixer(TokensConfig(mixer=mixer, width=WIDTH), grid).eval() for way, mixer in WAYS.items()}
    return {way: (lambda mixer=mixer: mixer(tokens)) for way, mixer in built.items()}


def recipe(size: int, mixer: dict):
    tokens = {"patch": [PATCH, PATCH], "width": WIDTH, "mixer": mixer}
    values = {
        "input": {"size": [size, size]},
        "model": {"backbone": "none", "pretrained": "none", "tokens": tokens},
        "head": {"name": "simcc"},
    }
    return parse_config(values, "benchmark")


def model(size: int, mixer: dict):
    return build_model(recipe(size, mixer), MPII16).eval()


def models(size: int, batch: int) -> dict:
    """Way -> a function that runs a whole model on random pictures."""
    pictures = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8)
    built = {way: model(size, mixer) for way, mixer in WAYS.items()}
    return {way: (lambda net=net: net(pictures)) for way, net in built.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--parts", nargs="+", choices=["layer", "model"], default=["layer", "model"])
    parser.add_argument("--seconds", type=float, default=60.0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.threads} thread(s), float32, eager; ms, and attention's time / this one's")
    for part in args.parts:
        for size in args.sizes:
            ideal = {way: count(model(size, mixer), (size, size)).published_macs for way, mixer in WAYS.items()}
            for batch in args.batches:
                table(part, size, batch, args, ideal)


@torch.no_grad()
def table(part: str, size: int, batch: int, args: argparse.Namespace, macs: dict[str, int]) -> None:
    times = measure((layers if part == "layer" else models)(size, batch), args.rounds, args.seconds)
    rounds = len(times["attention"])
    print(f"\n{part}, {size} px ({(size // PATCH) ** 2} + {len(MPII16)} tokens), batch {batch}, {rounds} rounds")
    for way, values in times.items():
        ratio = np.median(np.array(times["attention"]) / np.array(values))
        ideal = f"   ideal {macs['attention'] / macs[way]:5.2f}" if part == "model" else ""
        print(f"{way:26}{np.median(values):11.2f}{ratio:9.2f}{ideal}", flush=True)


if __name__ == "__main__":
    main()
