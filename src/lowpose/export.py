"""Weights -> one ONNX file that predicts without torch, written only after it has been run and found equal.

The graph takes `images` (B, H, W, 3) uint8 RGB, any B, and gives `keypoints` (B, K, 2) float32, crop pixels, (x, y), `scores`
(B, K) and `published` (B, K): normalisation, network, flip test where wanted and decoding are inside. Its metadata key
`lowpose` is JSON with what a user of the file needs: crop settings, skeleton, head, licence, the weights' SHA-256. Global
filters are matrix products in it, never ONNX's transforms, which onnxruntime computes tens of times more slowly.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lowpose import __version__, registry
from lowpose.cards import sha256
from lowpose.checkpoint import describe_weights, load_model, weights_path
from lowpose.config import InputConfig, RunConfig
from lowpose.data import load_data
from lowpose.data.crops import CropReader
from lowpose.engines import OUTPUTS
from lowpose.errors import LowposeError
from lowpose.export_proof import Infer, compare
from lowpose.files import whole, write_bytes
from lowpose.nn.model import PoseModel
from lowpose.quantisation import LAYERS
from lowpose.runtime import load_onnx
from lowpose.shipped import home
from lowpose.strict import validate

OPSET = 18  # the oldest that the exporter writes, so that older runtimes read it
PERSONS, NOISE = 64, 4  # crops that a file is checked on by default


@dataclass(frozen=True)
class ExportReport:
    """A file that was written, and how equal it is to torch.

    Attributes:
        path: of the .onnx file; `bytes`: its size. flip: whether the flip test is inside.
        crops: how many it was run on; `keypoints`: how many points these have together.
        ties: keypoints whose two best cells are too near to compare (within CLOSE); they are not in the differences.
        pixels: largest distance of a keypoint along an axis, input pixels; `score`: largest difference of a score;
        `maps`: of the head's outputs that keypoints are read from, relative to the largest value of that output in that crop.
    """

    path: Path
    bytes: int
    flip: bool
    crops: int
    keypoints: int
    ties: int
    pixels: float
    score: float
    maps: float

    def __str__(self) -> str:
        flip = "with" if self.flip else "without"
        return (
            f"{self.path} ({self.bytes / 1e6:.1f} MB, {flip} flip test): equal to torch on {self.crops} crops within "
            f"{self.pixels:.1g} pixels, {self.score:.1g} of a score and {self.maps:.1g} of a map; "
            f"{self.ties} of {self.keypoints} keypoints were ties"
        )


def export_onnx(
    weights: str | Path, out: str | Path | None = None, *, flip: bool | None = None, crops: np.ndarray | None = None
) -> ExportReport:
    """Write weights as one ONNX file, after onnxruntime and torch gave the same answers.

    Args:
        weights: file or run folder. out: the .onnx file; default beside the weights, with their name.
        flip: average with the mirror image inside the graph; default as the recipe evaluates.
        crops: (N, h, w, 3) uint8 RGB of the recipe's size to compare on; default synthetic people, noise and black.

    Raises: LowposeError if the extra `export` is missing, if the model cannot be exported, or if file and torch differ
        by more than PIXELS or SCORE in a keypoint that is no tie, or by more than MAPS in what keypoints are read from.
        Then nothing is written.
    """
    check_extra()
    source = weights_path(weights)
    out = onnx_path(out, source)
    model, config = load_model(source)
    flip = config.eval.flip if flip is None else flip
    crops = example_crops(config.input) if crops is None else _check_crops(crops, config.input)
    program = translate(model, flip, config.input, source)
    proto = program.model_proto
    _drop_notes(proto)
    _name_layers(proto, model)
    proto.producer_name, proto.producer_version = "lowpose", __version__
    calibration = {k: v for k, v in describe_weights(source).items() if k == "calibration"}  # predictors apply it to the scores
    set_facts(proto, describe(model, config, flip, sha256(source)) | calibration)
    with whole(out) as temporary:
        temporary.write_bytes(_without_maps(proto).SerializeToString())
        maps = _session_of(proto)
        found = compare(load_onnx(temporary).infer, maps, _names(proto), model, flip, crops, out)
        size = temporary.stat().st_size
    return ExportReport(out, size, flip, len(crops), *found)


def onnx_path(out: str | Path | None, source: Path, ending: str = "") -> Path:
    """Where a file goes: `out`, or beside the weights with their name and `ending`."""
    path = home(source) / f"{source.stem}{ending}.onnx" if out is None else Path(out)
    if path.suffix != ".onnx":
        raise LowposeError(f"{path}: an exported file must end in .onnx")
    return path


def write_unproven(model: PoseModel, config: RunConfig, out: Path, name: str) -> None:
    """The graph without flip test and without a proof, to be timed: the best cells of random weights are ties.

    Args: name: of the model, for errors. Raises: LowposeError as `export_onnx`.
    """
    check_extra()
    proto = translate(model, False, config.input, name).model_proto
    _drop_notes(proto)
    set_facts(proto, describe(model, config, False, "not of a file"))
    write_bytes(out, _without_maps(proto).SerializeToString())


def describe(model: PoseModel, config: RunConfig, flip: bool, digest: str) -> dict[str, Any]:
    """What the file says about itself under the metadata key `lowpose`."""
    head = validate(registry.find("head", config.head["name"]).config, config.head, "head")
    return {
        "version": __version__,
        "name": config.name,
        "input": config.input.model_dump(mode="json"),
        "skeleton": model.skeleton.to_dict(),
        "head": head.model_dump(mode="json"),
        "flip": flip,
        "licence": {"code": "Apache-2.0", "trained_on": config.data.kind},
        "weights_sha256": digest,
    }


def example_crops(settings: InputConfig) -> np.ndarray:
    """(PERSONS + NOISE + 1, h, w, 3) uint8 RGB, always the same: synthetic people, noise, and one black crop."""
    w, h = settings.size
    reader = CropReader(load_data("synthetic", split="test", options={"count": PERSONS}), settings)
    people = [reader.crop(i).image for i in range(PERSONS)]
    noise = np.random.default_rng(0).integers(0, 256, (NOISE, h, w, 3), np.uint8)
    return np.concatenate([np.stack(people), noise, np.zeros((1, h, w, 3), np.uint8)])


def check_extra() -> None:
    """Raises: LowposeError if the packages that write ONNX files are missing."""
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise LowposeError(f"export needs {' and '.join(missing)}, which is not installed: pip install 'lowpose[export]'")


def _check_crops(crops: np.ndarray, settings: InputConfig) -> np.ndarray:
    w, h = settings.size
    if not isinstance(crops, np.ndarray) or crops.dtype != np.uint8 or crops.shape[1:] != (h, w, 3) or len(crops) == 0:
        found = f"{crops.dtype} {crops.shape}" if isinstance(crops, np.ndarray) else type(crops).__name__
        raise LowposeError(f"crops to compare on are (N, {h}, {w}, 3) uint8 RGB, at least one, not {found}")
    return crops


class _Graph(nn.Module):
    """What becomes the file: (B, h, w, 3) uint8 -> keypoints, scores, published, and what they are read from."""

    def __init__(self, model: PoseModel, flip: bool):
        super().__init__()
        self.model, self.flip = model, flip

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        outputs = self.model.answer(images.permute(0, 3, 1, 2), self.flip)
        return *self.model.head.decode(outputs), *outputs.values()


def translate(model: PoseModel, flip: bool, settings: InputConfig, source: str | Path) -> torch.onnx.ONNXProgram:
    """A model as ONNX, not yet proven: outputs OUTPUTS and, as 'output.NAME', what they are read from.

    `source` names it in errors. Raises: LowposeError for a model that ONNX cannot hold.
    """
    w, h = settings.size
    example = torch.zeros(2, h, w, 3, dtype=torch.uint8)
    with torch.no_grad():
        names = list(model(example.permute(0, 3, 1, 2)))
    try:
        with quiet():
            return torch.onnx.export(
                _Graph(model, flip).eval().requires_grad_(False),
                (example,),
                dynamo=True,
                dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
                input_names=["images"],
                output_names=[*OUTPUTS, *(f"output.{name}" for name in names)],
                opset_version=OPSET,
                verbose=False,
            )
    except Exception as e:  # torch.export, the ONNX translation and the model's own code raise many kinds
        cause = e.__cause__ or e
        detail = " ".join(str(cause).split())[:200] or type(cause).__name__
        raise LowposeError(f"{source}: torch cannot translate this model to ONNX ({detail})") from e


@contextmanager
def quiet() -> Iterator[None]:
    """Without the exporter's remarks on its own inner workings; errors are exceptions and still come through."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _drop_notes(proto: Any) -> None:
    """Remove the exporter's notes (stack traces with this machine's paths), which are no part of the model."""
    graph = proto.graph
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        part.doc_string = ""
        del part.metadata_props[:]


