"""Lossless blocks in the place of the down-sampling layers of networks."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from recipe_models import cost_of
from torch import nn

from lowpose.config import ModelConfig
from lowpose.errors import LowposeError
from lowpose.layers import replace_downsampling
from lowpose.nn.backbones import build_backbone
from lowpose.nn.downsampling import Fitted, Window
from lowpose.nn.layers.lossless import MGIL

FAMILIES = {  # layers that are replaced, shortcuts not counted
    "resnet18": 5,
    "resnext50_32x4d": 5,
    "mobilenetv3_small_050": 5,
    "tf_efficientnet_b0": 5,
    "regnetx_002": 5,
    "densenet121": 5,
    "convnext_atto": 4,
    "vgg11": 5,
    "hrnet_w18_small": 20,
}
WHOLE = {"hrnet_w18_small": ((64, 96), (96, 32))}  # other sizes do not run


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, features_only=True)


def shapes(net: nn.Module, size: tuple[int, int], batch: int = 2) -> list[torch.Size]:
    return [f.shape for f in net(torch.randn(batch, 3, *size))]


@pytest.mark.parametrize("name", FAMILIES)
def test_families_keep_every_feature_shape(name):
    plain, changed = network(name).eval(), network(name).eval()
    done = replace_downsampling(changed, "mgil")
    assert len(done) == FAMILIES[name]
    for size in WHOLE.get(name, ((64, 48), (65, 51))):  # even and odd; ConvNeXt leaves odd rows out, and so does its replacement
        assert shapes(changed, size) == shapes(plain, size)
    kept = {k: v for k, v in plain.state_dict().items() if not any(k.startswith(f"{layer.path}.") for layer in done)}
    new = changed.state_dict()
    assert all(torch.equal(new[k], v) for k, v in kept.items())
    for layer in done:
        own = plain.get_submodule(layer.path)
        assert type(own).__name__ == layer.was and layer.params_before == sum(p.numel() for p in own.parameters())
        assert layer.params_after == sum(p.numel() for p in changed.get_submodule(layer.path).parameters())


@pytest.mark.parametrize("name", FAMILIES)
def test_every_new_parameter_gets_a_gradient(name):
    net = network(name).train()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # timm begins residual blocks with zeros, which hold gradients back
    done = replace_downsampling(net, "mgil", light="depthwise" if name == "resnet18" else "none")
    sum((f * torch.randn_like(f)).sum() for f in net(torch.randn(2, 3, 128, 128))).backward()
    for layer in done:
        for key, p in net.get_submodule(layer.path).named_parameters():
            assert p.grad is not None and p.grad.abs().max() > 0, (layer.path, key)


def unread(net: nn.Module, size: tuple[int, int]) -> set[tuple[str, int]]:
    """Rows and columns of a picture that the network does not look at: those whose gradients are zero."""
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (net(x) * torch.randn(net(x).shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    by_axis = {"row": x.grad.abs().amax((0, 1, 3)), "column": x.grad.abs().amax((0, 1, 2))}
    return {(axis, int(i)) for axis, found in by_axis.items() for i in (found == 0).nonzero()}


@pytest.mark.parametrize("kernel,stride,padding", [(3, 2, 1), (7, 2, 3), (7, 2, 0), (11, 4, 2), (5, 2, 0), (3, 2, 0), (2, 2, 0)])
def test_nothing_is_lost_that_the_layer_read(kernel, stride, padding):
    torch.manual_seed(0)
    for size in ((32, 33), (31, 34)):
        plain = nn.Sequential(nn.Conv2d(3, 8, kernel, stride, padding), nn.ReLU())
        before = unread(plain, size)
        shape = plain(torch.zeros(1, 3, *size)).shape
        replace_downsampling(plain, "mgil")
        assert unread(plain, size) <= before and plain(torch.zeros(2, 3, *size)).shape[1:] == shape[1:]


def test_cells_lie_under_the_windows_they_stand_for():
    """A block that takes the mean of a cell, on a ramp: its answers run within half a cell of the windows' middles."""
    ramp = torch.arange(64.0).expand(1, 1, 64, 64)
    for kernel, stride, padding, dilation in [(7, 2, 0, 1), (11, 4, 2, 1), (3, 2, 0, 2), (3, 2, 1, 1), (9, 3, 0, 1)]:
        conv = nn.Conv2d(1, 1, kernel, stride, padding, dilation)
        window = Window(kernel, stride, padding, dilation)
        found = Fitted(nn.AvgPool2d(stride), stride, window, window)(ramp)
        assert found.shape == conv(ramp).shape
        middles = torch.arange(found.shape[-1]) * stride - padding + dilation * (kernel - 1) / 2
        assert ((found[0, 0, 0] - middles)[1:-1].abs() <= stride / 2).all(), (kernel, stride, padding, dilation)


