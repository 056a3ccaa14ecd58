"""Torch begins at the model, and modules import only from rooms above their own."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lowpose

PACKAGE = Path(lowpose.__file__).parent
WITHOUT_TORCH = """
    geometry images skeletons samples draw metrics detectors pipeline engines runtime confidence turns ways predict sources boxes
    cards config strict shipped recipe_files registry files listing cli data.resample data.augment data.cache data.crops data.coco
    data.mpii data.crowdpose data.lsp data.synthetic data.check data.degradations data.get data.classes data.pictures
    data.check_classes
"""
HEAVY = ["torch", "torchvision", "timm", "accelerate", "safetensors", "tensorboard", "faster_coco_eval", "scipy", "matplotlib"]


def modules() -> dict[str, Path]:
    """Name below the package -> file; '' is the package itself."""
    out = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        out[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return out


def test_the_core_works_without_the_extra():
    """Every one of them imports, and the public names that need no torch can be used, where torch is not installed."""
    names = ["", *WITHOUT_TORCH.split()]
    script = "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in HEAVY)
    script += "import importlib\n" + "".join(f"importlib.import_module('lowpose{'.' * bool(n)}{n}')\n" for n in names)
    script += """
import lowpose
data = lowpose.load_data("synthetic", options={"count": 1, "size": [64, 64], "height": [30, 50]})
from lowpose.data.crops import CropReader
assert CropReader(data, lowpose.load_config(lowpose.list_recipes()[0]["name"]).input).crop(0).image.any()
lowpose.get_skeleton("coco17"), lowpose.draw_poses, lowpose.load, lowpose.read_image, lowpose.PoseResult
assert not any(name.split(".")[0] in HEAVY and module for name, module in sys.modules.items())
print("done")
""".replace("HEAVY", repr(HEAVY))
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout.strip() == "done", result.stderr[-2000:]


def test_without_torch_training_is_one_line():
    script = "import sys; sys.modules['torch'] = None; sys.argv[:1] = ['lowpose', 'train']; from lowpose.cli import main; main()"
    name = lowpose.list_recipes()[0]["name"]
    result = subprocess.run([sys.executable, "-c", script, name], capture_output=True, text=True)
    assert result.returncode == 2 and "pip install 'lowpose[train]'" in result.stderr and "Traceback" not in result.stderr


# The rooms from top to bottom; modules of one line may use each other.
ROOMS = [
    ["errors"],
    ["strict"],
    ["registry", "files", "config", "recipe_files", "skeletons", "geometry", "images", "samples", "shipped"],
    ["data"],
    ["metrics", "draw", "boxes", "detectors", "sources", "pipeline", "cards", "progress", "listing", "confidence", "turns"],
    ["engines", "runtime", "predict"],
    ["nn"],
    ["layers", "loader", "checkpoint", "recipe_info", "quantisation", "export_proof"],
    ["plots", "breakdown_page", "bias_page", "robustness_page", "sweep_page", "calibration_page"],
    ["teacher", "tasks"],
    ["nn.predictor", "evaluation", "ways"],
    ["teaching"],
    ["training", "sheet", "explain", "export", "bias", "robustness", "sweeping", "calibration"],
    ["benchmark", "bench_child"],
    ["comparison", "demo"],
    ["smaller"],
    ["cli"],
    ["__main__"],
]
# Inside functions only: what is chosen by name or by the kind of file is imported when it is needed.
LAZY = {("runtime", "nn.predictor"), ("detectors", "nn.detection"), ("recipe_info", "nn.model"), ("recipe_info", "nn.cost")}


def room(name: str) -> int:
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        for i, names in enumerate(ROOMS):
            if ".".join(parts[:end]) in names:
                return i
    raise AssertionError(f"lowpose.{name} stands in no room; add it to ROOMS")


def imported(path: Path, known: dict[str, Path]) -> set[str]:
    """Modules of the package that a file imports anywhere, functions included; not what only a type checker reads."""
    found = set()
    tree = ast.parse(path.read_text())
    checking = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.dump(n.test)]
    skipped = {id(n) for block in checking for n in ast.walk(block)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names = {f"{node.module}.{a.name}" for a in node.names}
            found |= {n if n.removeprefix("lowpose.") in known else node.module for n in names}
    return {name.removeprefix("lowpose.") for name in found if name.startswith("lowpose.")}


@pytest.mark.parametrize("name", [n for n in modules() if n])
def test_imports_go_down_the_list_only(name):
    known = modules()
    for other in imported(known[name], known):
        if (name, other) not in LAZY:
            assert room(other) <= room(name), f"lowpose.{name} imports lowpose.{other}, which stands below it"


def test_no_module_imports_itself_in_a_circle():
    known = modules()
    graph = {name: {o for o in imported(path, known) if (name, o) not in LAZY} for name, path in known.items()}
    done, open_ = set(), []

    def visit(name):
        assert name not in open_, f"a circle: {' -> '.join([*open_[open_.index(name) :], name])}"
        if name in done or name not in graph:
            return
        open_.append(name)
        for other in graph[name]:
            visit(other)
        done.add(open_.pop())

    for name in graph:
        visit(name)


def test_torch_is_imported_only_where_it_belongs():
    allowed = {
        "training",
        "tasks",
        "export",
        "benchmark",
        "loader",
        "checkpoint",
        "demo",
        "explain",
        "teacher",
        "teaching",
        "bias",
    }
    allowed |= {"robustness", "sweeping", "export_proof", "smaller"}
    for name, path in modules().items():
        top = {a.name.split(".")[0] for n in ast.parse(path.read_text()).body if isinstance(n, ast.Import) for a in n.names}
        top |= {n.module.split(".")[0] for n in ast.parse(path.read_text()).body if isinstance(n, ast.ImportFrom)}
        assert not top & {"torch", "torchvision", "timm", "accelerate"} or name.split(".")[0] in allowed | {"nn"}, name


@pytest.mark.parametrize("name", [n for n in lowpose.__all__ if n != "__version__"])
def test_public_names_exist_and_are_documented(name):
    assert (getattr(lowpose, name).__doc__ or "").strip()


def test_unknown_public_name():
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        lowpose.trian  # noqa: B018


def test_files_stay_short():
    for name, path in modules().items():
        lines = path.read_text().splitlines()
        assert len(lines) <= 400, f"lowpose.{name} has {len(lines)} lines"
        for node in ast.walk(ast.parse("\n".join(lines))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert node.end_lineno - node.lineno < 80, f"lowpose.{name}.{node.name} has {node.end_lineno - node.lineno} lines"
