"""Trained weights that come with the package, by name: `lowpose-64`. Finding them needs no torch.

Each is a folder-less set of files in `lowpose/weights`: NAME.onnx (fp16, for `lowpose.load` and `lowpose predict`),
NAME.safetensors (fp16, for everything that trains or measures) and its card, NAME.json and NAME.md.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lowpose.errors import LowposeError, did_you_mean

FOLDER = Path(__file__).parent / "weights"
DEFAULT = "lowpose-64"


def names() -> list[str]:
    return sorted((p.stem for p in FOLDER.glob("*.onnx")), key=lambda n: (len(n), n))


def find(path: str | Path, suffix: str) -> Path:
    """The path itself, or the file of that suffix where it is the name of shipped weights and nothing there is called so.

    Raises: LowposeError for a name that begins as those of shipped weights do and is none.
    """
    path = Path(path)
    if path.suffix or len(path.parts) > 1 or path.exists():
        return path
    if str(path) in names():
        return FOLDER / f"{path}{suffix}"
    if str(path).startswith("lowpose"):
        raise LowposeError(f"{path}: no weights of this name come with the package{did_you_mean(str(path), names())}")
    return path


def home(file: Path) -> Path:
    """The folder of what is made from a weights file: beside it, or runs/NAME here where it came with the package."""
    return Path("runs") / file.stem if file.parent == FOLDER else file.parent


def card_of(name: str) -> dict[str, Any]:
    """The card of shipped weights."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def list_weights() -> list[dict[str, Any]]:
    """The weights that come with the package: name, input size (width, height), params, macs, bytes of both files, what they
    were trained on, and metrics with their intervals, as their cards say."""
    out = []
    for name in names():
        card = card_of(name)
        files = {s[1:]: (FOLDER / f"{name}{s}").stat().st_size for s in (".onnx", ".safetensors")}
        facts = {"size": card["input"]["size"], **card["cost"], "bytes": files, "trained_on": card["trained_on"]}
        out.append({"name": name, **facts, "measured_on": card["measured_on"], "metrics": card["metrics"]})
    return out
