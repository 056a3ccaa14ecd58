"""A teacher's answers: its own crop, size and precision, and the cache, which loses nothing but fp16's rounding."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from taught import CDKD, batches, merged, save_teacher, taught
from tiny import digest

from lowpose import training as loop
from lowpose.config import InputConfig, TeacherConfig
from lowpose.data.crops import CropReader
from lowpose.errors import LowposeError
from lowpose.geometry import compose, scaling
from lowpose.skeletons import COCO17, Skeleton
from lowpose.teacher import Teacher
from lowpose.training import Run, train

HALF = 2.0**-11  # relative rounding of fp16
FULL = {"sape": {}, "cca": {"temperature": 2.0, "order": "temper-first"}, "kd": {"temperature": 3.0}, "fc_class": {},
        "fc_feature": {}, "fitnets": {}}  # fmt: skip


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return save_teacher(tmp_path_factory.mktemp("teacher") / "teacher.safetensors")


def config(tmp_path, path, distill=CDKD, keep="merged", views=2, seed=0, **sections):
    """With a cache of answers in tmp_path/cache."""
    given = path if isinstance(path, dict) else {"weights": path}
    sections = {"cache": {"dir": str(tmp_path / "cache")}, **sections}
    augment = {"views": views, **sections.pop("augment", {})}
    train_ = {"seed": seed, **sections.pop("train", {})}
    return taught({"cache": keep, **given}, distill, augment=augment, train=train_, **sections)


def open_run(tmp_path, *args, **kwargs) -> Run:
    return Run(config(tmp_path, *args, **kwargs), tmp_path / "never-begun", True)


@pytest.fixture
def passes(monkeypatch):
    """Grows by one at each forward pass of a teacher over a batch."""
    calls, own = [], Teacher.answer

    def answer(self, images, names):
        calls.append(len(images))
        return own(self, images, names)

    monkeypatch.setattr(Teacher, "answer", answer)
    return calls


def rounding(run: Run, ours, theirs, weight) -> dict[str, float]:
    """How far each term's sum over the batch may move when all that a cache holds is rounded to fp16.

    Six standard deviations of the first order: a value v is off by at most 2^-11 |v|, one as likely as the other way.
    """
    kept = {name: torch.log_softmax(v.double(), -1).float() if name in ("x", "y") else v for name, v in theirs.items()}
    if run.config.teacher.cache == "merged":
        kept |= {axis: merged(theirs[axis], ours[axis].shape[-1]).log().float() for axis in "xy"}
    kept = {name: v.requires_grad_() for name, v in kept.items()}
    with torch.enable_grad():
        terms = run.teaching.distillers({k: v.detach() for k, v in ours.items()}, kept, weight)
    slack = {}
    for name, term in terms.items():
        slopes = torch.autograd.grad(term.total, list(kept.values()), retain_graph=True, allow_unused=True)
        off = [(g * HALF * v).square().sum().item() for g, v in zip(slopes, kept.values(), strict=True) if g is not None]
        slack[name] = 6 * (sum(off) / 3) ** 0.5
    return slack


@pytest.mark.parametrize(
    "keep,distill,split",
    [
        ("merged", CDKD, 2),
        ("merged", {"sape": {"source": "feature"}, "cca": {"temperature": 4.0}}, 2),
        ("full", FULL, 4),
        ("full", {"sape": {"source": "feature"}, "cca": {}}, 2),
    ],
    ids=["merged", "merged feature", "full", "full feature"],
)
@torch.no_grad()
def test_cached_answers_teach_the_same(tmp_path, teacher, keep, distill, split):
    """At identical views each loss term is the live teacher's but for fp16, and another view's lies farther off."""
    head = {"name": "simcc", "split": split}
    live = open_run(tmp_path, teacher, distill, "none", head=head)
    kept = open_run(tmp_path, teacher, distill, keep, head=head)
    assert digest(live.bare.state_dict()) == digest(kept.bare.state_dict())
    assert digest(live.teaching.distillers.state_dict()) == digest(kept.teaching.distillers.state_dict())
    for name in ("final", "to_x", "to_y"):  # a student whose answers differ from picture to picture
        layer = getattr(live.bare.head, name).weight.normal_(std=0.3)
        getattr(kept.bare.head, name).weight.copy_(layer)
    far = []
    for a, b, other in zip(batches(live, 6), batches(kept, 6), batches(kept, 6)[::-1], strict=True):
        assert torch.equal(a.images, b.images) and "images" not in b.teacher
        assert all(value.dtype is torch.float16 for value in b.teacher.values())
        found, wanted = (loop.compute_loss(r.model, r.bare.head, x, r.accelerator.autocast, r.teaching)
                         for r, x in ((kept, b), (live, a)))  # fmt: skip
        b.teacher = other.teacher
        wrong = loop.compute_loss(kept.model, kept.bare.head, b, kept.accelerator.autocast, kept.teaching)
        theirs = live.teaching.teacher.answer(a.teacher["images"], live.teaching.names)
        _, weight = live.bare.head.targets(a.keypoints, a.weight)
        slack = rounding(kept, live.model(a.images, inner=True), theirs, weight)
        assert found.keys() == wanted.keys() == {"simcc"} | slack.keys() and slack.keys() == distill.keys() - {"etht"}
        for name, (total, n) in wanted.items():
            within = slack.get(name, 0) + 1e-6 * float(total + n)
            assert found[name].count == n and abs(float(found[name].total - total)) <= within, name
            assert within < 2e-3 * float(total)
            far += [(name, abs(float(wrong[name].total - total)) > 5 * within)] if name in slack else []
    assert all(sum(f for n, f in far if n == name) >= 5 for name in slack), "a wrong answer must show"


@torch.no_grad()
def test_files_hold_the_answers_as_fp16(tmp_path, teacher):
    """Bins as log-probabilities, merged in float64 here; a person's view takes some kB."""
    run = open_run(tmp_path, teacher)
    folder, live = run.teaching.beside.folder, Teacher(TeacherConfig(weights=str(teacher)), torch.device("cpu"))
    assert {p.name for p in folder.iterdir()} == {
        "manifest.json",
        *(f"view-00{v}-{n}.npy" for v in (0, 1) for n in ("map", "x-64", "y-64")),
    }
    reader = CropReader(run.data, InputConfig(size=(64, 64)), run.config.augment, 0)
    for view in (0, 1):
        images = torch.stack([torch.from_numpy(reader.crop(i, view).image) for i in range(10)]).permute(0, 3, 1, 2)
        answer = live.answer(images, ["map", "x", "y"])
        x, maps = (np.load(folder / f"view-00{view}-{name}.npy") for name in ("x-64", "map"))
        assert x.dtype == maps.dtype == np.float16 and x.shape == (10, 17, 64) and maps.shape == (10, 17, 16, 16)
        assert np.allclose(x, merged(answer["x"], 64).log().numpy(), rtol=HALF, atol=1e-5)
        assert np.allclose(maps, answer["map"].numpy(), rtol=HALF, atol=1e-5)
    assert 2 * x[0].nbytes < 5000


