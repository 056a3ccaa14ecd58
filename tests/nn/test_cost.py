"""Counts against products written out by hand, a second counter of convolution and linear layers, and published ones."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lowpose.config import ModelConfig
from lowpose.nn.backbones import build_backbone
from lowpose.nn.cost import count

W, H = 8, 6


class Wrapped(nn.Module):
    """A network whose forward is `rule(parts, images)`."""

    def __init__(self, rule, *parts):
        super().__init__()
        self.rule, self.parts = rule, nn.ModuleList(parts)

    def forward(self, images):
        return self.rule(self.parts, images)


def fourier(points: int, transforms: int) -> int:
    return round(transforms * 5 * points * math.log2(points) / 2)


CASES = {
    "conv": ((nn.Conv2d(3, 5, 3, padding=1),), lambda m, x: m[0](x), 5 * 3 * 9 * W * H),
    "conv without padding": ((nn.Conv2d(3, 5, 3),), lambda m, x: m[0](x), 5 * 3 * 9 * (W - 2) * (H - 2)),
    "strided conv": ((nn.Conv2d(3, 4, 2, stride=2),), lambda m, x: m[0](x), 4 * 3 * 4 * (W // 2) * (H // 2)),
    "depthwise conv": ((nn.Conv2d(3, 3, 3, padding=1, groups=3),), lambda m, x: m[0](x), 3 * 9 * W * H),
    "transposed conv": ((nn.ConvTranspose2d(3, 4, 4, 2, 1),), lambda m, x: m[0](x), 3 * 4 * 16 * W * H),
    "linear": ((nn.Linear(W, 7),), lambda m, x: m[0](x), 3 * H * W * 7),
    "matrix product": ((), lambda m, x: x @ x.mT, 3 * H * W * H),
    "matrix and vector": ((), lambda m, x: x[0, 0] @ x[0, 0, 0], H * W),
    "einsum": ((), lambda m, x: torch.einsum("bchw,bdhw->bcd", x, x), 3 * 3 * H * W),
    "attention": ((), lambda m, x: F.scaled_dot_product_attention(x, x, x), 3 * 2 * H * H * W),
    "attention with a bias": (
        (),
        lambda m, x: F.scaled_dot_product_attention(x, x, x, attn_mask=torch.zeros(H, H)),
        3 * 2 * H * H * W,
    ),
    "multi-head attention": (
        (nn.MultiheadAttention(W, 2, batch_first=True),),
        lambda m, x: m[0](x[0], x[0], x[0])[0],
        3 * (4 * H * W * W + 2 * H * H * W),
    ),
    "encoder layer": (
        (nn.TransformerEncoderLayer(W, 2, 16, batch_first=True),),
        lambda m, x: m[0](x[0]),
        3 * (4 * H * W * W + 2 * H * H * W + 2 * H * W * 16),
    ),
    "rfft2": ((), lambda m, x: torch.fft.rfft2(x), fourier(W * H, 3)),
    "rfft2 and back": ((), lambda m, x: torch.fft.irfft2(torch.fft.rfft2(x), s=(H, W)), 2 * fourier(W * H, 3)),
    "rfft over rows": ((), lambda m, x: torch.fft.rfft(x, dim=-1), fourier(W, 3 * H)),
    "irfft over columns": ((), lambda m, x: torch.fft.irfft(x, n=10, dim=-2), fourier(10, 3 * W)),
    "complex fft2": ((), lambda m, x: torch.fft.fft2(x.to(torch.complex64)), fourier(W * H, 3)),
    "nothing that counts": ((nn.BatchNorm2d(3),), lambda m, x: F.relu(m[0](x)).softmax(-1).sum(), 0),
}


@pytest.mark.parametrize("case", CASES)
def test_products_by_hand(case):
    parts, rule, expected = CASES[case]
    assert count(Wrapped(rule, *parts), (W, H)).macs == expected


def test_norms_are_counted_apart_one_per_element():
    norms = (nn.BatchNorm2d(3), nn.GroupNorm(3, 3), nn.LayerNorm(W), nn.InstanceNorm2d(3))
    for number, norm in enumerate(norms, start=1):
        cost = count(Wrapped(lambda m, x: m[0](x), norm), (W, H), batch=number)
        assert (cost.norm_macs, cost.macs) == (number * 3 * W * H, 0)


class Model(nn.Module):
    """Backbone and head as the pose model joins them."""

    def __init__(self, name, side, joints=17, split=None):
        super().__init__()
        self.backbone = build_backbone(ModelConfig(backbone=name, pretrained="none"), (side, side))
        layers = [nn.Conv2d(self.backbone.channels, joints, 1)]
        if split:
            w, h = self.backbone.feature_size
            layers += [nn.Flatten(2), nn.Linear(w * h, 2 * split * side)]
        self.head = nn.Sequential(*layers)

    def forward(self, images):
        return self.head(self.backbone(images))


def counted_by_layers(model: nn.Module, side: int) -> int:
    """Output elements times inputs per output, from the layers' own settings; transposed: input times outputs per input."""
    total = 0

    def add(module, inputs, output):
        nonlocal total
        if isinstance(module, nn.ConvTranspose2d):
            total += inputs[0].numel() * module.out_channels * math.prod(module.kernel_size)
        elif isinstance(module, nn.Conv2d):
            total += output.numel() * module.in_channels // module.groups * math.prod(module.kernel_size)
        elif isinstance(module, nn.Linear):
            total += output.numel() * module.in_features

    hooks = [m.register_forward_hook(add) for m in model.modules()]
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, side, side))
    for hook in hooks:
        hook.remove()
    return total


