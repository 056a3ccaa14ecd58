"""Backbones against timm's own networks, published parameter counts and shapes worked out by hand."""

from __future__ import annotations

import math
import socket

import cv2
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from lowpose.config import ModelConfig
from lowpose.errors import LowposeError
from lowpose.nn.backbones import Backbone, build_backbone, timm_features


def build(name: str, size=(64, 64), **settings):
    return build_backbone(ModelConfig(backbone=name, **{"pretrained": "none", **settings}), size)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def randomised(module: nn.Module, seed: int) -> nn.Module:
    """Every tensor random, statistics of BatchNorm included, so that a mix-up of two tensors shows."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.2 + 0.05)
    return module.eval()


@pytest.mark.parametrize(
    ("name", "published"),
    [("hrnet_w32", 28_536_113), ("hrnet_w48", 63_595_745), ("resnet50", 33_999_697), ("resnet152", 68_635_473)],
)
def test_parameters_with_a_1x1_convolution_to_17_joints_are_the_published_ones(name, published):
    backbone = build(name)
    assert parameters(backbone) + parameters(nn.Conv2d(backbone.channels, 17, 1)) == published
    assert backbone.feature_size == (16, 16)
    assert backbone.stride == (4.0, 4.0)


def test_hrnet_has_42_strided_3x3_convolutions_and_no_classifier():
    backbone = build("hrnet_w32")
    parts = {key.split(".")[1] for key in backbone.state_dict()}
    stages = {f"{kind}{number}" for kind, first in (("stage", 2), ("transition", 1)) for number in range(first, first + 3)}
    assert parts == {"conv1", "bn1", "conv2", "bn2", "layer1"} | stages
    convs = [m for m in backbone.modules() if type(m) is nn.Conv2d and m.stride == (2, 2)]
    assert len(convs) == 42
    assert {m.kernel_size for m in convs} == {(3, 3)}


@pytest.mark.parametrize("name", ["hrnet_w18_small", "hrnet_w18_small_v2"])
def test_trimmed_hrnet_computes_the_first_branch_of_the_whole_network(name, tmp_path):
    whole = randomised(timm.create_model(name), seed=1)
    save_file(whole.state_dict(), tmp_path / "w.safetensors")
    backbone = build(name, (96, 64), pretrained=str(tmp_path / "w.safetensors")).eval()
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        stem = whole.act2(whole.bn2(whole.conv2(whole.act1(whole.bn1(whole.conv1(images))))))
        expected = whole.stages(stem)[0]
        torch.testing.assert_close(backbone(images), expected, rtol=1e-5, atol=0)
    trimmed = ("incre_modules.", "downsamp_modules.", "final_layer.", "classifier.", "stage4.")
    assert backbone.not_loaded and all(key.startswith(trimmed) for key in backbone.not_loaded)
    own = len(backbone.body.state_dict())
    assert own + len(backbone.not_loaded) == len(whole.state_dict())


SHAPES = {  # channels of the last feature map, stride
    "resnet18": (512, 32),
    "resnet50": (2048, 32),
    "mobilenetv3_small_100": (576, 32),
    "mobilenetv4_conv_small": (960, 32),
    "convnext_atto": (320, 32),
    "efficientnet_b0": (320, 32),
    "regnetx_002": (368, 32),
    "densenet121": (1024, 32),
    "mobilevit_xxs": (320, 32),
    "vit_tiny_patch16_224": (192, 16),
    "swin_tiny_patch4_window7_224": (768, 32),
    "hrnet_w18_small": (16, 4),
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("size", [(64, 64), (64, 96)])
def test_shapes_are_found(name, size):
    channels, stride = SHAPES[name]
    bare = build(name, size, neck="none").eval()
    assert (bare.channels, bare.feature_size) == (channels, (size[0] // stride, size[1] // stride))
    assert bare.stride == (stride, stride)
    images = torch.randn(1, 3, size[1], size[0])
    with torch.no_grad():
        assert bare(images).shape == (1, channels, size[1] // stride, size[0] // stride)
        full = build(name, size).eval()
        assert full(images).shape == (1, full.channels, size[1] // 4, size[0] // 4)
    assert full.channels == (256 if stride > 4 else channels)
    assert full.feature_size == (size[0] // 4, size[1] // 4)
    assert len([m for m in full.neck.modules() if isinstance(m, nn.ConvTranspose2d)]) == round(math.log2(stride / 4))


@pytest.mark.parametrize("size", [(48, 64), (50, 34), (33, 8), (96, 72)])
@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_100", "efficientnet_b0", "regnetx_002"])
def test_sizes_that_are_no_multiple_of_32_keep_only_steps_over_the_picture(name, size):
    backbone = build(name, size).eval()
    expected = (math.ceil(size[0] / 4), math.ceil(size[1] / 4))
    assert backbone.feature_size == expected
    assert backbone.stride == (size[0] / expected[0], size[1] / expected[1])
    with torch.no_grad():
        assert backbone(torch.randn(1, 3, size[1], size[0])).shape == (1, 256, expected[1], expected[0])
    assert build(name, size, neck="none").feature_size == (math.ceil(size[0] / 32), math.ceil(size[1] / 32))


class Cells(nn.Module):
    """A body that shows where its steps lie: the mean of each 32x32 cell; `stretched`, of equal parts of the picture."""

    reduction = 32

    def __init__(self, stretched: bool):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d((4, 4)) if stretched else nn.AvgPool2d(32, ceil_mode=True)

    def forward(self, images):
        return self.pool(images)


def test_feature_steps_stay_over_their_pixels():
    columns = torch.arange(72.0).expand(1, 3, 64, 72)
    cut = Backbone(Cells(stretched=False), nn.Upsample(scale_factor=8), (72, 64))
    assert (cut.feature_size, cut.stride) == ((18, 16), (4.0, 4.0))
    expected = [15.5] * 8 + [47.5] * 8 + [67.5] * 2  # cells [0, 32), [32, 64) and what is there of [64, 96)
    assert cut(columns)[0, 0, 0].tolist() == expected
    whole = Backbone(Cells(stretched=True), nn.Upsample(scale_factor=8), (72, 64))
    assert (whole.feature_size, whole.stride) == ((32, 32), (2.25, 2.0))
    assert whole(columns)[0, 0, 0].tolist() == [8.5] * 8 + [26.5] * 8 + [44.5] * 8 + [62.5] * 8


def test_options_are_those_of_the_timm_model():
    """Parameters of a ResNet-18, counted by hand from its widths; timm spreads the drop path over the blocks."""
    widths = (8, 16, 32, 64)
    backbone = build("resnet18", neck="none", options={"channels": list(widths), "drop_path_rate": 0.7})
    expected, before = 3 * 64 * 49 + 2 * 64, 64  # the stem keeps its width
    for width in widths:
        expected += 9 * before * width + 3 * 9 * width**2 + 4 * 2 * width
        expected += before * width + 2 * width if before != width else 0
        before = width
    assert parameters(backbone) == expected and backbone.channels == 64
    rates = [m.drop_path.drop_prob for m in backbone.modules() if getattr(m, "drop_path", None) is not None]
    assert rates == pytest.approx([i / 10 for i in range(1, 8)])


def test_imagenet_weights_that_do_not_fit_the_options(monkeypatch):
    """timm's own message would speak of a missing download or list every tensor."""
    whole = timm.create_model

    def create(name, pretrained=False, **options):
        net = whole(name, **options)
        if pretrained:
            net.load_state_dict(whole("resnet18", features_only=True).state_dict())
        return net

    monkeypatch.setattr(timm, "create_model", create)
    monkeypatch.setattr(timm_features, "_is_cached", lambda name: True)
    with pytest.raises(LowposeError) as error:
        build("resnet18", pretrained="imagenet", options={"channels": [8, 16, 32, 64]})
    assert str(error.value) == "the ImageNet weights of 'resnet18' do not fit model.options: give model.pretrained=none"
    assert build("resnet18", pretrained="imagenet", options={"drop_path_rate": 0.1}).body.reduction == 32


