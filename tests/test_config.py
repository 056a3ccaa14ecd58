"""Recipes: strictness at every level, bases, overrides and the way back."""

from __future__ import annotations

import pytest

from lowpose.config import RunConfig, dump_config, portable
from lowpose.errors import LowposeError
from lowpose.listing import list_recipes
from lowpose.recipe_files import apply_overrides, load_config, recipe_names


@pytest.fixture
def recipe(tmp_path):
    def write(text: str, name: str = "own"):
        path = tmp_path / f"{name}.yaml"
        path.write_text(text)
        return path

    return write


def test_overrides_are_yaml(recipe):
    path = recipe("train: {epochs: 3}\nhead: {name: simcc, split: 3}")
    config = load_config(path, ["train.lr=1e-4", "input.size=[48, 64]", "head.split=2", "cache.dir=null", "data.options.count=5"])
    assert config.train.epochs == 3 and config.train.lr == 1e-4 and config.input.size == (48, 64)
    assert config.head == {"name": "simcc", "split": 2} and config.data.options == {"count": 5}
    assert config.name == "own"


@pytest.mark.parametrize(
    "override,answer",
    [
        ("trian.epochs=3", "unknown key 'trian'; did you mean 'train'"),
        ("train.epoch=3", "unknown key 'train.epoch'; did you mean 'epochs'"),
        ("input.camera.hight=[3, 4]", "unknown key 'input.camera.hight'; did you mean 'height'"),
        ("paper={title: t, table: t, row: r, metrics: m}", "metric"),
        ("train.epochs=many", "'train.epochs' = 'many': "),
        ("train.epochs=1.5", "'train.epochs' = 1.5"),
        ("train.epochs=0", "greater than or equal to 1"),
        ("train.lr=.nan", "'train.lr' = nan"),
        ("input.size=64", "'input.size' = 64"),
        ("input.size=[64, 4]", "8 to 4096"),
        ("input.resample=aera", "'area', 'paper' or 'camera'"),
        ("input.camera.height=[0, 32]", "height must be"),
        ("input.camera.jpeg=[90, 60]", "jpeg must be"),
        ("augment.flip=2", "'augment.flip' = 2"),
        ("train.epochs", "an override is key=value"),
        ("=3", "an override is key=value"),
        ("train.epochs=[", "not YAML"),
        ("name.sub=3", "'name' holds a value"),
    ],
)
def test_refused_in_one_line(recipe, override, answer):
    with pytest.raises(LowposeError) as e:
        load_config(recipe("name: x"), [override])
    assert answer in str(e.value) and "\n" not in str(e.value)


def test_bases_merge_and_another_head_starts_afresh(recipe):
    low = recipe("data: {kind: lsp, root: here}\nhead: {name: simcc, split: 3}\ntrain: {lr: 0.5, epochs: 7}", "low")
    same = load_config(recipe(f"base: {low}\nhead: {{name: simcc, target: hard}}\ntrain: {{epochs: 9}}"))
    assert same.head == {"name": "simcc", "target": "hard", "split": 3}
    assert same.train.lr == 0.5 and same.train.epochs == 9 and same.data.root == "here"
    other = load_config(recipe(f"base: {low}\nhead: {{name: heatmap}}\ndata: {{kind: synthetic}}"))
    assert other.head == {"name": "heatmap"} and other.data.root is None and other.train.lr == 0.5


def test_several_bases_come_in_order(recipe):
    a, b = recipe("train: {lr: 0.1, epochs: 2}", "a"), recipe("train: {lr: 0.2}", "b")
    config = load_config(recipe(f"base: [{a}, {b}]"))
    assert (config.train.lr, config.train.epochs) == (0.2, 2)