PUBLISHED = [  # backbone, side, split, 10^9 multiply-accumulates, parameters
    ("hrnet_w32", 32, 3, 0.160, 28_548_593),
    ("hrnet_w32", 64, 3, 0.639, 28_634_801),
    ("hrnet_w32", 64, 2, None, 28_601_905),
    ("hrnet_w48", 64, None, 1.308, 63_595_745),
    ("resnet50", 32, None, 0.113, 33_999_697),
    ("resnet50", 64, None, 0.452, 33_999_697),
    ("resnet152", 32, None, 0.265, 68_635_473),
]


@pytest.mark.parametrize(("name", "side", "split", "gmacs", "params"), PUBLISHED)
def test_published_costs(name, side, split, gmacs, params):
    model = Model(name, side, split=split)
    if split:  # two linear layers share their input: one layer of both widths has the same products and parameters
        assert model.head[2].out_features == 2 * split * side
    cost = count(model, (side, side))
    assert cost.params == params
    assert cost.macs == counted_by_layers(model, side)
    assert gmacs is None or cost.macs / 1e9 == pytest.approx(gmacs, abs=0.00055)


def test_parts_add_up_and_the_neck_stands_alone():
    model = Model("resnet18", 64)
    cost = count(model, (64, 64), batch=2)
    assert set(cost.params_by_part) == set(cost.macs_by_part) == {"backbone", "neck", "head"}
    assert sum(cost.params_by_part.values()) == cost.params == sum(p.numel() for p in model.parameters())
    assert sum(cost.macs_by_part.values()) == cost.macs == 2 * count(model, (64, 64)).macs
    assert cost.macs_by_part["head"] == 2 * 256 * 17 * 16 * 16
    assert cost.params_by_part["head"] == 257 * 17
    assert cost.macs_by_part["neck"] == 2 * 16 * (512 * 256 * 2 * 2 + 256 * 256 * 4 * 4 + 256 * 256 * 8 * 8)
    assert cost.params_by_part["neck"] == 16 * (512 * 256 + 2 * 256 * 256) + 3 * 2 * 256


def test_what_belongs_to_no_part_is_other():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = nn.Conv2d(3, 2, 1)
            self.scale = nn.Parameter(torch.ones(W, W))

        def forward(self, images):
            return self.part(images) @ self.scale

    cost = count(Mixed(), (W, H))
    assert cost.macs_by_part == {"part": 3 * 2 * W * H, "other": 2 * H * W * W}
    assert cost.params_by_part == {"part": 8, "other": W * W}


def test_the_model_is_left_as_it_was():
    model = Model("resnet18", 32)
    model.backbone.body.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = {name: module.training for name, module in model.named_modules()}
    fast_path = torch.backends.mha.get_fastpath_enabled()
    count(model, (32, 32))
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.backends.mha.get_fastpath_enabled() == fast_path
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
