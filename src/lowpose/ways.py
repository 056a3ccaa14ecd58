"""The ways to run a model that `lowpose bench` compares: torch, torch.compile, exported files. Importing it imports no torch."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lowpose.errors import LowposeError
from lowpose.runtime import Infer, load_onnx

RUNTIMES = ("torch", "compiled", "onnx", "int8")


@dataclass(frozen=True)
class Way:
    """One row: a model under a runtime.

    Attributes:
        model: its name in tables. runtime: one of RUNTIMES. precision: 'fp32', 'fp16' or 'int8'.
        file: weights, or the exported file of `onnx` and `int8`; None: random weights of `recipe`, at `size` (a square's side).
    """

    model: str
    runtime: str
    precision: str = "fp32"
    file: str | None = None
    recipe: str | None = None
    size: int | None = None


def open_way(way: Way, threads: int) -> tuple[Infer, tuple[int, int]]:
    """What runs it, without the flip test unless an exported file has it inside, and its size (width, height)."""
    if way.runtime in ("onnx", "int8"):
        predictor = load_onnx(Path(way.file or ""), threads)
        return predictor.infer, predictor.settings.size
    import torch

    torch.set_num_threads(threads)
    model, config = open_model(way)
    return torch_infer(model, compiled=way.runtime == "compiled"), config.input.size


def open_model(way: Way) -> tuple[Any, Any]:
    """The model in eval mode and its recipe. Raises: LowposeError as `load_model` and `load_config`."""
    if way.file is not None:
        from lowpose.checkpoint import load_model

        return load_model(way.file)
    import torch

    from lowpose.recipe_files import load_config
    from lowpose.recipe_info import recipe_model

    config = load_config(way.recipe or "", [] if way.size is None else [f"input.size=[{way.size},{way.size}]"])
    if config.task != "pose":
        raise LowposeError(f"{way.recipe}: a recipe of task '{config.task}'; here only those of task 'pose' serve")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return recipe_model(config).eval(), config


def torch_infer(model: Any, compiled: bool = False) -> Infer:
    """As `lowpose.load` runs weights on a CPU."""
    import torch

    model.to(memory_format=torch.channels_last)

    def predict(images):
        return tuple(model.predict(images, flip=False))

    # fullgraph: parts that torch cannot compile, and more recompilations than it allows, are errors and no slow detour
    run: Callable = torch.compile(predict, fullgraph=True, dynamic=False) if compiled else predict

    def infer(crops: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return tuple(v.numpy() for v in run(torch.from_numpy(crops).permute(0, 3, 1, 2)))

    return infer


def crops_of(size: tuple[int, int], batch: int) -> np.ndarray:
    """(B, h, w, 3) uint8, random but always the same."""
    w, h = size
    return np.random.default_rng(0).integers(0, 256, (batch, h, w, 3), np.uint8)


def no_compiler() -> str | None:
    """Why torch.compile cannot work here; None if it can."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    return None if any(map(shutil.which, names)) else f"torch.compile needs a C++ compiler ({', '.join(names)} not found)"


def read_onnx(path: Path) -> dict[str, Any]:
    """What an exported file holds: precision, params (numbers in its tensors), flip, size, weights_sha256.

    Raises: LowposeError for a file that is missing, or not lowpose's, or where onnx is not installed.
    """
    size = load_onnx(path, 1).settings.size
    try:
        import onnx
    except ImportError:
        raise LowposeError(f"{path}: reading a graph needs onnx, which is not installed: pip install 'lowpose[export]'") from None
    model = onnx.load(str(path))
    kinds = {node.op_type for node in model.graph.node}
    types = [t.data_type for t in model.graph.initializer]
    params = sum(int(np.prod(t.dims)) for t in model.graph.initializer)
    if kinds & {"DequantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"}:
        precision = "int8"
    else:
        precision = "fp16" if onnx.TensorProto.FLOAT16 in types else "fp32"
    facts = json.loads(next(p.value for p in model.metadata_props if p.key == "lowpose"))
    return {
        "precision": precision,
        "params": params,
        "flip": bool(facts.get("flip")),
        "size": list(size),
        "weights_sha256": facts.get("weights_sha256"),
    }