def test_many_students_share_one_pass(tmp_path, teacher, passes):
    shared = {"augment": {"seed": 5}}
    first = open_run(tmp_path, teacher, **shared)
    assert passes == [10, 10]
    folder = first.teaching.beside.folder
    stamps = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.glob("*.npy")}
    second = open_run(tmp_path, teacher, seed=1, train={"lr": 0.1, "epochs": 7}, **shared)
    heights = open_run(tmp_path, teacher, input={"resample": "camera"}, **shared)
    assert passes == [10, 10] and folder == second.teaching.beside.folder == heights.teaching.beside.folder
    train(config(tmp_path, teacher, **shared), tmp_path / "run")
    assert passes == [10, 10]
    more = open_run(tmp_path, teacher, views=3, **shared)  # one view more is one pass more
    assert passes == [10, 10, 10] and more.teaching.beside.folder == folder
    assert {p.name for p in folder.glob("*.npy")} - stamps.keys() == {f"view-002-{n}.npy" for n in ("map", "x-64", "y-64")}
    assert all((p.stat().st_mtime_ns, p.read_bytes()) == stamps[p.name] for p in folder.glob("view-00[01]*"))
    assert open_run(tmp_path, teacher, **shared).teaching.beside.folder == folder and len(passes) == 3  # and fewer are there


