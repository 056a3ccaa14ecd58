"""Two processes (gloo) and one compute the same gradients and losses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sorting import sorting, write_pictures
from taught import CDKD, save_teacher, taught
from tiny import tiny

from lowpose.config import RunConfig, dump_config

SCRIPT = """
    import dataclasses, json, sys
    from pathlib import Path
    import torch
    torch.set_num_threads(1)
    from safetensors.torch import save_file
    import lowpose.training as loop
    from lowpose.recipe_files import load_config
    from lowpose.loader import training_loader

    own = loop.training_data
    def uneven(config):
        # persons of very different numbers of labelled joints; one has none
        data = own(config)
        if config.task == "classification":
            return data
        samples = []
        for i, s in enumerate(data.samples):
            visibility = s.visibility.copy()
            visibility[[17, 2, 9, 0, 1, 12, 5, 3, 16, 7][i]:] = 0
            samples.append(dataclasses.replace(s, visibility=visibility))
        return dataclasses.replace(data, samples=samples)
    loop.training_data = uneven

    for folder in sys.argv[1:]:
        run = loop.Run(load_config(f"{folder}/recipe.yaml"), Path(folder), False)
        run.order.start, run.order.total = 0, 3 if run.teaching else 2
        run._set_training()
        beside = {"beside": run.teaching.beside} if run.teaching else {}
        out = []
        for step, batch in enumerate(training_loader(run.reader, run.order, 0, False, **beside)):
            values, _ = run._step(batch)
            run.step += 1
            gradients = {n: p.grad.clone().contiguous() for n, p in run.bare.named_parameters()}
            if run.teaching:
                gradients |= {f"taught.{n}": p.grad.clone().contiguous() for n, p in run.teaching.distillers.named_parameters()}
            out.append(values | {"joints": float(batch.weight.sum()), "index": batch.index.tolist()})
            save_file(gradients, f"{folder}/gradients-{run.accelerator.process_index}-{step}.safetensors")
        weights = run.bare.state_dict() | (run.teaching.distillers.state_dict() if run.teaching else {})
        save_file({n: v.contiguous() for n, v in weights.items()}, f"{folder}/end-{run.accelerator.process_index}.safetensors")
        with open(f"{folder}/out-{run.accelerator.process_index}.json", "w") as f:
            json.dump(out, f)
