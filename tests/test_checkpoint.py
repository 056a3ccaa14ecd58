"""Weights files and training states: the way back, other skeletons, and files that are not what they seem."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import tiny

from lowpose.checkpoint import (
    STATE,
    initialise,
    load_model,
    load_state,
    pack_weights,
    read_weights,
    save_state,
    save_weights,
    weights_path,
)
from lowpose.errors import LowposeError
from lowpose.nn.model import build_model
from lowpose.skeletons import COCO17, CROWDPOSE14, LSP14, MPII16, Skeleton


def model_of(skeleton=COCO17, seed=0, **sections):
    torch.manual_seed(seed)
    config = tiny(**sections)
    return build_model(config, skeleton).eval(), config


@pytest.mark.parametrize("half", [False, True])
def test_round_trip(tmp_path, half):
    model, config = model_of()
    save_weights(tmp_path / "w.safetensors", model, config, half=half, step=7)
    loaded, found = load_model(tmp_path / "w.safetensors")
    assert found == config and loaded.skeleton == COCO17 and not loaded.training
    assert read_weights(tmp_path / "w.safetensors")[1]["step"] == 7
    for name, value in model.state_dict().items():
        wanted = value.half().float() if half and value.is_floating_point() else value
        assert torch.equal(loaded.state_dict()[name], wanted) and loaded.state_dict()[name].dtype == value.dtype
    pictures = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    a, b = (m.predict(pictures) for m in (model, loaded))
    assert torch.allclose(a.scores, b.scores, atol=1e-2 if half else 0)
    assert not list(tmp_path.glob(".*"))


def test_half_is_half_the_size(tmp_path):
    model, config = model_of()
    for half in (False, True):
        save_weights(tmp_path / f"{half}.safetensors", model, config, half=half)
    assert (tmp_path / "True.safetensors").stat().st_size < 0.52 * (tmp_path / "False.safetensors").stat().st_size


def test_loading_needs_no_network_and_no_init_file(tmp_path):
    """The recipe's own `pretrained: imagenet` and `init` played their part when training began."""
    model, config = model_of()
    config = config.model_copy(
        update={"model": config.model.model_copy(update={"pretrained": "/nowhere.pth"}), "init": "/nowhere"}
    )
    save_weights(tmp_path / "w.safetensors", model, config)
    load_model(tmp_path / "w.safetensors")


@pytest.mark.parametrize("head", ["simcc", "heatmap", "udp"])
@pytest.mark.parametrize("target", [MPII16, CROWDPOSE14, LSP14])
def test_init_carries_joints_over_by_name(tmp_path, head, target):
    source, config = model_of(COCO17, head={"name": head})
    save_weights(tmp_path / "w.safetensors", source, config)
    model, _ = model_of(target, seed=1, head={"name": head})
    fresh = {k: v.clone() for k, v in model.state_dict().items()}
    missing = initialise(model, tmp_path / "w.safetensors")
    given, state = source.state_dict(), model.state_dict()
    for name in state:
        if not name.startswith("head."):
            assert torch.equal(state[name], given[name])
    for name, groups in model.head.per_keypoint.items():
        for j, joint in enumerate(target.keypoints):
            for g in range(groups):
                row = state[f"head.{name}"][g * len(target) + j]
                if joint in COCO17.keypoints:
                    assert torch.equal(row, given[f"head.{name}"][g * 17 + COCO17.keypoints.index(joint)])
                else:
                    assert torch.equal(row, fresh[f"head.{name}"][g * len(target) + j])
    unknown = [joint for joint in target.keypoints if joint not in COCO17.keypoints]
    assert sorted(missing) == sorted(f"head.{n}[{joint}]" for n in model.head.per_keypoint for joint in unknown)


def test_init_of_the_same_skeleton_takes_everything(tmp_path):
    source, config = model_of()
    save_weights(tmp_path / "w.safetensors", source, config)
    model, _ = model_of(seed=1)
    assert initialise(model, tmp_path / "w.safetensors") == []
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in model.state_dict().items())


def test_init_lists_what_does_not_fit(tmp_path):
    source, config = model_of()
    save_weights(tmp_path / "w.safetensors", source, config)
    model, _ = model_of(head={"name": "simcc", "split": 3})
    missing = initialise(model, tmp_path / "w.safetensors")
    assert {m.split(" ")[0] for m in missing} == {"head.to_x.weight", "head.to_x.bias", "head.to_y.weight", "head.to_y.bias"}
    assert "(here (96, 64), there (64, 64))" in missing[0]


def test_init_refuses_what_shares_nothing(tmp_path):
    source, config = model_of()
    save_weights(tmp_path / "w.safetensors", source, config)
    hand, _ = model_of(Skeleton("hand", ("thumb", "index")))
    with pytest.raises(LowposeError, match="weights for skeleton 'coco17' .* share no keypoint with 'hand'"):
        initialise(hand, tmp_path / "w.safetensors")


