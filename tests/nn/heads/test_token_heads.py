"""Heatmap and SimCC from keypoint tokens against plain NumPy float64, and whole models whose heads read tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import softmax
from tiny import tiny

from lowpose import registry
from lowpose.errors import LowposeError
from lowpose.nn.model import build_model
from lowpose.skeletons import COCO17, CROWDPOSE14, MPII16, Skeleton

SIZE, WIDTH = (64, 48), 8
TOKENS = {"patch": [8, 8], "width": 16, "depth": 1, "mixer": {"name": "attention", "heads": 2}}
HEADS = ["heatmap", "simcc", "regression"]


def make(name: str, width=WIDTH, size=SIZE, skeleton: Skeleton = CROWDPOSE14, **settings):
    torch.manual_seed(0)
    entry = registry.find("head", name)
    head = entry.make(entry.config(**settings), (width,), size, skeleton)
    with torch.no_grad():
        for p in head.parameters():
            p.add_(0.2 * torch.randn(p.shape))
    return head


def tokens(batch=2, width=WIDTH, seed=0) -> torch.Tensor:
    return torch.randn(batch, len(CROWDPOSE14), width, generator=torch.Generator().manual_seed(seed))


def float64(head) -> dict[str, np.ndarray]:
    return {n: v.detach().double().numpy() for n, v in head.state_dict().items()}


def norm(x: np.ndarray, p: dict, name: str) -> np.ndarray:
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * p[f"{name}.weight"] + p[f"{name}.bias"]


def linear(x: np.ndarray, p: dict, name: str) -> np.ndarray:
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


@pytest.mark.parametrize(
    "settings,cells,hidden", [({}, (16, 12), 24), ({"stride": 2}, (32, 24), 96), ({"hidden": 16}, (16, 12), 16)]
)
def test_heatmaps_of_tokens_are_those_of_numpy(settings, cells, hidden):
    """Norm, layer of an eighth of the cells, norm, a value for every cell, row by row."""
    head = make("heatmap", **settings)
    p, x = float64(head), tokens()
    assert p["final.1.weight"].shape == (hidden, WIDTH) and head.map_size == cells
    y = norm(linear(norm(x.double().numpy(), p, "final.0"), p, "final.1"), p, "final.2")
    want = linear(y, p, "final.3").reshape(2, 14, cells[1], cells[0])
    np.testing.assert_allclose(head(x)["map"].detach(), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", [{"hidden": 0}, {"hidden": 15}, {"stride": 16}])  # 16: twelve cells, hidden 1
def test_heatmaps_of_wide_tokens_have_one_layer(settings):
    head = make("heatmap", **settings)
    p, x, stride = float64(head), tokens(), settings.get("stride", 4)
    want = linear(norm(x.double().numpy(), p, "final.0"), p, "final.1").reshape(2, 14, 48 // stride, 64 // stride)
    np.testing.assert_allclose(head(x)["map"].detach(), want, rtol=1e-4, atol=1e-5)


def test_a_value_stands_for_the_cell_that_is_taught_there():
    """Column 11, row 4 of cells of 4 pixels: in the target, in the layer's rows and in what is decoded."""
    head = make("heatmap", hidden=0, decode="argmax")
    place = torch.tensor([46.0, 18.0]).expand(1, 14, 2)
    with torch.no_grad():
        head.final[1].weight.zero_()
        head.final[1].bias.zero_()[4 * 16 + 11] = 1
    out = head(tokens(1))
    assert torch.equal(head.targets(place, torch.ones(1, 14))[0]["map"].flatten(2).argmax(-1), out["map"].flatten(2).argmax(-1))
    assert torch.equal(head.decode(out).keypoints, place)


def count(name: str, width: int, size, **settings) -> int:
    return sum(p.numel() for p in make(name, width, size, MPII16, **settings).parameters())


def test_parameters_of_heatmaps_are_those_of_tokenpose():
    """Its hidden widths: 384 at 64 x 48 cells, 512 at 64 x 64; a token of 576 (L: three of 192) goes straight to the cells."""

    def two(d, hidden, cells):
        return 2 * d + (d + 1) * hidden + 2 * hidden + (hidden + 1) * cells

    assert count("heatmap", 192, (192, 256)) == two(192, 384, 3072) == 1_257_984  # T, S and B on COCO
    assert count("heatmap", 192, (256, 256)) == two(192, 512, 4096) == 2_201_472  # on MPII
    assert count("heatmap", 576, (192, 256), hidden=384) == 2 * 576 + 577 * 3072 == 1_773_696  # L on COCO
    assert count("heatmap", 576, (256, 256)) == 2 * 576 + 577 * 4096  # L on MPII
    assert count("heatmap", 196, (192, 256)) == 2 * 196 + 197 * 3072  # twice the token is more than 384
    # as many whatever the skeleton: all keypoints share them
    assert sum(p.numel() for p in make("heatmap", 192, (192, 256), COCO17).parameters()) == 1_257_984