def test_the_report_counts_parameters_and_products():
    net = network("resnet18")
    found = {layer.path: layer for layer in replace_downsampling(net, "spd", size=(64, 32))}
    stem, pool = found["conv1"], found["maxpool"]
    assert (stem.params_before, stem.macs_before) == (3 * 64 * 49, 3 * 64 * 49 * 16 * 32)
    assert (stem.params_after, stem.macs_after) == (12 * 64 * 9 + 64, 12 * 64 * 9 * 16 * 32)
    assert (pool.params_before, pool.macs_before, pool.macs_after) == (0, 0, 256 * 64 * 9 * 8 * 16)
    assert pool.params_after == 256 * 64 * 9 + 64 + 2 * 64  # nothing follows a pooling layer: a normalisation of its own


def test_hrnet_has_42():
    with torch.device("meta"):
        net = build_backbone(ModelConfig(backbone="hrnet_w32", pretrained="none", downsampling="mgil"), (32, 32))
    paths = [layer.path for layer in net.replaced]
    assert len(paths) == 42
    assert sum(p in ("conv1", "conv2") for p in paths) == 2
    assert sum(p.startswith("transition") for p in paths) == 3
    assert sum(".fuse_layers." in p for p in paths) == 37


@pytest.mark.parametrize(
    "layer",
    [
        *(
            nn.Conv2d(2, 3, k, stride=s, padding=p, dilation=d)
            for k, s, p, d in [(3, 2, 1, 1), (7, 2, 3, 1), (2, 2, 0, 1), (4, 4, 0, 1), (3, 2, 0, 1), (3, 2, 2, 2)]
        ),
        *(
            nn.MaxPool2d(k, s, p, ceil_mode=c)
            for k, s, p, c in [(3, 2, 1, False), (2, 2, 0, False), (3, 2, 0, True), (2, 2, 0, True), (3, 2, 1, True)]
        ),
        *(nn.AvgPool2d(k, s, p, ceil_mode=c) for k, s, p, c in [(2, 2, 0, False), (2, 2, 0, True), (3, 2, 1, True)]),
    ],
    ids=str,
)
def test_the_output_has_the_replaced_layers_size(layer):
    plain = nn.Sequential(nn.Conv2d(3, 2, 1), layer)
    changed = copy.deepcopy(plain)
    replace_downsampling(changed, "spd")
    for height in range(9, 18):
        x = torch.randn(1, 3, height, height + 3)
        assert changed(x).shape == plain(x).shape, height


def test_tensorflow_padding():
    assert [Window(3, 2, 0, 1, same=True)(n) for n in (7, 8, 9)] == [4, 4, 5]


def test_where_and_shortcuts():
    net = network("resnet18")
    assert [r.path for r in replace_downsampling(net, "spd", where=["conv1", "layer2.*"])] == ["conv1", "layer2.0.conv1"]
    assert isinstance(net.maxpool, nn.MaxPool2d) and net.layer3[0].conv1.stride == (2, 2)
    lossless = network("resnet18").eval()
    done = replace_downsampling(lossless, "spd", shortcut="lossless")
    assert len(done) == 8 and lossless.layer2[0].downsample[0].block[1].weight.shape == (128, 256, 1, 1)
    assert shapes(lossless, (33, 40)) == shapes(network("resnet18").eval(), (33, 40))


def test_where_leaves_out():
    net = network("resnet18")
    left = [r.path for r in replace_downsampling(net, "spd", where=["!layer*", "!maxpool"])]
    assert left == ["conv1"] and isinstance(net.maxpool, nn.MaxPool2d)
    net = network("resnet18")
    assert [r.path for r in replace_downsampling(net, "spd", where=["layer*", "!layer3.*"])] == [
        "layer2.0.conv1",
        "layer4.0.conv1",
    ]
    with pytest.raises(LowposeError, match="leaves no layer to replace"):
        replace_downsampling(net, "spd", where=["conv1", "!conv*"])


