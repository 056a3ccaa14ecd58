"""The recipes of MGIL's pose tables: every row, its printed value, and what stands in the place of down-sampling layers."""

from __future__ import annotations

import pytest
from recipe_models import model_of

from lowpose.recipe_files import load_config, recipe_names

W32 = "coco/{}_hrnet-w32_32"
ROWS = [  # recipe, table, printed value, fine and coarse convolutions (None: no coarse path), fusion, replaced layers
    ("coco/mgil_resnet-50_32", "Table 1", 16.7, 2, 2, "mgaf", 5),
    (W32.format("mgil"), "Table 1", 37.5, 2, 2, "mgaf", 42),
    ("coco/mgil_hrnet-w48_64", "Table 1", 63.1, 2, 2, "mgaf", 42),
    ("coco/mgil_hrnet-w32_128", "Table 1", 73.0, 2, 2, "mgaf", 42),
    ("mpii/mgil_hrnet-w32_64", "Table 2", 79.758, 2, 2, "mgaf", 42),
    ("mpii/mgil_hrnet-w32_32", "Table 2", 65.948, 2, 2, "mgaf", 42),
    (W32.format("spd"), "Table 5", 33.6, 1, None, None, 42),
    (W32.format("mgil_flie-2"), "Table 5", 36.3, 2, None, None, 42),
    (W32.format("mgil_add-2-1"), "Table 5", 36.8, 2, 1, "add", 42),
    (W32.format("mgil_flie-3"), "Table 6", 36.6, 3, None, None, 42),
    (W32.format("mgil_add-1-1"), "Table 7", 34.6, 1, 1, "add", 42),
    (W32.format("mgil_add-2-2"), "Table 7", 37.1, 2, 2, "add", 42),
    (W32.format("mgil_1-1"), "Table 8", 35.7, 1, 1, "mgaf", 42),
]


def convolutions(module) -> int:
    """3 x 3 convolutions of stride one without dilation."""
    return sum(getattr(m, "kernel_size", 0) == (3, 3) and m.dilation == (1, 1) for m in module.modules())


@pytest.mark.parametrize("name,table,value,fine,coarse,fusion,count", ROWS, ids=[row[0] for row in ROWS])
def test_a_row(name, table, value, fine, coarse, fusion, count):
    config, backbone = load_config(name), model_of(name).backbone
    assert (config.paper.table, config.paper.value) == (table, value)
    assert config.paper.metric == ("AP" if name.startswith("coco") else "PCKh@0.5")
    assert config.paper.title.startswith("Focus on Low-Resolution Information")
    assert len(backbone.replaced) == count
    plain = load_config(name.replace(name.split("/")[1].split("_hrnet")[0].split("_resnet")[0], "simcc", 1))
    left_out = {"name", "paper", "note", "model"}
    assert config.model_dump(exclude=left_out) == plain.model_dump(exclude=left_out)  # "the same as SimCC"
    for layer in backbone.replaced:
        block = backbone.body.get_submodule(layer.path)
        block = getattr(block, "block", block)
        block = block[0] if layer.was.endswith("Pool2d") else block
        if coarse is None:
            assert convolutions(block) == fine
            continue
        assert convolutions(block.fine) == fine and convolutions(block.coarse) == coarse
        assert [b.dilation[0] for b in block.coarse[0].branches] == [2, 3]
        assert (block.fuse is None) == (fusion == "add")


def test_every_recipe_is_a_row():
    found = {n for n in recipe_names() if n.split("/")[1].split("_")[0] in ("mgil", "spd")}
    found = {n for n in found if load_config(n).task == "pose"}  # Table 4: test_recipes_classification.py
    assert found == {row[0] for row in ROWS}