"""
STILL = {"freeze_bn": True, "optimizer": "sgd", "lr": 1e-3}


def recipes(tmp: Path) -> dict[str, RunConfig]:
    teacher, root = save_teacher(tmp / "teacher.safetensors"), write_pictures(tmp / "drawn")
    for name in ("bars/0", "bars/1", "disc/2"):
        (root / "train" / f"{name}.png").write_bytes(b"")
    kept = {"teacher": {"weights": teacher, "cache": "merged"}, "cache": {"dir": str(tmp / "cache")}, "augment": {"views": 2}}
    return {
        "pose": tiny(train=STILL),
        "pictures": sorting(root, train={"freeze_bn": True, "lr": 1e-3}),
        "cdkd": taught(**kept, distill=CDKD, train=STILL),
        "cca": taught(teacher={"weights": teacher}, distill={"cca": {}}, train=STILL),
    }


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, tuple[Path, Path]]:
    """Name of a recipe -> what one process wrote, what two did; in the same processes, whose start takes the time."""
    script = tmp_path_factory.mktemp("script") / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    made = []
    for ranks in (1, 2):
        tmp = tmp_path_factory.mktemp(f"ranks-{ranks}")
        configs = recipes(tmp)
        for name, config in configs.items():
            (tmp / name).mkdir()
            (tmp / name / "recipe.yaml").write_text(dump_config(config))
        made.append([tmp / name for name in configs])
        launch(ranks, [str(script), *map(str, made[-1])])
    return {one.name: (one, two) for one, two in zip(*made, strict=True)}


def launch(ranks: int, command: list[str]) -> None:
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", str(ranks), "--rdzv_backend", "c10d"]
    torchrun += ["--rdzv_endpoint", "localhost:0"]
    result = subprocess.run(
        [sys.executable, *(torchrun if ranks > 1 else []), *command],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=500,
    )
    assert result.returncode == 0, result.stderr[-3000:]


def facts(folder: Path, rank: int) -> list[dict]:
    return json.loads((folder / f"out-{rank}.json").read_text())


def test_two_processes_have_the_gradients_of_one(folders):
    """BatchNorm frozen, the same global batch; the ranks see different numbers of joints. Both steps of SGD agree."""
    one, two = folders["pose"]
    for step in (0, 1):
        whole, parts = facts(one, 0)[step], [facts(two, rank)[step] for rank in (0, 1)]
        assert sum((p["index"] for p in parts), []) == whole["index"]
        assert sum(p["joints"] for p in parts) == whole["joints"] and parts[0]["joints"] != parts[1]["joints"]
        assert [p["loss"] for p in parts] == pytest.approx([whole["loss"]] * 2, abs=1e-5)
        wanted = load_file(one / f"gradients-0-{step}.safetensors")
        largest = max(float(g.abs().max()) for g in wanted.values())
        assert largest > 1e-3
        for rank in (0, 1):
            found = load_file(two / f"gradients-{rank}-{step}.safetensors")
            assert found.keys() == wanted.keys()
            for name, gradient in wanted.items():
                assert torch.allclose(found[name], gradient, atol=1e-5, rtol=0), name


def test_two_processes_sort_pictures_as_one(folders):
    """The ranks have different numbers of pictures that can be read."""
    one, two = folders["pictures"]
    uneven = 0
    for step in (0, 1):
        whole, parts = facts(one, 0)[step], [facts(two, rank)[step] for rank in (0, 1)]
        assert sum((p["index"] for p in parts), []) == whole["index"] and sum(p["joints"] for p in parts) == whole["joints"]
        uneven += parts[0]["joints"] != parts[1]["joints"]
        assert [p["loss"] for p in parts] == pytest.approx([whole["loss"]] * 2, rel=1e-5)
        wanted = load_file(one / f"gradients-0-{step}.safetensors")
        for rank in (0, 1):
            found = load_file(two / f"gradients-{rank}-{step}.safetensors")
            assert all(torch.allclose(found[name], gradient, atol=1e-5) for name, gradient in wanted.items())
    assert uneven


def test_two_processes_distil_as_one(folders):
    """SAPE, CCA and ETHT with answers that the first rank computes for all; the temperature is the same on both, to the bit."""
    one, two = folders["cdkd"]
    learned = ("cca.temperature", "sape.weight")
    for step in range(3):
        whole, parts = facts(one, 0)[step], [facts(two, rank)[step] for rank in (0, 1)]
        assert sum((p["index"] for p in parts), []) == whole["index"] and parts[0]["joints"] != parts[1]["joints"]
        for name in ("loss", "simcc", "sape", "cca", *learned):
            assert [p[name] for p in parts] == pytest.approx([whole[name]] * 2, rel=1e-5), name
        assert all(parts[0][name] == parts[1][name] for name in learned)
        wanted = load_file(one / f"gradients-0-{step}.safetensors")
        largest = max(float(g.abs().max()) for g in wanted.values())
        for rank in (0, 1):
            found = load_file(two / f"gradients-{rank}-{step}.safetensors")
            assert found.keys() == wanted.keys() and any(n.startswith("taught.sape.unit") for n in found)
            for name, gradient in wanted.items():
                assert torch.allclose(found[name], gradient, atol=1e-5 * max(1, largest), rtol=0), name
    assert abs(whole["cca.temperature"] - 2) > 0.01 and abs(whole["sape.weight"] - 0.7) > 0.01
    ends = [load_file(folder / f"end-{rank}.safetensors") for folder, rank in ((one, 0), (two, 0), (two, 1))]
    for name, value in ends[0].items():
        assert all(torch.allclose(end[name], value, atol=1e-5) for end in ends[1:]), name
        assert torch.equal(ends[1][name], ends[2][name]), name


def test_two_processes_need_no_parameters_to_distil(folders):
    """CCA alone has nothing to average between processes; the teacher is live."""
    one, two = folders["cca"]
    for whole, *parts in zip(facts(one, 0), facts(two, 0), facts(two, 1), strict=True):
        assert [p["cca"] for p in parts] == pytest.approx([whole["cca"]] * 2, rel=1e-5)


def test_the_command_under_torchrun_is_one_run(tmp_path):
    """Two ranks of `lowpose train` on a CPU share one training: one log, each step once, half the batch each."""
    recipe = tmp_path / "r.yaml"
    recipe.write_text(dump_config(tiny(train={"epochs": 2})))
    launch(2, ["-m", "lowpose", "train", str(recipe), "--out", str(tmp_path / "run")])
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 1
    assert (tmp_path / "run" / "card.json").is_file()