def test_pictures_are_enlarged_in_front_of_the_first_layer():
    name, size = "hrnet_w18_small", (32, 64)
    large = build(name, (64, 128)).eval()
    inside = build(name, size, enlarge=2).eval()
    inside.load_state_dict(large.state_dict())
    assert inside.feature_size == large.feature_size == (16, 32)
    assert inside.stride == (2.0, 2.0) and large.stride == (4.0, 4.0)  # in pixels of what comes in
    pictures = torch.randn(2, 3, 64, 32, generator=torch.Generator().manual_seed(0))
    twice = cv2.resize(pictures[0].permute(1, 2, 0).numpy(), (64, 128), interpolation=cv2.INTER_LINEAR)
    with torch.no_grad():
        expected = large(torch.from_numpy(twice).permute(2, 0, 1)[None])
        torch.testing.assert_close(inside(pictures)[:1], expected, rtol=1e-4, atol=1e-4)


def test_enlarged_sizes_that_do_not_fit_are_told_with_the_size_they_come_from():
    with pytest.raises(LowposeError) as e:
        build("hrnet_w18_small", (48, 56), enlarge=2)
    expected = "input 96x112 (48x56 enlarged 2 times) does not fit hrnet_w18_small: width and height must be multiples of 32"
    assert str(e.value) == expected
    assert build("hrnet_w18_small", (48, 64), enlarge=2).feature_size == (24, 32)