def test_another_output_adds_files(tmp_path, teacher, passes):
    one = open_run(tmp_path, teacher, {"cca": {}}, "full")
    assert {p.name for p in one.teaching.beside.folder.glob("view-000*")} == {"view-000-x.npy", "view-000-y.npy"}
    two = open_run(tmp_path, teacher, {"cca": {}, "sape": {"source": "feature"}}, "full")
    assert two.teaching.beside.folder == one.teaching.beside.folder and passes == [10] * 4
    assert (two.teaching.beside.folder / "view-001-feature.npy").is_file()


def test_students_with_other_bins_share_what_does_not_depend_on_them(tmp_path, teacher, passes):
    one = open_run(tmp_path, teacher, views=1)
    two = open_run(tmp_path, teacher, views=1, head={"name": "simcc", "split": 4})
    three = open_run(tmp_path, teacher, {"cca": {}}, "full", views=1)
    assert one.teaching.beside.folder == two.teaching.beside.folder == three.teaching.beside.folder and len(passes) == 3
    names = {p.stem.removeprefix("view-000-") for p in one.teaching.beside.folder.glob("*.npy")}
    assert names == {"map", "x-64", "y-64", "x-128", "y-128", "x", "y"}
    assert [r.teaching.beside(0, 0)["x"].shape for r in (one, two, three)] == [(17, 64), (17, 128), (17, 128)]


def test_whatever_changes_the_answers_has_a_key_of_its_own(tmp_path, teacher):
    other = save_teacher(tmp_path / "other.safetensors", seed=2)
    copied = tmp_path / "copied.safetensors"
    shutil.copy(teacher, copied)
    kinds = {
        "as it is": {},
        "elsewhere": {"path": copied},
        "weights": {"path": other},
        "precision": {"path": {"weights": teacher, "precision": "bf16"}},
        "flip": {"path": {"weights": teacher, "flip": True}},
        "seed": {"seed": 1},
        "views' seed": {"augment": {"seed": 1}},
        "augmentation": {"augment": {"rotation": 11}},
        "padding": {"input": {"padding": 1.3}},
        "persons": {"data": {"options": {"count": 9, "size": [64, 64], "height": [30, 50]}}},
    }
    keys = {}
    for name, change in kinds.items():
        path = change.pop("path", teacher)
        keys[name] = open_run(tmp_path, path, {"cca": {}}, views=1, **change).teaching.beside.folder.name
    assert keys.pop("elsewhere") == keys["as it is"]
    assert keys.pop("views' seed") == keys["seed"]  # the same views
    assert len(set(keys.values())) == len(keys), keys


@pytest.mark.parametrize("size", [0, 100, 5000])
def test_a_file_that_was_cut_short_is_computed_again(tmp_path, teacher, passes, size):
    folder = open_run(tmp_path, teacher).teaching.beside.folder
    whole = {p.name: p.read_bytes() for p in folder.iterdir()}
    with open(folder / "view-001-map.npy", "r+b") as f:
        f.truncate(size)
    again = open_run(tmp_path, teacher)
    assert len(passes) == 3 and whole == {p.name: p.read_bytes() for p in again.teaching.beside.folder.iterdir()}


