"""What the documentation names is there: symbols, recipes, commands, files; what it shows as YAML is accepted."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import typer
import yaml

from lowpose.cli import app
from lowpose.nn.classifier import build_classifier
from lowpose.nn.model import build_model
from lowpose.recipe_files import load_config, recipe_names
from lowpose.skeletons import LSP14, Skeleton

ROOT = Path(__file__).resolve().parents[1]
PAGES = [p for p in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))] if p.name != "errors.md"]  # it shows wrong names
TEXTS = [*PAGES, *sorted((ROOT / "examples").glob("*.py"))]
NAMED = re.findall(r"`([\w/]+\.py): ([\w.]+)`", (ROOT / "docs" / "paper-map.md").read_text())
every_page = pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)


def symbols(path: Path) -> set[str]:
    """Functions, classes, constants and class members of a file, as `Class.member`."""
    found = set()

    def add(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                found.add(prefix + node.name)
            targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
            found.update(prefix + t.id for t in targets if isinstance(t, ast.Name))
            if isinstance(node, ast.ClassDef):
                add(node.body, f"{prefix}{node.name}.")

    add(ast.parse(path.read_text()).body, "")
    return found


@pytest.mark.parametrize("file,symbol", sorted(set(NAMED)), ids=lambda v: v)
def test_symbols_of_the_paper_map_exist(file, symbol):
    path = ROOT / "src" / "lowpose" / file
    assert path.is_file(), f"docs/paper-map.md names {file}"
    assert symbol in symbols(path), f"docs/paper-map.md names {file}: {symbol}"


def test_paper_map_is_read_and_complete():
    """The pattern finds every code cell, and every registered head and metric file is on the map."""
    text = (ROOT / "docs" / "paper-map.md").read_text()
    assert len(NAMED) == len(re.findall(r"`[\w/]+\.py: ", text)) > 40
    files = {file for file, _ in NAMED}
    for folder in ("nn/heads", "nn/distill", "metrics", "data"):
        for path in (ROOT / "src" / "lowpose" / folder).glob("[a-z]*.py"):
            if re.search(r"arXiv|CVPR|ECCV|BMVC", ast.get_docstring(ast.parse(path.read_text())) or ""):
                assert f"{folder}/{path.name}" in files


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: p.name)
def test_recipes_that_are_named_exist(path):
    named = set(
        re.findall(
            r"\b((?:coco|mpii|crowdpose|lspet|synthetic|cifar-10|tiny-imagenet)/[a-z0-9-]+(?:_[a-z0-9-]+)+_\d+(?:x\d+)?)\b",
            path.read_text(),
        )
    )
    assert named <= set(recipe_names())


def test_some_recipes_are_named():
    assert any("lspet/simcc_hrnet-w18-small_64" in path.read_text() for path in PAGES)


@every_page
def test_commands_that_are_named_exist(path):
    group = typer.main.get_command(app)
    for verb, second in re.findall(r"(?:`|^)lowpose ([a-z]+)(?: ([a-z]+))?", path.read_text(), re.M):
        assert verb in group.commands, f"{path.name}: lowpose {verb}"
        if verb == "data" and second:
            assert second in group.commands["data"].commands, f"{path.name}: lowpose data {second}"


@every_page
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)", path.read_text()):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_yaml_of_the_extending_page_is_accepted(tmp_path):
    skeleton, recipe = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), re.S)
    five = Skeleton.from_dict(yaml.safe_load(skeleton))
    assert len(five) == 5 and five.flip_index.tolist() == [0, 2, 1, 4, 3]
    (tmp_path / "mine.yaml").write_text(recipe)
    config = load_config(tmp_path / "mine.yaml")
    assert config.train.epochs == 30 and config.data.kind == "lsp" and "split" not in config.head
    assert build_model(config, LSP14).head.input_size == (64, 96)


def test_yaml_of_the_recipes_page_is_accepted(tmp_path):
    (recipe,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "recipes.md").read_text(), re.S)
    (tmp_path / "birds.yaml").write_text(recipe)
    config = load_config(tmp_path / "birds.yaml")
    assert (config.task, config.data.val, config.input.size, config.train.epochs) == ("classification", "val", (48, 48), 60)
    assert build_classifier(config, ("owl", "wren")).backbone.feature_size == (6, 6)
