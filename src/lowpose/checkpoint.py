"""Weights files (safetensors, with recipe and skeleton inside) and whole training states.

Nothing is ever unpickled: states are read with `weights_only=True`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lowpose import __version__, shipped
from lowpose.config import RunConfig, from_scratch, parse_config, portable, recipe_values
from lowpose.errors import LowposeError, first_of
from lowpose.files import whole, write_bytes
from lowpose.nn.classifier import Classifier, build_classifier
from lowpose.nn.mixers.gfl_static import Filtered
from lowpose.nn.model import PoseModel, build_model
from lowpose.skeletons import Skeleton

Model = PoseModel | Classifier
WEIGHTS = "weights.safetensors"
STATE = "state.pt"


def save_weights(path: Path, model: Model, config: RunConfig, half: bool = False, **facts: Any) -> None:
    """One file with tensors, recipe and skeleton (or classes); `half` stores floats as fp16. Appears whole or not at all."""
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    if half:
        state = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    about = {
        "version": __version__,
        "config": recipe_values(config),
        **({"classes": list(model.classes)} if isinstance(model, Classifier) else {"skeleton": model.skeleton.to_dict()}),
        **facts,
    }
    write_bytes(path, save(state, {"lowpose": json.dumps(about)}))


def pack_weights(weights: str | Path, out: Path) -> None:
    """Weights to hand on: floats as fp16, and nothing inside about where files lie on this machine.

    Raises: LowposeError for a file that is not lowpose's, or weights that fp16 cannot hold.
    """
    model, config = load_model(weights, task=None)
    about = describe_weights(weights)
    large = [k for k, v in model.state_dict().items() if v.is_floating_point() and not torch.isfinite(v.half()).all()]
    if large:
        raise LowposeError(f"{weights}: fp16 cannot hold {len(large)} tensors, as {large[0]}")
    facts = {k: v for k, v in about.items() if k not in ("version", "config", "skeleton", "classes")}
    save_weights(out, model, portable(config), half=True, **facts)


def store_facts(weights: str | Path, out: Path, **facts: Any) -> None:
    """The same weights, tensor for tensor, whose description holds these facts too; `out` may be the file itself."""
    state, about = read_weights(weights)
    write_bytes(out, save(state, {"lowpose": json.dumps(about | facts)}))


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors, and what the file says about itself. Raises: as `describe_weights`."""
    path = weights_path(path)
    with _opened(path) as f:
        about = _description(f, path)
        return {k: f.get_tensor(k) for k in f.keys()}, about  # noqa: SIM118 (not a mapping)


def describe_weights(path: str | Path) -> dict[str, Any]:
    """What a weights file says about itself, without reading its tensors: 'config', 'skeleton' or 'classes', 'version', ...

    Raises: LowposeError for a file that is missing or not lowpose's.
    """
    path = weights_path(path)
    with _opened(path) as f:
        return _description(f, path)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(str(path), "pt") as f:
            yield f
    except (SafetensorError, OSError, RuntimeError) as e:
        raise LowposeError(f"{path}: not a readable safetensors file ({str(e).splitlines()[0]})") from None


def _description(f: Any, path: Path) -> dict[str, Any]:
    about = (f.metadata() or {}).get("lowpose")
    if about is None:
        raise LowposeError(
            f"{path}: not weights of lowpose (no recipe inside); for a backbone's weights use model.pretrained={path}"
        )
    try:
        about = json.loads(about)
        labels = "classes" if "classes" in about else "skeleton"
        return {"config": about["config"], labels: about[labels], **about}
    except (ValueError, KeyError, TypeError):
        raise LowposeError(f"{path}: its description of the model is damaged (no recipe or skeleton inside)") from None


def weights_path(path: str | Path) -> Path:
    """The weights file of a run folder, a path, or the name of weights that come with the package.

    Raises: LowposeError if there is none.
    """
    path = shipped.find(path, ".safetensors")
    if path.is_dir():
        if not (path / WEIGHTS).is_file():
            raise LowposeError(f"{path}: a run folder without {WEIGHTS}; has its training ended?")
        return path / WEIGHTS
    if not path.is_file():
        raise LowposeError(f"{path}: no such weights file or run folder")
    if path.suffix != ".safetensors":
        what = "an exported file; this needs the weights it was made from" if path.suffix == ".onnx" else "not a file of weights"
        raise LowposeError(f"{path}: {what} (.safetensors), or a run folder")
    return path


