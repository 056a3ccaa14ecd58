"""Do exported files answer as torch does: every listed backbone and mixer with every head, and shipped weights on photographs.

    python benchmarks/parity.py [--models resnet18 ...] [--data lsp:data/lsp] [--crops 32] [--json FILE]
    python benchmarks/parity.py --models --data lsp:data/lsp --json FILE       photographs alone; the file's models stay

Models have random weights whose answers stand out; all heads of one backbone are exported together, which saves time and changes
nothing in them. Compared are keypoints (crop pixels), scores and the maps that they are read from (relative to the largest
value). With --data also each file of weights/ and those in the package: an exported file through `lowpose.load` without torch,
beside the weights with it, on persons of that data set's validation split, in picture pixels.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lowpose import registry
from lowpose.config import parse_config
from lowpose.data import load_data, parse_source
from lowpose.engines import OUTPUTS
from lowpose.export import export_onnx, translate
from lowpose.export_proof import Answers, Differences, differences, torch_answers
from lowpose.files import write_text
from lowpose.nn.model import PoseModel, build_model
from lowpose.runtime import load
from lowpose.skeletons import LSP14

SIZE = (64, 96)  # a multiple of all strides; not square, so that exchanged axes show
BACKBONES = (
    *("resnet18", "resnet50", "hrnet_w18_small", "resnet34", "mobilenetv3_small_100", "mobilenetv4_conv_small"),
    *("efficientnet_lite0", "regnety_002", "repvit_m0_9", "convnext_atto", "ghostnet_100", "mnasnet_small"),
)
MIXERS = {
    "attention": {"name": "attention"},
    **{f"{t} {k}": {"name": f"gfl-{k}", "transform": t} for t in ("fft", "dct") for k in ("static", "dynamic")},
}
ROOT = Path(__file__).parents[1]
WEIGHTS = [*sorted((ROOT / "src/lowpose/weights").glob("*.safetensors")), *sorted((ROOT / "weights").glob("*.safetensors"))]


def listed() -> dict[str, dict[str, Any]]:
    """Name -> `model` section of a recipe."""
    plain = {name: {"backbone": name, "pretrained": "none", "deconv": [16, 16, 16]} for name in BACKBONES}
    lossless = {"mgil resnet18": {**plain["resnet18"], "downsampling": "mgil"}}
    tokens = {"patch": [16, 16], "width": 32, "depth": 2}
    mixed = {n: {"backbone": "none", "pretrained": "none", "tokens": {**tokens, "mixer": m}} for n, m in MIXERS.items()}
    return plain | lossless | mixed


class EveryHead(nn.Module):
    """One backbone under all heads that can read it; it answers as a model whose outputs are those of all of them."""

    def __init__(self, models: dict[str, PoseModel]):
        super().__init__()
        self.models = nn.ModuleDict(models)
        self.head = SimpleNamespace(decode=self._decode)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        first = next(iter(self.models.values()))
        feature = first.backbone(first.normalised(images))
        if first.tokens is not None:
            feature, _ = first.tokens(feature)
        return {f"{n} {k}": v for n, m in self.models.items() for k, v in m.head(feature).items()}

    def answer(self, images: Tensor, flip: bool) -> dict[str, Tensor]:
        return self(images)

    def of(self, name: str, outputs: dict[str, Any]) -> dict[str, Any]:
        """The outputs of one head."""
        return {k.removeprefix(f"{name} "): v for k, v in outputs.items() if k.startswith(f"{name} ")}

    def _decode(self, outputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        decoded = [m.head.decode(self.of(n, outputs)) for n, m in self.models.items()]
        return tuple(torch.cat(parts, 1) for parts in zip(*decoded, strict=True))


def heads_of(section: dict[str, Any]) -> list[str]:
    """Names of all heads that can read what such a model gives."""
    return [n for n in registry.names("head") if "tokens" not in section or registry.find("head", n).make.reads_tokens]


def every_head(section: dict[str, Any], heads: list[str]) -> EveryHead:
    models: dict[str, PoseModel] = {}
    for name in heads:
        torch.manual_seed(0)
        config = parse_config({"input": {"size": SIZE}, "model": section, "head": {"name": name}}, name)
        models[name] = build_model(config, LSP14)
        if len(models) > 1:
            first = next(iter(models.values()))
            models[name].backbone, models[name].tokens = first.backbone, first.tokens
    return stand_out(EveryHead(models))


@torch.no_grad()
def stand_out(model: EveryHead) -> EveryHead:
    """Random weights whose answers stand out as those of trained ones do: plain ones are nearly tied everywhere.

    Maps get a highest value of 1, logits a deviation of 3; norms have seen pictures.
    """
    for norm in (m for m in model.train().modules() if isinstance(m, nn.BatchNorm2d)):
        norm.momentum = None  # the mean of what is seen, not of the start as well
    images = torch.from_numpy(blocks(8, 0)).permute(0, 3, 1, 2)
    for _ in range(2):
        model(images)
    model.eval()
    for name, pose in model.models.items():
        head = pose.head
        if name == "regression":
            for p in head.parameters():
                p.mul_(20)
            continue
        last = [m for m in head.final.modules() if isinstance(m, (nn.Conv2d, nn.Linear))][-1] if hasattr(head, "final") else None
        if last is not None:
            _scale(last, 1 / model.of(name, model(images))["map"].abs().max())
        for axis in "xy" if name == "simcc" else "":
            _scale(getattr(head, f"to_{axis}"), 3 / model.of(name, model(images))[axis].std())
    return model


def _scale(layer: nn.Module, factor: Tensor) -> None:
    for p in layer.parameters():
        p.mul_(factor)


def blocks(count: int, seed: int) -> np.ndarray:
    """(count, h, w, 3) uint8: blocks of colour, so that answers differ from place to place and crop to crop."""
    w, h = SIZE
    few = np.random.default_rng(seed).integers(0, 256, (count, h // 8, w // 8, 3), np.uint8)
    return few.repeat(8, 1).repeat(8, 2)


def parity(
    name: str, section: dict[str, Any], crops: int, heads: list[str] | None = None
) -> Iterator[tuple[str, str, Differences, set[str]]]:
    """(model, head, differences, operators of the file) for all heads, or those named. Raises: LowposeError as `differences`."""
    import onnxruntime as ort

    model, images = every_head(section, heads or heads_of(section)), blocks(crops, 50)
    proto = translate(model, False, parse_config({"input": {"size": SIZE}}, name).input, name).model_proto
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [o.name for o in proto.graph.output]
    found = dict(zip(names, session.run(names, {"images": images}), strict=True))
    maps = {n.removeprefix("output."): v for n, v in found.items() if n not in OUTPUTS}
    first, operators = 0, {node.op_type for node in proto.graph.node}
    for head, pose in model.models.items():
        part = slice(first, first := first + len(LSP14))
        ours = Answers(*(found[n][:, part] for n in OUTPUTS), model.of(head, maps))
        wanted, ties = torch_answers(pose, False, images)
        yield name, head, differences(ours, wanted, ties, pose, Path(f"{name} {head}")), operators


def on_photographs(weights: Path, source: str, persons: int) -> dict[str, Any]:
    """Distances in picture pixels between an exported file's keypoints and torch's, flip test as the recipe has it."""
    kind, root = parse_source(source)
    data = load_data(kind, root, split="val")
    chosen = data.samples[:: max(1, len(data) // persons)][:persons]
    items = [(data.read(s.image), [s.box], None) for s in chosen]
    with tempfile.TemporaryDirectory() as folder:
        report = export_onnx(weights, Path(folder) / "m.onnx")
        ours, theirs = (load(p).predict_many(items) for p in (report.path, weights))
    moved = np.concatenate(
        [np.linalg.norm(a.keypoints - b.keypoints, axis=-1).ravel() for a, b in zip(ours, theirs, strict=True)]
    )
    return {"persons": len(items), "mean": float(moved.mean()), "largest": float(moved.max()), "over_1px": int((moved > 1).sum())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(listed()))
    parser.add_argument("--data")
    parser.add_argument("--crops", type=int, default=32)
    parser.add_argument("--persons", type=int, default=200)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    out: dict[str, Any] = {"torch": torch.__version__, "crops": args.crops, "models": [], "photographs": {}}
    print(f"{'model':26}{'head':12}{'pixels':>10}{'score':>10}{'maps':>10}{'ties':>6} of keypoints")
    for name in args.models:
        for model, head, found, _ in parity(name, listed()[name], args.crops):
            print(
                f"{model:26}{head:12}{found.pixels:10.1e}{found.score:10.1e}{found.maps:10.1e}{found.ties:6} of {found.keypoints}"
            )
            out["models"].append({"model": model, "head": head, **{k: float(v) for k, v in found._asdict().items()}})
    for weights in WEIGHTS if args.data else []:
        out["photographs"][weights.stem] = row = on_photographs(weights, args.data, args.persons)
        print(weights.stem, row)
    if args.json:
        if not args.models and args.json.is_file():
            out |= {key: value for key, value in json.loads(args.json.read_text()).items() if key != "photographs"}
        write_text(args.json, json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
