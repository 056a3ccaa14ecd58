"""What a teacher costs while a student trains, as CDKD's Table X: the plain student, a live teacher, kept answers.

    python benchmarks/distillation.py RECIPE [key=value ...]    RECIPE has a teacher and methods of distillation

Each way trains in a process of its own (peak memory is a process's), one thread; the ways take turns, block by block, so that
other work on the machine falls on all of them. The table shows medians over blocks and ratios to the plain student within each
round; parameters are all that a step holds; MACs are those of the networks on one picture, forward, without projectors.
"""

from __future__ import annotations

import argparse
import multiprocessing as mp
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

WAYS = {"student alone": "none", "live teacher": "live", "kept answers": "kept"}


def settings(recipe: str, overrides: list[str], way: str):
    """The recipe of one way."""
    from lowpose.recipe_files import load_config

    config = load_config(recipe, overrides)
    if way == "none":
        return config.model_copy(update={"teacher": None, "distill": {}})
    cache = "merged" if way == "kept" and config.teacher.cache == "none" else config.teacher.cache
    teacher = config.teacher.model_copy(update={"cache": "none" if way == "live" else cache})
    return config.model_copy(update={"teacher": teacher})


def work(way: str, recipe: str, overrides: list[str], pipe) -> None:
    """Train for as many steps as each message says; answer with the seconds that they took."""
    import torch

    torch.set_num_threads(1)
    from lowpose.loader import training_loader
    from lowpose.nn.cost import count
    from lowpose.training import Run

    config = settings(recipe, overrides, way)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(config, Path(folder))
        run.order.start, run.order.total = 0, 10**6
        batches = iter(training_loader(run.reader, run.order, 0, False, run.teaching and run.teaching.beside))
        run._set_training()
        params = sum(p.numel() for p in run.bare.parameters())
        macs = count(run.bare, config.input.size).macs
        if run.teaching:
            params += sum(p.numel() for p in run.teaching.distillers.parameters())
            if way == "live":
                teacher = run.teaching.teacher
                params += sum(p.numel() for p in teacher.model.parameters())
                macs += count(teacher.model, teacher.side.input_size).macs
        pipe.send((params, macs, run.order.steps_per_epoch))
        while steps := pipe.recv():
            begin = time.perf_counter()
            for _ in range(steps):
                run._step(next(batches))
                run.step += 1
            pipe.send(time.perf_counter() - begin)
        pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        run.log.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--steps", type=int, default=8, help="of one block")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    context, pipes, facts = mp.get_context("spawn"), {}, {}
    for name, way in WAYS.items():
        pipes[name], theirs = context.Pipe()
        context.Process(target=work, args=(way, args.recipe, args.overrides, theirs), daemon=True).start()
        theirs.close()  # so that a way that fails ends the wait for it
        facts[name] = pipes[name].recv()  # ready, its caches filled
    seconds = {name: [] for name in WAYS}
    for turn in range(args.rounds + 1):  # the first warms up
        for name, pipe in pipes.items():
            pipe.send(args.steps)
            found = pipe.recv()
            seconds[name] += [found] if turn else []
    print(f"{args.recipe} {' '.join(o for o in args.overrides if '/' not in o)}")
    print(f"{'way':16}{'params M':>10}{'GMAC':>8}{'s/epoch':>9}{'ratio':>7}{'memory MB':>11}")
    first = np.array(seconds["student alone"])
    for name, pipe in pipes.items():
        pipe.send(0)
        params, macs, steps_per_epoch = facts[name]
        times = np.array(seconds[name])
        epoch, ratio = np.median(times) / args.steps * steps_per_epoch, np.median(times / first)
        print(f"{name:16}{params / 1e6:10.2f}{macs / 1e9:8.3f}{epoch:9.1f}{ratio:7.2f}{pipe.recv():11.0f}")


if __name__ == "__main__":
    main()
