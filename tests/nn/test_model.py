"""PoseModel: pictures in, crop pixels out, the same for the mirror image."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lowpose.config import parse_config
from lowpose.errors import LowposeError
from lowpose.nn.model import MEAN, STD, PoseModel, build_model
from lowpose.skeletons import COCO17, LSP14


def config(size=(32, 48), **head):
    model = {"backbone": "resnet18", "pretrained": "none", "deconv": [16, 16, 16]}
    return parse_config({"input": {"size": size}, "model": model, "head": head or {"name": "simcc"}}, "test")


def make(name="simcc", size=(32, 48), skeleton=COCO17):
    torch.manual_seed(0)
    model = build_model(config(size, name=name), skeleton).eval()
    with torch.no_grad():  # untrained last layers are nearly zero: every answer would be a tie
        for parameter in [*model.backbone.neck.parameters(), *model.head.parameters()]:
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


@pytest.fixture(scope="module")
def pictures():
    return torch.randint(0, 256, (3, 3, 48, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["simcc", "heatmap", "udp"])
@pytest.mark.parametrize("size", [(32, 48), (64, 32)])
def test_shapes_and_ranges(name, size):
    decoded = make(name, size).predict(torch.randint(0, 256, (2, 3, size[1], size[0]), dtype=torch.uint8))
    assert decoded.keypoints.shape == (2, 17, 2) and decoded.scores.shape == decoded.published.shape == (2, 17)
    assert ((decoded.scores >= 0) & (decoded.scores <= 1)).all() and torch.isfinite(decoded.keypoints).all()


def test_pictures_are_normalised_inside(pictures):
    """uint8 and float 0..255 are the same; the backbone sees (grey - mean) / deviation of ImageNet."""
    model, seen = make(), []
    model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    one, two = model(pictures), model(pictures.float())
    assert all(torch.equal(one[k], two[k]) for k in one)
    wanted = (pictures.numpy().astype(np.float64) - np.array(MEAN)[:, None, None]) / np.array(STD)[:, None, None]
    assert np.abs(seen[0].numpy() - wanted).max() < 1e-5
    assert not {"mean", "std"} & set(model.state_dict())


@pytest.mark.parametrize("name", ["simcc", "heatmap", "udp"])
def test_flip_test_commutes_with_the_mirror(name, pictures):
    """The answer for a mirrored crop is the mirrored answer: x' = W - x, left and right exchanged. No shift of a pixel anywhere.

    Joints without a partner are left out: their averaged map is its own mirror image, with two equal peaks.
    """
    model = make(name)
    plain, mirrored = model.predict(pictures), model.predict(pictures.flip(-1))
    back = mirrored.keypoints[:, torch.from_numpy(COCO17.flip_index)].clone()
    back[..., 0] = 32 - back[..., 0]
    assert torch.allclose(back[:, 1:], plain.keypoints[:, 1:], atol=1e-3)
    assert torch.allclose(mirrored.scores[:, torch.from_numpy(COCO17.flip_index)], plain.scores, atol=1e-5)
    assert not torch.allclose(model.predict(pictures, flip=False).keypoints, plain.keypoints, atol=1e-3)


class Echo(torch.nn.Module):
    """A backbone that returns a map of brightness: what it finds lies where the picture is bright."""

    channels, feature_size = 1, (8, 12)

    def forward(self, images):
        return torch.nn.functional.avg_pool2d(images.mean(1, keepdim=True), 4)


@pytest.mark.parametrize("flip", [True, False])
def test_a_bright_cell_is_found_where_it_is(flip):
    """Through a head whose convolution copies the map: the heatmap cell's centre in crop pixels, mirrored or not."""
    head = make("heatmap").head
    last = [m for m in head.modules() if isinstance(m, torch.nn.Conv2d)][-1]
    copy = torch.nn.Conv2d(1, 17, 1)
    torch.nn.init.ones_(copy.weight)
    torch.nn.init.zeros_(copy.bias)
    for name, child in list(head.named_children()):
        if child is last:
            setattr(head, name, copy)
    model = PoseModel(Echo(), head, COCO17)
    picture = torch.zeros(1, 3, 48, 32)
    picture[:, :, 16:20, 4:8] = 255.0  # cell (1, 4): its centre is (6, 18)
    found = model.predict(picture, flip=flip).keypoints[0]
    assert (found - torch.tensor([6.0, 18.0])).abs().max() <= 1.0  # within the quarter of a cell that decoding may move it


def test_wrong_heads():
    for head, answer in [
        ({"name": "simc"}, "unknown head 'simc'; did you mean 'simcc'"),
        ({"split": 2}, "'head.name' is missing"),
        ({"name": "simcc", "splitt": 2}, "unknown key 'splitt'; did you mean 'split'"),
        ({"name": "simcc", "split": "two"}, "'split' = 'two'"),
    ]:
        with pytest.raises(LowposeError, match=answer):
            build_model(config(**head), LSP14)


@pytest.mark.parametrize("head,wanted", [("simcc", 14 * 17), ("heatmap", 14 * 17)])
def test_keypoints_follow_the_skeleton(head, wanted):
    """Only the last convolution depends on the number of joints: 16 weights and a bias each."""
    assert sum(v.numel() for n, v in make(head, skeleton=LSP14).head.named_parameters() if n.startswith("final")) == wanted