def test_strided_1x1_of_the_main_path_is_no_shortcut():
    bottleneck = nn.Sequential()
    bottleneck.add_module("conv1", nn.Conv2d(3, 8, 1, stride=2))
    bottleneck.add_module("downsample1", nn.MaxPool2d(2))
    assert [r.path for r in replace_downsampling(bottleneck, "spd")] == ["conv1", "downsample1"]


def test_a_layer_with_two_names_is_replaced_under_both():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = self.b = nn.Conv2d(3, 8, 3, 2, 1)

        def forward(self, x):
            return self.a(x) + self.b(x)

    net = Twice()
    assert [r.path for r in replace_downsampling(net, "spd")] == ["a"] and net.a is net.b and not isinstance(net.b, nn.Conv2d)


def test_sizes_types_and_paddings_of_other_networks():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, padding="valid"), nn.MaxPool2d(2)).half()
    assert len(replace_downsampling(net)) == 2 and net[1].block[0].fine[0].weight.dtype == torch.float16
    again = nn.Sequential(nn.MaxPool2d(2))
    replace_downsampling(again, "mgil")
    with pytest.raises(LowposeError, match="has no strided convolution"):
        replace_downsampling(again, "mgil")
    with pytest.raises(LowposeError, match=r"does not run on 16 x 16 RGB pixels; give size \("):
        replace_downsampling(nn.Sequential(nn.Conv2d(3, 8, 32, 2)), size=(16, 16))


def test_what_cannot_be_kept_equal_is_refused_by_name():
    with pytest.raises(LowposeError, match=r"maxpool\.1, which is a BlurPool2d"):
        replace_downsampling(timm.create_model("resnetblur18", features_only=True))
    odd = nn.Sequential(nn.Conv2d(3, 4, 3, stride=(2, 1)))
    with pytest.raises(LowposeError, match="0, whose stride is 2 x 1"):
        replace_downsampling(odd)
    with pytest.raises(LowposeError, match="whose padding is 'reflect'"):
        replace_downsampling(nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1, padding_mode="reflect")))
    with pytest.raises(LowposeError, match="has no strided convolution"):
        replace_downsampling(nn.Sequential(nn.Conv2d(3, 4, 3)))
    with pytest.raises(LowposeError, match=r"itself such a layer; put it into a torch.nn.Sequential"):
        replace_downsampling(nn.Conv2d(3, 8, 3, 2, 1))
    with pytest.raises(LowposeError, match="layer2.0.downsample.0 is a shortcut, which is kept; give shortcut=lossless"):
        replace_downsampling(network("resnet18"), where=["layer2.0.downsample.0"])
    with pytest.raises(LowposeError, match="0, which is a ParametrizedConv2d"):
        replace_downsampling(nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3, 2))))
    with pytest.raises(LowposeError, match="0, which is a LPPool2d"):
        replace_downsampling(nn.Sequential(nn.LPPool2d(2, 2), nn.Conv2d(3, 4, 3)))
    pool = nn.MaxPool2d(2)
    with pytest.raises(LowposeError, match="cannot replace 1, which the network uses 2 times, by one block that learns"):
        replace_downsampling(nn.Sequential(nn.Conv2d(3, 8, 3), pool, nn.Conv2d(8, 4, 3), pool))
    with pytest.raises(LowposeError, match=r"is called 'conv2'; did you mean 'conv1'"):
        replace_downsampling(network("resnet18"), where=["conv2"])
    for settings, line in (
        ({"with_": "mgli"}, "'name' = 'mgli'"),
        ({"fine": 0}, "'fine' = 0"),
        ({"rates": []}, "rates are dilations"),
        ({"with_": "spd", "coarse": 3}, "'coarse' belongs to mgil"),
        ({"cii": False, "fusion": "add"}, "'fusion' belongs to the coarse path"),
    ):
        with pytest.raises(LowposeError, match=line):
            replace_downsampling(network("resnet18"), **settings)


def test_a_replaced_network_is_in_the_state_of_the_old_one():
    net = network("resnet18").eval().double()
    replace_downsampling(net)
    block = net.conv1.block
    assert isinstance(block, MGIL) and not block.training and next(block.parameters()).dtype == torch.float64
    nothing = network("resnet18")
    replace_downsampling(nothing, where=["maxpool"])
    assert isinstance(nothing.maxpool.block[1], nn.ReLU)  # nothing follows a pooling layer