def test_a_pass_that_was_killed_goes_on_where_it_was(tmp_path, teacher, monkeypatch, passes):
    """Views that were finished stay; of the one that was not, nothing is there."""
    counted = Teacher.answer

    def dies(self, images, names):
        if len(passes) == 1:
            raise KeyboardInterrupt
        return counted(self, images, names)

    with monkeypatch.context() as patched:
        patched.setattr(Teacher, "answer", dies)
        with pytest.raises(KeyboardInterrupt):
            open_run(tmp_path, teacher)
    (folder,) = (tmp_path / "cache").glob("teacher-*")
    names = {f"view-000-{n}.npy" for n in ("map", "x-64", "y-64")}
    assert {p.name for p in folder.iterdir()} == {"manifest.json", *names}
    kept = {name: (folder / name).stat().st_mtime_ns for name in names}
    whole = open_run(tmp_path, teacher)
    assert passes == [10, 10] and whole.teaching.beside.folder == folder
    assert kept == {name: (folder / name).stat().st_mtime_ns for name in names}


def refused(tmp_path, recipe) -> str:
    with pytest.raises(LowposeError) as e:
        train(recipe, tmp_path / "run")
    assert "\n" not in str(e.value) and not (tmp_path / "run").exists() and not list(tmp_path.glob("cache/*"))
    return str(e.value)


@pytest.mark.parametrize(
    "distill,answer",
    [
        (
            {"sape": {}, "cca": {"order": "temper-first"}},
            "distill.cca reads every bin of the teacher; use teacher.cache=full or order=merge-first",
        ),
        ({"kd": {}}, "distill.kd reads every bin of the teacher; use teacher.cache=full"),
        ({"fc_class": {}}, "distill.fc_class reads every bin of the teacher; use teacher.cache=full"),
    ],
    ids=["temper-first", "kd", "fc_class"],
)
def test_merged_answers_are_refused_where_all_bins_are_read(tmp_path, teacher, distill, answer):
    assert refused(tmp_path, config(tmp_path, teacher, distill, head={"name": "simcc", "split": 4})) == answer


def test_a_cache_without_views_or_a_folder_is_refused(tmp_path, teacher):
    assert "augment.views=10" in refused(tmp_path, config(tmp_path, teacher, views=None))
    assert "cache.dir=" in refused(tmp_path, config(tmp_path, teacher, cache={"dir": None}))


def crops(run: Run, count: int = 40):
    """(draw, student's crop, teacher's crop) of the first views."""
    for i in range(count):
        person, epoch = i % 10, i // 10
        yield run.reader.draw(person, epoch), run.reader.crop(person, epoch), run.teaching.beside.reader.crop(person, epoch)


VARIED = {"scale": 0.2, "rotation": 40, "rotation_probability": 0.7, "flip": 0.5, "half_body": 0.4, "shift": 0.1}


@pytest.mark.parametrize("padding", [1.25, 1.5])
def test_the_teacher_sees_the_same_view(tmp_path, teacher, padding):
    """The affine between both crops is the ratio of their sizes, whatever was drawn; its own pixels show the same picture."""
    run = Run(taught(teacher, augment=VARIED, input={"padding": padding}), tmp_path, False)
    kinds, off, apart, last = set(), [], [], None
    for draw, ours, theirs in crops(run):
        kinds.add((draw.flip, draw.rotation != 0))
        assert theirs.image.shape == (64, 64, 3) and ours.image.shape == (32, 32, 3)
        assert np.abs(compose(scaling(0.5, 0.5), theirs.matrix) - ours.matrix).max() < 1e-9
        assert np.abs(theirs.keypoints / 2 - ours.keypoints).max() < 1e-4 and np.array_equal(theirs.weight, ours.weight)
        small = theirs.image.astype(float).reshape(32, 2, 32, 2, 3).mean((1, 3))
        off.append(np.abs(small - ours.image).mean())
        apart.append(np.abs(small - last).mean() if last is not None else 99)
        last = ours.image
    assert kinds == {(a, b) for a in (False, True) for b in (False, True)}
    assert np.mean(off) < 0.2 * np.mean(apart)
    batch = batches(run, 1)[0]
    for n, i in enumerate(batch.index.tolist()):
        image = batch.teacher["images"][n].permute(1, 2, 0).numpy()
        assert np.array_equal(image, run.teaching.beside.reader.crop(i, 0).image)


