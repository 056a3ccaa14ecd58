"""Training images per second of HRNet-W32 + SimCC at 64 px: plain fp32 as the papers train, and as we do.

    python benchmarks/training.py [--size 64] [--batch 128] [--backbone hrnet_w32]

Random crops, Adam, forward, backward and update. The ways run in turn, `--rounds` times; the table shows medians and
ratios to plain fp32 within each round. Two ranks are two processes of one thread with the same global batch.
"""

from __future__ import annotations

import argparse
import os
import socket
import time

import numpy as np
import torch
import torch.multiprocessing as mp

from lowpose.config import parse_config
from lowpose.nn.model import build_model
from lowpose.skeletons import COCO17

WAYS = {
    "fp32, one process, 2 threads": {"ranks": 1, "threads": 2, "bf16": False, "last": False},
    "bf16 + channels-last, one process, 2 threads": {"ranks": 1, "threads": 2, "bf16": True, "last": True},
    "bf16 + channels-last, two ranks of 1 thread": {"ranks": 2, "threads": 1, "bf16": True, "last": True},
}


def work(rank: int, way: dict, args: argparse.Namespace, port: int, out) -> None:
    torch.set_num_threads(way["threads"])
    torch.manual_seed(0)
    settings = {"model": {"backbone": args.backbone, "pretrained": "none"}, "input": {"size": [args.size] * 2}}
    bare = build_model(parse_config(settings | {"head": {"name": "simcc", "split": 3}}, "benchmark"), COCO17)
    model = bare.to(memory_format=torch.channels_last) if way["last"] else bare
    if way["ranks"] > 1:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        torch.distributed.init_process_group("gloo", rank=rank, world_size=way["ranks"])
        model = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    batch = args.batch // way["ranks"]
    images = torch.randint(0, 256, (batch, args.size, args.size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    images = images if way["last"] else images.contiguous()
    keypoints, weight = torch.rand(batch, 17, 2) * args.size, torch.ones(batch, 17)
    for step in range(args.steps + 2):
        if step == 2:  # two steps warm up
            start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=way["bf16"]):
            outputs = model(images)
        targets, w = bare.head.targets(keypoints, weight)
        loss = sum(bare.head.loss({k: v.float() for k, v in outputs.items()}, targets, w).values()) / w.sum()
        loss.backward()
        optimizer.step()
    if rank == 0:
        out.put(args.steps * batch * way["ranks"] / (time.perf_counter() - start))
    if way["ranks"] > 1:
        torch.distributed.destroy_process_group()


def images_per_second(way: dict, args: argparse.Namespace) -> float:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    out = mp.get_context("spawn").SimpleQueue()
    mp.spawn(work, (way, args, port, out), nprocs=way["ranks"])
    return out.get()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="hrnet_w32")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    rates = np.array([[images_per_second(way, args) for way in WAYS.values()] for _ in range(args.rounds)])
    print(f"{args.backbone} + SimCC, {args.size} px, batch {args.batch}, torch {torch.__version__}, {os.cpu_count()} cores")
    print(f"{'way':48}{'images/s':>10}{'ratio':>8}")
    for name, middle, ratio in zip(WAYS, np.median(rates, 0), np.median(rates / rates[:, :1], 0), strict=True):
        print(f"{name:48}{middle:10.1f}{ratio:8.2f}")


if __name__ == "__main__":
    main()