def load_model(path: str | Path, task: str | None = "pose") -> tuple[Model, RunConfig]:
    """The model of a weights file or run folder, in eval mode, float32. `task`: the one that the caller can use; None: any.

    Raises: LowposeError for a file that does not fit the model that its recipe describes, or a model of another task.
    """
    state, about = read_weights(path)
    config = from_scratch(parse_config(about["config"], str(path)))
    if task is not None and config.task != task:
        raise LowposeError(f"{path}: weights of task '{config.task}'; here only those of task '{task}' serve")
    if "classes" in about:
        model: Model = build_classifier(config, tuple(about["classes"]))
    else:
        model = build_model(config, Skeleton.from_dict(about["skeleton"], str(path)))
    state = {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
    try:
        model.load_state_dict(state)
    except RuntimeError as e:
        detail = " ".join(str(e).split())[:200]
        raise LowposeError(f"{path}: does not fit its own recipe ({detail})") from None
    return model.eval(), config


def initialise(model: Model, path: str | Path) -> list[str]:
    """Start from other weights: same names and shapes are taken, tensors per keypoint (or class) row by row by its name.

    From weights of another task the backbone is taken.
    Returns: the model's tensors (and keypoints of tensors) that were not loaded.
    Raises: LowposeError if nothing fits, or no keypoint or class name is shared.
    """
    state, about = read_weights(path)
    ours, theirs = label_names(model), _names_in(about, path)
    other_task = isinstance(model, Classifier) != ("classes" in about)
    shared = [] if other_task else [(i, theirs.index(n)) for i, n in enumerate(ours) if n in theirs]
    if other_task:
        state = {name: value for name, value in state.items() if name.startswith("backbone.")}
    elif not shared:
        raise _nothing_shared(model, about, path)
    for prefix, module in model.named_modules():
        if isinstance(module, Filtered):  # filters follow the grid
            state |= module.adapt(state, f"{prefix}.")
    per_label = _per_label(model)
    missing, taken = [], 0
    with torch.no_grad():
        for name, own in model.state_dict().items():
            given = state.get(name)
            groups = per_label.get(name)
            if given is None:
                missing.append(name)
            elif groups and given.shape[1:] == own.shape[1:] and len(given) == groups * len(theirs):
                rows_to, rows_from = zip(*shared, strict=True)
                own.view(groups, len(ours), -1)[:, list(rows_to)] = given.to(own.dtype).view(groups, len(theirs), -1)[
                    :, list(rows_from)
                ]
                missing += [f"{name}[{n}]" for n in ours if n not in theirs]
                taken += own.ndim > 1  # norms, biases and counters may fit by chance
            elif given.shape == own.shape and not groups:
                own.copy_(given)
                taken += own.ndim > 1  # norms, biases and counters may fit by chance
            else:
                missing.append(f"{name} (here {tuple(own.shape)}, there {tuple(given.shape)})")
    if taken == 0:
        raise LowposeError(f"{path}: none of its {len(state)} tensors fits this model; are they of another backbone?")
    return missing


def label_names(model: Model) -> tuple[str, ...]:
    """Names of what the model predicts: keypoints or classes."""
    return model.classes if isinstance(model, Classifier) else model.skeleton.keypoints


def _names_in(about: dict[str, Any], path: str | Path) -> tuple[str, ...]:
    return tuple(about["classes"]) if "classes" in about else Skeleton.from_dict(about["skeleton"], str(path)).keypoints


def _nothing_shared(model: Model, about: dict[str, Any], path: str | Path) -> LowposeError:
    ours, theirs = label_names(model), _names_in(about, path)
    if isinstance(model, Classifier):
        return LowposeError(f"{path}: weights for classes {first_of(theirs)} share none with {first_of(ours)}")
    return LowposeError(
        f"{path}: weights for skeleton '{about['skeleton']['name']}' ({first_of(theirs, 4)}) share no keypoint "
        f"with '{model.skeleton.name}' ({first_of(ours, 4)})"
    )


def _per_label(model: Model) -> dict[str, int]:
    """Parameter -> n, where its first axis is (n, labels) flattened."""
    if isinstance(model, Classifier):
        return {f"head.{name}": n for name, n in model.head.per_label.items()}
    parts = {"head": model.head, "tokens": model.tokens}
    return {f"{prefix}.{name}": n for prefix, part in parts.items() if part is not None for name, n in part.per_keypoint.items()}


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """The whole training state, written aside and renamed."""
    with whole(folder / STATE) as aside:
        try:
            torch.save(state, aside)
        except RuntimeError as e:  # torch's own answer to a full disk, which is no OSError
            raise LowposeError(f"{folder / STATE}: cannot be written; is the disk full? ({str(e).splitlines()[0]})") from None


def load_state(folder: Path) -> dict[str, Any] | None:
    """The last whole training state of a run folder; None if it has none yet."""
    path = folder / STATE
    if not path.is_file():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # a damaged zip raises many kinds
        raise LowposeError(f"{path}: not a readable training state ({type(e).__name__}); delete it to start again") from None