def test_a_far_camera_degrades_the_student_alone(tmp_path, teacher):
    near, far = (
        Run(taught(teacher, augment=VARIED, input={"resample": kind}), tmp_path / kind, False) for kind in ("area", "camera")
    )
    for (_, sharp, a), (_, coarse, b) in zip(crops(near, 10), crops(far, 10), strict=True):
        assert np.array_equal(a.image, b.image) and np.array_equal(a.matrix, b.matrix)
        assert not np.array_equal(sharp.image, coarse.image) and np.allclose(sharp.matrix, coarse.matrix)


def pictures(count: int = 6) -> torch.Tensor:
    noise = torch.randint(0, 256, (count, 3, 8, 8), generator=torch.Generator().manual_seed(3)).float()
    return F.interpolate(noise, (64, 64), mode="bilinear").round().byte()


def make(path, **settings) -> Teacher:
    return Teacher(TeacherConfig(weights=str(path), **settings), torch.device("cpu"))


def test_precision(tmp_path, teacher, monkeypatch):
    """bf16 differs and is close; the default is what its recipe trained with if the machine computes that; a CPU has no fp16."""
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: True)
    exact, coarse = (make(teacher, precision=p).answer(pictures(), ["x", "map"]) for p in ("no", "bf16"))
    assert torch.equal(make(teacher).answer(pictures(), ["x"])["x"], exact["x"])
    for name in ("x", "map"):
        off = float((coarse[name] - exact[name]).abs().mean() / exact[name].std())
        assert 1e-4 < off < 0.05 and coarse[name].dtype is torch.float32
    for trained, used in (("no", "no"), ("bf16", "bf16"), ("fp16", "no"), ("auto", "bf16")):
        path = save_teacher(tmp_path / f"{trained}.safetensors", train={"precision": trained})
        assert make(path).precision == used and make(path, precision="bf16").precision == "bf16"
    found = make(tmp_path / "bf16.safetensors").answer(pictures(), ["x"])["x"]
    assert torch.equal(found, coarse["x"])
    with pytest.raises(LowposeError, match="^teacher.precision=fp16 needs a GPU; a CPU has bf16 or no$"):
        make(teacher, precision="fp16")
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(f"torch.cpu.{name}", lambda: False)
    assert make(tmp_path / "bf16.safetensors").precision == make(tmp_path / "auto.safetensors").precision == "no"
    assert make(teacher, precision="bf16").precision == "bf16" and make(teacher, precision="auto").precision == "no"


def test_a_precise_teacher_beside_a_student_in_bf16(tmp_path, teacher):
    """The student's autocast does not reach the teacher, nor the other way round."""
    run = Run(taught({"weights": teacher, "precision": "no"}, train={"precision": "bf16"}), tmp_path / "a", False)
    seen = []
    run.teaching.teacher.model.register_forward_hook(lambda _m, _i, out: seen.append(out["map"].dtype))
    run._step(batches(run, 1)[0])
    run = Run(taught({"weights": teacher, "precision": "bf16"}, train={"precision": "no"}), tmp_path / "b", False)
    run.teaching.teacher.model.register_forward_hook(lambda _m, _i, out: seen.append(out["map"].dtype))
    run.bare.register_forward_hook(lambda _m, _i, out: seen.append(out["map"].dtype))
    run._step(batches(run, 1)[0])
    assert seen == [torch.float32, torch.float32, torch.bfloat16]


