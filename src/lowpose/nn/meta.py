"""A network's shapes without its numbers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode


class _NormsKeepShapes(TorchFunctionMode):
    """Batch normalisation gives what it got: on meta tensors torch's own takes milliseconds a layer, most of a network's time."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.batch_norm:
            return torch.empty_like(args[0] if args else kwargs["input"])
        return func(*args, **(kwargs or {}))


def meta_forward(module: nn.Module, size: tuple[int, int]) -> Any:
    """What `module` makes of one picture of `size` (width, height), in eval mode, on meta tensors: shapes, no computing."""
    return meta_call(module, (1, 3, size[1], size[0]))


@torch.no_grad()
def meta_call(module: nn.Module, shape: tuple[int, ...]) -> Any:
    """What `module` makes of a tensor of this shape and of its parameters' type, as `meta_forward`."""
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        given = torch.empty(shape, dtype=dtype, device="meta")
        with _NormsKeepShapes():
            return torch.func.functional_call(module, {k: v.detach().to("meta") for k, v in tensors.items()}, (given,))
    finally:
        for child, training in modes:
            child.training = training
