"""Filters in the frequency domain against sums over offsets and SciPy's transforms, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.fft
import torch
from mixer_oracle import array, circular, cosine_filter, fourier_filter, fourier_kernel, noise, symmetric

from lowpose.nn.mixers import spectra
from lowpose.nn.mixers.spectra import Cosine, Fourier, complex_dft, dct, make_spectrum, real_dft, real_inverse, resize_filter

GRIDS = [(1, 1), (1, 6), (5, 1), (1, 2), (2, 3), (4, 6), (5, 7), (4, 7), (7, 4), (6, 5)]
RESIZED = [  # given, wanted: up and down, one axis, parity
    ((4, 6), (8, 12)),
    ((8, 12), (4, 6)),
    ((5, 7), (6, 8)),
    ((6, 8), (5, 7)),
    ((8, 8), (8, 9)),
    ((8, 9), (8, 8)),
    ((4, 9), (7, 5)),
    ((1, 1), (4, 5)),
    ((4, 5), (1, 1)),
]
every_grid = pytest.mark.parametrize("grid", GRIDS, ids=str)
every_way = pytest.mark.parametrize("way", ["fft", "matrix"])
training_and_use = pytest.mark.parametrize("grad", [True, False], ids=["training", "use"])  # products are computed otherwise
both = pytest.mark.parametrize("transform", ["fft", "dct"])
every_resize = pytest.mark.parametrize("given,wanted", RESIZED, ids=str)


def close(found: torch.Tensor, wanted: np.ndarray, tolerance: float = 1e-5) -> None:
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.detach().double().numpy(), wanted, rtol=tolerance, atol=tolerance)


@every_way
@every_grid
@training_and_use
def test_global_filter_is_circular_convolution(grid, way, grad):
    spectrum = Fourier(*grid, 3, way)
    x, weight = noise(2, *grid, 3), noise(*spectrum.shape, 3, seed=1)
    assert weight.shape == (2, grid[0], grid[1] // 2 + 1, 3)
    with torch.set_grad_enabled(grad):
        close(spectrum(x, weight), circular(array(x), fourier_kernel(array(weight), grid[1])))


@every_grid
def test_cosine_filter_is_symmetric_convolution(grid):
    kernel = noise(*grid, 3, seed=1).double().numpy() / math.prod(grid)
    weight = torch.from_numpy(cosine_filter(kernel, *grid)).float()
    spectrum = Cosine(*grid, 3)
    assert spectrum.shape == weight.shape[:3]
    x = noise(2, *grid, 3)
    close(spectrum(x, weight), symmetric(array(x), kernel))


@every_grid
def test_cosine_filter_by_scipy(grid):
    spectrum = Cosine(*grid, 3)
    x, weight = noise(2, *grid, 3), noise(*spectrum.shape, 3, seed=1)
    cosines = scipy.fft.dctn(array(x), type=2, axes=(1, 2), norm="ortho")
    close(spectrum(x, weight), scipy.fft.idctn(array(weight[0]) * cosines, type=2, axes=(1, 2), norm="ortho"))


@pytest.mark.parametrize("n", [1, 2, 3, 8, 17])
def test_matrices_are_the_transforms(n):
    line = np.random.default_rng(n).standard_normal((n, 2))
    np.testing.assert_allclose(dct(n) @ line, scipy.fft.dct(line, type=2, axis=0, norm="ortho"), atol=1e-12)
    frequencies = scipy.fft.rfft(line, axis=0, norm="ortho")
    np.testing.assert_allclose(real_dft(n) @ line, np.concatenate([frequencies.real, frequencies.imag]), atol=1e-12)
    np.testing.assert_allclose(real_inverse(n) @ np.concatenate([frequencies.real, frequencies.imag]), line, atol=1e-12)
    pairs = scipy.fft.fft(line[:, 0] + 1j * line[:, 1], norm="ortho")
    np.testing.assert_allclose(complex_dft(n) @ line.reshape(-1), np.stack([pairs.real, pairs.imag], 1).reshape(-1), atol=1e-12)


@pytest.mark.parametrize("grid", [(16, 17), (32, 32), (24, 18), (33, 20)], ids=str)
def test_matrices_equal_the_fft_and_so_do_their_gradients(grid):
    answers = []
    for way in ("fft", "matrix"):
        spectrum = Fourier(*grid, 4, way)
        x, weight = noise(2, *grid, 4).requires_grad_(), noise(*spectrum.shape, 4, seed=1).requires_grad_()
        out = spectrum(x, weight)
        answers.append((out, *torch.autograd.grad((out * noise(*out.shape, seed=2)).sum(), (x, weight))))
    for a, b in zip(*answers, strict=True):
        assert (a - b).abs().max() <= 1e-5 * max(1, a.abs().max())


@pytest.mark.parametrize("make", [lambda: Fourier(4, 5, 3, "fft"), lambda: Fourier(4, 5, 3, "matrix"), lambda: Cosine(4, 5, 3)])
@training_and_use
def test_a_filter_for_each_picture(make, grad):
    spectrum = make()
    x, weights = noise(3, 4, 5, 3), noise(3, *spectrum.shape, 3, seed=1)
    with torch.set_grad_enabled(grad):
        together = spectrum(x, weights)
        alone = [spectrum(picture[None], weight)[0] for picture, weight in zip(x, weights, strict=True)]
        close(together, array(torch.stack(alone)), 1e-6)
        assert not torch.allclose(together[1:], spectrum(x, weights[0])[1:], atol=0.1), "each has its own"


@pytest.mark.parametrize("transform,way", [("fft", "fft"), ("fft", "matrix"), ("dct", "auto")])
@training_and_use
def test_transforms_run_in_float32_whatever_the_autocast(transform, way, grad):
    grid = (12, 13)
    spectrum = make_spectrum(transform, *grid, 2, way)
    x, weight = noise(2, *grid, 2).bfloat16(), noise(*spectrum.shape, 2, seed=1)
    with torch.set_grad_enabled(grad):
        with torch.autocast("cpu", torch.bfloat16):
            found = spectrum(x, weight)
            rounded = spectrum(x, weight.bfloat16())
        assert torch.equal(found, spectrum(x.float(), weight))
        assert torch.equal(rounded, spectrum(x.float(), weight.bfloat16().float()))
    if transform == "fft":
        close(found, circular(array(x), fourier_kernel(array(weight), grid[1])))


@pytest.mark.parametrize("transform,way", [("fft", "fft"), ("fft", "matrix"), ("dct", "auto")])
@every_grid
@training_and_use
def test_a_float64_model_filters_in_float64(transform, way, grid, grad):
    """To its last digits: matrices are not those of float32. Back in float32 it is what it was."""
    spectrum = make_spectrum(transform, *grid, 3, way)
    x, weight = noise(2, *grid, 3), noise(*spectrum.shape, 3, seed=1)
    first = spectrum(x, weight)
    with torch.set_grad_enabled(grad):
        found = spectrum.double()(x.double(), weight.double())
    assert found.dtype == torch.float64 and not spectrum.state_dict()
    if transform == "fft":
        wanted = circular(array(x), fourier_kernel(array(weight), grid[1]))
    else:
        cosines = scipy.fft.dctn(array(x), type=2, axes=(1, 2), norm="ortho")
        wanted = scipy.fft.idctn(array(weight[0]) * cosines, type=2, axes=(1, 2), norm="ortho")
    np.testing.assert_allclose(array(found), wanted, rtol=1e-12, atol=1e-12)
    assert torch.equal(spectrum.float()(x, weight), first)


def fft_calls(monkeypatch) -> list:
    calls, real = [], torch.fft.rfft2
    monkeypatch.setattr(torch.fft, "rfft2", lambda *a, **k: (calls.append(1), real(*a, **k))[1])
    return calls


def test_auto_is_matrices_for_small_grids_on_a_cpu(monkeypatch):
    calls, side = fft_calls(monkeypatch), spectra.MATRIX_SIDE
    cases = {(side, side): True, (side, 1): True, (side + 1, 1): False, (1, side + 1): False}
    for grid, matrices in cases.items():
        spectrum = Fourier(*grid, 1)
        assert spectrum.uses_matrices(torch.device("cpu")) == matrices
        assert not spectrum.uses_matrices(torch.device("cuda")), "torch's own is quick there"
        spectrum(noise(1, *grid, 1), noise(*spectrum.shape, 1))
        assert bool(calls) != matrices
        calls.clear()
    for way, matrices in (("matrix", True), ("fft", False)):
        for grid in cases:
            spectrum = Fourier(*grid, 1, way)
            assert all(spectrum.uses_matrices(torch.device(kind)) == matrices for kind in ("cpu", "cuda"))
            spectrum(noise(1, *grid, 1), noise(*spectrum.shape, 1))
            assert bool(calls) != matrices
            calls.clear()


def test_exported_graphs_hold_matrices_whatever_torch_is_told():
    for way in ("auto", "fft"):
        spectrum = Fourier(2, spectra.MATRIX_SIDE + 1, 1, way)
        args = noise(1, 2, spectra.MATRIX_SIDE + 1, 1), noise(*spectrum.shape, 1)
        parts = torch.export.export(spectrum, args).graph_module.modules()
        graphs = [part.graph for part in parts if isinstance(part, torch.fx.GraphModule)]
        names = " ".join(str(node.target) for graph in graphs for node in graph.nodes)
        assert "fft" not in names and "matmul" in names


def test_weights_files_hold_no_matrices():
    for transform in ("fft", "dct"):
        spectrum = make_spectrum(transform, 3, 4, 2)
        assert not spectrum.state_dict() and not list(spectrum.parameters())


def test_published_count_of_transforms():
    for transform in ("fft", "dct"):
        found = make_spectrum(transform, 16, 17, 192).published_macs(3)
        assert abs(found - 3 * 2 * 16 * 17 * 192 * np.log2(272)) <= 0.5


@both
@every_resize
def test_an_identity_stays_an_identity(transform, given, wanted):
    there, here = make_spectrum(transform, *given, 2), make_spectrum(transform, *wanted, 2)
    identity = torch.zeros(*there.shape, 2)
    identity[0] = 1
    resized = resize_filter(identity, transform, given, wanted)
    assert resized.shape == (*here.shape, 2)
    x = noise(2, *wanted, 2)
    close(here(x, resized), array(x))


def cut(kernel: np.ndarray, wanted: tuple[int, int]) -> np.ndarray:
    """Circular kernel (h, w, C) -> (h', w', C): offsets nearest to 0, of an even number one more below 0 than above."""
    out = np.zeros((*wanted, kernel.shape[2]))
    counts = [min(sides) for sides in zip(kernel.shape, wanted, strict=False)]
    for i in range(-(counts[0] // 2), (counts[0] + 1) // 2):
        for j in range(-(counts[1] // 2), (counts[1] + 1) // 2):
            out[i, j] = kernel[i, j]
    return out


@every_resize
def test_fourier_kernels_keep_their_pixels(given, wanted):
    weight = noise(2, given[0], given[1] // 2 + 1, 2)
    kernel = cut(fourier_kernel(array(weight), given[1]), wanted)
    close(resize_filter(weight, "fft", given, wanted), fourier_filter(kernel))


@every_resize
def test_cosine_kernels_keep_their_pixels(given, wanted):
    kernel = noise(*given, 2).double().numpy() / math.prod(given)
    weight = torch.from_numpy(cosine_filter(kernel, *given)).float()
    close(resize_filter(weight, "dct", given, wanted), cosine_filter(kernel[: wanted[0], : wanted[1]], *wanted))


@both
@pytest.mark.parametrize("given,wanted", [(g, w) for g, w in RESIZED if min(*g, *w) > 3], ids=str)
def test_small_kernels_answer_the_same_in_the_middle_of_both_grids(transform, given, wanted):
    """A picture within reach of no border does not see the grid: the same blob, filtered on both grids."""
    small = np.random.default_rng(0).standard_normal((3, 3, 1))
    if transform == "fft":
        kernel = np.zeros((*given, 1))
        for i, j in np.ndindex(3, 3):
            kernel[i - 1, j - 1] = small[i, j]
        weight = fourier_filter(kernel)
    else:
        weight = cosine_filter(small[:2, :2], *given)
    weight = torch.from_numpy(weight).float()
    answers = []
    for grid, used in ((given, weight), (wanted, resize_filter(weight, transform, given, wanted))):
        x = torch.zeros(1, *grid, 1)
        x[0, 1, 1] = 1
        answers.append(make_spectrum(transform, *grid, 1)(x, used)[0, :3, :3])
    assert answers[0].abs().min() > 1e-3
    close(answers[1], array(answers[0]))


@both
@pytest.mark.parametrize("given,wanted", [(g, w) for g, w in RESIZED if all(map(int.__le__, g, w))], ids=str)
def test_there_and_back_is_the_identity(transform, given, wanted):
    spectrum = make_spectrum(transform, *given, 2)
    weight, x = noise(*spectrum.shape, 2), noise(2, *given, 2, seed=1)
    back = resize_filter(resize_filter(weight, transform, given, wanted), transform, wanted, given)
    close(spectrum(x, back), array(spectrum(x, weight)), 1e-4)


@both
def test_resized_filters_keep_their_type(transform):
    weight = noise(*make_spectrum(transform, 4, 4, 1).shape, 2)
    resized = resize_filter(weight, transform, (4, 4), (4, 5))
    half = resize_filter(weight.half(), transform, (4, 4), (4, 5))
    assert resized.dtype == torch.float32 and half.dtype == torch.float16
    torch.testing.assert_close(half.float(), resized, rtol=5e-3, atol=5e-3)