@torch.no_grad()
def test_flip_is_the_mean_of_both_answers(teacher):
    """By hand in float64: the mirrored picture's left is right, and its bins run backwards."""
    plain, both, images = make(teacher), make(teacher, flip=True), pictures()
    found = both.answer(images, ["map", "x", "y", "feature"])
    first, second = (plain.model(i) for i in (images, images.flip(-1)))
    swap = torch.from_numpy(COCO17.flip_index.copy())
    p, q = ({a: torch.softmax(side[a].double(), -1) for a in "xy"} for side in (first, second))
    assert torch.allclose(torch.softmax(found["x"].double(), -1), (p["x"] + q["x"][:, swap].flip(-1)) / 2, atol=1e-6)
    assert torch.allclose(torch.softmax(found["y"].double(), -1), (p["y"] + q["y"][:, swap]) / 2, atol=1e-6)
    assert torch.allclose(found["map"], (first["map"] + second["map"][:, swap].flip(-1)) / 2, atol=1e-5)
    assert torch.equal(found["feature"], plain.answer(images, ["feature"])["feature"])
    decoded, wanted = plain.model.head.decode(found), plain.model.predict(images, flip=True)
    assert torch.equal(decoded.keypoints, wanted.keypoints) and not torch.allclose(found["x"], first["x"], atol=0.1)


def test_a_teacher_normalises_for_itself(teacher):
    """Whole numbers and floats of a picture give the same answer, as its own model does."""
    bare = make(teacher)
    with torch.no_grad():
        wanted = bare.model(pictures())["x"]
    assert torch.equal(bare.answer(pictures(), ["x"])["x"], wanted)
    assert torch.allclose(bare.answer(pictures().float(), ["x"])["x"], wanted)


def test_teachers_that_do_not_fit(tmp_path, teacher):
    """Other keypoints, another shape of crop, no file, and files of somebody else: one line each."""
    hand = save_teacher(tmp_path / "hand.safetensors", skeleton=Skeleton("hand", ("thumb", "index")))
    tall = save_teacher(tmp_path / "tall.safetensors", input={"size": [64, 96]})
    heat = save_teacher(tmp_path / "heat.safetensors", head={"name": "heatmap"})
    (tmp_path / "text.safetensors").write_text("hello")
    torch.save({}, tmp_path / "state.pt")
    renamed = Skeleton("mine", ("tip", *COCO17.keypoints[1:]))
    answers = {
        hand: "a teacher of skeleton 'hand' (2 keypoints); the student learns 'coco17' (17 keypoints)",
        save_teacher(tmp_path / "mine.safetensors", skeleton=renamed): "a teacher of skeleton 'mine' (17 keypoints)",
        tall: "the teacher's crop of 64 x 96 has another shape than the student's 32 x 32",
        tmp_path / "none": "none: no such weights file or run folder",
        tmp_path / "text.safetensors": "not a readable safetensors file",
        tmp_path / "state.pt": "not a file of weights (.safetensors), or a run folder",
        heat: "distill.cca needs the output 'x', and the teacher gives only map",
        tmp_path: "a run folder without weights.safetensors",
    }
    for path, answer in answers.items():
        told = refused(tmp_path, taught(path))
        assert answer in told and (path == heat or str(path) in told)


def test_a_heatmap_teacher_teaches_maps(tmp_path):
    """SAPE needs a map on both sides, not the same kind of head."""
    heat = save_teacher(tmp_path / "heat.safetensors", head={"name": "heatmap"})
    run = Run(taught(heat, {"sape": {}}), tmp_path / "run", False)
    values, _ = run._step(batches(run, 1)[0])
    assert 0 < values["sape"] < 2


def test_a_far_camera_is_the_students_alone(tmp_path, teacher):
    """The teacher sees the view as sharp as before, live and from its cache, which serves both."""
    near, far = (batches(open_run(tmp_path, teacher, keep="none", augment={"camera": share}), 3) for share in (0.0, 1.0))
    for a, b in zip(near, far, strict=True):
        assert torch.equal(a.keypoints, b.keypoints) and not torch.equal(a.images, b.images)
        assert torch.equal(a.teacher["images"], b.teacher["images"])
    for share in (0.0, 1.0):
        open_run(tmp_path, teacher, augment={"camera": share})
    assert len([p for p in (tmp_path / "cache").iterdir() if p.name.startswith("teacher")]) == 1