@pytest.mark.parametrize(
    ("name", "size", "multiple"),
    [
        ("hrnet_w32", (50, 50), 32),
        ("hrnet_w18_small", (48, 64), 32),
        ("hrnet_w18_small", (64, 80), 32),
        ("convnext_atto", (50, 64), 32),
    ],
)
def test_size_that_does_not_fit_names_the_multiple(name, size, multiple):
    with pytest.raises(LowposeError) as e:
        build(name, size)
    assert str(e.value) == f"input {size[0]}x{size[1]} does not fit {name}: width and height must be multiples of {multiple}"


@pytest.mark.parametrize(
    ("name", "size", "said"),
    [
        ("vit_tiny_patch16_224", (50, 50), "does not fit vit_tiny_patch16_224: its 3x3 feature map of stride 16"),
        ("inception_v3", (64, 64), "input 64x64 does not fit inception_v3"),
        ("hrnet-w32", (64, 64), "unknown backbone 'hrnet-w32'; did you mean 'hrnet_w32'?"),
        ("resnet51", (64, 64), "unknown backbone 'resnet51'; did you mean 'resnet"),
        ("resnet18.nonsense", (64, 64), "Invalid pretrained tag"),
    ],
)
def test_backbones_that_cannot_be_built(name, size, said):
    with pytest.raises(LowposeError) as e:
        build(name, size)
    assert said in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("hrnet_w18_small", {"neck": "deconv"}, "hrnet_w18_small ends at stride 4 already"),
        ("resnet18", {"neck": "deconv", "deconv": ()}, "model.deconv is empty"),
        ("resnet18", {"deconv": (64, 64)}, "ends at stride 32 and needs 3 to reach stride 4"),
    ],
)
def test_necks_that_make_no_sense(name, settings, said):
    with pytest.raises(LowposeError, match=said):
        build(name, **settings)


