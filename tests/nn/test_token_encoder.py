"""The token encoder against its equations in NumPy float64, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import erf
from torch import nn

from lowpose.config import TokensConfig
from lowpose.errors import LowposeError
from lowpose.nn import tokens
from lowpose.nn.mixers.base import Mixer, TokenGrid
from lowpose.nn.tokens import Layer, TokenEncoder, initialise_tokens, sine_positions
from lowpose.strict import validate

CHANNELS, SIZE, PATCH, K, WIDTH = 3, (20, 12), (5, 4), 6, 8  # size and patch: (width, height); a grid of 3 x 4
GRIDS = [(16, 16, 192), (3, 5, 8), (1, 1, 4), (24, 1, 12)]


def config(**settings) -> TokensConfig:
    return TokensConfig(**{"patch": PATCH, "width": WIDTH, "depth": 3, "mixer": {"name": "gfl-static"}, **settings})


def encoder(size=SIZE, keypoints=K, **settings) -> TokenEncoder:
    torch.manual_seed(0)
    made = TokenEncoder(config(**settings), CHANNELS, size, keypoints)
    for p in made.parameters():
        p.data += 0.3 * torch.randn(p.shape)
    return made


def picture(size=SIZE, batch=2) -> torch.Tensor:
    return torch.randn(batch, CHANNELS, size[1], size[0], generator=torch.Generator().manual_seed(1))


def array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def sine_full(rows: int, columns: int, width: int) -> np.ndarray:
    """(rows * columns, width), one number at a time."""
    half = width // 2
    out = np.empty((rows, columns, width))
    for row, column, i in np.ndindex(rows, columns, half):
        for start, place, count in ((0, row, rows), (half, column, columns)):
            angle = (place + 1) / (count + 1e-6) * 2 * np.pi / 10000 ** (2 * (i // 2) / half)
            out[row, column, start + i] = np.cos(angle) if i % 2 else np.sin(angle)
    return out.reshape(rows * columns, width)


def steps(model: TokenEncoder, feature: torch.Tensor):
    """What each layer got and gave, as (keypoint tokens, visual tokens) in float64; and the encoder's answer."""
    seen = []
    hooks = [layer.register_forward_hook(lambda _, args, out: seen.append((args[0], out))) for layer in model.layers]
    answer = model(feature)
    for hook in hooks:
        hook.remove()
    k = model.grid.keypoints
    return [[(array(t[:, :k]), array(t[:, k:])) for t in pair] for pair in seen], [array(a) for a in answer]


@pytest.mark.parametrize("rows,columns,width", GRIDS)
def test_sine_positions(rows, columns, width):
    found = sine_positions(rows, columns, width)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, sine_full(rows, columns, width), atol=1e-6)


def test_positions_are_fixed():
    model = encoder()
    assert not any("positions" in n for n in [*model.state_dict(), *dict(model.named_parameters())])
    assert not model.positions.requires_grad


