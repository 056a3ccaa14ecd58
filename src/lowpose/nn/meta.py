"""A network's shapes without its numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


@torch.no_grad()
def meta_forward(module: nn.Module, size: tuple[int, int]) -> Any:
    """What `module` makes of one picture of `size` (width, height), in eval mode, on meta tensors: shapes, no computing."""
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        picture = torch.empty(1, 3, size[1], size[0], device="meta")
        return torch.func.functional_call(module, {k: v.detach().to("meta") for k, v in tensors.items()}, (picture,))
    finally:
        for child, training in modes:
            child.training = training