def test_neck_is_that_of_simple_baseline():
    backbone = build("resnet18", deconv=(24, 16, 8))
    kinds = [type(m) for m in backbone.neck]
    assert kinds == [nn.ConvTranspose2d, nn.BatchNorm2d, nn.ReLU] * 3
    deconvs = [m for m in backbone.neck if isinstance(m, nn.ConvTranspose2d)]
    assert [(m.in_channels, m.out_channels) for m in deconvs] == [(512, 24), (24, 16), (16, 8)]
    assert all((m.kernel_size, m.stride, m.padding, m.bias) == ((4, 4), (2, 2), (1, 1), None) for m in deconvs)
    assert float(deconvs[0].weight.detach().std()) == pytest.approx(0.001, rel=0.05)
    assert build("resnet18", neck="deconv", deconv=(8,)).stride == (16.0, 16.0)
    assert build("vit_tiny_patch16_224", deconv=(32, 24, 8)).channels == 24  # two of them reach stride 4


@pytest.mark.parametrize("name", ["hrnet_w18_small", "hrnet_w18_small_v2", "resnet18", "convnext_atto", "efficientnet_b0"])
def test_every_parameter_has_a_gradient(name):
    torch.manual_seed(0)
    backbone = build(name, (96, 96))
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # timm starts some at zero, which stops gradients at the first step
    features = backbone(torch.randn(3, 3, 96, 96))
    (features * torch.randn(features.shape)).sum().backward()
    assert [key for key, p in backbone.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_building_leaves_no_trace_of_the_dummy_pass():
    backbone = build("hrnet_w18_small")
    assert all(module.training for module in backbone.modules())
    assert all(t.device.type == "cpu" for t in backbone.state_dict().values())
    norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(int(m.num_batches_tracked) == 0 and not m.running_mean.any() for m in norms)


def test_torchvision_resnet_file(tmp_path):
    torchvision = pytest.importorskip("torchvision")
    whole = randomised(torchvision.models.resnet18(), seed=3)
    state = {f"module.{key}": value for key, value in whole.state_dict().items()}
    torch.save({"epoch": 7, "state_dict": state}, tmp_path / "r.pth")
    backbone = build("resnet18", pretrained=str(tmp_path / "r.pth"), neck="none").eval()
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        expected = nn.Sequential(*list(whole.children())[:-2])(images)
        torch.testing.assert_close(backbone(images), expected, rtol=1e-5, atol=0)
    assert backbone.not_loaded == ["fc.bias", "fc.weight"]


@pytest.mark.parametrize("name", ["convnext_atto", "mobilenetv3_small_100"])
def test_timm_file_whose_names_the_feature_extractor_spells_otherwise(name, tmp_path):
    whole = timm.create_model(name)
    generator = torch.Generator().manual_seed(5)
    for tensor in whole.parameters():
        tensor.data += 0.01 * torch.randn(tensor.shape, generator=generator)
    save_file(whole.state_dict(), tmp_path / "c.safetensors")
    backbone = build(name, pretrained=str(tmp_path / "c.safetensors"), neck="none").eval()
    images = torch.randn(1, 3, 64, 64, generator=generator)
    with torch.no_grad():
        features = whole.eval().forward_intermediates(images, indices=1, intermediates_only=True)[-1]
        torch.testing.assert_close(backbone(images), features, rtol=1e-5, atol=1e-6)


def test_published_pose_network_file_without_counters(tmp_path):
    """The pose network's own file: no `num_batches_tracked` in old ones, and its output layer is left out."""
    source = randomised(build("hrnet_w18_small").body, seed=6)
    state = {key: value.clone() for key, value in source.state_dict().items() if not key.endswith("num_batches_tracked")}
    torch.save(state | {"final_layer.weight": torch.zeros(17, 16, 1, 1), "final_layer.bias": torch.zeros(17)}, tmp_path / "p.pth")
    backbone = build("hrnet_w18_small", pretrained=str(tmp_path / "p.pth"))
    assert all(torch.equal(backbone.body.state_dict()[key], value) for key, value in state.items())
    assert backbone.not_loaded == ["final_layer.bias", "final_layer.weight"]


def _without(key):
    return lambda state: state.pop(key)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_without("layer3.0.conv2.weight"), "1 missing: layer3.0.conv2.weight"),
        (lambda s: [s.pop(k) for k in list(s) if k.startswith("layer1.")], "20 missing: layer1."),
        (lambda s: s.update({"extra.weight": torch.zeros(1)}), "1 unknown: extra.weight"),
        (lambda s: s.update({"conv1.weight": torch.zeros(64, 1, 7, 7)}), "'conv1.weight' is (64, 1, 7, 7), not (64, 3, 7, 7)"),
    ],
)
def test_weights_that_do_not_fit(change, said, tmp_path):
    path = tmp_path / "bad.safetensors"
    state = timm.create_model("resnet18").state_dict()
    change(state)
    save_file(state, path)
    with pytest.raises(LowposeError) as e:
        build("resnet18", pretrained=str(path))
    assert str(e.value).startswith(f"{path}: does not fit resnet18, ")
    assert said in str(e.value)


