"""Which precision a device computes; parts of a network that stay in float32 under autocast, in float64 models in float64."""

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


def computes(precision: str, device: torch.device) -> bool:
    """Whether the hardware multiplies numbers of 'bf16' or 'fp16' itself; CPUs that emulate bf16 take several times as long."""
    if device.type == "cuda":
        return precision == "fp16" or torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return precision == "bf16" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


def chosen(precision: str, device: torch.device) -> str:
    """'auto' as this device has it: 'bf16' where it computes that, else 'no'. Others stay."""
    if precision != "auto":
        return precision
    return "bf16" if computes("bf16", device) else "no"
