"""Samples per second and core of the loader, with and without the crop cache.

    python benchmarks/loader.py coco:PATH --split train --size 64

One process, one OpenCV thread, random views in random order, as in training. The cache is built before the clock starts.
"""

from __future__ import annotations

import argparse
import tempfile
import time

import cv2
import numpy as np

from lowpose.config import AugmentConfig, CacheConfig, InputConfig
from lowpose.data import load_data, parse_source
from lowpose.data.cache import open_cache
from lowpose.data.crops import CropReader


def rate(reader: CropReader, persons: np.ndarray, epoch: int) -> float:
    start = time.perf_counter()
    for i in persons:
        reader.crop(int(i), epoch)
    return len(persons) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="KIND:ROOT")
    parser.add_argument("--split", default="train")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--persons", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    data = load_data(*parse_source(args.data), args.split)
    first = data.read(data.samples[0].image)
    print(f"{data.kind} {args.split}: {len(data)} persons; first picture {first.shape[1]}x{first.shape[0]}; crops {args.size} px")
    print(f"{'policy':10}{'pictures/s':>12}{'cache/s':>12}{'reduced/s':>12}{'cache ratio':>14}{'reduced ratio':>15}")
    rng = np.random.default_rng(0)
    for policy in ("area", "paper", "camera"):
        settings, augment = InputConfig(size=(args.size, args.size), resample=policy), AugmentConfig()
        with tempfile.TemporaryDirectory() as folder:
            caches = [None, open_cache(data, settings, augment, CacheConfig(dir=folder))]
            if policy != "paper":
                caches.append(open_cache(data, settings, augment, CacheConfig(dir=folder, reduced=True)))
            readers = [CropReader(data, settings, augment, 0, c) for c in caches]
            rates = np.zeros((args.rounds, len(readers)))
            for r in range(args.rounds + 1):  # the first round warms up
                persons = rng.permutation(len(data))[: args.persons]
                row = [rate(reader, persons, r) for reader in readers]
                if r:
                    rates[r - 1] = row
        middle, ratio = np.median(rates, 0), np.median(rates / rates[:, :1], 0)
        reduced = f"{middle[2]:12.0f}" if len(middle) > 2 else f"{'-':>12}"
        last = f"{ratio[2]:15.1f}" if len(middle) > 2 else f"{'-':>15}"
        print(f"{policy:10}{middle[0]:12.0f}{middle[1]:12.0f}{reduced}{ratio[1]:14.1f}{last}")


if __name__ == "__main__":
    main()
