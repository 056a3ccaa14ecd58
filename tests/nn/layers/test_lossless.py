"""Space-to-depth and MGIL's parts against NumPy in float64, and what they cost."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lowpose.layers import CII, FLIE, LIE, MGAF, MGIL, MRIE, SPD, SpaceToDepth
from lowpose.nn.layers.lossless import fitted


def picture(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("stride", [2, 3, 4])
def test_space_to_depth_holds_every_phase_and_inverts(stride):
    x = torch.arange(2 * 3 * 12 * 24).float().view(2, 3, 12, 24)
    y = SpaceToDepth(stride)(x)
    assert y.shape == (2, 3 * stride**2, 12 // stride, 24 // stride)
    for c in range(3):
        for i in range(stride):
            for j in range(stride):
                phase = x[:, c, i::stride, j::stride]  # eq. 3 to 6
                assert torch.equal(y[:, c * stride**2 + i * stride + j], phase)
    assert torch.equal(F.pixel_shuffle(y, stride), x)


def test_fitted_repeats_or_cuts_at_the_bottom_and_the_right():
    x = torch.arange(15.0).view(1, 1, 3, 5)
    want = np.pad(x[0, 0].numpy(), ((0, 1), (0, 1)), mode="edge")
    np.testing.assert_array_equal(fitted(x, (4, 6))[0, 0], want)
    np.testing.assert_array_equal(fitted(x, (2, 4))[0, 0], x[0, 0, :2, :4])
    np.testing.assert_array_equal(fitted(x, (4, 4))[0, 0], want[:4, :4])


def convolved(x: np.ndarray, weight: np.ndarray, rate: int) -> np.ndarray:
    """3 x 3, padded with zeros, without bias: (C, h, w) and (O, C, 3, 3) -> (O, h, w)."""
    _, h, w = x.shape
    padded = np.pad(x, ((0, 0), (rate, rate), (rate, rate)))
    out = np.zeros((len(weight), h, w))
    for i in range(3):
        for j in range(3):
            out += np.einsum("oc,chw->ohw", weight[:, :, i, j], padded[:, i * rate : i * rate + h, j * rate : j * rate + w])
    return out


def test_mrie_sets_dilated_convolutions_side_by_side():
    torch.manual_seed(0)
    unit = MRIE(6, 8, rates=(2, 3)).eval()
    x = picture(1, 6, 7, 9)
    want = [
        convolved(x[0].double().numpy(), b.weight.detach().double().numpy(), rate)
        for b, rate in zip(unit.branches, (2, 3), strict=True)
    ]
    np.testing.assert_allclose(
        unit(x).detach()[0], np.maximum(np.concatenate(want), 0) / math.sqrt(1 + 1e-5), atol=1e-5
    )  # a new normalisation divides by sqrt(1 + eps)
    assert [len(b.weight) for b in unit.branches] == [4, 4]
    assert [len(b.weight) for b in MRIE(6, 7, rates=(1, 2, 3)).branches] == [3, 2, 2]


def test_mrie_shares_out_the_groups_of_a_depthwise_layer():
    torch.manual_seed(0)
    unit = MRIE(4 * 5, 5, rates=(2, 3), groups=5).eval()
    x = picture(2, 20, 6, 6)
    before = unit(x)
    assert before.shape == (2, 5, 6, 6) and [b.groups for b in unit.branches] == [3, 2]
    x[:, 4 * 3 :] = 0  # the last two groups
    after = unit(x)
    assert torch.equal(after[:, :3], before[:, :3]) and not torch.equal(after[:, 3:], before[:, 3:])
    assert MRIE(4, 1, rates=(2, 3), groups=1).branches[0].weight.shape[0] == 1


@pytest.mark.parametrize("variant", ["mgaf", "eca"])
def test_mgaf_weighs_paths_by_the_picture(variant):
    torch.manual_seed(0)
    unit = MGAF(12, variant=variant).double().eval()
    paths = [picture(3, 12, 5, 4, seed=s).double() for s in (1, 2)]
    weights = unit.weights(paths).detach()
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
    assert not torch.allclose(weights[0], weights[1])
    context = np.concatenate([p.numpy().mean((2, 3)) for p in paths], 1)  # eq. 8
    if variant == "mgaf":
        hidden = context @ unit.conv.weight.detach().numpy().T + unit.conv.bias.detach().numpy()
    else:
        kernel = unit.conv.weight.detach().numpy()[0, 0]
        assert len(kernel) == 3  # |log2(24) / 2 + 1/2| = 2.79, the next odd number from 2
        padded = np.pad(context, ((0, 0), (1, 1)))
        hidden = sum(kernel[i] * padded[:, i : i + 24] for i in range(3))
    scores = np.maximum(hidden, 0) @ unit.fc.weight.detach().numpy().T + unit.fc.bias.detach().numpy()  # eq. 9
    want = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)  # eq. 10
    np.testing.assert_allclose(weights, want, atol=1e-6)
    fused = want[:, 0, None, None, None] * paths[0].numpy() + want[:, 1, None, None, None] * paths[1].numpy()  # eq. 11
    np.testing.assert_allclose(unit(paths).detach(), fused, atol=1e-6)


@pytest.mark.parametrize("channels,hidden", [(16, 8), (64, 8), (128, 16), (256, 32)])
def test_the_first_layer_of_mgaf_adapts_to_the_channels(channels, hidden):
    assert MGAF(channels).conv.out_features == hidden


def test_spd_is_flie_with_one_convolution():
    torch.manual_seed(1)
    spd = SPD(5, 7)
    torch.manual_seed(1)
    flie = FLIE(5, 7, count=1)
    x = picture(2, 5, 8, 6)
    assert torch.equal(spd(x), flie(x))
    weight, bias = spd[1][0].weight, spd[1][0].bias
    phases = torch.stack([x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)], 2).flatten(1, 2)
    want = convolved(phases[0].double().numpy(), weight.detach().double().numpy(), 1) + bias.detach().numpy()[:, None, None]
    np.testing.assert_allclose(spd(x)[0].detach(), want, atol=1e-5)


def parameters(module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_counts_of_the_parts():
    c, o = 16, 32
    assert parameters(SPD(c, o)) == 9 * 4 * c * o + o
    assert parameters(FLIE(c, o, 3)) == 9 * 4 * c * o + 2 * o + 9 * o * o + 2 * o + 9 * o * o + o
    assert parameters(LIE(c, o, 2)) == 9 * c * o + 9 * o * o + 4 * o
    assert parameters(MRIE(c, o)) == 9 * c * o + 2 * o
    assert parameters(CII(c, o, 2)) == parameters(MRIE(c, o)) + parameters(LIE(o, o, 2))
    fusion = 2 * o * 8 + 8 + 2 * 8 + 2
    full = parameters(LIE(4 * c, o, 2)) + parameters(CII(4 * c, o, 2)) + fusion
    assert parameters(MGAF(o)) == fusion and parameters(MGIL(c, o)) == full
    assert parameters(MGIL(c, o, fusion="add")) == full - fusion
    # 1 x 1 instead of the first 3 x 3, and one more before MRIE, which then reads o channels
    reduced = full - 9 * 4 * c * o + 4 * c * o - 9 * 4 * c * o + 9 * o * o + 4 * c * o + 2 * o
    assert parameters(MGIL(c, o, light="reduce")) == reduced


def test_a_new_block_sums_its_paths():
    torch.manual_seed(0)
    block = MGIL(3, 8, fusion="add").eval()
    x = picture(2, 3, 8, 8)
    phases = SpaceToDepth()(x)
    torch.testing.assert_close(block(x), block.fine(phases) + block.coarse(phases))


def array(tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def normalised(x: np.ndarray, norm) -> np.ndarray:
    """Batch normalisation of a trained network: (C, h, w)."""
    scale = array(norm.weight) / np.sqrt(array(norm.running_var) + norm.eps)
    return (x - array(norm.running_mean)[:, None, None]) * scale[:, None, None] + array(norm.bias)[:, None, None]


def extracted(x: np.ndarray, unit, act: bool) -> np.ndarray:
    """LIE: convolutions, each with normalisation and, but for the last one where `act` is false, ReLU."""
    convs = [m for m in unit if isinstance(m, torch.nn.Conv2d)]
    norms = [m for m in unit if isinstance(m, torch.nn.BatchNorm2d)]
    for i, (conv, norm) in enumerate(zip(convs, norms, strict=True)):
        x = normalised(convolved(x, array(conv.weight), 1), norm)
        x = np.maximum(x, 0) if act or i < len(convs) - 1 else x
    return x


@pytest.mark.parametrize("fine,coarse", [(2, 2), (3, 1), (1, 3)])
def test_the_whole_block_in_numpy(fine, coarse):
    """Fig. 3: phases; LIE of them; MRIE of them and LIE of that; eq. 8 to 11. Every normalisation has statistics of its own."""
    torch.manual_seed(0)
    block = MGIL(5, 8, fine, coarse).eval()
    with torch.no_grad():
        for norm in (m for m in block.modules() if isinstance(m, torch.nn.BatchNorm2d)):
            norm.weight.uniform_(0.5, 2), norm.bias.normal_(), norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2)
        for p in block.fuse.parameters():
            p.normal_(std=0.1)
    x = picture(1, 5, 12, 10)
    phases = array(torch.stack([x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)], 2).flatten(1, 2)[0])
    paths = [extracted(phases, block.fine, act=False)]
    mrie, lie = block.coarse
    wide = np.concatenate([convolved(phases, array(b.weight), rate) for b, rate in zip(mrie.branches, (2, 3), strict=True)])
    paths.append(extracted(np.maximum(normalised(wide, mrie.norm), 0), lie, act=False))
    context = np.concatenate([p.mean((1, 2)) for p in paths])
    hidden = np.maximum(array(block.fuse.conv.weight) @ context + array(block.fuse.conv.bias), 0)
    scores = np.exp(array(block.fuse.fc.weight) @ hidden + array(block.fuse.fc.bias))
    want = (scores[0] * paths[0] + scores[1] * paths[1]) / scores.sum()
    assert 0.02 < scores[0] / scores.sum() < 0.98  # both are in it
    np.testing.assert_allclose(array(block(x)[0]), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "settings", [{}, {"light": "reduce"}, {"light": "depthwise"}, {"fusion": "eca"}, {"rates": (1, 2, 3)}, {"groups": 4}]
)
@pytest.mark.parametrize("stride", [2, 4])
def test_every_parameter_learns_even_on_one_cell(settings, stride):
    torch.manual_seed(0)
    block = MGIL(8, 12, stride=stride, **settings)
    for size in ((4, 6), (1, 1)):
        block.zero_grad()
        out = block(picture(3, 8, size[0] * stride, size[1] * stride))
        assert out.shape == (3, 12, *size)
        (out * picture(*out.shape, seed=1)).sum().backward()
        # outer taps of a dilated kernel see only padding on one cell: their gradient is zero, but there
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in block.parameters())
    block.zero_grad()
    (block(picture(3, 8, 8 * stride, 8 * stride)) * picture(3, 12, 8, 8, seed=1)).sum().backward()
    assert all(p.grad.abs().max() > 0 for p in block.parameters())
