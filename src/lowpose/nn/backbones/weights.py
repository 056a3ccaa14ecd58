"""Weights of a backbone from a file: names of timm, torchvision's ResNet, the published HRNet, or a run of lowpose."""

from __future__ import annotations

import re
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file
from torch import nn

from lowpose.errors import LowposeError

# what comes after the trunk in published pose and classification networks and in lowpose's own, which no feature map needs
_HEADS = re.compile(r"(fc|head|neck|tokens|classifier|final_layer|deconv_layers|keypoint_head|mlp_head_[xy])\.")


def read_state(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a `.safetensors` file or a torch file (loaded with `weights_only`), on the CPU.

    Wrappers (`state_dict`, `model`) and the prefixes `module.`, `backbone.` and `body.` are taken off.
    Raises: LowposeError if the file is missing, broken or holds no tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise LowposeError(f"model.pretrained: '{path}' is no file; give imagenet, none or a weights file")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # a broken file can raise anything
        raise LowposeError(f"{path}: not a weights file (.safetensors, or a torch file that holds only tensors)") from None
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()) or not state:
        raise LowposeError(f"{path}: holds no table of named tensors")
    return {name.removeprefix("module.").removeprefix("backbone.").removeprefix("body."): t for name, t in state.items()}


def load_weights(body: nn.Module, name: str, path: str | Path) -> list[str]:
    """Fill every tensor of `body`, a trunk of the timm model `name`, from a file.

    Returns: the file's entries that belong to parts which `body` does not have (classifier, trimmed parts).
    Raises: LowposeError for tensors that are missing, of another shape, or of an unknown name.
    """
    given = {_plain(key): (key, tensor) for key, tensor in read_state(path).items()}
    state = body.state_dict()
    own = {_plain(key): tensor for key, tensor in state.items()}
    missing = [k.removeprefix("net.") for k in state if _plain(k) not in given and not k.endswith("num_batches_tracked")]
    if missing:
        raise LowposeError(f"{path}: does not fit {name}, {_listed('missing', missing)}")
    for key, tensor in own.items():
        if key in given and given[key][1].shape != tensor.shape:
            found, wanted = tuple(given[key][1].shape), tuple(tensor.shape)
            raise LowposeError(f"{path}: does not fit {name}, '{given[key][0]}' is {found}, not {wanted}")
    extra = {plain: key for plain, (key, _) in given.items() if plain not in own}
    unknown = [key for key in extra.values() if not _HEADS.match(key)]
    if unknown:
        whole = {_plain(key) for key in timm.create_model(name).state_dict()}
        unknown = [key for plain, key in extra.items() if plain not in whole and not _HEADS.match(key)]
    if unknown:
        raise LowposeError(f"{path}: does not fit {name}, {_listed('unknown', unknown)}")
    with torch.no_grad():
        for key, tensor in own.items():
            if key in given:
                tensor.copy_(given[key][1])
    return sorted(extra.values())


def _plain(key: str) -> str:
    """One spelling of a tensor's name: timm's feature extractors write `stages_0.` for `stages.0.`."""
    return key.removeprefix("net.").removeprefix("model.").replace(".", "_")


def _listed(what: str, keys: list[str]) -> str:
    shown = ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
    return f"{len(keys)} {what}: {shown}"
