"""What runs an exported .onnx file: onnxruntime, or OpenVINO where it is installed. Neither needs torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lowpose.errors import LowposeError, did_you_mean

OUTPUTS = ("keypoints", "scores", "published")


@dataclass(frozen=True)
class Graph:
    """An opened file.

    Attributes:
        about: what `lowpose export` wrote into it, JSON; None in a file of somebody else's. names: of inputs and outputs.
        run: (B, h, w, 3) uint8 RGB crops -> keypoints (B, K, 2) crop pixels, scores (B, K), published (B, K).
    """

    about: str | None
    names: frozenset[str]
    run: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]


def open_graph(path: Path, engine: str, threads: int | None, providers: Sequence[str] | None) -> Graph:
    """Open a file with the engine of that name.

    Args: threads: default the engine's own choice. providers: of onnxruntime, best first; default the CPU's.
    Raises: LowposeError for an engine or a provider that is not there, threads below 1, or a file that cannot be opened.
    """
    if threads is not None and threads < 1:
        raise LowposeError(f"threads = {threads}: give 1 or more")
    if engine not in ENGINES:
        raise LowposeError(f"unknown engine '{engine}'{did_you_mean(engine, ENGINES)}")
    if engine != "onnxruntime" and providers:
        raise LowposeError(f"providers are onnxruntime's; engine '{engine}' has none")
    return ENGINES[engine](path, threads, providers)


def _onnxruntime(path: Path, threads: int | None, providers: Sequence[str] | None) -> Graph:
    import onnxruntime as ort

    there = ort.get_available_providers()
    wanted = ["CPUExecutionProvider"] if not providers else [providers] if isinstance(providers, str) else list(providers)
    for name in wanted:
        if name not in there:
            raise LowposeError(f"onnxruntime has no provider '{name}' here; it has {', '.join(there)}")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if threads:
        options.intra_op_num_threads = threads
    try:
        session = ort.InferenceSession(str(path), options, providers=wanted)
    except Exception as e:  # onnxruntime raises its own kinds
        raise _unopened(path, "onnxruntime", e) from None
    if session.get_providers()[0] != wanted[0]:  # it goes on with the CPU, without an error, where a provider does not start
        raise LowposeError(f"{path}: onnxruntime's '{wanted[0]}' does not start on this machine; give another provider")
    return Graph(
        session.get_modelmeta().custom_metadata_map.get("lowpose"),
        frozenset(v.name for v in (*session.get_inputs(), *session.get_outputs())),
        lambda crops: tuple(session.run(list(OUTPUTS), {"images": crops})),
    )


def _openvino(path: Path, threads: int | None, providers: None) -> Graph:
    try:
        import openvino
    except ImportError:
        raise LowposeError("engine 'openvino' needs openvino, which is not installed: pip install 'lowpose[openvino]'") from None
    # float32 as in the file: by its own choice it computes in half precision where the processor can
    settings = {"INFERENCE_PRECISION_HINT": "f32"} | ({"INFERENCE_NUM_THREADS": threads} if threads else {})
    try:
        model = openvino.Core().read_model(str(path))
        about = model.rt_info["framework"]["lowpose"].value if model.has_rt_info(["framework", "lowpose"]) else None
        names = frozenset(name for port in (*model.inputs, *model.outputs) for name in port.names)
        compiled = openvino.Core().compile_model(model, "CPU", settings)
    except Exception as e:  # OpenVINO raises RuntimeError for everything
        raise _unopened(path, "openvino", e) from None

    def run(crops: np.ndarray) -> tuple[np.ndarray, ...]:
        answer = compiled({"images": crops})
        return tuple(np.array(answer[name]) for name in OUTPUTS)

    return Graph(about, names, run)


def _unopened(path: Path, engine: str, error: Exception) -> LowposeError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return LowposeError(f"{path}: {engine} cannot open it ({lines[0][:120]})")


ENGINES: dict[str, Callable[[Path, int | None, Sequence[str] | None], Graph]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}
