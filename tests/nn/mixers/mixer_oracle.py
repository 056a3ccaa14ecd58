"""What mixers compute, written out in NumPy float64: sums over offsets and frequencies, and loops over cells."""

from __future__ import annotations

import numpy as np
import torch
from scipy.fft import dctn, idctn
from scipy.special import softmax


def array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).float()


def fourier_kernel(weight: np.ndarray, width: int) -> np.ndarray:
    """(2, h, v, C) -> (h, width, C): the inverse DFT of the filter whose missing half is the conjugate mirror image."""
    half = weight[0] + 1j * weight[1]
    h, v, _ = half.shape
    rows = np.arange(h)
    whole = np.stack([half[:, k] if k < v else half[-rows % h, width - k].conj() for k in range(width)], 1)
    waves = [np.exp(2j * np.pi * np.outer(np.arange(n), np.arange(n)) / n) for n in (h, width)]
    return np.einsum("yk,xl,klc->yxc", *waves, whole).real / (h * width)


def fourier_filter(kernel: np.ndarray) -> np.ndarray:
    """(h, w, C) -> (2, h, w // 2 + 1, C), the DFT."""
    h, w, _ = kernel.shape
    waves = [np.exp(-2j * np.pi * np.outer(np.arange(k), np.arange(n)) / n) for k, n in ((h, h), (w // 2 + 1, w))]
    spectrum = np.einsum("ky,lx,yxc->klc", *waves, kernel)
    return np.stack([spectrum.real, spectrum.imag])


def cosine_filter(kernel: np.ndarray, height: int, width: int) -> np.ndarray:
    """(a, b, C), an even kernel's values at offsets from 0 -> (1, height, width, C), its response to the DCT's waves."""
    out = np.zeros((height, width, kernel.shape[2]))
    for i, j in np.ndindex(kernel.shape[:2]):  # an offset other than 0 stands for its mirror image too
        row, column = (np.cos(np.pi * np.arange(n) * o / n) * (2 if o else 1) for n, o in ((height, i), (width, j)))
        out += row[:, None, None] * column[:, None] * kernel[i, j]
    return out[None]


def circular(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """(B, h, w, C) * (h, w, C): sums over offsets, the picture repeated at its borders."""
    out = np.zeros_like(x)
    for i, j in np.ndindex(kernel.shape[:2]):
        out += kernel[i, j] * np.roll(x, (i, j), (1, 2))
    return out


def symmetric(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """(B, h, w, C) * even kernel (h, w, C): sums over offsets, the picture mirrored at its borders."""
    _, h, w, _ = x.shape
    padded = np.pad(x, ((0, 0), (h - 1, h - 1), (w - 1, w - 1), (0, 0)), mode="symmetric")
    out = np.zeros_like(x)
    for i, j in np.ndindex(2 * h - 1, 2 * w - 1):
        out += kernel[abs(i - h + 1), abs(j - w + 1)] * padded[:, i : i + h, j : j + w]
    return out


def shared_grid(k: int, h: int, w: int, arrangement: str = "columns") -> np.ndarray:
    """(h, columns) int: which token stands in a cell, keypoint tokens first; -1: none."""
    if arrangement == "view":
        return np.arange(k + h * w).reshape(h, -1)
    extra = int(np.ceil(k / h))
    grid = np.full((h, w + extra), -1)
    for row, column in np.ndindex(grid.shape):
        if column < w:
            grid[row, column] = k + row * w + column
        elif row * extra + column - w < k:
            grid[row, column] = row * extra + column - w
    return grid


def place(tokens: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """(B, K + N, C) -> (B, h, w, C), zeros where no token stands."""
    return np.where((grid < 0)[..., None], 0.0, tokens[:, grid])


def take(cells: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """(B, h, w, C) -> (B, K + N, C)."""
    out = np.empty((len(cells), grid.max() + 1, cells.shape[-1]))
    for row, column in np.ndindex(grid.shape):
        if grid[row, column] >= 0:
            out[:, grid[row, column]] = cells[:, row, column]
    return out


def filtered(tokens: np.ndarray, weight: np.ndarray, grid: np.ndarray, transform: str) -> np.ndarray:
    """Tokens through a filter (P, h, v, C), by sums over offsets (fft) or SciPy's transform (dct)."""
    cells = place(tokens, grid)
    if transform == "fft":
        return take(circular(cells, fourier_kernel(weight, grid.shape[1])), grid)
    spectrum = dctn(cells, type=2, axes=(1, 2), norm="ortho")
    return take(idctn(weight[0] * spectrum, type=2, axes=(1, 2), norm="ortho"), grid)


def star_relu(x: np.ndarray, act: torch.nn.Module) -> np.ndarray:
    bias = 0.0 if act.bias is None else float(act.bias.detach())
    return float(act.scale.detach()) * np.maximum(x, 0) ** 2 + bias


def attend(x: np.ndarray, qkv: np.ndarray, heads: int, scale: float) -> np.ndarray:
    """(B, T, D) -> (B, T, D), before the last layer: one head after the other."""
    d = x.shape[-1]
    q, k, v = (x @ qkv[i * d : (i + 1) * d].T for i in range(3))
    out = np.empty_like(x)
    for head in np.split(np.arange(d), heads):
        products = q[..., head] @ k[..., head].swapaxes(1, 2) * scale
        out[..., head] = softmax(products, -1) @ v[..., head]
    return out
