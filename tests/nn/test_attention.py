"""Attention maps against NumPy by hand, and which modules the names of layers stand for."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import tiny

from lowpose.errors import LowposeError
from lowpose.nn.attention import attention, joint_scores, layer_paths
from lowpose.nn.model import PoseModel, build_model
from lowpose.skeletons import LSP14

JOINT = 4


def model_of(backbone="resnet18", head="simcc", size=32, **settings) -> PoseModel:
    torch.manual_seed(0)
    config = tiny(
        input={"size": [size, size]},
        model={"backbone": backbone, "deconv": [16, 16, 16]},
        head={"name": head, **settings},
    )
    model = build_model(config, LSP14).eval()
    torch.nn.init.normal_(model.head.final.weight, std=0.5)
    torch.nn.init.normal_(model.head.final.bias)
    return model


def token_model(backbone="none", head="simcc", patch=8, size=(32, 48), **settings) -> PoseModel:
    torch.manual_seed(0)
    tokens = {"patch": [patch, patch], "width": 16, "depth": 2, "mixer": {"name": "attention", "heads": 2}}
    net = {"backbone": backbone, "deconv": [16, 16, 16], "tokens": tokens, **settings}
    model = build_model(tiny(input={"size": list(size)}, model=net, head={"name": head}), LSP14).eval()
    with torch.no_grad():
        for p in [*model.backbone.neck.parameters(), *model.tokens.parameters(), *model.head.parameters()]:
            p.add_(0.3 * torch.randn_like(p))
    return model


def crops(size=32, count=3, height=None) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).integers(0, 256, (count, 3, height or size, size), dtype=np.uint8))


def enlarged(maps: np.ndarray, size: int, height: int | None = None) -> np.ndarray:
    """(B, h, w) >= 0 -> each over its range, bilinear at half-pixel positions, and over its range again."""

    def over_range(m):
        m = m - m.min((1, 2), keepdims=True)
        return m / np.maximum(m.max((1, 2), keepdims=True), 1e-300)

    grown = F.interpolate(torch.from_numpy(over_range(maps))[:, None].double(), (height or size, size), mode="bilinear")
    return over_range(grown[:, 0].numpy())


def test_heatmap_grad_cam_before_the_head_is_the_heatmap():
    """The peak's gradient is one row of the last convolution, so its weighted sum is the map without its bias."""
    model = model_of(head="heatmap").double()
    images = crops()
    with torch.no_grad():
        maps = model(images)["map"][:, JOINT] - model.head.final.bias[JOINT]
        model.float()
    expected = enlarged(maps.clamp(min=0).numpy(), 32)
    found = attention(model, images, JOINT, "backbone")
    assert found.shape == (3, 32, 32) and found.dtype == np.float32
    assert np.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("method", ["grad-cam", "hires-cam"])
def test_simcc_before_the_head_in_closed_form(method):
    """d logit / d map is a row of each linear layer, d map / d feature a row of the convolution: no autograd here."""
    model = model_of()
    images = crops()
    with torch.no_grad():
        feature = model.backbone((images - model.mean) / model.std).double().numpy()
        outputs = model(images)
    expected = []
    for b in range(len(images)):
        rows = [getattr(model.head, f"to_{a}").weight[int(outputs[a][b, JOINT].argmax())].detach().double() for a in "xy"]
        on_map = (rows[0] + rows[1]).numpy().reshape(feature.shape[2:])
        channels = model.head.final.weight[JOINT, :, 0, 0].detach().double().numpy()
        if method == "grad-cam":
            on_map = np.full_like(on_map, on_map.mean())
        expected.append(np.maximum((channels[:, None, None] * on_map * feature[b]).sum(0), 0))
    assert max(e.max() for e in expected) > 0
    found = attention(model, images, JOINT, "backbone", method)
    assert np.allclose(found, enlarged(np.stack(expected), 32), atol=1e-4)


