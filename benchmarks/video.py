"""What reading and drawing beside the network gains: seconds of `lowpose predict` on a video, with and without its threads.

    python benchmarks/video.py model.onnx --frames 120 --persons 2 --rounds 3

A video of noise that moves, with boxes of tracks, is made in a temporary folder; the rounds take turns with and without threads.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

import lowpose
from lowpose import predict
from lowpose.sources import VideoWriter


@contextmanager
def at_once(stream):
    """`ahead` without a thread."""
    yield stream


@contextmanager
def at_its_place(work):
    """`Behind` without a thread."""
    yield work


def make(folder: Path, frames: int, persons: int, size: tuple[int, int]) -> tuple[str, str]:
    """A video and its boxes in MOT's form; returns their paths."""
    width, height = size
    noise = cv2.resize(np.random.default_rng(0).integers(0, 256, (height // 8, width // 4, 3), np.uint8), (2 * width, height))
    rows = []
    with VideoWriter(folder / "v.mp4", 25) as video:
        for i in range(frames):
            video.write(noise[:, i % width : i % width + width])
            rows += [f"{i + 1},{p},{40 + 60 * p % (width - 80)},{50 + i % 50},40,90,1,-1,-1,-1" for p in range(persons)]
    (folder / "t.txt").write_text("\n".join(rows))
    return str(folder / "v.mp4"), str(folder / "t.txt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="an exported .onnx file")
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--persons", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, nargs=2, default=(960, 540))
    args = parser.parse_args()
    model, threaded = lowpose.load(args.model, threads=args.threads), (predict.ahead, predict.Behind)
    with tempfile.TemporaryDirectory() as name:
        video, boxes = make(Path(name), args.frames, args.persons, tuple(args.size))
        seconds = {"threads": [], "plain": []}
        for _ in range(args.rounds):
            for way, parts in (("threads", threaded), ("plain", (at_once, at_its_place))):
                predict.ahead, predict.Behind = parts
                start = time.perf_counter()
                lowpose.predict_sources(model, [video], boxes, draw=Path(name, "out"))
                seconds[way].append(time.perf_counter() - start)
                print(f"{way:8} {seconds[way][-1]:7.2f} s", flush=True)
    ratio = np.array(seconds["plain"]) / seconds["threads"]
    print(f"plain / threads: median {np.median(ratio):.2f}, {ratio.min():.2f} to {ratio.max():.2f} in {len(ratio)} rounds")


if __name__ == "__main__":
    main()
