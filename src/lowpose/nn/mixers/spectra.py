"""Filters in the frequency domain: T^-1(filter * T x) for the 2D DFT and the 2D DCT of a grid, per channel.

`fourier`: the real 2D DFT, orthonormal. Multiplication with a filter is circular convolution with the filter's inverse DFT.
    A filter has two planes (real, imaginary) of h x (w // 2 + 1) frequencies. Two ways give the same answer: `fft` (torch's) and
    `matrix` (real matrices, first along the rows, then along the columns).
`cosine`: the 2D DCT of type II, orthonormal. Multiplication is convolution with an even kernel over a picture that is
    mirrored at its borders (S. A. Martucci: Symmetric convolution and the discrete sine and cosine transforms. IEEE Trans.
    Signal Processing 42, 1994). A filter has one real plane of h x w frequencies. Matrices only: torch has no DCT.

Transforms run in float32 whatever the autocast: a sum over hundreds of cells loses its small terms in bfloat16. A float64
model has them in float64.

Letters: B batch, P planes, h rows, w columns, v columns of the spectrum, C channels.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from lowpose.nn.layers.precision import at_least_float32, full_precision

Way = Literal["auto", "fft", "matrix"]
# `auto`: up to this many rows or columns matrices are quicker than torch's FFT on a CPU, for single pictures as quick
# (docs/results/benchmarks.md: 64 x 64 visual tokens and a column of keypoint tokens)
MATRIX_SIDE = 65


class Spectrum(nn.Module):
    """x (B, h, w, C), filter (P, h, v, C) or (B, P, h, v, C) -> T^-1(filter * T x), (B, h, w, C) float32; float64 of float64.

    Attributes: height, width, channels (h, w, C), shape (P, h, v).
    """

    planes = 1

    def __init__(self, height: int, width: int, columns: int, channels: int):
        super().__init__()
        self.height, self.width, self.channels = height, width, channels
        self.shape = (self.planes, height, columns)
        for name, matrix in self.matrices().items():  # not in checkpoints
            self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(matrix)).float(), persistent=False)

    def matrices(self) -> dict[str, np.ndarray]:
        """'rows' and the others that the transform is made of, float64."""
        raise NotImplementedError("abstract")

    def _apply(self, fn, recurse=True):
        """Moves and casts, as every module's; what becomes float64 is computed anew, since float32 has lost its digits."""
        super()._apply(fn, recurse)
        if self.rows.dtype == torch.float64:
            for name, matrix in self.matrices().items():
                setattr(self, name, torch.from_numpy(np.ascontiguousarray(matrix)).to(self.rows.device))
        return self

    def published_macs(self, batch: int) -> int:
        """H W C log2(H W) for each of the two transforms, as the supplement counts them (Sec. 4)."""
        points = self.height * self.width
        return round(2 * batch * self.channels * points * math.log2(points))