@pytest.mark.parametrize("method", ["grad-cam", "hires-cam"])
def test_regression_before_the_head_in_closed_form(method):
    """The score of a joint is a mean over the map times one row of weights: a class activation map, by either method."""
    model = model_of(head="regression")
    images = crops()
    with torch.no_grad():
        feature = model.backbone((images - model.mean) / model.std).double().numpy()
    row = model.head.final.weight[2 * 14 + JOINT].detach().double().numpy()  # x, y, score, and two spreads of 14 joints
    expected = np.maximum(np.einsum("c,bchw->bhw", row, feature), 0)
    assert (expected.max((1, 2)) > 0).any()
    assert np.allclose(attention(model, images, JOINT, "backbone", method), enlarged(expected, 32), atol=1e-4)


@pytest.mark.parametrize("head", ["heatmap", "simcc", "regression"])
@pytest.mark.parametrize("backbone,patch", [("none", 8), ("resnet18", 2)])
def test_tokens_are_explained_where_they_begin(head, backbone, patch):
    """Channel means of autograd's gradient at the visual tokens, 4 x 6 of them, in a crop that is higher than wide."""
    model = token_model(backbone, head, patch)
    images, kept = crops(32, 3, 48), []
    hook = model.tokens.embed.register_forward_hook(lambda _, __, out: kept.append(out))
    outputs = model(images.float().requires_grad_())
    hook.remove()
    if head == "simcc":
        score = outputs["x"][:, JOINT].amax(-1) + outputs["y"][:, JOINT].amax(-1)
    else:
        score = outputs["score"][:, JOINT] if head == "regression" else outputs["map"][:, JOINT].amax((1, 2))
    (gradient,) = torch.autograd.grad(score.sum(), kept[0])
    gradient, feature = gradient.double().numpy(), kept[0].detach().double().numpy()
    assert feature.shape == (3, 16, 6, 4)
    layers = layer_paths(model, None)
    assert layers["head"] == "tokens.embed"
    for method, weights in (("grad-cam", gradient.mean((2, 3), keepdims=True)), ("hires-cam", gradient)):
        expected = np.maximum((weights * feature).sum(1), 0)
        assert expected.max() > 0
        found = attention(model, images, JOINT, layers["head"], method)
        assert found.shape == (3, 48, 32) and np.allclose(found, enlarged(expected, 32, 48), atol=1e-4)


def test_grad_cam_inside_a_network():
    """Channel means of autograd's gradient, with frozen weights, before an activation that works in place."""
    model = model_of(size=64).requires_grad_(False)
    layer = "backbone.body.net.layer3.1.bn1"
    images = crops(64)
    kept = []
    hook = model.get_submodule(layer).register_forward_hook(
        lambda _, __, out: kept.append((out, out.detach().clone().double().numpy()))
    )
    scores = joint_scores(model(images.float().requires_grad_()))[:, JOINT]
    hook.remove()
    gradient = torch.autograd.grad(scores.sum(), kept[0][0])[0].double().numpy()
    expected = np.maximum((gradient.mean((2, 3), keepdims=True) * kept[0][1]).sum(1), 0)
    assert np.allclose(attention(model, images, JOINT, layer), enlarged(expected, 64), atol=1e-4)
    assert not any(p.requires_grad for p in model.parameters()), "weights are left as they were"


@pytest.mark.parametrize("head", ["simcc", "heatmap", "udp", "regression"])
@pytest.mark.parametrize("method", ["grad-cam", "hires-cam"])
def test_no_gradient_is_no_attention(head, method):
    model = model_of(head=head)
    torch.nn.init.zeros_(model.head.final.weight)
    found = attention(model, crops(), JOINT, "backbone", method)
    assert found.shape == (3, 32, 32) and (found == 0).all()


def test_scores_of_joints():
    x, y = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    maps = torch.randn(2, 3, 4, 5)
    assert torch.equal(joint_scores({"x": x, "y": y, "map": maps}), x.max(-1).values + y.max(-1).values)
    assert torch.equal(joint_scores({"map": maps, "dx": maps}), maps.amax((2, 3)))
    assert torch.equal(joint_scores({"xy": maps[..., 0, :2], "score": x[..., 0], "sigma": x[..., :2]}), x[..., 0])
    with pytest.raises(LowposeError, match="gives points has no attention maps"):
        joint_scores({"points": x})


