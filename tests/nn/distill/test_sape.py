"""SAPE against plain NumPy float64 from the module's own weights: eq. 1 to 5, sizes, dead projectors, small batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from lowpose.errors import LowposeError
from lowpose.nn.distill.base import Side, build_distillers
from lowpose.nn.distill.sape import SAPE, SAU, Flatten, SAPEConfig, Spatial

MAP, WANTED = (3, 5, 4), (3, 10, 12)  # K, h, w
FEATURES = (4, 5, 4), (6, 9, 7)
SIZE = (16, 20)


def make(given=MAP, wanted=WANTED, seed=0, **settings) -> SAPE:
    """A module whose parameters and statistics are all random: none is at a value that hides it."""
    name = "feature" if settings.get("source") == "feature" else "map"
    torch.manual_seed(seed)
    module = SAPE(SAPEConfig(**settings), Side({name: given}, SIZE), Side({name: wanted}, SIZE))
    with torch.no_grad():
        for key, value in [*module.named_parameters(), *module.named_buffers()]:
            if key.endswith("running_var"):
                value.uniform_(0.5, 2)
            elif value.is_floating_point() and value.ndim:
                value.normal_(0, 0.5)
    return module


def noise(shape, seed: int, batch=2) -> torch.Tensor:
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed))


def relu(x):
    return np.maximum(x, 0)


def convolve(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """(B, C, h, w) with (C', C, n, n), zero outside the map."""
    r, (h, w) = kernel.shape[-1] // 2, x.shape[-2:]
    padded = np.zeros((*x.shape[:2], h + 2 * r, w + 2 * r))
    padded[..., r : r + h, r : r + w] = x
    out = np.zeros((len(x), len(kernel), h, w))
    for i in range(2 * r + 1):
        for j in range(2 * r + 1):
            for o, row in enumerate(kernel[:, :, i, j]):
                for c, tap in enumerate(row):
                    out[:, o] += tap * padded[:, c, i : i + h, j : j + w]
    return out


class Reference:
    """Eq. 1 to 5 in float64."""

    def __init__(self, module: SAPE, wanted, training: bool):
        self.p = {key: value.double().numpy() for key, value in module.state_dict().items()}
        self.config, self.wanted, self.training = module.config, wanted, training

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return x @ self.p[f"{name}.weight"].T + self.p[f"{name}.bias"]

    def projected(self, x: np.ndarray, k: int) -> np.ndarray:
        name = f"projectors.{k}"
        if self.config.projector == "flatten":
            return relu(self.linear(f"{name}.linear", x.reshape(len(x), -1))).reshape(len(x), *self.wanted)
        if f"{name}.channels.weight" in self.p:
            x = convolve(x, self.p[f"{name}.channels.weight"]) + self.p[f"{name}.channels.bias"][:, None, None]
        rows = relu(self.linear(f"{name}.linear", x.reshape(*x.shape[:2], -1)))
        return rows.reshape(*x.shape[:2], *self.wanted[1:])

    def branch(self, x: np.ndarray, i: int) -> np.ndarray:
        """Eq. 1: convolution, batch norm, ReLU."""
        name = f"unit.branches.{i}"
        x = convolve(x, self.p[f"{name}.0.weight"])
        if self.training:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3))
        else:
            mean, var = self.p[f"{name}.1.running_mean"], self.p[f"{name}.1.running_var"]
        scale = self.p[f"{name}.1.weight"] / np.sqrt(var + 1e-5)
        return relu((x - mean[:, None, None]) * scale[:, None, None] + self.p[f"{name}.1.bias"][:, None, None])

    def fused(self, x: np.ndarray) -> np.ndarray:
        """Eq. 2 in the paper's order: a linear layer at every position, global average, sum over branches."""
        out = 0
        for i in range(len(self.config.kernels)):
            rows = self.linear("unit.fuse", self.branch(x, i).transpose(0, 2, 3, 1))
            out = out + rows.mean((1, 2))
        if self.config.fusion == "deep" and self.config.deep == "gap":
            out = relu(self.linear("unit.after.0", out))
        return out

    def weights(self, x: np.ndarray) -> np.ndarray:
        """Eq. 3: (B, projectors, C')."""
        fused, scores = self.fused(x), []
        for k in range(self.config.projectors):
            if self.config.fusion == "deep" and self.config.deep == "softmax":
                first = relu(self.linear(f"unit.select.{k}.0", fused))
                scores.append(self.linear(f"unit.select.{k}.2", first))
            else:
                scores.append(self.linear(f"unit.select.{k}", fused))
        exp = np.exp(np.stack(scores, 1))
        return exp / exp.sum(1, keepdims=True)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Eq. 4."""
        maps = [self.projected(x, k) for k in range(self.config.projectors)]
        if self.config.fusion == "sum":
            return sum(maps)
        w = self.weights(x)
        return sum(w[:, k, :, None, None] * maps[k] for k in range(self.config.projectors))


def eq5(ours: np.ndarray, theirs: np.ndarray) -> float:
    dot = first = second = 0.0
    for a, b in zip(ours.ravel(), theirs.ravel(), strict=True):
        dot, first, second = dot + a * b, first + a * a, second + b * b
    return 1 - dot / np.sqrt(first) / np.sqrt(second)


VARIANTS = [
    {},
    {"projector": "flatten"},
    {"fusion": "sum"},
    {"fusion": "deep"},
    {"fusion": "deep", "deep": "softmax", "projectors": 2},
    {"projectors": 1, "kernels": (1, 9), "width": 5},
    {"source": "feature"},
    {"source": "feature", "projector": "flatten", "fusion": "sum"},
]


@pytest.mark.parametrize("settings", VARIANTS, ids=lambda s: "-".join(map(str, s.values())) or "default")
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_eq_1_to_5(settings, training):
    given, wanted = FEATURES if "source" in settings else (MAP, WANTED)
    module = make(given, wanted, **settings).train(training)
    reference = Reference(module, wanted, training)
    ours, theirs = noise(given, 1), noise(wanted, 2)
    x = ours.double().numpy()
    np.testing.assert_allclose(module.project(ours).detach().numpy(), reference(x), rtol=1e-4, atol=1e-4)
    if module.unit is not None:
        np.testing.assert_allclose(module.unit(ours).detach().numpy(), reference.weights(x), rtol=1e-4, atol=1e-5)
    name = settings.get("source", "map")
    total, count = module({name: ours}, {name: theirs}, torch.tensor([[1.0, 0, 0], [1, 1, 1]]))["sape"]
    want = sum(eq5(a, b) for a, b in zip(reference(x), theirs.double().numpy(), strict=True))
    assert count == 2 and total.item() == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("settings", [s for s in VARIANTS if s.get("fusion") != "sum"], ids=str)
def test_weights_sum_to_one_over_projectors(settings):
    given, wanted = FEATURES if "source" in settings else (MAP, WANTED)
    module = make(given, wanted, **settings)
    weights = module.unit(3 * noise(given, 3, 4))
    assert weights.shape == (4, len(module.projectors), wanted[0])
    torch.testing.assert_close(weights.sum(1), torch.ones(4, wanted[0]))
    if len(module.projectors) > 1:
        assert weights.std(1).max() > 0.1 and weights.std(2).max() > 0.1  # they differ between projectors, and channels


def test_the_linear_layer_commutes_with_the_average_but_not_with_relu():
    """Why the linear layer of eq. 2 may stand behind the average, where it costs h w times less."""
    unit = make().unit.eval()
    maps = [branch(noise(MAP, 4)) for branch in unit.branches]
    before = sum(unit.fuse(m.movedim(1, -1)).mean((1, 2)) for m in maps)
    torch.testing.assert_close(unit.fuse(torch.stack([m.mean((-2, -1)) for m in maps])).sum(0), before)
    raw = [branch[1](branch[0](noise(MAP, 4))).mean((-2, -1)).relu() for branch in unit.branches]
    assert (unit.fuse(torch.stack(raw)).sum(0) - before).abs().max() > 1e-2


def count(module: nn.Module | None) -> int:
    return sum(p.numel() for p in module.parameters()) if module else 0


def unit_size(c: int, wanted: int, config: SAPEConfig) -> int:
    """Closed form."""
    w, k = config.width, config.projectors
    branches = sum(c * c * n * n + 2 * c for n in config.kernels)  # no bias in front of a batch norm
    total = branches + (c * w + w) + k * (w * wanted + wanted)
    if config.fusion == "deep":
        total += w * w + w if config.deep == "gap" else k * (wanted * wanted + wanted)
    return total


def test_sizes_of_the_scale_adaptive_unit():
    for settings, want in (
        ({}, 36_048),
        ({"fusion": "deep"}, 37_104),
        ({"fusion": "deep", "deep": "softmax"}, 36_864),
        ({"kernels": (3, 5, 7)}, 23_472),
    ):
        config = SAPEConfig(**settings)
        assert count(SAU(16, 16, config)) == want == unit_size(16, 16, config)
    assert make(fusion="sum").unit is None
    assert count(SAU(8, 20, SAPEConfig())) == unit_size(8, 20, SAPEConfig())


def test_the_released_unit_differs_by_biases_and_a_fourth_choice():
    """24,048 parameters as released: each convolution has a bias, which the batch norm behind it takes out again, and the
    mean of the three projectors is chosen from as a fourth, which eq. 4 does not have."""
    ours = count(SAU(16, 16, SAPEConfig(kernels=(3, 5, 7))))
    assert ours + 3 * 16 + (32 * 16 + 16) == 24_048


@pytest.mark.parametrize(
    "make_it,given,wanted,want",
    [
        (Spatial, (16, 8, 8), (16, 64, 64), 266_240),  # 32 px to 256 px: 64 cells to 4096, 0.27M
        (Spatial, (16, 16, 16), (16, 64, 64), 1_052_672),  # 64 px: 256 cells, 1.05M
        (Spatial, (16, 8, 8), (16, 32, 32), 66_560),  # teacher at 128 px
        (Flatten, (16, 8, 8), (16, 64, 64), 1024 * 65_536 + 65_536),  # as released: 67M each
        (Spatial, (32, 8, 8), (48, 64, 64), 266_240 + 32 * 48 + 48),  # features: a 1x1 convolution first
    ],
)
def test_sizes_of_projectors(make_it, given, wanted, want):
    with torch.device("meta"):
        assert count(make_it(given, wanted)) == want


def test_parameters_of_the_whole_method():
    sizes = {}
    for fusion, deep in (("sum", "gap"), ("sau", "gap"), ("deep", "gap"), ("deep", "softmax")):
        module = make(fusion=fusion, deep=deep)
        sizes[fusion, deep] = count(module)
        assert count(module.projectors) == 3 * (20 * 120 + 120)
        assert count(module) == count(module.projectors) + count(module.unit)
    assert len(set(sizes.values())) == 4


def test_projectors_start_different():
    torch.manual_seed(0)
    module = SAPE(SAPEConfig(), Side({"map": MAP}, SIZE), Side({"map": WANTED}, SIZE))
    a, b, c = (p.linear.weight for p in module.projectors)
    limit = np.sqrt(6 / (20 + 120))  # Glorot, uniform
    assert all(limit * 0.95 < w.abs().max() <= limit for w in (a, b, c))
    assert not torch.equal(a, b) and not torch.equal(b, c) and not torch.equal(a, c)


@pytest.mark.parametrize("scale", [0.1, 7.0])
def test_size_does_not_matter_and_direction_does(scale):
    module, ours, weight = make().eval(), noise(MAP, 5), torch.ones(2, 3)
    same = module.project(ours).detach() * scale
    assert module({"map": ours}, {"map": same}, weight)["sape"].total.abs() < 1e-5
    assert module({"map": ours}, {"map": -same}, weight)["sape"].total.item() == pytest.approx(4, rel=1e-5)


@pytest.mark.parametrize("fusion", ["sum", "sau", "deep"])
@pytest.mark.parametrize("projector", ["spatial", "flatten"])
@pytest.mark.parametrize("per", ["person", "joint"])
def test_dead_projectors(fusion, projector, per):
    """No cell of any projector is above zero: a loss of exactly one, and a gradient that is a number."""
    module = make(fusion=fusion, projector=projector, per=per)
    for p in module.projectors:
        nn.init.constant_(p.linear.bias, -1e3)
    ours = noise(MAP, 6).requires_grad_()
    for half in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            total, count = module({"map": ours}, {"map": noise(WANTED, 7)}, torch.ones(2, 3))["sape"]
        assert total / count == 1 and count == (2 if per == "person" else 6)
        total.backward()
        assert all(torch.isfinite(v.grad).all() for v in [ours, *module.parameters()] if v.grad is not None)
        assert (ours.grad == 0).all()


def test_an_empty_teacher_map():
    ours, module = noise(MAP, 8).requires_grad_(), make()
    total, count = module({"map": ours}, {"map": torch.zeros(2, *WANTED)}, torch.ones(2, 3))["sape"]
    total.backward()
    assert total == count == 2 and torch.isfinite(ours.grad).all()


@pytest.mark.parametrize("settings", VARIANTS[:5], ids=str)
def test_a_batch_of_one(settings):
    module, ours = make(**settings).train(), noise(MAP, 9, 1).requires_grad_()
    total, count = module({"map": ours}, {"map": noise(WANTED, 10, 1)}, torch.ones(1, 3))["sape"]
    total.backward()
    assert count == 1 and 0 < total < 2 and (ours.grad != 0).any()
    np.testing.assert_allclose(
        module.project(ours).detach().numpy(), Reference(module, WANTED, True)(ours.detach().double().numpy()), atol=1e-4
    )


@pytest.mark.parametrize("projector", ["spatial", "flatten"])
def test_odd_sizes(projector):
    """9 x 7 cells to 31 x 22, and a smaller teacher."""
    for given, wanted in (((3, 7, 9), (3, 22, 31)), ((3, 7, 9), (3, 4, 5))):
        module, ours = make(given, wanted, projector=projector).eval(), noise(given, 11)
        got = module.project(ours)
        assert got.shape == (2, *wanted)
        np.testing.assert_allclose(
            got.detach().numpy(), Reference(module, wanted, False)(ours.double().numpy()), rtol=1e-4, atol=2e-4
        )


def test_cosine_per_joint():
    module, ours, theirs = make(per="joint").eval(), noise(MAP, 12), noise(WANTED, 13)
    weight = torch.tensor([[1.0, 0, 1], [0, 0, 1]])
    total, count = module({"map": ours}, {"map": theirs}, weight)["sape"]
    projected = Reference(module, WANTED, False)(ours.double().numpy())
    want = sum(eq5(projected[b, k], theirs[b, k].double().numpy()) for b, k in ((0, 0), (0, 2), (1, 2)))
    assert count == 3 and total.item() == pytest.approx(want, rel=1e-5)
    for b, k in ((0, 1), (1, 0)):  # what the teacher says of a joint without a label does not matter
        theirs[b, k] = 5 - theirs[b, k]
    assert module({"map": ours}, {"map": theirs}, weight)["sape"].total.item() == pytest.approx(want, rel=1e-5)


def test_persons_without_labels_do_not_count():
    module, ours, theirs = make().eval(), noise(MAP, 14).requires_grad_(), noise(WANTED, 15)
    weight = torch.tensor([[0.0, 0, 0], [0, 1, 0]])
    total, count = module({"map": ours}, {"map": theirs}, weight)["sape"]
    total.backward()
    assert count == 1 and (ours.grad[0] == 0).all() and (ours.grad[1] != 0).any()
    alone = module({"map": ours[1:]}, {"map": theirs[1:]}, weight[1:])["sape"]
    torch.testing.assert_close(alone.total, total)


def build(student, teacher, **settings):
    return build_distillers({"sape": settings}, Side(student, SIZE), Side(teacher, SIZE))


@pytest.mark.parametrize(
    "student,teacher,settings,line",
    [
        (
            {"feature": FEATURES[0]},
            {"feature": FEATURES[1]},
            {"source": "feature", "per": "joint"},
            "distill.sape.per=joint: a backbone's feature has no joints; use source=map or per=person",
        ),
        ({"x": (3, 8)}, {"map": MAP}, {}, "distill.sape needs the output 'map', and the student gives only x"),
        ({"map": MAP}, {"x": (3, 8), "y": (3, 8)}, {}, "distill.sape needs the output 'map', and the teacher gives only x, y"),
        (
            {"map": MAP},
            {"map": MAP},
            {"kernel": [3]},
            "distill.sape: unknown key 'kernel'; did you mean 'kernels'?",
        ),
        ({"map": MAP}, {"map": MAP}, {"kernels": [3, 4]}, "kernels are odd numbers of cells"),
        ({"map": MAP}, {"map": MAP}, {"kernels": []}, "kernels are odd numbers of cells"),
        ({"map": MAP}, {"map": MAP}, {"projectors": 0}, "'projectors' = 0: input should be greater than or equal to 1"),
        ({"map": MAP}, {"map": MAP}, {"fusion": "sua"}, "'fusion' = 'sua': input should be 'sum', 'sau' or 'deep'"),
    ],
)
def test_refusals(student, teacher, settings, line):
    with pytest.raises(LowposeError) as error:
        build(student, teacher, **settings)
    assert line in str(error.value) and "\n" not in str(error.value)
