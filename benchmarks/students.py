"""Students without a backbone against the floor of the machine: filters and attention, torch and ONNX, in one run.

    python benchmarks/students.py [--sizes 256 512 1024] [--threads 1 2] [--seconds 60] [--out students.json]

Patches of 16 x 16 pixels (grids of 16, 32 and 64), width 192, 12 layers, SimCC: the models of `benchmarks/mixers.py`, one picture
at a time, from the crop in memory to keypoints. ONNX files are translated on the fly; their transforms are dense matrices. All
ways of a size take turns, milliseconds are medians over rounds.

`floor`: the larger of two times. Arithmetic: multiply-accumulates of the network as torch computes it, at the rate of a large
float32 matrix product. Traffic: bytes of the weights once, and of what products, convolutions, transforms and attention read
and write, at the bandwidth of a large copy; everything between them is taken as free. Both rates are measured in turns with the
models, at the same number of threads. `attention / this`: the median over rounds; `of MACs`: its share of `ideal`, attention's
multiply-accumulates / this one's as the paper counts them.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from mixers import WAYS, model, recipe
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from lowpose.cards import versions
from lowpose.export import write_unproven
from lowpose.files import write_json
from lowpose.nn.cost import _FOURIER, count
from lowpose.runtime import load_onnx
from lowpose.turns import machine, measure, summary
from lowpose.ways import crops_of, torch_infer

STUDENTS = {name: WAYS[name] for name in ("attention", "static, DCT", "dynamic, DCT")} | {
    "static, FFT": {"name": "gfl-static"},  # torch takes the quicker way, files hold matrices
    "dynamic, FFT": {"name": "gfl-dynamic"},
}
SIDE = 2048  # of the large matrices
COPY = 1 << 28  # bytes of the large copy: more than any cache holds


class Traffic(TorchDispatchMode):
    """Bytes that products, convolutions, transforms and attention read and write, but for parameters and buffers."""

    def __init__(self, net: torch.nn.Module):
        super().__init__()
        self.own = {t.untyped_storage().data_ptr() for t in [*net.parameters(), *net.buffers()]}
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry or func._overloadpacket in _FOURIER:
            results = out if isinstance(out, tuple) else (out,)
            for t in [*args, *results]:
                if isinstance(t, torch.Tensor) and t.untyped_storage().data_ptr() not in self.own:
                    self.bytes += t.numel() * t.element_size()
        return out


def costs(net, size: int) -> dict[str, int]:
    """macs and bytes of one picture, as the network is computed here; `ideal`: multiply-accumulates as the paper counts them."""
    found = count(net, (size, size))
    crops = torch.zeros(1, 3, size, size, dtype=torch.uint8)
    with torch.no_grad(), Traffic(net) as traffic:
        net(crops)
    weights = sum(t.numel() * t.element_size() for t in net.parameters())
    return {"macs": found.macs, "bytes": weights + traffic.bytes, "ideal": found.published_macs}


def rates() -> dict:
    """Name -> what is run to find the machine's rates."""
    a, b = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    source = torch.zeros(COPY, dtype=torch.uint8)
    target, product = torch.empty_like(source), torch.empty_like(a)
    return {"matrix product": lambda: torch.mm(a, b, out=product), "copy": lambda: target.copy_(source)}


@torch.no_grad()
def table(size: int, threads: int, seconds: float, folder: Path) -> list[dict]:
    torch.set_num_threads(threads)
    crops, ways, cost = crops_of((size, size), 1), {}, {}
    for name, mixer in STUDENTS.items():
        net, file = model(size, mixer), folder / f"{name}_{size}.onnx"
        cost[name] = costs(net, size)
        if not file.is_file():
            write_unproven(net, recipe(size, mixer), file, name)
        for runtime, infer in (("torch", torch_infer(net)), ("onnx", load_onnx(file, threads).infer)):
            ways[name, runtime] = lambda infer=infer: infer(crops)
    times = measure(ways | rates(), 1000, seconds)
    macs_a_ms = SIDE**3 / np.median(times["matrix product"])
    bytes_a_ms = 2 * COPY / np.median(times["copy"])  # read and written
    rows = []
    for (name, runtime), ms in ((way, times[way]) for way in ways):
        c, ratio = cost[name], float(np.median(np.array(times["attention", runtime]) / np.array(ms)))
        floor = max(c["macs"] / macs_a_ms, c["bytes"] / bytes_a_ms)
        rows.append({"student": name, "runtime": runtime, "size": size, "threads": threads, "ms": summary(ms), **c,
                     "floor_ms": floor,
                     "bound": "arithmetic" if c["macs"] / macs_a_ms == floor else "traffic",
                     "times_floor": float(np.median(ms)) / floor, "ratio": ratio,
                     "ideal_ratio": cost["attention"]["ideal"] / c["ideal"],
                     "gmac_a_second": macs_a_ms / 1e6, "gb_a_second": bytes_a_ms / 1e6})  # fmt: skip
    return rows


def show(rows: list[dict]) -> None:
    r = rows[0]
    print(f"\n{r['size']} px, {r['threads']} thread(s), {r['ms']['rounds']} rounds; {r['gmac_a_second']:.1f} GMAC/s, "
          f"{r['gb_a_second']:.1f} GB/s")  # fmt: skip
    heads = f"{'ms':>9}{'quartiles':>18}{'floor':>9}{'/ floor':>9}{'attention / this':>18}{'ideal':>7}{'of MACs':>9}"
    print(f"{'student':14}{'runtime':9}{heads}")
    for r in rows:
        ms, share = r["ms"], f"{100 * r['ratio'] / r['ideal_ratio']:.0f}%"
        print(f"{r['student']:14}{r['runtime']:9}{ms['median']:9.2f}{ms['low']:9.2f}-{ms['high']:<8.2f}{r['floor_ms']:9.2f}"
              f"{r['times_floor']:9.2f}{r['ratio']:18.2f}{r['ideal_ratio']:7.2f}{share:>9}", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=60.0, help="of each table")
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    before, rows = machine(), []
    with tempfile.TemporaryDirectory() as folder:
        for size in args.sizes:
            for threads in args.threads:
                rows += (new := table(size, threads, args.seconds, Path(folder)))
                show(new)
    if args.out:
        write_json(args.out, {"rows": rows, "machine": before | {"load_after": machine()["load"]}, "versions": versions()})


if __name__ == "__main__":
    main()