class Payload:
    """What weights_only=True must not unpickle."""


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("content", [b"", b"not weights at all"])
def test_broken_weights_file(suffix, content, tmp_path):
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)
    with pytest.raises(LowposeError, match="not a weights file"):
        build("resnet18", pretrained=str(path))


def test_weights_file_with_objects_or_without_tensors_or_absent(tmp_path):
    torch.save({"model": Payload()}, tmp_path / "objects.pth")
    with pytest.raises(LowposeError, match="not a weights file"):
        build("resnet18", pretrained=str(tmp_path / "objects.pth"))
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(LowposeError, match="holds no table of named tensors"):
        build("resnet18", pretrained=str(tmp_path / "list.pth"))
    with pytest.raises(LowposeError, match="is no file; give imagenet, none or a weights file"):
        build("resnet18", pretrained=str(tmp_path / "absent.pth"))


def test_imagenet_weights_are_timms(monkeypatch):
    """`pretrained: imagenet` asks timm for its weights; here timm's downloader is stood in for."""
    asked = []
    create = timm.create_model

    def stand_in(name, pretrained=False, **options):
        asked.append((name, pretrained))
        return randomised(create(name, pretrained=False, **options), seed=8)

    monkeypatch.setattr(timm, "create_model", stand_in)
    monkeypatch.setattr(timm_features, "_is_cached", lambda name: True)
    backbone = build("resnet18", pretrained="imagenet")
    assert asked == [("resnet18", True)]
    expected = randomised(create("resnet18", features_only=True, out_indices=(-1,)), seed=8).state_dict()
    assert all(torch.equal(backbone.body.net.state_dict()[key], value) for key, value in expected.items())


def test_imagenet_weights_without_a_network(monkeypatch):
    def no_address(*args, **kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    def must_not_download(*args, pretrained=False, **kwargs):
        raise AssertionError("tried to download")

    monkeypatch.setattr(socket, "getaddrinfo", no_address)
    monkeypatch.setattr(timm_features, "getproxies", dict)
    monkeypatch.setattr(timm_features, "try_to_load_from_cache", lambda *args: None)
    monkeypatch.setattr(timm, "create_model", must_not_download)
    with pytest.raises(LowposeError) as e:
        build("resnet18", pretrained="imagenet")
    assert str(e.value) == (
        "the ImageNet weights of 'resnet18' could not be downloaded (no network): give model.pretrained=none or a weights file"
    )


def test_imagenet_weights_when_the_download_breaks(monkeypatch):
    create = timm.create_model

    def broken(name, pretrained=False, **options):
        if pretrained:
            raise ConnectionError("connection reset\nby peer")
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", broken)
    monkeypatch.setattr(timm_features, "_is_cached", lambda name: True)
    with pytest.raises(LowposeError, match=r"'resnet18' could not be downloaded \(connection reset\): give "):
        build("resnet18", pretrained="imagenet")


def test_model_without_imagenet_weights():
    without = next(name for name in timm.list_models() if not timm.models.is_model_pretrained(name))
    with pytest.raises(LowposeError, match="has no pretrained weights"):
        build(without, pretrained="imagenet")
