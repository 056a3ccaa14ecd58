"""Shapes without numbers are those of the numbers."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from lowpose.nn.meta import meta_call, meta_forward


class Functional(nn.Module):
    """Norms as functions, one with its input by name; a norm of vectors after that of maps."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3, 2), nn.BatchNorm1d(6)
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("var", torch.ones(6))

    def forward(self, x):
        x = F.batch_norm(input=self.conv(x), running_mean=self.mean, running_var=self.var)
        return self.norm(F.batch_norm(x, self.mean, self.var, training=False).mean((2, 3)))


@pytest.mark.parametrize("make", [Functional, lambda: timm.create_model("test_resnet"), lambda: timm.create_model("test_vit")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shapes_and_type_are_those_of_a_run(make, dtype):
    net = make().to(dtype).train()
    before = {n: b.clone() for n, b in net.named_buffers()}
    size = getattr(net, "default_cfg", {}).get("input_size", (3, 20, 33))[1:]
    found = meta_forward(net, size[::-1])
    assert net.training and all(torch.equal(b, before[n]) for n, b in net.named_buffers())
    real = net.eval()(torch.zeros(1, 3, *size, dtype=dtype))
    assert (found.shape, found.dtype, found.device.type) == (real.shape, real.dtype, "meta")


def test_a_tensor_of_any_shape():
    assert meta_call(nn.Sequential(nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 2, 4, 2, 1)), (5, 4, 3, 7)).shape == (5, 2, 6, 14)
