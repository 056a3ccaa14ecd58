"""What every registered mixer promises, alone and inside the token encoder."""

from __future__ import annotations

import copy
import io

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from lowpose import registry
from lowpose.config import TokensConfig
from lowpose.export import OPSET
from lowpose.nn.mixers import spectra
from lowpose.nn.mixers.base import Mixer, TokenGrid
from lowpose.nn.tokens import TokenEncoder

NAMES = registry.names("mixer")
SETTINGS = {  # beyond the defaults
    "attention": [{"scale": "token", "heads": 2}],
    "gfl-static": [{"transform": "dct"}, {"way": "fft"}],
    "gfl-dynamic": [{"routing": "dfformer", "transform": "dct"}, {"static": True}],
}
CASES = [(name, settings) for name in NAMES for settings in [{}, *SETTINGS.get(name, [])]]
LABELS = ["-".join([name, *map(str, settings.values())]) for name, settings in CASES]
every_case = pytest.mark.parametrize("name,settings", CASES, ids=LABELS)
GRIDS = [TokenGrid(5, 4, 3), TokenGrid(1, 1, 1), TokenGrid(17, 2, 5), TokenGrid(14, 7, 1)]
WIDTH, CHANNELS, SIZE, PATCH, K = 16, 3, (12, 8), (3, 2), 5  # size and patch: (width, height)


def make(name, settings, grid=GRIDS[0]) -> Mixer:
    torch.manual_seed(0)
    entry = registry.find("mixer", name)
    return entry.make(entry.config(**settings), grid, WIDTH)


def encoder(name, settings, depth=2, **more) -> TokenEncoder:
    torch.manual_seed(0)
    config = TokensConfig(patch=PATCH, width=WIDTH, depth=depth, mixer={"name": name, **settings}, **more)
    return TokenEncoder(config, CHANNELS, SIZE, K)


