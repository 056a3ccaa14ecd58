"""Global filter layers, static and dynamic, against their equations in NumPy float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mixer_oracle import array, filtered, noise, shared_grid, star_relu
from scipy.integrate import quad
from scipy.special import softmax
from scipy.stats import norm

from lowpose.errors import LowposeError
from lowpose.nn.mixers.base import TokenGrid
from lowpose.nn.mixers.gfl_dynamic import GFLDynamic, GFLDynamicConfig, StarReLU
from lowpose.nn.mixers.gfl_static import GFLStatic, GFLStaticConfig

GRID, WIDTH = TokenGrid(5, 4, 3), 8  # two extra columns, three cells without a token
VIEWED = TokenGrid(8, 4, 3)
LAYOUTS = [("columns", GRID), ("view", VIEWED)]
PUBLISHED = TokenGrid(16, 16, 16)
both = pytest.mark.parametrize("transform", ["fft", "dct"])
every_layout = pytest.mark.parametrize("layout,grid", LAYOUTS)
training_and_use = pytest.mark.parametrize("grad", [True, False], ids=["training", "use"])  # products are computed otherwise
every_routing = pytest.mark.parametrize("routing", ["supplement", "dfformer"])


def lively(mixer):
    """With weights so large that every part of the answer counts."""
    for i, p in enumerate(mixer.parameters()):
        p.data = p.data + noise(*p.shape, seed=i) * (0.5 if p.ndim < 3 else 1)
    return mixer


def static(grid=GRID, **settings) -> GFLStatic:
    torch.manual_seed(0)
    return lively(GFLStatic(GFLStaticConfig(**settings), grid, WIDTH))


def dynamic(grid=GRID, **settings) -> GFLDynamic:
    torch.manual_seed(0)
    return lively(GFLDynamic(GFLDynamicConfig(**settings), grid, WIDTH))


def size(mixer) -> int:
    return sum(p.numel() for p in mixer.parameters())


@both
@every_layout
@training_and_use
def test_static_filters_by_hand(transform, layout, grid, grad):
    mixer, tokens = static(grid, transform=transform, layout=layout), noise(2, grid.count, WIDTH, seed=9)
    wanted = filtered(array(tokens), array(mixer.filter), shared_grid(*grid, layout), transform)
    with torch.set_grad_enabled(grad):
        np.testing.assert_allclose(array(mixer(tokens)), wanted, rtol=1e-4, atol=1e-4)


def weights_by_hand(mixer: GFLDynamic, tokens: np.ndarray) -> np.ndarray:
    """(B, K + N, C) -> (B, F, C'): eq. 4 and 5 of the supplement, or DFFormer's."""
    mean, routing, f = tokens.mean(1), mixer.routing, mixer.config.filters
    first, second = array(routing.first.weight), array(routing.second.weight)
    if mixer.config.routing == "dfformer":
        logits = (second @ star_relu(first @ mean.T, routing.act)).T.reshape(len(mean), f, -1)
    else:
        rows = mean.reshape(len(mean), f, -1)
        logits = np.stack([star_relu(rows[:, i] @ first.T, routing.act) @ second.T for i in range(f)], 1)
    return softmax(logits, 1)


def dynamic_by_hand(mixer: GFLDynamic, tokens: np.ndarray) -> np.ndarray:
    settings = mixer.config
    weights, grid = weights_by_hand(mixer, tokens), shared_grid(*mixer.tokens, settings.layout)
    if settings.static:
        tokens = filtered(tokens, array(mixer.static), grid, settings.transform)
    x = star_relu(tokens @ array(mixer.expand.weight).T, mixer.act)
    mixed = np.einsum("phvf,bfc->bphvc", array(mixer.basis), weights)
    x = np.concatenate([filtered(x[i : i + 1], mixed[i], grid, settings.transform) for i in range(len(x))])
    return x @ array(mixer.reduce.weight).T


@both
@every_layout
@every_routing
@pytest.mark.parametrize("with_static", [False, True])
@training_and_use
def test_dynamic_filters_by_hand(transform, layout, grid, routing, with_static, grad):
    mixer = dynamic(grid, transform=transform, layout=layout, routing=routing, static=with_static)
    tokens = noise(3, grid.count, WIDTH, seed=99)
    wanted = dynamic_by_hand(mixer, array(tokens))
    with torch.set_grad_enabled(grad):
        np.testing.assert_allclose(array(mixer(tokens)), wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize("filters,expansion", [(2, 1), (8, 3)])
@every_routing
def test_other_numbers_of_filters_and_widths(filters, expansion, routing):
    mixer = dynamic(filters=filters, expansion=expansion, routing=routing)
    tokens = noise(2, GRID.count, WIDTH, seed=99)
    wanted = dynamic_by_hand(mixer, array(tokens))
    np.testing.assert_allclose(array(mixer(tokens)), wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


@every_routing
def test_weights_of_filters(routing):
    """By hand; one in sum over filters, to float32's precision under autocast too; others for other pictures and channels."""
    mixer, tokens = dynamic(routing=routing), 3 * noise(3, GRID.count, WIDTH, seed=9)
    weights = mixer.routing(tokens.mean(1))
    assert weights.shape == (3, 4, 2 * WIDTH)
    np.testing.assert_allclose(array(weights), weights_by_hand(mixer, array(tokens)), rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        half = mixer.routing(tokens.mean(1))
    for w in (weights, half):
        assert w.dtype == torch.float32 and (w > 0).all()
        np.testing.assert_allclose(array(w).sum(1), 1, atol=1e-6)
        assert (w[0] - w[1]).abs().amax() > 0.01 and (w[..., 0] - w[..., 1]).abs().amax() > 0.01


@both
def test_the_mixed_filter(transform):
    """Eq. 6, in float32 under autocast too."""
    mixer, weights = dynamic(transform=transform), noise(3, 4, 2 * WIDTH, seed=9)
    wanted = np.einsum("phvf,bfc->bphvc", array(mixer.basis), array(weights))
    with torch.autocast("cpu", torch.bfloat16):
        half = mixer.mixed(weights)
    for found in (mixer.mixed(weights), half):
        np.testing.assert_allclose(array(found), wanted, rtol=1e-5, atol=1e-5)


def test_star_relu():
    act, lifted, x = StarReLU().requires_grad_(False), StarReLU(), noise(1000)
    lifted.scale.data, lifted.bias.data = torch.tensor(-1.5), torch.tensor(0.25)
    np.testing.assert_allclose(array(lifted(x)), -1.5 * np.maximum(array(x), 0) ** 2 + 0.25, rtol=1e-5, atol=1e-6)

    def moment(power: int, about: float = 0.0) -> float:
        def value(z: float) -> float:
            return (float(act(torch.tensor(z, dtype=torch.float64))) - about) ** power * norm.pdf(z)

        return quad(value, -10, 0)[0] + quad(value, 0, 10)[0]

    assert moment(1) == pytest.approx(0, abs=1e-3)
    assert moment(2, moment(1)) == pytest.approx(1, abs=1e-3)


def test_the_static_filter_works_before_the_dynamic_one():
    mixer, tokens = dynamic(static=True), noise(2, GRID.count, WIDTH, seed=9)
    out = mixer(tokens)
    out.square().sum().backward()
    assert torch.isfinite(mixer.static.grad).all() and (mixer.static.grad.abs().amax((0, 1, 2)) > 0).all()
    with torch.no_grad():
        mixer.static[:] = torch.tensor([1.0, 0.0])[:, None, None, None]  # the identity: as if there were none
    names = dict(dynamic().named_parameters())
    plain = dynamic()
    plain.load_state_dict({n: v for n, v in mixer.state_dict().items() if n in names or n == "size"})
    torch.testing.assert_close(mixer(tokens), plain(tokens), rtol=1e-4, atol=1e-4)
    assert (mixer(tokens) - out).abs().max() > 0.1
    assert "static" not in names and not hasattr(plain, "before")


@pytest.mark.parametrize("transform,count", [("fft", 55_296), ("dct", 52_224)])
def test_published_parameters_of_static_filters(transform, count):
    mixer = GFLStatic(GFLStaticConfig(transform=transform), PUBLISHED, 192)
    assert size(mixer) == count
    values = array(mixer.filter)
    assert values.std() == pytest.approx(0.02, rel=0.02) and abs(values.mean()) < 5e-4


@every_routing
@pytest.mark.parametrize("transform,basis,filter_", [("fft", 2 * 16 * 9 * 4, 55_296), ("dct", 16 * 17 * 4, 52_224)])
def test_published_parameters_of_dynamic_filters(routing, transform, basis, filter_):
    plain = GFLDynamic(GFLDynamicConfig(transform=transform, routing=routing), PUBLISHED, 192)
    published = 231_556 - 1152 + basis  # for the FFT
    assert size(plain) == published - (routing == "supplement")  # a bias that the softmax over rows never sees
    assert array(plain.basis).std() == pytest.approx(0.02, rel=0.1)
    with_static = GFLDynamic(GFLDynamicConfig(transform=transform, routing=routing, static=True), PUBLISHED, 192)
    assert size(with_static) == size(plain) + filter_


def test_filters_that_do_not_divide_the_width():
    with pytest.raises(LowposeError, match="model.tokens.mixer.filters=3 does not divide the width of 8; use routing=dfformer"):
        dynamic(filters=3)
    assert dynamic(filters=3, routing="dfformer")(noise(1, GRID.count, WIDTH)).shape == (1, GRID.count, WIDTH)


def test_both_ways_of_the_fft_share_weights():
    """A layer is loaded strictly into one that computes otherwise, and answers the same."""
    tokens = noise(2, GRID.count, WIDTH, seed=9)
    for make in (static, dynamic):
        mixer, twin = make(way="fft"), make(way="matrix")
        for p in twin.parameters():
            p.data.zero_()
        twin.load_state_dict(mixer.state_dict())
        wanted = mixer(tokens).detach()
        torch.testing.assert_close(twin(tokens), wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))
        exact = mixer.double()(tokens.double()).detach()
        torch.testing.assert_close(twin.double()(tokens.double()), exact, rtol=1e-12, atol=1e-12 * float(exact.abs().max()))