class Fourier(Spectrum):
    """The real 2D DFT, by torch's FFT or by matrices; the quicker one for size and device, or the one that is named."""

    planes = 2

    def __init__(self, height: int, width: int, channels: int, way: Way = "auto"):
        super().__init__(height, width, width // 2 + 1, channels)
        self.way = way

    def matrices(self) -> dict[str, np.ndarray]:
        columns = complex_dft(self.height)
        return {
            "rows": real_dft(self.width),
            "columns": columns,
            "back_columns": columns.T,
            "back_rows": real_inverse(self.width),
        }

    def uses_matrices(self, device: torch.device) -> bool:
        if torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export():
            return True  # runtimes have slow transforms, or none
        if self.way != "auto":
            return self.way == "matrix"
        return device.type == "cpu" and max(self.height, self.width) <= MATRIX_SIDE

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        with full_precision(x.device):
            x, (real, imaginary) = at_least_float32(x), at_least_float32(weight).unbind(-4)
            return self._matrices(x, real, imaginary) if self.uses_matrices(x.device) else self._fft(x, real, imaginary)

    def _fft(self, x: Tensor, real: Tensor, imaginary: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(x, dim=(1, 2), norm="ortho") * torch.complex(real, imaginary)
        return torch.fft.irfft2(spectrum, s=(self.height, self.width), dim=(1, 2), norm="ortho")

    def _matrices(self, x: Tensor, real: Tensor, imaginary: Tensor) -> Tensor:
        _, h, v = self.shape
        # (B, h, 2 v, C) is also (B, 2 h, v C): no transposition between the two axes
        y = (self.rows @ x).unflatten(2, (2, v)).flatten(3).flatten(1, 2)
        y = _times((self.columns @ y).unflatten(1, (h, 2)).unflatten(3, (v, -1)), real, imaginary)
        y = self.back_columns @ y.flatten(3).flatten(1, 2)
        return self.back_rows @ y.unflatten(1, (h, 2)).unflatten(3, (v, -1)).flatten(2, 3)


def _times(y: Tensor, real: Tensor, imaginary: Tensor) -> Tensor:
    """Complex product of y (B, h, 2, v, C) and a filter (..., h, v, C)."""
    a, b = y.unbind(2)
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return torch.stack((a * real - b * imaginary, a * imaginary + b * real), 2)
    out = torch.empty_like(y)  # a third quicker on a CPU, where each pass over memory counts
    torch.mul(a, real, out=out[:, :, 0]).addcmul_(b, imaginary, value=-1)
    torch.mul(a, imaginary, out=out[:, :, 1]).addcmul_(b, real)
    return out


class Cosine(Spectrum):
    """The orthonormal 2D DCT of type II, by matrices."""

    def __init__(self, height: int, width: int, channels: int):
        super().__init__(height, width, width, channels)

    def matrices(self) -> dict[str, np.ndarray]:
        rows, columns = dct(self.width), dct(self.height)
        return {"rows": rows, "columns": columns, "back_columns": columns.T, "back_rows": rows.T}

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        with full_precision(x.device):
            y = (self.columns @ (self.rows @ at_least_float32(x)).flatten(2)).unflatten(2, (self.width, -1))
            y = self.back_columns @ (y * at_least_float32(weight).squeeze(-4)).flatten(2)
            return self.back_rows @ y.unflatten(2, (self.width, -1))


def make_spectrum(transform: str, height: int, width: int, channels: int, way: Way = "auto") -> Spectrum:
    """`transform`: 'fft' or 'dct'."""
    return Fourier(height, width, channels, way) if transform == "fft" else Cosine(height, width, channels)


def real_dft(n: int) -> np.ndarray:
    """(2 v, n), v = n // 2 + 1: real parts of the frequencies of n real values, then the imaginary parts; orthonormal."""
    angle = 2 * np.pi * np.outer(np.arange(n // 2 + 1), np.arange(n)) / n
    return np.concatenate([np.cos(angle), -np.sin(angle)]) / math.sqrt(n)


def real_inverse(n: int) -> np.ndarray:
    """(n, 2 v): back from what `real_dft` gives."""
    twice = np.full(n // 2 + 1, 2.0)  # frequencies that stand for their mirror image too
    twice[0] = 1
    if n % 2 == 0:
        twice[-1] = 1
    return real_dft(n).T * np.tile(twice, 2)


def complex_dft(n: int) -> np.ndarray:
    """(2 n, 2 n) orthogonal: n complex values as (real, imaginary) pairs -> their frequencies, likewise."""
    angle = 2 * np.pi * np.outer(np.arange(n), np.arange(n)) / n
    c, s = np.cos(angle), np.sin(angle)
    pairs = np.stack([np.stack([c, s], -1), np.stack([-s, c], -1)], 1)  # frequency, part out, position, part in
    return pairs.reshape(2 * n, 2 * n) / math.sqrt(n)


def dct(n: int) -> np.ndarray:
    """(n, n) orthonormal DCT of type II."""
    matrix = np.cos(np.pi * np.outer(np.arange(n), np.arange(n) + 0.5) / n) * math.sqrt(2 / n)
    matrix[0] /= math.sqrt(2)
    return matrix


def resize_filter(weight: Tensor, transform: str, given: tuple[int, int], wanted: tuple[int, int]) -> Tensor:
    """A filter for another grid: its kernel in pixels stays, cut off or continued with zeros. An identity stays one.

    Args:
        weight: (P, h, v, C). given, wanted: (h, w) of both grids.
    Returns: (P, h', v', C).
    """
    w = weight.double()
    if transform == "fft":
        kernel = torch.fft.irfft2(torch.complex(w[0], w[1]), s=given, dim=(0, 1))
        for axis in (0, 1):
            kernel = _around_zero(kernel, axis, wanted[axis])
        spectrum = torch.fft.rfft2(kernel, dim=(0, 1))
        return torch.stack([spectrum.real, spectrum.imag]).to(weight.dtype)
    for axis in (1, 2):
        n, m = given[axis - 1], wanted[axis - 1]
        matrix = torch.from_numpy(_even(m)[:, : min(n, m)] @ np.linalg.inv(_even(n))[: min(n, m)])
        w = torch.tensordot(matrix, w, dims=([1], [axis])).movedim(0, axis)
    return w.to(weight.dtype)


def _around_zero(kernel: Tensor, axis: int, count: int) -> Tensor:
    """A circular kernel with `count` offsets along an axis: those nearest to zero are kept, missing ones are zero."""
    n = kernel.shape[axis]
    kept = min(n, count)
    before, after = kept // 2, kept - kept // 2
    middle = torch.zeros([count - kept if i == axis else s for i, s in enumerate(kernel.shape)], dtype=kernel.dtype)
    return torch.cat([kernel.narrow(axis, 0, after), middle, kernel.narrow(axis, n - before, before)], axis)


def _even(n: int) -> np.ndarray:
    """(n, n): an even kernel's values at offsets 0 to n - 1 -> its response at the n frequencies of the DCT."""
    matrix = 2 * np.cos(np.pi * np.outer(np.arange(n), np.arange(n)) / n)
    matrix[:, 0] = 1
    return matrix