def _name_layers(proto: Any, model: PoseModel) -> None:
    """Nodes with weights get the path of their module, so that a layer can be named: 'backbone.body.conv1'."""
    from onnx import numpy_helper

    turned = {_bytes(p.T): n for n, p in model.named_parameters() if p.ndim == 2}  # the exporter transposes linear layers
    constants = {i.name: i for i in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type not in LAYERS or node.input[1] not in constants:
            continue
        name = node.input[1].removeprefix("model.")
        if not name.endswith(".weight"):
            name = turned.get(_bytes(torch.from_numpy(numpy_helper.to_array(constants[node.input[1]]).copy())), "")
        if name.endswith(".weight"):
            node.name = name.removesuffix(".weight")


def _bytes(weight: Tensor) -> bytes:
    return weight.detach().contiguous().numpy().tobytes()


def set_facts(proto: Any, facts: dict[str, Any]) -> None:
    """Write what a file says about itself under the metadata key `lowpose`."""
    del proto.metadata_props[:]
    proto.metadata_props.add(key="lowpose", value=json.dumps(facts))


def _names(proto: Any) -> list[str]:
    """Of the outputs that keypoints are read from."""
    return [o.name.removeprefix("output.") for o in proto.graph.output if o.name not in OUTPUTS]


def _without_maps(proto: Any) -> Any:
    """The graph with the outputs of a file alone."""
    out = type(proto)()
    out.CopyFrom(proto)
    del out.graph.output[len(OUTPUTS) :]
    return out


def _session_of(proto: Any) -> Infer:
    """Crops -> what keypoints are read from."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [f"output.{name}" for name in _names(proto)]
    return lambda crops: session.run(names, {"images": crops})