def test_bad_files(recipe, tmp_path):
    with pytest.raises(LowposeError, match="no such recipe file"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(LowposeError, match="unknown recipe 'lspet/simc_"):
        load_config("lspet/simc_x")
    name = recipe_names()[0]
    with pytest.raises(LowposeError, match=f"did you mean '{name}'"):
        load_config(name[:-1])
    with pytest.raises(LowposeError, match="mapping of keys"):
        load_config(recipe("[1, 2]"))
    with pytest.raises(LowposeError, match="not YAML"):
        load_config(recipe("a: ["))
    with pytest.raises(LowposeError, match="'base' is the name of a recipe"):
        load_config(recipe("base: 5"))
    with pytest.raises(LowposeError, match="form a circle"):
        load_config(recipe(f"base: {tmp_path / 'own.yaml'}"))


@pytest.mark.parametrize("name", recipe_names())
def test_round_trip_of_every_recipe(name, recipe):
    config = load_config(name)
    assert config.name == name
    assert load_config(recipe(dump_config(config))) == config
    unmeasured = config.model_copy(update={"data": config.data.model_copy(update={"val": None})})
    assert load_config(recipe(dump_config(unmeasured))) == unmeasured  # null, and not the default again


def test_configs_cannot_change():
    with pytest.raises(Exception, match="frozen"):
        RunConfig().train.epochs = 3
    values = {"train": {"lr": 1}}
    assert apply_overrides(values, ["train.lr=2"])["train"]["lr"] == 2


def test_a_changed_recipe_is_not_the_published_row():
    recipe = next(r["name"] for r in list_recipes() if "paper" in r)
    assert load_config(recipe, ["data.root=elsewhere", "train.seed=3"]).paper is not None
    changed = load_config(recipe, ["model.backbone=resnet18"])
    assert changed.paper is None
    assert changed.note == f"changed from {recipe}: model.backbone=resnet18"


@pytest.mark.parametrize("override", ["cache.reduced=true", "train.warmup_steps=10"])
def test_settings_that_would_do_nothing_are_refused(override):
    with pytest.raises(LowposeError, match="cache.dir|onecycle has its own warm-up"):
        load_config("synthetic/simcc_hrnet-w18-small_32", ["cache.dir=null", override])


def test_downsampling_is_a_name_or_its_settings(recipe):
    path = recipe("model: {downsampling: spd}", "low")
    assert load_config(path).model.downsampling == {"name": "spd"}
    assert load_config(path, ["model.downsampling.where=[conv1]"]).model.downsampling == {"name": "spd", "where": ["conv1"]}
    more = load_config(recipe(f"base: {path}\nmodel: {{downsampling: {{where: [conv2]}}}}"))
    assert more.model.downsampling == {"name": "spd", "where": ["conv2"]}
    other = load_config(path, ["model.downsampling=mgil", "model.downsampling.light=reduce"])
    assert other.model.downsampling == {"name": "mgil", "light": "reduce"}
    again = load_config(recipe(f"base: {path}\nmodel: {{downsampling: mgil}}"))
    assert again.model.downsampling == {"name": "mgil"}
    assert load_config(path, ["model.downsampling=null"]).model.downsampling is None


def test_a_teacher_is_a_path_or_its_settings(recipe):
    path = recipe("teacher: runs/great\ndistill: {cca: {temperature: 2}}")
    short, long = load_config(path), load_config(path, ["teacher={weights: runs/great}"])
    assert short.teacher == long.teacher and short.teacher.weights == "runs/great" and short.methods == ["cca"]
    assert short.teacher.precision is None and not short.teacher.flip and short.teacher.cache == "none"
    more = load_config(path, ["teacher.cache=merged", "teacher.precision=no", "distill.sape.weight=0.5", "distill.cca.order=x"])
    assert (more.teacher.weights, more.teacher.cache, more.teacher.precision) == ("runs/great", "merged", "no")
    assert more.distill == {"cca": {"temperature": 2, "order": "x"}, "sape": {"weight": 0.5}}  # methods check their own
    other = load_config(recipe(f"base: {path}\nteacher: {{flip: true}}\ndistill: {{cca: null, kd: {{}}}}", "other"))
    assert (other.teacher.weights, other.teacher.flip) == ("runs/great", True) and other.methods == ["kd"]
    plain = load_config(path, ["teacher=null", "distill.cca=null"])
    assert plain.teacher is None and plain.methods == []
    assert load_config(recipe(dump_config(more), "again")) == more.model_copy(update={"name": "own"})


@pytest.mark.parametrize(
    "override,answer",
    [
        ("teacher=null", "distill.cca needs a teacher: teacher=RUN_OR_WEIGHTS"),
        ("distill.cca=null", "a teacher needs a method of distillation, as distill.cca.weight=1"),
        ("teacher.weigths=x", "unknown key 'teacher.weigths'; did you mean 'weights'"),
        ("teacher.cache=half", "'none', 'merged' or 'full'"),
        ("teacher.precision=fp8", "'no', 'bf16', 'fp16' or 'auto'"),
        ("distill.cca=3", "'distill.cca' = 3"),
        ("augment.views=0", "'augment.views' = 0"),
        ("augment.seed=-1", "'augment.seed' = -1"),
    ],
)
def test_wrong_teaching_is_refused_in_one_line(recipe, override, answer):
    with pytest.raises(LowposeError) as e:
        load_config(recipe("teacher: run\ndistill: {cca: {}}"), [override])
    assert answer in str(e.value) and "\n" not in str(e.value)


def test_portable_recipe_names_no_folder():
    config = load_config(
        "coco/simcc_hrnet-w32_64", [f"{k}=/home/me/x.json" for k in ("data.root", "data.boxes", "data.val", "init")]
    )
    values = portable(config).model_dump()
    assert "/home/" not in str(values)
    assert values["data"]["boxes"] == values["init"] == "x.json"