def test_files_that_are_no_weights(tmp_path):
    path = tmp_path / "w.safetensors"
    with pytest.raises(LowposeError, match="no such weights file"):
        load_model(path)
    with pytest.raises(LowposeError, match="a run folder without weights.safetensors"):
        load_model(tmp_path)
    for content in (b"", b"nothing", b"PK\x03\x04" + bytes(100)):
        path.write_bytes(content)
        with pytest.raises(LowposeError, match="w.safetensors: not a readable safetensors file") as e:
            load_model(path)
        assert "\n" not in str(e.value)
    save_file({"a": torch.zeros(2)}, str(path))
    with pytest.raises(LowposeError, match="not weights of lowpose"):
        load_model(path)
    for about in ("{", "[]", "{}", '{"config": {}}'):
        save_file({"a": torch.zeros(2)}, str(path), {"lowpose": about})
        with pytest.raises(LowposeError, match="description of the model is damaged"):
            load_model(path)


def test_damaged_weights(tmp_path):
    model, config = model_of()
    path = tmp_path / "weights.safetensors"
    save_weights(path, model, config)
    assert weights_path(tmp_path) == path
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(LowposeError, match="not a readable safetensors file"):
        load_model(path)
    state, about = model.state_dict(), {"config": config.model_dump(mode="json"), "skeleton": COCO17.to_dict()}
    state.pop("head.to_x.bias")
    save_file({k: v.contiguous() for k, v in state.items()}, str(path), {"lowpose": json.dumps(about)})
    with pytest.raises(LowposeError, match="does not fit its own recipe .*head.to_x.bias") as e:
        load_model(path)
    assert "\n" not in str(e.value)
    about["config"]["train"]["epoch"] = 3
    save_file({k: v.contiguous() for k, v in state.items()}, str(path), {"lowpose": json.dumps(about)})
    with pytest.raises(LowposeError, match="unknown key 'train.epoch'; did you mean 'epochs'"):
        load_model(path)


def test_states(tmp_path):
    assert load_state(tmp_path) is None
    save_state(tmp_path, {"step": 3, "model": {"a": torch.arange(3)}})
    assert load_state(tmp_path)["model"]["a"].tolist() == [0, 1, 2]
    whole = (tmp_path / STATE).read_bytes()
    (tmp_path / STATE).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LowposeError, match="state.pt: not a readable training state .*delete it to start again"):
        load_state(tmp_path)


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("unpickled"),))


def test_nothing_is_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"step": Evil()}, tmp_path / STATE)
    with pytest.raises(LowposeError, match="not a readable training state"):
        load_state(tmp_path)
    assert not (tmp_path / "unpickled").exists()


def test_a_full_disk_is_one_line_and_leaves_the_last_state(tmp_path):
    """A limit on the size of files stands for the full disk."""
    save_state(tmp_path, {"step": 3})
    before = (tmp_path / STATE).read_bytes()
    script = f"""
        import resource, torch
        from pathlib import Path
        from lowpose.checkpoint import save_state, save_weights
        from lowpose.config import RunConfig
        from lowpose.errors import LowposeError
        from lowpose.nn.model import build_model
        from lowpose.skeletons import COCO17
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        config, folder = RunConfig(model={{"pretrained": "none"}}), Path({str(tmp_path)!r})
        model = build_model(config, COCO17)
        state = lambda: save_state(folder, model.state_dict())
        weights = lambda: save_weights(folder / "w.safetensors", model, config)
        for write in (state, weights):
            try:
                write()
            except LowposeError as e:
                print(e)
    """
    lines = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert len(lines) == 2 and "state.pt: cannot be written; is the disk full?" in lines[0]
    assert "w.safetensors: file too large" in lines[1]
    assert (tmp_path / STATE).read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [STATE]


def test_packed_weights_are_half_as_large_and_name_no_place(tmp_path):
    """`lowpose pack`: the same answers to fp16, without the paths of the machine that trained."""
    config = tiny(data={"root": str(tmp_path / "somewhere")}, cache={"dir": str(tmp_path / "cache")})
    torch.manual_seed(0)
    model = build_model(config, COCO17)
    save_weights(tmp_path / "w.safetensors", model, config, step=7)
    pack_weights(tmp_path / "w.safetensors", tmp_path / "packed.safetensors")
    data = (tmp_path / "packed.safetensors").read_bytes()
    assert len(data) < 0.6 * (tmp_path / "w.safetensors").stat().st_size
    assert str(tmp_path).encode() not in data
    assert read_weights(tmp_path / "packed.safetensors")[1]["step"] == 7
    packed, packed_config = load_model(tmp_path / "packed.safetensors")
    assert packed_config.data.root is None
    for name, value in model.state_dict().items():
        assert torch.equal(packed.state_dict()[name], value.half().float() if value.is_floating_point() else value), name


def test_weights_beyond_fp16_are_not_packed(tmp_path):
    config = tiny()
    model = build_model(config, COCO17)
    with torch.no_grad():
        model.head.to_x.bias[0] = 1e6
    save_weights(tmp_path / "w.safetensors", model, config)
    with pytest.raises(LowposeError, match="fp16 cannot hold 1 tensors, as head.to_x.bias"):
        pack_weights(tmp_path / "w.safetensors", tmp_path / "packed.safetensors")
    assert not (tmp_path / "packed.safetensors").exists()
