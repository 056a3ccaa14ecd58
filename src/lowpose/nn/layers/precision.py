"""Parts of a network that stay in float32 whatever the autocast."""

from __future__ import annotations

import torch


def full_precision(device: torch.device) -> torch.autocast:
    """`with full_precision(x.device):` no autocast inside.

    Tensors without memory (device 'meta': models whose cost is counted) have no autocast of their own.
    """
    return torch.autocast("cpu" if device.type == "meta" else device.type, enabled=False)