COST = [  # downsampling, millions of parameters and GMAC of SimCC-HRNet-W32 at 32 px (split 2), and parameters at 64 px of W48
    (None, 28.5, 0.159),
    ({"name": "spd"}, 36.2, 0.199),
    ({"cii": False}, 42.8, 0.228),
    ({"cii": False, "fine": 3}, 49.4, 0.258),
    ({"coarse": 1, "fusion": "add"}, 59.6, 0.310),
    ({"coarse": 1}, 59.7, 0.311),
    ({}, 66.3, 0.341),
    ({"fine": 3, "coarse": 3}, 79.5, 0.400),
    ({"light": "reduce"}, 54.8, 0.278),
    ({"where": ["conv1", "conv2"]}, 29.0, 0.214),
    ({"where": ["conv1", "conv2", "transition*"]}, 35.0, 0.240),
]


@pytest.mark.parametrize("settings,params,gmacs", COST, ids=[str(c[0]) for c in COST])
def test_cost_of_the_variants(settings, params, gmacs):
    text = "null" if settings is None else str({"name": "mgil", **settings}).replace("True", "true").replace("False", "false")
    cost = cost_of("coco/simcc_hrnet-w32_32", f"model.downsampling={text}")
    assert round(cost.params / 1e6, 1) == params and round(cost.macs / 1e9, 3) == pytest.approx(gmacs, abs=0.0006)


OTHER_COSTS = [  # recipe, downsampling, millions of parameters, GMAC as printed
    ("hrnet-w32_64", None, "28.6", "0.639"),
    ("hrnet-w32_64", {"name": "spd"}, "36.3", "0.795"),
    ("hrnet-w32_64", {"cii": False}, "42.9", "0.915"),
    ("hrnet-w32_64", {"cii": False, "fine": 3}, "49.4", "1.03"),
    ("hrnet-w32_64", {"coarse": 1}, "59.8", "1.24"),
    ("hrnet-w32_64", {}, "66.4", "1.36"),
    ("hrnet-w32_64", {"fine": 3, "coarse": 3}, "79.6", "1.60"),
    ("hrnet-w32_64", {"light": "reduce"}, "54.9", "1.11"),
    ("hrnet-w32_64", {"where": ["conv1", "conv2"]}, "29.1", "0.859"),
    ("hrnet-w48_64", None, "63.7", "1.309"),
    ("hrnet-w48_64", {"name": "spd"}, "80.4", "1.60"),
    ("hrnet-w48_64", {"cii": False}, "95.1", "1.81"),
    ("hrnet-w48_64", {"cii": False, "fine": 3}, "109.9", "2.02"),
    ("hrnet-w48_64", {"coarse": 1}, "132.6", "2.40"),
    ("hrnet-w48_64", {}, "147.3", "2.61"),
    ("hrnet-w48_64", {"fine": 3, "coarse": 3}, "176.7", "3.03"),
    ("hrnet-w48_64", {"light": "reduce"}, "122.4", "2.14"),
    ("resnet-50_32", None, "34.0", "0.113"),
    ("resnet-50_32", {"name": "spd"}, "43.4", "0.143"),
    ("resnet-50_32", {}, "65.6", "0.239"),
]


@pytest.mark.parametrize("recipe,settings,params,gmacs", OTHER_COSTS, ids=[f"{c[0]}-{c[1]}" for c in OTHER_COSTS])
def test_cost_elsewhere(recipe, settings, params, gmacs):
    text = "null" if settings is None else str({"name": "mgil", **settings}).replace("False", "false")
    cost = cost_of(f"coco/simcc_{recipe}", f"model.downsampling={text}")
    for printed, counted in ((params, cost.params / 1e6), (gmacs, cost.macs / 1e9)):
        digits = len(printed.partition(".")[2])
        assert counted == pytest.approx(float(printed), abs=0.55 * 10**-digits)  # printed ones are rounded, or cut off


def test_small_image_resnets():
    """CIFAR's ResNet-50 and TinyImageNet's ResNet-18 (stem 3 x 3, no pooling) have three strided blocks."""
    net = timm.create_model("resnet50", num_classes=10)
    net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    before = sum(p.numel() for p in net.parameters())
    assert len(replace_downsampling(net, size=(32, 32))) == 3
    after = sum(p.numel() for p in net.parameters())
    assert round(before / 1e6, 1) == 23.5 and round(after / 1e6, 1) == 54.6
