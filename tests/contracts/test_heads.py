"""What every registered head promises, whatever its representation and whatever it reads: a feature map, or keypoint tokens."""

from __future__ import annotations

import io

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lowpose import registry
from lowpose.nn.heads.base import mass_near, overlap
from lowpose.skeletons import CROWDPOSE14, Skeleton

NAMES = registry.names("head")
SETTINGS = {  # beyond the defaults
    "simcc": [{"target": "hard", "split": 3}, {"target": "smooth"}],
    "heatmap": [{"target": "continuous", "decode": "dark"}, {"target": "continuous", "decode": "udp"}],
    "integral": [{"decode": "dark"}, {"train": "plain", "learn_beta": True}, {"train": "closed"}],
}
# what depends on what is read; decoding does not
ON_TOKENS = {"heatmap": [{"stride": 2, "hidden": 0}], "integral": [{"stride": 2, "hidden": 0}], "regression": [{"hidden": 0}]}
READERS = [name for name in NAMES if registry.find("head", name).make.reads_tokens]
CASES = [(name, settings, False) for name in NAMES for settings in [{}, *SETTINGS.get(name, [])]]
CASES += [(name, settings, True) for name in READERS for settings in [{}, *ON_TOKENS.get(name, [])]]
# crop (width, height), backbone's feature (C, h, w); a token is as wide as the feature has channels
SIZE, FEATURE = (64, 48), (8, 12, 16)
ODD_SIZE, ODD_FEATURE = (60, 36), (5, 9, 13)
ONE = Skeleton("one", ("a",))
THIRTEEN = Skeleton("thirteen", tuple("abcdefghijklm"), pairs=((0, 3), (12, 5)))
LABELS = ["-".join([name, *["tokens"] * tokens, *map(str, settings.values())]) for name, settings, tokens in CASES]
every_case = pytest.mark.parametrize("name,settings,tokens", CASES, ids=LABELS)


def make(name, settings, tokens, feature=FEATURE, size=SIZE, skeleton=THIRTEEN):
    torch.manual_seed(0)
    entry = registry.find("head", name)
    return entry.make(entry.config(**settings), feature[:1] if tokens else feature, size, skeleton)


def joints(seed: int, batch: int, k: int, size=SIZE, margin: float = 0.0) -> torch.Tensor:
    """Odd multiples of 1/16 pixel: never on the edge of a bin or cell, and float32 counts them exactly."""
    u = np.random.default_rng(seed).uniform(0, 1, (batch, k, 2)) * (np.array(size) - 2 * margin) + margin
    return torch.from_numpy(np.floor(u * 8) / 8 + 1 / 16).float()


def mirrored(keypoints, skeleton, size=SIZE):
    out = keypoints[:, torch.from_numpy(skeleton.flip_index)].clone()
    out[..., 0] = size[0] - out[..., 0]
    return out


RANGES = {"xy": torch.sigmoid, "sigma": F.softplus}  # shares of the crop; every other output is any number


def noise(outputs, seed: int, scale: float = 1.0):
    generator = torch.Generator().manual_seed(seed)
    return {n: RANGES.get(n, nn.Identity())(scale * torch.randn(v.shape, generator=generator)) for n, v in outputs.items()}


def features(head, batch: int, seed: int = 0):
    """What the head reads: maps (B, C, h, w), or tokens (B, K, D)."""
    shape = head.feature_shape if len(head.feature_shape) == 3 else (head.num_keypoints, *head.feature_shape)
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed))


def cell(settings, tokens, size=SIZE, feature=FEATURE):
    """(width, height) of the step in which a head's answers are counted, input pixels."""
    return np.full(2, settings.get("stride", 4.0)) if tokens else np.array(size) / feature[:0:-1]


def test_every_head_is_listed():
    assert {"heatmap", "integral", "regression", "simcc", "udp"} <= set(NAMES)
    assert {"heatmap", "integral", "regression", "simcc"} <= set(READERS)
    for name in NAMES:
        assert registry.find("head", name).summary and registry.find("head", name).config().name == name


def test_overlap_and_mass():
    centre = torch.tensor([2.0, 0.5, 6.0, -3.0])  # pixels; six cells of 1.5
    covered = overlap(centre, 6, 1.5)
    want = [[0.5, 1.5, 0, 0, 0, 0], [1.5, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 0], [0] * 6]
    np.testing.assert_allclose(covered * 1.5, want, atol=1e-6)
    np.testing.assert_allclose(overlap(centre[:1], 6, 1.5, radius=2)[0] * 1.5, [1.5, 1.5, 1, 0, 0, 0], atol=1e-6)
    mass = torch.tensor([0.1, 0.2, 0.3, 0.2, 0.1, 0.1]).expand(4, 6)
    np.testing.assert_allclose(mass_near(mass, centre, 1.5), (np.array(want) / 1.5 * mass.numpy()).sum(-1), atol=1e-6)