def test_layers_of_hrnet_are_final_convolutions_of_the_first_branch():
    model = model_of("hrnet_w18_small", size=32)
    trunk = "backbone.body.stage{}.0.branches.0.1.conv2"
    default = layer_paths(model, None)
    assert list(default) == ["head", "stage4", "stage3"]
    assert default["head"] == "backbone" and default["stage4"] == trunk.format(4) and default["stage3"] == trunk.format(3)
    assert layer_paths(model, ["stage2", "backbone.body.layer1"]) == {
        "stage2": trunk.format(2),
        "backbone.body.layer1": "backbone.body.layer1",
    }
    kept = []
    hook = model.get_submodule(trunk.format(3)).register_forward_hook(lambda _, __, out: kept.append(out.shape[2:]))
    model(crops())
    hook.remove()
    assert kept == [(8, 8)], "a quarter of the crop: the highest resolution"


def test_layers_of_token_models():
    """The visual tokens, and the stages that there are: none without a backbone, three of an HRNet that ends early."""
    bare = token_model()
    assert layer_paths(bare, None) == {"head": "tokens.embed"}
    assert layer_paths(bare, ["tokens.embed"]) == {"tokens.embed": "tokens.embed"}
    trunk = "backbone.body.stage{}.0.branches.0.1.conv2"
    cut = token_model("hrnet_w18_small", patch=2, size=(32, 32), stages=3)
    assert layer_paths(cut, None) == {"head": "tokens.embed", "stage3": trunk.format(3), "stage2": trunk.format(2)}
    for model, name, said in (
        (bare, "layer4", "m: no layer 'layer4'; did you mean 'tokens.layers'"),
        (cut, "stage4", "m: no layer 'stage4'; did you mean 'stage[23]'"),
        (bare, "tokens.layers.0", r"m: layer 'tokens.layers.0' gives no single \(B, C, h, w\) feature map; known: head$"),
        (bare, "tokens", r"m: layer 'tokens' gives no single \(B, C, h, w\) feature map; known: head$"),
    ):
        with pytest.raises(LowposeError, match=said):
            layer_paths(model, [name], "m")
    stem = token_model("hrnet_w18_small", patch=2, size=(32, 32), stages=1)
    assert layer_paths(stem, None) == {"head": "tokens.embed"}


def test_layers_of_other_networks():
    net = "backbone.body.net."
    assert layer_paths(model_of(), None) == {
        "head": "backbone",
        "layer4": f"{net}layer4.1.conv2",
        "layer3": f"{net}layer3.1.conv2",
    }
    # each block's last convolution is the projection, although squeeze and excite stands in it too
    mobile = layer_paths(model_of("mobilenetv3_small_050", size=64), None)
    assert list(mobile)[0] == "head" and all(p.startswith(f"{net}blocks.") and ".se." not in p for p in list(mobile.values())[1:])
    # a network without convolutions in its stages
    assert layer_paths(model_of("vit_tiny_patch16_224", size=32), None) == {"head": "backbone"}


def test_wrong_layers_and_methods(monkeypatch):
    model = model_of()
    for names, said in {
        ("layer5",): "weights: no layer 'layer5'; did you mean 'layer4'?",
        ("backbone.body.net.layer4.1.conv3",): "did you mean 'backbone.body.net.layer4.1.conv[12]'?",
        ("head.to_x",): r"layer 'head.to_x' gives no single \(B, C, h, w\) feature map; known: head, layer1, layer2",
        (): "no layers: name some of head, ",
    }.items():
        with pytest.raises(LowposeError, match=said):
            layer_paths(model, names, "weights")
    with pytest.raises(LowposeError, match="unknown method 'gradcam'; did you mean 'grad-cam'?"):
        attention(model, crops(), 0, "backbone", "gradcam")
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    with pytest.raises(LowposeError, match=r"^this needs 'pytorch_grad_cam', which .*: pip install 'lowpose\[explain\]'$"):
        attention(model, crops(), 0, "backbone")


def test_a_module_that_the_answer_does_not_use():
    model = model_of()
    model.idle = idle = torch.nn.Conv2d(3, 2, 1)
    model.backbone.register_forward_hook(lambda _, inputs, __: (idle(inputs[0]), None)[1])
    with pytest.raises(LowposeError, match="layer 'idle' has no part in where the joints are"):
        layer_paths(model, ["idle"])