@pytest.mark.parametrize("size,patch", [(SIZE, PATCH), ((8, 6), (2, 3)), ((5, 5), (5, 5))])
def test_first_layer_gets_keypoint_tokens_and_linear_patches_with_positions(size, patch):
    """Patches flattened in the order row, column, channel, as published; tokens row by row."""
    model, feature = encoder(size, patch=patch), picture(size)
    (columns, rows), (w, h) = (np.array(size) // patch), patch
    weight = array(model.embed.weight).transpose(0, 2, 3, 1).reshape(WIDTH, -1)
    patches = [
        array(feature)[:, :, r * h : (r + 1) * h, c * w : (c + 1) * w].transpose(0, 2, 3, 1).reshape(2, -1)
        for r in range(rows)
        for c in range(columns)
    ]
    wanted = np.stack([patch @ weight.T for patch in patches], 1) + array(model.embed.bias)
    keypoint, visual = steps(model, feature)[0][0][0]
    assert model.grid == (K, rows, columns)
    np.testing.assert_allclose(visual, wanted + sine_full(rows, columns, WIDTH), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(keypoint, np.broadcast_to(array(model.keypoint), (2, K, WIDTH)))


@pytest.mark.parametrize("taps,without", [((), ()), ((5,), ()), ((2, 5), (2,)), ((1, 3, 5), (1, 3))])
def test_positions_before_every_layer_but_those_after_a_tap(taps, without):
    """`without`: layers, counted from 0, that get what the one before gave."""
    layers, _ = steps(encoder(depth=5, taps=taps), picture())
    for i, (before, after) in enumerate(zip(layers, layers[1:], strict=False), 1):
        (_, given), (got, _) = before, after
        added = 0 if i in without else sine_full(3, 4, WIDTH)
        np.testing.assert_array_equal(got[0], given[0])
        np.testing.assert_allclose(got[1], given[1] + added, atol=1e-5)


@pytest.mark.parametrize("taps,joined", [((), (4,)), ((4,), (4,)), ((1, 2, 4), (1, 2, 4))])
def test_taps_join_keypoint_tokens(taps, joined):
    model = encoder(depth=4, taps=taps)
    layers, (keypoint, visual) = steps(model, picture())
    np.testing.assert_array_equal(keypoint, np.concatenate([layers[n - 1][1][0] for n in joined], -1))
    assert model.width == keypoint.shape[-1] == WIDTH * len(joined)
    np.testing.assert_array_equal(visual, layers[-1][1][1].transpose(0, 2, 1).reshape(2, WIDTH, 3, 4))


class Reverse(Mixer):
    """The last token first, doubled."""

    def forward(self, tokens):
        return 2 * tokens.flip(1)


def normalised(x: np.ndarray, layer: nn.LayerNorm) -> np.ndarray:
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * array(layer.weight) + array(layer.bias)


@pytest.mark.parametrize("single", [False, True])
def test_layer_by_hand(single):
    torch.manual_seed(0)
    layer = Layer(config(mlp_ratio=2.5), Reverse(TokenGrid(K, 3, 4)), single)
    for p in layer.parameters():
        p.data += 0.3 * torch.randn(p.shape)
    tokens = torch.randn(2, 18, WIDTH)
    x = array(tokens)
    mixed = 2 * normalised(x, layer.norm1)[:, ::-1]
    inner = normalised(mixed if single else x + mixed, layer.norm2)
    first, last = layer.mlp[0], layer.mlp[2]
    hidden = inner @ array(first.weight).T + array(first.bias)
    hidden = hidden * (1 + erf(hidden / np.sqrt(2))) / 2
    wanted = (x if single else x + mixed) + hidden @ array(last.weight).T + array(last.bias)
    assert first.out_features == 20
    np.testing.assert_allclose(array(layer(tokens)), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("residual", ["single", "double"])
def test_the_residual_that_a_recipe_names(residual):
    assert [layer.single for layer in encoder(residual=residual).layers] == [residual == "single"] * 3


@pytest.mark.parametrize("keypoints", [1, 14, 17])
@pytest.mark.parametrize(
    "size,patch", [((4, 4), (4, 4)), ((64, 4), (4, 4)), ((4, 64), (4, 4)), ((42, 30), (3, 2)), ((9, 7), (1, 1))]
)
@pytest.mark.parametrize("name", ["gfl-static", "gfl-dynamic"])
def test_any_size_and_number_of_keypoints(keypoints, size, patch, name):
    model = encoder(size, keypoints, patch=patch, depth=1, mixer={"name": name})
    keypoint, visual = model(picture(size))
    assert keypoint.shape == (2, keypoints, WIDTH)
    assert visual.shape == (2, WIDTH, size[1] // patch[1], size[0] // patch[0])
    assert torch.isfinite(keypoint).all() and torch.isfinite(visual).all()


def test_layer_has_the_published_number_of_parameters():
    """370,368 with attention; dynamic filters take its place."""
    model = TokenEncoder(TokensConfig(depth=1, mixer={"name": "attention"}), 3, (64, 64), 16)
    assert sum(p.numel() for p in model.layers.parameters()) == 370_368
    other = TokenEncoder(TokensConfig(depth=1, mixer={"name": "gfl-dynamic"}), 3, (64, 64), 16)
    assert sum(p.numel() for p in other.layers.parameters()) == 370_368 - (4 * 192 + 1) * 192 + 231_555


def test_weights_begin_as_published():
    torch.manual_seed(0)
    model = TokenEncoder(TokensConfig(depth=1, mixer={"name": "attention"}), 3, (64, 64), 16)
    matrices = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert len(matrices) == 5
    for weight in [*(m.weight.detach() for m in matrices), model.keypoint.detach()]:
        assert float(weight.std()) == pytest.approx(0.02, rel=0.05) and abs(float(weight.mean())) < 2e-3
    for module in model.modules():
        if getattr(module, "bias", None) is not None:
            assert (module.bias == 0).all()
    initialise_tokens(plain := nn.Linear(50, 40, bias=False))
    assert float(plain.weight.detach().std()) == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("size,patch", [((20, 12), (3, 4)), ((20, 12), (5, 5)), ((64, 48), (48, 64))])
def test_patches_that_do_not_tile_are_refused(size, patch):
    said = rf"model.tokens.patch=\[{patch[0]}, {patch[1]}\] does not tile the map of {size[0]} x {size[1]} \(width, height\)"
    with pytest.raises(LowposeError, match=said):
        encoder(size, patch=patch)


@pytest.mark.parametrize("size", [(25, 12), (20, 16), (12, 20), (5, 4), (21, 12), (20, 15), (3, 3)])
def test_maps_of_another_grid_are_refused_by_name(size):
    """Also those whose last rows or columns would be left over."""
    said = rf"a map of {size[0]} x {size[1]} \(width, height\); the model's grid of 4 x 3 tokens takes 20 x 12"
    with pytest.raises(LowposeError, match=said):
        encoder()(picture(size))


@pytest.mark.parametrize(
    "mixer,said",
    [
        ({}, "'model.tokens.mixer.name' is missing; known mixers: attention, gfl-dynamic, gfl-static"),
        ({"name": "gfl-statik"}, "unknown mixer 'gfl-statik'; did you mean 'gfl-static'?"),
        ({"name": "attention", "head": 2}, "model.tokens.mixer: unknown key 'head'; did you mean 'heads'?"),
        ({"name": "attention", "heads": 3}, "model.tokens.mixer.heads=3 does not divide the width of 8"),
        ({"name": "gfl-static", "layout": "view"}, "model.tokens.mixer.layout=view: 5 keypoint tokens"),
    ],
)
def test_mixers_that_are_wrong(mixer, said):
    with pytest.raises(LowposeError) as caught:
        encoder(keypoints=5, mixer=mixer)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings,said",
    [
        ({"patch": (0, 4)}, "patch is width and height, 1 or more steps each, not"),
        ({"width": 10}, "width must be a multiple of 4"),
        ({"taps": (3, 1)}, "taps are rising layer numbers that end with the depth, 3, not"),
        ({"taps": (1, 2)}, "taps are rising"),
        ({"taps": (1, 1, 3)}, "taps are rising"),
        ({"taps": (0, 3)}, "taps are rising"),
    ],
)
def test_settings_that_are_wrong(settings, said):
    with pytest.raises(LowposeError, match=said):
        validate(TokensConfig, {"patch": PATCH, "width": WIDTH, "depth": 3, **settings}, "model.tokens")


@pytest.mark.parametrize("settings", [{}, {"mixer": {"name": "attention"}, "taps": (1, 3)}, {"mixer": {"name": "gfl-dynamic"}}])
def test_large_batches_are_predicted_a_few_pictures_at_a_time(settings, monkeypatch):
    """With gradients all pictures go through together; without, at most CPU_TOKENS tokens, and the answer is the same."""
    model, feature = encoder(**settings).eval(), picture(batch=7)
    monkeypatch.setattr(tokens, "CPU_TOKENS", 3 * model.grid.count + 1)
    seen = []
    model.layers[0].register_forward_hook(lambda _, args, out: seen.append(len(out)))
    whole = model(feature)
    with torch.no_grad():
        parts = model(feature)
    assert seen == [7, 3, 3, 1]
    for a, b in zip(whole, parts, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b)
