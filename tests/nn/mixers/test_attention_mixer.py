"""Self-attention against a softmax written out in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mixer_oracle import array, attend, noise

from lowpose.errors import LowposeError
from lowpose.nn.mixers.attention import Attention, AttentionConfig
from lowpose.nn.mixers.base import TokenGrid

GRID, WIDTH = TokenGrid(5, 3, 4), 24


def make(**settings) -> Attention:
    mixer = Attention(AttentionConfig(**settings), GRID, WIDTH)
    for i, p in enumerate(mixer.parameters()):
        p.data = noise(*p.shape, seed=i)
    return mixer


@pytest.mark.parametrize("heads", [1, 3, 8])
@pytest.mark.parametrize("scale", ["head", "token"])
def test_attention_by_hand(heads, scale):
    mixer, tokens = make(heads=heads, scale=scale), noise(2, GRID.count, WIDTH, seed=7)
    root = np.sqrt(WIDTH / heads if scale == "head" else WIDTH)
    mixed = attend(array(tokens), array(mixer.qkv.weight), heads, 1 / root)
    wanted = mixed @ array(mixer.out.weight).T + array(mixer.out.bias)
    np.testing.assert_allclose(array(mixer(tokens)), wanted, rtol=1e-4, atol=1e-4)


def test_published_parameters():
    """192 wide, as TokenPose: queries, keys and values without bias, the last layer with one."""
    mixer = Attention(AttentionConfig(), TokenGrid(16, 16, 16), 192)
    assert mixer.heads == 8 and mixer.scale == pytest.approx(24**-0.5)
    assert sum(p.numel() for p in mixer.parameters()) == 4 * 192 * 192 + 192
    assert mixer.qkv.bias is None


def test_order_of_tokens_is_the_order_of_answers():
    mixer, tokens = make(), noise(2, GRID.count, WIDTH, seed=7)
    order = torch.from_numpy(np.random.default_rng(0).permutation(GRID.count))
    torch.testing.assert_close(mixer(tokens[:, order]), mixer(tokens)[:, order], rtol=1e-4, atol=1e-4)


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(LowposeError, match="model.tokens.mixer.heads=7 does not divide the width of 24"):
        make(heads=7)


def test_on_a_cpu_training_in_bf16_attends_in_float32(monkeypatch):
    """Where torch's fused backward is slow in bf16; without a gradient, and in float64, nothing is cast."""
    torch.manual_seed(0)
    mixer, tokens = Attention(AttentionConfig(heads=2), TokenGrid(2, 3, 4), 8), torch.randn(3, 14, 8)
    own, seen = F.scaled_dot_product_attention, []

    def noted(q, k, v, **rest):
        seen.append((q.dtype, k.dtype, v.dtype))
        return own(q, k, v, **rest)

    monkeypatch.setattr(F, "scaled_dot_product_attention", noted)
    with torch.autocast("cpu", torch.bfloat16):
        out = mixer(tokens)
        with torch.no_grad():
            plain = mixer(tokens)
    assert seen == [(torch.float32,) * 3, (torch.bfloat16,) * 3] and out.dtype == plain.dtype == torch.bfloat16
    out.float().square().sum().backward()
    found = mixer.qkv.weight.grad.clone()
    exact = mixer.double()
    exact.zero_grad()
    exact(tokens.double()).square().sum().backward()
    assert seen[-1] == (torch.float64,) * 3
    torch.testing.assert_close(found.double(), exact.qkv.weight.grad, rtol=0.05, atol=0.05 * float(found.abs().max()))