@every_case
@pytest.mark.parametrize("skeleton", [ONE, THIRTEEN, CROWDPOSE14], ids=lambda s: s.name)
@pytest.mark.parametrize("size,feature", [(SIZE, FEATURE), (ODD_SIZE, ODD_FEATURE), ((32, 32), (3, 8, 8))])
def test_shapes_and_ranges(name, settings, tokens, skeleton, size, feature):
    head, k = make(name, settings, tokens, feature, size, skeleton), len(skeleton)
    outputs = head(features(head, 3))
    assert all(v.shape[:2] == (3, k) for v in outputs.values())
    flipped = head.flip(outputs)
    assert {n: v.shape for n, v in flipped.items()} == {n: v.shape for n, v in outputs.items()}
    for scale in (1.0, 5.0):
        for out in (outputs, noise(outputs, 1, scale)):
            got = head.decode({n: v.detach() for n, v in out.items()})
            assert got.keypoints.shape == (3, k, 2) and got.scores.shape == got.published.shape == (3, k)
            assert all(v.dtype == torch.float32 and torch.isfinite(v).all() for v in got)
            assert (got.keypoints >= 0).all() and (got.keypoints <= torch.tensor(size)).all()
            assert ((got.scores >= 0) & (got.scores <= 1)).all()


@every_case
def test_parameters_of_keypoints_are_named(name, settings, tokens):
    """Parameters whose size depends on the number of keypoints are listed, with their first axis (n, K)."""
    one, many = ({n: p.shape for n, p in make(name, settings, tokens, skeleton=s).named_parameters()} for s in (ONE, THIRTEEN))
    assert set(make(name, settings, tokens).per_keypoint) == {n for n in one if one[n] != many[n]}
    for n, count in make(name, settings, tokens).per_keypoint.items():
        assert one[n][0] == count and many[n][0] == 13 * count and one[n][1:] == many[n][1:]


@every_case
def test_per_keypoint_rows_belong_to_their_keypoint(name, settings, tokens):
    """Reordering the rows of those parameters, and the tokens, reorders the outputs: how weights move between skeletons."""
    head, order = make(name, settings, tokens), torch.from_numpy(np.random.default_rng(1).permutation(13))
    feature = features(head, 2)
    with torch.no_grad():
        before = head(feature)
        for n, p in head.named_parameters():
            if n in head.per_keypoint:
                p.copy_(p.unflatten(0, (head.per_keypoint[n], 13))[:, order].flatten(0, 1))
        after = head(feature[:, order] if tokens else feature)
    for n in before:
        torch.testing.assert_close(after[n], before[n][:, order], rtol=1e-5, atol=1e-6)


@every_case
def test_every_parameter_gets_a_gradient(name, settings, tokens):
    head = make(name, settings, tokens)
    targets, weight = head.targets(joints(2, 4, 13), torch.ones(4, 13))
    terms = head.loss(head(features(head, 4)), targets, weight)
    assert all(v.shape == () and torch.isfinite(v) for v in terms.values())
    sum(terms.values()).backward()
    for n, p in head.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all() and (p.grad != 0).any(), n


@every_case
def test_masked_joints_do_not_count(name, settings, tokens):
    head = make(name, settings, tokens)
    kp = joints(3, 4, 13)
    visible = torch.from_numpy(np.random.default_rng(3).integers(0, 2, (4, 13))).float()
    kp[0, 0], visible[0, 0] = torch.tensor([1e4, -1e4]), 1.0  # outside the crop
    targets, weight = head.targets(kp, visible)
    assert weight.shape == (4, 13) and ((weight == visible) | (weight == 0)).all() and weight[0, 0] == 0
    masked = weight == 0
    outputs = {n: v.requires_grad_() for n, v in noise(head(features(head, 4)), 4).items()}
    terms = head.loss(outputs, targets, weight)
    sum(terms.values()).backward()
    for v in outputs.values():
        assert v.grad is None or ((v.grad[masked] == 0).all() and torch.isfinite(v.grad).all())
    assert any(v.grad is not None and (v.grad[~masked] != 0).any() for v in outputs.values())
    other = {n: torch.where(masked.reshape(4, 13, *[1] * (v.ndim - 2)), -3 * v, v) for n, v in outputs.items()}
    for n, v in head.loss(other, targets, weight).items():
        torch.testing.assert_close(v, terms[n], rtol=1e-6, atol=0)