def noise(*shape, seed=0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def lively(module):
    """Weights so large that what each of them does can be told from rounding."""
    for i, p in enumerate(module.parameters()):
        p.data += 0.3 * noise(*p.shape, seed=i)
    return module


def pictures(batch, seed=0) -> torch.Tensor:
    return noise(batch, CHANNELS, SIZE[1], SIZE[0], seed=seed)


def test_every_mixer_is_listed():
    assert {"attention", "gfl-static", "gfl-dynamic"} <= set(NAMES)
    for name in NAMES:
        entry = registry.find("mixer", name)
        assert entry.summary and entry.config().name == name and issubclass(entry.make, Mixer)


@every_case
@pytest.mark.parametrize("grid", GRIDS)
def test_tokens_in_tokens_out(name, settings, grid):
    mixer, tokens = make(name, settings, grid), noise(3, grid.count, WIDTH)
    before = tokens.clone()
    out = mixer(tokens)
    assert mixer.tokens == grid and out.shape == tokens.shape and out.dtype == torch.float32
    assert torch.isfinite(out).all() and torch.equal(tokens, before)


@every_case
def test_every_token_learns_of_every_token(name, settings):
    """No answer is without a part of each token, keypoint or visual: that is what a mixer is for."""
    grid = GRIDS[0]
    mixer, tokens = lively(make(name, settings)), noise(1, grid.count, WIDTH, seed=9)
    slopes = torch.autograd.functional.jacobian(lambda t: mixer(t)[0].sum(-1), tokens)[:, 0]
    reach = slopes.abs().amax(-1)
    assert reach.shape == (grid.count, grid.count) and reach.min() > 1e-5 * reach.max()


@every_case
def test_pictures_do_not_mix(name, settings):
    """Each picture's answer is its own, whatever stands beside it and in which order."""
    model, feature = lively(encoder(name, settings)), pictures(5)
    order = torch.tensor([3, 0, 4, 2, 1])
    together, reordered = model(feature), model(feature[order])
    for i in range(2):
        limit = 1e-5 * float(together[i].detach().abs().max())
        torch.testing.assert_close(reordered[i], together[i][order], rtol=1e-5, atol=limit)
        alone = torch.cat([model(feature[j : j + 1])[i] for j in range(5)])
        torch.testing.assert_close(alone, together[i], rtol=1e-5, atol=limit)
        assert (together[i][0] - together[i][1]).abs().max() > 100 * limit


@every_case
def test_nothing_is_drawn(name, settings):
    """The same twice, and the same in training as in use; without gradients, but for rounding."""
    model, feature = lively(encoder(name, settings)), pictures(2)
    wanted = [v.detach() for v in model.train()(feature)]
    torch.manual_seed(1)
    for found in (model(feature), model.eval()(feature)):
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    with torch.no_grad():
        twice = model(feature), model(feature)
    for a, b, c in zip(*twice, wanted, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c, rtol=1e-4, atol=1e-5 * float(c.abs().max()))


@every_case
@pytest.mark.parametrize("residual", ["double", "single"])
def test_every_parameter_gets_a_gradient(name, settings, residual):
    model = encoder(name, settings, residual=residual)
    keypoint, visual = model(pictures(3))
    ((keypoint * noise(*keypoint.shape)).sum() + (visual * noise(*visual.shape, seed=1)).sum()).backward()
    for n, p in model.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all() and (p.grad != 0).any(), n


@every_case
def test_a_weights_file_holds_all_that_matters(name, settings):
    """Loaded strictly into another one, the answers are equal; and copies are independent."""
    mixer, tokens = lively(make(name, settings)), noise(2, GRIDS[0].count, WIDTH, seed=9)
    other = lively(copy.deepcopy(mixer))
    wanted = mixer(tokens)
    assert not torch.allclose(other(tokens), wanted, rtol=1e-2)
    other.load_state_dict(mixer.state_dict())
    assert torch.equal(other(tokens), wanted)


@every_case
def test_bfloat16_is_near_float32(name, settings):
    model, feature = encoder(name, settings), pictures(3)
    wanted = model(feature)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(feature)
    for a, b in zip(found, wanted, strict=True):
        assert (a.float() - b).abs().max() < 0.02 * b.abs().max()


@every_case
def test_a_float64_model_answers_in_float64(name, settings):
    model, feature = lively(encoder(name, settings)), pictures(3)
    wanted = model(feature)
    for a, b in zip(model.double()(feature.double()), wanted, strict=True):
        assert a.dtype == torch.float64 and not torch.equal(a, a.float().double())
        torch.testing.assert_close(a.float(), b, rtol=1e-4, atol=1e-5 * float(b.detach().abs().max()))


class Student(nn.Module):
    """The encoder and one linear layer on keypoint tokens."""

    def __init__(self, name, settings):
        super().__init__()
        self.tokens, self.final = encoder(name, settings), nn.Linear(WIDTH, 2)

    def forward(self, feature):
        return self.final(self.tokens(feature)[0])


@every_case
def test_training_in_bfloat16_is_stable(name, settings):
    """Eight pictures are learned by heart."""
    model, feature, wanted = Student(name, settings), pictures(8), noise(8, K, 2, seed=1)
    optimiser, losses = torch.optim.Adam(model.parameters(), lr=1e-2), []
    for _ in range(40):
        with torch.autocast("cpu", torch.bfloat16):
            found = model(feature)
        losses.append((found.float() - wanted).square().mean())
        optimiser.zero_grad()
        losses[-1].backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters())
        optimiser.step()
    assert torch.isfinite(torch.stack(losses)).all() and all(p.dtype == torch.float32 for p in model.parameters())
    assert losses[-1] < 0.5 * losses[0]


EXPORTED = [case for case in CASES if case[0] not in SETTINGS or case[1] in ({}, {"transform": "dct"}, {"way": "fft"})]


@pytest.mark.parametrize("name,settings", EXPORTED, ids=["-".join([n, *s.values()]) for n, s in EXPORTED])
def test_exported_tokens_equal_torch(name, settings, monkeypatch):
    """Without a node for the DFT, which runtimes compute slowly or not at all; here torch takes its FFT, asked for it or not."""
    monkeypatch.setattr(spectra, "MATRIX_SIDE", 0)
    model = lively(encoder(name, settings, depth=1)).eval()
    batch = torch.export.Dim("batch")
    with torch.no_grad():  # as a model predicts
        program = torch.onnx.export(
            model, (pictures(2),), dynamo=True, dynamic_shapes=({0: batch},), opset_version=OPSET, verbose=False
        )
    assert not [node.op_type for node in program.model.graph.all_nodes() if "DFT" in node.op_type.upper()]
    file = io.BytesIO()
    program.save(file)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    for count in (1, 5):
        feature = pictures(count, seed=count)
        found = session.run(None, {session.get_inputs()[0].name: feature.numpy()})
        with torch.no_grad():
            wanted = model(feature)
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_allclose(a, b.numpy(), rtol=1e-4, atol=1e-4)
