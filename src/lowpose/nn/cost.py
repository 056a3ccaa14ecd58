"""What a network costs: parameters and multiply-accumulates, by part.

The rule of counting:
- `macs`: multiply-accumulates of convolutions, linear layers, matrix products and attention, biases not counted
  (torch's FlopCounterMode / 2), and 2.5 N log2 N for each discrete Fourier transform of N points, real or complex
  (5 N log2 N floating-point operations / 2: the count that FFTW's authors use for complex transforms). torch itself
  counts a Fourier transform as nothing.
- `norm_macs`: one per element that a batch, layer, group or instance normalisation puts out (scale and shift); not in `macs`.
- `published_macs`: `macs`, but a global filter's transforms count H W C log2(H W) each, FFT or DCT and however they are computed,
  plus `norm_macs`: how the tables of the global filters' paper come out.
- Nothing else (activations, pooling, sums, softmax, interpolation) is counted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lowpose.nn.meta import meta_call
from lowpose.nn.mixers.spectra import Spectrum

aten = torch.ops.aten


@dataclass(frozen=True)
class Cost:
    """Of one forward pass of a batch. Parts are the model's children ('neck' on its own); 'other' is what is left."""

    params: int
    params_by_part: dict[str, int]
    macs: int
    macs_by_part: dict[str, int]
    norm_macs: int
    published_macs: int


def count(model: nn.Module, size: tuple[int, int], batch: int = 1) -> Cost:
    """The cost of `model` on a batch of pictures of `size` (width, height), found by running it on zeros in eval mode.

    The model is left as it was. The rule of counting is at the top of this file.
    """
    counter = FlopCounterMode(display=False, custom_mapping=_FOURIER | _PRODUCTS | _NORMS)
    some = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(0))
    images = torch.zeros(batch, 3, size[1], size[0], dtype=some.dtype, device=some.device)
    modes = [(module, module.training) for module in model.modules()]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    try:
        model.eval()
        torch.backends.mha.set_fastpath_enabled(False)  # a fused encoder layer would hide its products
        with torch.no_grad(), counter:
            model(images)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for module, training in modes:
            module.training = training
    return _summary(model, counter.get_flop_counts(), batch)


def macs_of(module: nn.Module, shape: tuple[int, ...]) -> int:
    """Multiply-accumulates of one layer for an input of this shape, counted on meta tensors."""
    counter = FlopCounterMode(display=False, custom_mapping=_FOURIER | _PRODUCTS | _NORMS)
    with counter:
        meta_call(module, shape)
    return _macs(counter.get_flop_counts().get("Global", {}))


def _summary(model: nn.Module, flops: dict[str, dict], batch: int) -> Cost:
    root = type(model).__name__
    parts = _parts(model)
    macs = {part: _macs(flops.get(f"{root}.{path}", {})) for part, path in parts.items()}
    params = {part: _size(model.get_submodule(path)) for part, path in parts.items()}
    for part, path in parts.items():  # a part that stands inside another is counted once
        for outer, outer_path in parts.items():
            if path.startswith(f"{outer_path}."):
                macs[outer] -= macs[part]
                params[outer] -= params[part]
    total_macs, total_params = _macs(flops.get("Global", {})), _size(model)
    for table, total in ((macs, total_macs), (params, total_params)):
        if total != sum(table.values()):
            table["other"] = total - sum(table.values())
    norms = sum(n for op, n in flops.get("Global", {}).items() if op in _NORMS) // 2
    published = total_macs + norms
    for path, module in model.named_modules():
        if isinstance(module, Spectrum):
            calls = flops.get(f"{root}.{path}", {})
            published += module.published_macs(batch) - _macs(calls)
    return Cost(total_params, params, total_macs, macs, norms, published)


def _parts(model: nn.Module) -> dict[str, str]:
    """Name of each part -> its path in the model."""
    parts = {}
    for name, child in model.named_children():
        parts[name] = name
        if _size(getattr(child, "neck", None)):
            parts["neck"] = f"{name}.neck"
    return parts


def _size(module: nn.Module | None) -> int:
    return sum(p.numel() for p in module.parameters()) if isinstance(module, nn.Module) else 0


def _macs(flops: dict) -> int:
    return sum(n for op, n in flops.items() if op not in _NORMS) // 2


def _fourier(real_shape: tuple[int, ...], dims: list[int]) -> int:
    points = math.prod(real_shape[d] for d in dims)
    transforms = math.prod(real_shape) // points
    return 2 * round(transforms * 2.5 * points * math.log2(points))


def _forward_fourier(shape, dim, *args, out_shape=None, **kwargs) -> int:
    return _fourier(shape, dim)


def _real_from_complex(shape, dim, *args, out_shape=None, **kwargs) -> int:
    return _fourier(out_shape, dim)


def _dot(a_shape, b_shape, *args, out_shape=None, **kwargs) -> int:
    return 2 * math.prod(a_shape)


def _addmv(bias_shape, a_shape, b_shape, *args, out_shape=None, **kwargs) -> int:
    return 2 * math.prod(a_shape)


def _attention(query_shape, key_shape, value_shape, *args, out_shape=None, **kwargs) -> int:
    *batch, queries, channels = query_shape
    return 2 * math.prod(batch) * queries * key_shape[-2] * (channels + value_shape[-1])


def _norm(shape, *args, out_shape=None, **kwargs) -> int:
    return 2 * math.prod(shape)


_FOURIER = {aten._fft_r2c: _forward_fourier, aten._fft_c2c: _forward_fourier, aten._fft_c2r: _real_from_complex}
# torch leaves these out: matrix and vector, and attention in one kernel of CPUs (which one it takes depends on the processor)
_PRODUCTS = {
    aten.mv: _dot,
    aten.dot: _dot,
    aten.addmv: _addmv,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
}
_NORM_NAMES = (
    "native_batch_norm",
    "cudnn_batch_norm",
    "miopen_batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
    "_batch_norm_no_update",
    "_batch_norm_with_update",
    "native_layer_norm",
    "native_group_norm",
)
_NORMS = {getattr(aten, name): _norm for name in _NORM_NAMES if hasattr(aten, name)}