def test_parameters_of_simcc_are_one_norm_and_two_layers():
    """KDGF: 192 -> 512 bins per axis of 256 pixels."""
    assert count("simcc", 192, (256, 256)) == 2 * 192 + 2 * 193 * 512 == 198_016
    assert count("simcc", 192, (192, 256), split=3) == 2 * 192 + 193 * (576 + 768)
    assert make("simcc").per_keypoint == make("heatmap").per_keypoint == {}


@pytest.mark.parametrize("split", [2.0, 1.5])
def test_simcc_of_tokens_is_that_of_numpy(split):
    head = make("simcc", split=split)
    p, x = float64(head), tokens()
    found = head(x)
    assert list(found) == ["x", "y"]
    y = norm(x.double().numpy(), p, "norm")
    for axis, side in zip("xy", SIZE, strict=True):
        assert found[axis].shape == (2, 14, int(side * split))
        np.testing.assert_allclose(found[axis].detach(), linear(y, p, f"to_{axis}"), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", HEADS)
def test_flips_and_merging(name):
    """A mirrored answer is the partner's, mirrored bin by bin; the merged one is the mean (of SimCC: of probabilities)."""
    head = make(name)
    partner = dict(CROWDPOSE14.pairs) | {b: a for a, b in CROWDPOSE14.pairs}
    with torch.no_grad():
        one, two = head(tokens(seed=1)), head(tokens(seed=2))
    flipped, merged = head.flip(one), head.merge(one, two)
    assert flipped.keys() == merged.keys() == one.keys()
    for n in one:
        for k in range(14):
            want = one[n][:, partner.get(k, k)].clone()
            if n in ("x", "map"):
                want = want.flip(-1)
            if n == "xy":
                want[:, 0] = 1 - want[:, 0]
            assert torch.equal(flipped[n][:, k], want), n
        a, b, c = (v[n].double().numpy() for v in (one, two, merged))
        if name == "simcc":
            a, b, c = (softmax(v, -1) for v in (a, b, c))
        np.testing.assert_allclose(c, (a + b) / 2, atol=1e-6)
    twice = head.flip(flipped)
    assert all(torch.allclose(twice[n], one[n], rtol=0, atol=2.0**-25 if n == "xy" else 0) for n in one)


def one_line(line: str, make_it, *args, **kwargs) -> None:
    with pytest.raises(LowposeError) as error:
        make_it(*args, **kwargs)
    assert str(error.value) == line


def test_refusals():
    one_line("'head.stride' = 5 does not divide the crop of 64 x 48", make, "heatmap", stride=5)
    one_line("'head.stride' = 32 does not divide the crop of 64 x 48", make, "heatmap", stride=32)
    one_line("'head.stride' = 4 does not divide the crop of 66 x 48", make, "heatmap", size=(66, 48))
    one_line("'head.decode: dark' needs maps of 5 x 5 cells or more, these are 4 x 3", make, "heatmap", stride=16, decode="dark")
    entry = registry.find("head", "heatmap")
    for settings in ({"stride": 4}, {"hidden": 0}):
        with pytest.raises(
            LowposeError, match="^'head.stride' and 'head.hidden' are for keypoint tokens; this head reads a feature"
        ):
            entry.make(entry.config(**settings), (8, 12, 16), SIZE, CROWDPOSE14)
    config = tiny(model={"backbone": "none", "tokens": TOKENS}, head={"name": "udp"})
    line = "head 'udp' reads feature maps, and model.tokens gives keypoint tokens; use heatmap, integral, regression, simcc"
    one_line(line, build_model, config, COCO17)


@pytest.mark.parametrize("name,read", [*((n, TOKENS) for n in HEADS), ("regression", None)], ids=[*HEADS, "regression of a map"])
def test_flip_test_commutes_with_the_mirror(name, read):
    """The answer for a mirrored crop is the mirrored answer, scores too, though no model here knows of mirrors."""
    backbone = "none" if read else "test_resnet"
    config = tiny(
        model={"backbone": backbone, "tokens": read, "deconv": [8, 8, 8]}, head={"name": name}, input={"size": [32, 48]}
    )
    torch.manual_seed(0)
    model = build_model(config, COCO17).eval()
    with torch.no_grad():  # untrained layers are nearly zero: every answer would be a tie
        for p in [*(model.tokens.parameters() if read else []), *model.head.parameters()]:
            p.add_(torch.randn_like(p) * 0.3)
    pictures = torch.randint(0, 256, (3, 3, 48, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    plain, mirrored = model.predict(pictures), model.predict(pictures.flip(-1))
    partner = torch.from_numpy(COCO17.flip_index)
    back = mirrored.keypoints[:, partner].clone()
    back[..., 0] = 32 - back[..., 0]
    # joints without a partner are left out: an averaged map is its own mirror image, with two equal peaks
    assert torch.allclose(back[:, 1:], plain.keypoints[:, 1:], atol=1e-3)
    assert torch.allclose(mirrored.scores[:, partner], plain.scores, atol=1e-5)
    assert torch.allclose(mirrored.published[:, partner], plain.published, atol=1e-5)
    assert not torch.allclose(model.predict(pictures, flip=False).keypoints, plain.keypoints, atol=1e-3)
