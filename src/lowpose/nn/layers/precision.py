"""Parts of a network that stay in float32 whatever the autocast; in a float64 model they are float64."""

from __future__ import annotations

import torch
from torch import Tensor


def full_precision(device: torch.device) -> torch.autocast:
    """`with full_precision(x.device):` no autocast inside.

    Tensors without memory (device 'meta': models whose cost is counted) have no autocast of their own.
    """
    return torch.autocast("cpu" if device.type == "meta" else device.type, enabled=False)


def at_least_float32(x: Tensor) -> Tensor:
    """float64 stays, everything else becomes float32."""
    return x if x.dtype == torch.float64 else x.float()