@every_case
def test_loss_is_a_sum_over_joints(name, settings, tokens):
    """Of parts of a batch, the losses add up; twice the weight is twice the loss: what the division by the count rests on."""
    head = make(name, settings, tokens)
    targets, weight = head.targets(joints(5, 6, 13), torch.ones(6, 13))
    outputs = noise(head(features(head, 6)), 5)
    whole = head.loss(outputs, targets, weight)
    parts = [
        head.loss({n: v[s] for n, v in outputs.items()}, {n: v[s] for n, v in targets.items()}, weight[s])
        for s in (slice(2), slice(2, 6))
    ]
    twice = head.loss(outputs, targets, 2 * weight)
    for n in whole:
        torch.testing.assert_close(parts[0][n] + parts[1][n], whole[n], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(twice[n], 2 * whole[n], rtol=1e-5, atol=1e-6)


NEAR = 0.76  # cells: half a cell of rounding, and the quarter that `quarter` moves by on a symmetric peak


def learned(head, keypoints):
    """Outputs that minimise the loss."""
    b, k = keypoints.shape[:2]
    targets, weight = head.targets(keypoints, torch.ones(b, k))
    outputs = {n: v.detach().clone().requires_grad_() for n, v in head(features(head, b)).items()}
    optimiser = torch.optim.Adam(outputs.values(), lr=0.1)
    for step in range(400):
        optimiser.param_groups[0]["lr"] = 0.1 * (1 - step / 400)
        optimiser.zero_grad()
        sum(head.loss(outputs, targets, weight).values()).backward()
        optimiser.step()
    return {n: v.detach() for n, v in outputs.items()}


@every_case
@pytest.mark.parametrize("size,feature", [(SIZE, FEATURE), (ODD_SIZE, ODD_FEATURE)])
def test_outputs_that_minimise_the_loss_decode_to_the_joints(name, settings, tokens, size, feature):
    head = make(name, settings, tokens, feature, size)
    kp = joints(6, 2, 13, size, margin=0.5)
    outputs = learned(head, kp)
    with torch.no_grad():
        got = head.decode(outputs)
    assert (np.abs((got.keypoints - kp).numpy()) <= NEAR * cell(settings, tokens, size, feature)).all()
    assert got.scores.min() > 0.4 and got.scores.mean() > 0.8


@every_case
def test_flipped_targets_are_the_targets_of_the_mirror_image(name, settings, tokens):
    head = make(name, settings, tokens, skeleton=CROWDPOSE14)
    kp = joints(7, 8, len(CROWDPOSE14))
    visible = torch.from_numpy(np.random.default_rng(7).integers(0, 2, kp.shape[:2])).float()
    targets, weight = head.targets(kp, visible)
    outputs = {**head(features(head, 8)), **targets}
    mirror, mirror_weight = head.targets(mirrored(kp, CROWDPOSE14), visible[:, head.flip_index])
    assert torch.equal(mirror_weight[:, head.flip_index], weight)
    flipped = head.flip({**head(features(head, 8)), **mirror})
    for n in targets:
        # a softmax is a sum, whose rounding depends on the order; everything else is equal to the last bit
        torch.testing.assert_close(flipped[n], targets[n], rtol=0, atol=1e-7 if name == "simcc" else 0)
    twice = head.flip(head.flip(outputs))
    assert all(torch.equal(twice[n], outputs[n]) for n in outputs)


@every_case
def test_flip_test_of_an_equivariant_model_changes_nothing(name, settings, tokens):
    """A model whose answer to the mirror image is the mirrored answer: merging both is the answer itself."""
    head = make(name, settings, tokens, skeleton=CROWDPOSE14)
    kp = joints(8, 2, len(CROWDPOSE14), margin=0.5)
    answer = learned(head, kp)
    answer_to_mirror = head.flip(answer)
    direct = head.decode(answer)
    merged = head.decode(head.merge(answer, head.flip(answer_to_mirror)))
    torch.testing.assert_close(merged.keypoints, direct.keypoints, rtol=0, atol=1e-3)
    torch.testing.assert_close(merged.scores, direct.scores, rtol=0, atol=1e-4)
    # and what the model says of the mirror image is the mirror image of the joints
    far = (head.decode(answer_to_mirror).keypoints - mirrored(kp, CROWDPOSE14)).abs()
    assert (far <= NEAR * torch.from_numpy(cell(settings, tokens))).all()


@every_case
def test_half_precision(name, settings, tokens):
    head = make(name, settings, tokens)
    targets, weight = head.targets(joints(9, 2, 13), torch.ones(2, 13))
    outputs = noise(head(features(head, 2)), 9)
    half = {n: v.bfloat16() for n, v in outputs.items()}
    same = {n: v.float() for n, v in half.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, terms = head.decode(half), head.loss(half, targets, weight)
        merged = head.decode(head.merge(half, head.flip(half)))
        from_feature = head(features(head, 2))
    for a, b in zip(got, head.decode(same), strict=True):  # computed in float32, autocast or not
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    for n, v in head.loss(same, targets, weight).items():
        torch.testing.assert_close(terms[n], v, rtol=1e-5, atol=1e-5)
    assert all(torch.isfinite(v).all() for v in [*merged, *from_feature.values()])


class WithDecode(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, feature):
        got = self.head.decode(self.head(feature))
        return got.keypoints, got.scores, got.published


@every_case
def test_exported_head_equals_torch(name, settings, tokens):
    model = WithDecode(make(name, settings, tokens, (6, 7, 6), (24, 28))).eval()
    with torch.no_grad():
        for p in model.head.parameters():  # answers that differ from cell to cell
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.onnx.export(model, (features(model.head, 2),), dynamo=True, dynamic_shapes=({0: batch},), verbose=False)
    file = io.BytesIO()
    program.save(file)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    for count in (1, 5):
        feature = features(model.head, count, seed=count)
        got = session.run(None, {session.get_inputs()[0].name: feature.numpy()})
        with torch.no_grad():
            want = model(feature)
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b.numpy(), rtol=1e-3, atol=1e-3)
