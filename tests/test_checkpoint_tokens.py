"""Token models that start from weights of another grid and other keypoints: filters keep their kernels in pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import tiny

from lowpose.checkpoint import initialise, save_weights
from lowpose.nn.model import PoseModel, build_model
from lowpose.skeletons import COCO17, LSP14, Skeleton

STATIC, DYNAMIC = {"name": "gfl-static"}, {"name": "gfl-dynamic", "static": True}
OTHERS = [  # skeleton, input size of the target; its grid. The source: LSP14, (32, 32), 8 x 10
    (LSP14, (36, 32), (8, 11)),  # as many columns of the spectrum
    (LSP14, (32, 44), (11, 10)),
    (COCO17, (32, 32), (8, 11)),
    (COCO17, (48, 64), (16, 14)),
    (LSP14, (24, 16), (4, 10)),
]
every_other = pytest.mark.parametrize("skeleton,size,grid", OTHERS, ids=lambda v: getattr(v, "name", str(v)))
every_mixer = pytest.mark.parametrize("mixer", [STATIC, {**STATIC, "transform": "dct"}, DYNAMIC], ids=str)


def model_of(mixer, skeleton=LSP14, size=(32, 32), seed=0):
    torch.manual_seed(seed)
    config = tiny(
        input={"size": size},
        model={"backbone": "none", "tokens": {"patch": [4, 4], "width": 8, "depth": 2, "mixer": mixer}},
        head={"name": "regression"},
    )
    return build_model(config, skeleton).eval(), config


def saved(path, model: PoseModel, config) -> str:
    save_weights(path, model, config)
    return str(path)


def filters(model: PoseModel) -> dict[str, torch.Tensor]:
    """(P, h, v, ...) by name: `filter` of static layers; `basis` and `static` of dynamic ones."""
    found = {n: p.detach() for n, p in model.tokens.named_parameters() if n.split(".")[-1] in ("filter", "basis", "static")}
    assert len(found) in (2, 4)
    return found


def offsets(n: int) -> range:
    return range(-(n // 2), (n + 1) // 2)


def response(kernel: dict, grid, transform: str) -> np.ndarray:
    """The filter of a kernel {(dy, dx): (C,)} on a grid, frequency by frequency; dct: offsets from 0, mirrored."""
    h, w = grid
    v = w // 2 + 1 if transform == "fft" else w
    rows, columns = np.arange(h)[:, None, None], np.arange(v)[None, :, None]
    if transform == "fft":
        out = sum(np.exp(-2j * np.pi * (rows * y / h + columns * x / w)) * c for (y, x), c in kernel.items())
        return np.stack([out.real, out.imag])
    both = {(y, x): (1 + (y > 0)) * (1 + (x > 0)) * c for (y, x), c in kernel.items()}
    return sum(np.cos(np.pi * rows * y / h) * np.cos(np.pi * columns * x / w) * c for (y, x), c in both.items())[None]


@every_mixer
@every_other
def test_filters_follow_the_grid(tmp_path, mixer, skeleton, size, grid):
    transform = mixer.get("transform", "fft")
    source, config = model_of(mixer)
    rng, kernels = np.random.default_rng(0), {}
    for name, p in filters(source).items():
        reach = [offsets(n) for n in (8, 10)] if transform == "fft" else [range(8), range(10)]
        kernels[name] = {(y, x): rng.standard_normal(p.shape[-1]) / 9 for y in reach[0] for x in reach[1]}
        p.copy_(torch.from_numpy(response(kernels[name], (8, 10), transform)))
    model, _ = model_of(mixer, skeleton, size, seed=1)
    missing = initialise(model, saved(tmp_path / "w.safetensors", source, config))
    for name, p in filters(model).items():
        # an offset of half an even side is below 0, and of a smaller grid those nearest to 0 are kept
        kept = [offsets(min(a, b)) if transform == "fft" else range(min(a, b)) for a, b in zip((8, 10), grid, strict=True)]
        kernel = {o: c for o, c in kernels[name].items() if o[0] in kept[0] and o[1] in kept[1]}
        np.testing.assert_allclose(p.double().numpy(), response(kernel, grid, transform), rtol=1e-4, atol=1e-4)
    assert all(n.startswith("tokens.keypoint[") for n in missing), missing


@every_mixer
def test_identities_stay_identities_from_size_to_size(tmp_path, mixer):
    """Three models in a row: each one's file tells the size of its own filters."""
    model, config = model_of(mixer)
    for p in filters(model).values():
        p.zero_()[0] = 1
    for i, size in enumerate([(36, 32), (32, 32), (40, 24)]):
        path = saved(tmp_path / f"{i}.safetensors", model, config)
        model, config = model_of(mixer, size=size, seed=i + 1)
        assert initialise(model, path) == []
        h, w = size[1] // 4, size[0] // 4
        for name, p in model.state_dict().items():
            if name.endswith(".size"):
                assert p.tolist() == [h, w + -(-14 // h)]
        for p in filters(model).values():
            assert (p[0] - 1).abs().max() < 1e-5 and p[1:].abs().sum() < 1e-4


@every_mixer
def test_the_same_grid_is_taken_as_it_is(tmp_path, mixer):
    source, config = model_of(mixer)
    model, _ = model_of(mixer, seed=1)
    assert initialise(model, saved(tmp_path / "w.safetensors", source, config)) == []
    for name, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    pictures = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(pictures)["xy"], source(pictures)["xy"])


def test_keypoint_tokens_go_by_name(tmp_path):
    some = Skeleton("some", ("left_ankle", "tail", "right_wrist", "nose"), pairs=())
    source, config = model_of(STATIC, COCO17)
    model, _ = model_of(STATIC, some, seed=1)
    fresh = model.tokens.keypoint.detach().clone()
    missing = initialise(model, saved(tmp_path / "w.safetensors", source, config))
    for i, name in enumerate(some.keypoints):
        row = source.tokens.keypoint[COCO17.keypoints.index(name)] if name in COCO17.keypoints else fresh[i]
        assert torch.equal(model.tokens.keypoint[i], row), name
    assert missing == ["tokens.keypoint[tail]"]
    torch.testing.assert_close(model.tokens.embed.weight, source.tokens.embed.weight, rtol=0, atol=0)


def test_another_mixer_takes_the_rest(tmp_path):
    source, config = model_of(STATIC)
    model, _ = model_of({"name": "attention", "heads": 2}, size=(48, 48), seed=1)
    missing = initialise(model, saved(tmp_path / "w.safetensors", source, config))
    assert {n.split(".")[3] for n in missing} == {"mixer"} and len(missing) == 2 * 3
    assert torch.equal(model.tokens.layers[1].mlp[0].weight, source.tokens.layers[1].mlp[0].weight)


def test_filters_of_another_width_are_left(tmp_path):
    """Fewer filters in the source: shapes differ, and the target keeps its own size."""
    source, config = model_of(DYNAMIC)
    model, _ = model_of({**DYNAMIC, "filters": 2}, size=(36, 32), seed=1)
    fresh = {n: p.clone() for n, p in filters(model).items()}
    missing = initialise(model, saved(tmp_path / "w.safetensors", source, config))
    for i in range(2):
        name = f"layers.{i}.mixer.basis"
        assert torch.equal(filters(model)[name], fresh[name])
        assert any(m.startswith(f"tokens.{name} (here (2, 8, 6, 2), there (2, 8, 6, 4))") for m in missing)
        assert not any(f"{i}.mixer.static" in m for m in missing)
        assert model.state_dict()[f"tokens.layers.{i}.mixer.size"].tolist() == [8, 11]
