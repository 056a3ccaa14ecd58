"""Exported files with smaller numbers: INT8 arithmetic calibrated on crops, and FP16 storage; and which layers suffer.

INT8: static quantisation by onnxruntime (QDQ form): weights int8 per output channel, activations uint8 per tensor with the least
and largest value seen. Weights keep to -64 to 64: processors with AVX2 but without VNNI add two products in 16 bits, which twice
255 x 127 exceeds (such a file of `lowpose-64`, equal elsewhere, lost 3.8 points of PCKh@0.5 there). Convolutions and
linear layers of the network are quantised, with the ReLU that follows; sums, resizing, normalisation, transforms and decoding
stay in float32, which costs little time and keeps sub-pixel answers.
FP16: weights are stored in half precision and turned back when the file is opened; the arithmetic stays float32, since CPUs
have no quick half precision.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from lowpose.errors import LowposeError
from lowpose.runtime import load_onnx

LAYERS = ("Conv", "ConvTranspose", "MatMul", "Gemm")  # operators that hold weights
QUANTISED = ("Conv", "MatMul", "Gemm")  # those of which onnxruntime has integer forms
BATCH = 32
HALF = 65504.0  # largest number of half precision

Write = Callable[[Path, Path, Sequence[str]], None]  # (float32 file, file to write, names of layers)


def quantisable(file: Path) -> list[str]:
    """Layers of an exported file that INT8 can compute, by the path of their module, in order."""
    graph = _load(file).graph
    constants = {i.name for i in graph.initializer}
    return [n.name for n in graph.node if n.op_type in QUANTISED and n.input[1] in constants and _is_layer(n)]


def halvable(file: Path) -> dict[str, str]:
    """Weights of an exported file that FP16 can store: name of the constant -> path of its module (or of the weight itself).

    Constants of transforms and of decoding are none: they decide positions.
    """
    graph = _load(file).graph
    layers = {n.input[1]: n.name for n in graph.node if n.op_type in LAYERS and _is_layer(n)}
    floats = {i.name: i for i in graph.initializer if i.data_type == 1 and len(i.dims) > 1}  # 1: float32
    own = {n: n.removeprefix("model.").removesuffix(".weight") for n in floats if n.startswith("model.")}
    return {n: own.get(n) or layers[n] for n in floats if n in own or n in layers}


def _is_layer(node: Any) -> bool:
    return not node.name.startswith("node_")  # the exporter's own name: a product with a constant of a transform


def _load(file: Path) -> Any:
    import onnx

    return onnx.load(str(file))


def within(layer: str, part: str) -> bool:
    """Whether a layer is `part` or lies inside it: 'head.to_x' within 'head'."""
    return layer == part or layer.startswith(f"{part}.")


def without(layers: Sequence[str], keep: Sequence[str], where: str) -> list[str]:
    """Layers outside of the parts in `keep`. Raises: LowposeError for a part that has none, or if nothing is left."""
    for part in keep:
        if not any(within(layer, part) for layer in layers):
            parts = ", ".join(dict.fromkeys(layer.split(".")[0] for layer in layers))
            raise LowposeError(f"keep-float '{part}': no layer of {where} is called so; they begin with {parts}")
    left = [layer for layer in layers if not any(within(layer, part) for part in keep)]
    if not left:
        raise LowposeError(f"keep-float {','.join(keep)}: leaves no layer of {where} that could be made smaller")
    return left


def write_int8(crops: np.ndarray) -> Write:
    """How to write a file whose named layers compute in INT8, with ranges from crops (N, h, w, 3) uint8."""

    def write(source: Path, out: Path, layers: Sequence[str]) -> None:
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

        class Crops(CalibrationDataReader):
            def __init__(self):
                self.batches = iter([crops[i : i + BATCH] for i in range(0, len(crops), BATCH)])

            def get_next(self) -> dict[str, np.ndarray] | None:
                batch = next(self.batches, None)
                return None if batch is None else {"images": batch}

        disabled = logging.root.manager.disable
        logging.disable(logging.WARNING)  # of its own inner workings
        try:
            quantize_static(
                str(source),
                str(out),
                Crops(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                op_types_to_quantize=[*QUANTISED, "Relu"],
                nodes_to_quantize=[*layers, *_relus_after(source, layers)],
            )
        finally:
            logging.disable(disabled)

    return write


def _relus_after(file: Path, layers: Sequence[str]) -> list[str]:
    graph = _load(file).graph
    wanted = set(layers)
    results = {n.output[0] for n in graph.node if n.name in wanted}
    return [n.name for n in graph.node if n.op_type == "Relu" and n.input[0] in results]


def write_fp16(source: Path, out: Path, layers: Sequence[str]) -> None:
    """Write a file whose named layers' weights are stored as FP16. Raises: LowposeError for weights that it cannot hold."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model, names = _load(source), halvable(source)
    casts = []
    for tensor in model.graph.initializer:
        name = tensor.name
        if names.get(name) not in layers:
            continue
        values = numpy_helper.to_array(tensor)
        if np.abs(values).max(initial=0) > HALF:
            raise LowposeError(f"fp16 cannot hold the weights of {names[name]}; keep them in float32 with --keep-float")
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}.fp16"))
        casts.append(helper.make_node("Cast", [f"{name}.fp16"], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, str(out))


def add_facts(file: Path, **facts: Any) -> None:
    """Add to what an exported file says about itself."""
    import onnx

    model = _load(file)
    (entry,) = (p for p in model.metadata_props if p.key == "lowpose")
    entry.value = json.dumps(json.loads(entry.value) | facts)
    onnx.save(model, str(file))


def blame(source: Path, write: Write, layers: Sequence[str], crops: np.ndarray) -> list[tuple[str, float]]:
    """How far each layer alone moves keypoints, worst first: (layer, mean distance in crop pixels over `crops`)."""
    wanted = load_onnx(source).infer(crops)[0]
    moved = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "one.onnx"
        for layer in track(layers, "which layers", console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True):
            write(source, file, [layer])
            distance = np.linalg.norm(load_onnx(file).infer(crops)[0] - wanted, axis=-1)
            moved.append((layer, float(distance.mean())))
    return sorted(moved, key=lambda item: -item[1])
