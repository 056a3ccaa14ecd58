"""Wrong input, case by case: tested by `test_bad_input`, listed in docs/errors.md.

`bad_input_answers.json` has the one line that answers each; '...' stands there for words of another library or of the machine.

    python tests/bad_input_cases.py        writes docs/errors.md
"""

from __future__ import annotations

import json
from pathlib import Path

from bad_input_world import (
    COCO,
    Case,
    begun,
    copy,
    edit_coco,
    explode,
    full_cache,
    full_disk,
    hand,
    mapped,
    no_detector,
    no_permission,
    offline,
    owls,
    recipe,
    remove,
    rename,
    save_joints,
    tensors,
    tiny_imagenet,
    together,
    truncate,
    write,
)

TRAIN, PREDICT = "lowpose train recipe.yaml --out new ", "lowpose predict pictures --weights run "
TOKENS = "lowpose info recipe.yaml model.backbone=none model.pretrained=none input.size=[32,32] "
ONCOCO = "lowpose train recipe.yaml data.kind=coco data.root=coco data.options={} --out new "
ONLSP = "lowpose train recipe.yaml data.kind=lsp data.root=lsp data.options={} --out new "
TRAIN_JSON = COCO.format("train")
PICTURE_FILES = [f"coco/images/{i}.jpg" for i in range(1, 9)]
BEGUN = ("new/recipe.yaml", "new/metrics.jsonl", "new/tensorboard/...")  # what a run that stops may leave
SORT = "lowpose train sorter.yaml --out new "
VALIDATION_PICTURES = [f"classes/val/{name}/{i}.png" for name in ("bars", "disc", "rows") for i in range(2)]
TRAINING_PICTURES = [f"classes/train/{name}/{i}.png" for name in ("bars", "disc", "rows") for i in range(4)]
TAUGHT = TRAIN + "teacher.weights=run "
SKELETON = "name: three\nkeypoints: [left_a, right_a, b]\n"


def _set(key: str, value):
    return lambda values: values["annotations"][0].update({key: value})


def _nan_keypoint(values: dict) -> None:
    values["annotations"][2]["keypoints"][3] = float("nan")


def _nan_joint(joints):
    joints[4, 0, 2] = float("nan")
    return joints


RECIPES = [
    Case("recipe that does not exist", "lowpose train lspet/simcc_hrnet-w18-smal_64"),
    Case("recipe file that does not exist", "lowpose train none.yaml"),
    Case("recipe that is not YAML", "lowpose train bad.yaml", write("bad.yaml", "train: {epochs: 3\nmodel: [")),
    Case("recipe that is not text", "lowpose train bad.yaml", write("bad.yaml", b"\xff\xd8\xff\xe0")),
    Case("recipe that is a list", "lowpose train bad.yaml", write("bad.yaml", "- 1\n- 2\n")),
    Case("empty recipe with a wrong base", "lowpose train bad.yaml", write("bad.yaml", "base: 3\n")),
    Case("base recipes in a circle", "lowpose info bad.yaml", write("bad.yaml", "base: bad.yaml\n")),
    Case("unknown key", "lowpose train bad.yaml", recipe("trian: {epochs: 1}\n")),
    Case("unknown nested key", "lowpose train bad.yaml", recipe("train: {epoch: 1}\n")),
    Case("unknown key of a head", TRAIN + "head.splits=3"),
    Case("unknown head", TRAIN + "head.name=simc"),
    Case("head without a name", TRAIN + "head={}"),
    Case("value of a wrong kind", TRAIN + "train.epochs=many"),
    Case("mapping where a value belongs", TRAIN + "'train.lr={a: 1}'"),
    Case("value where a mapping belongs", TRAIN + "train=3"),
    Case("value out of range", TRAIN + "train.lr=-1"),
    Case("size below zero", TRAIN + "input.size=[-64,64]"),
    Case("size that the backbone cannot take", "lowpose info recipe.yaml model.backbone=hrnet_w18_small input.size=[40,40]"),
    Case("camera heights the wrong way round", TRAIN + "input.resample=camera input.camera.height=[64,16]"),
    Case("camera height below zero", TRAIN + "input.camera.height=[-4,16]"),
    Case("JPEG quality above 100", TRAIN + "input.camera.jpeg=[60,160]"),
    Case("camera whose movement ends before it begins", TRAIN + "input.resample=camera input.camera.motion=[4,2]"),
    Case("milestones that are no numbers", TRAIN + "train.milestones=[a]"),
    Case("override without =", TRAIN + "train.epochs"),
    Case("override into a value", TRAIN + "train.epochs.more=3"),
    Case("override that is not YAML", TRAIN + "'train.epochs=[1'"),
    Case("unknown backbone", TRAIN + "model.backbone=resnet19"),
    Case("no backbone and no tokens", TOKENS),
    Case(
        "weights of no backbone",
        TRAIN + "model.backbone=none model.pretrained=imagenet model.tokens.patch=[8,8]",
    ),
    Case("patches that do not tile", TOKENS + "model.tokens.patch=[5,8]"),
    Case("unknown mixer", TOKENS + "model.tokens.mixer.name=gfl-dynamik"),
    Case("attention heads that do not divide", TOKENS + "'model.tokens.mixer={name: attention, heads: 7}'"),
    Case("head that reads no tokens", TOKENS + "model.tokens.patch=[8,8] 'head={name: udp}'"),
    Case("stages of another network", "lowpose info recipe.yaml model.stages=3"),
    Case("option that the backbone does not have", "lowpose info recipe.yaml model.options.drop_path=0.1"),
    Case("option of the backbone that is not the recipe's", "lowpose info recipe.yaml model.options.num_classes=3"),
    Case("options of no backbone", TOKENS + "model.tokens.patch=[8,8] model.options.drop_path_rate=0.1"),
    Case("unknown down-sampling", "lowpose info recipe.yaml model.downsampling=mgli"),
    Case("down-sampling nowhere", "lowpose info recipe.yaml 'model.downsampling={name: spd, where: [conv9]}'"),
    Case("setting of another down-sampling", "lowpose info recipe.yaml 'model.downsampling={name: spd, coarse: 3}'"),
    Case("deconvolutions on stride 4", "lowpose info recipe.yaml model.backbone=hrnet_w18_small model.neck=deconv"),
    Case("too few deconvolutions", TRAIN + "model.deconv=[8]"),
    Case("ImageNet weights without a network", TRAIN + "model.pretrained=imagenet model.backbone=resnet18", patch=offline),
    Case("pretrained file that does not exist", TRAIN + "model.pretrained=none.safetensors"),
    Case("pretrained file of another network", TRAIN + "model.pretrained=other.safetensors", tensors("other.safetensors")),
    Case("half precision on a CPU", TRAIN + "train.precision=fp16"),
    Case("even blur of a heatmap", TRAIN + "'head={name: heatmap, decode: dark, blur: 4}'"),
    Case("recipe that is like none", "lowpose info synthetic"),
    Case("split that leaves one bin", TRAIN + "head.split=0.05"),
    Case("sync_bn without GPUs", TRAIN + "train.sync_bn=true"),
    Case("reduced cache with resample: paper", TRAIN + "input.resample=paper cache.dir=cache cache.reduced=true"),
]
DATA = [
    Case("unknown kind of data", TRAIN + "data.kind=cocoo"),
    Case("missing root", "lowpose train recipe.yaml data.kind=coco data.root=nowhere data.options={} --out new"),
    Case("root without annotations", "lowpose data check coco:pictures"),
    Case("unknown split", "lowpose data check coco:coco --split tset"),
    Case("unknown split of synthetic people", TRAIN + "data.train=trian"),
    Case("split without persons", ONCOCO, edit_coco(lambda v: v.update(annotations=[]))),
    Case("split without labelled joints", ONCOCO, edit_coco(lambda v: [r.update(keypoints=[0] * 51) for r in v["annotations"]])),
    Case("unknown option of synthetic people", TRAIN + "data.options.cuont=4"),
    Case("unknown option of COCO data", ONCOCO + "data.options.count=4"),
    Case("annotations cut short", ONCOCO, truncate(TRAIN_JSON)),
    Case("annotations that are not JSON", ONCOCO, write(TRAIN_JSON, "hello")),
    Case("annotations of another form", ONCOCO, write(TRAIN_JSON, "[1, 2]")),
    Case("annotations without keypoints", ONCOCO, edit_coco(lambda v: v["categories"][0].pop("keypoints"))),
    Case("NaN in COCO annotations", ONCOCO, edit_coco(_nan_keypoint)),
    Case("NaN in a box", ONCOCO, edit_coco(_set("bbox", [0, 0, float("nan"), 5]))),
    Case("joints that do not fit the skeleton", ONCOCO, edit_coco(_set("keypoints", [1.0, 2.0, 2] * 16))),
    Case("annotation in no picture", ONCOCO, edit_coco(_set("image_id", 99))),
    Case("two annotations of one id", ONCOCO, edit_coco(_set("id", 2))),
    Case("none of the pictures there", ONCOCO, remove(*PICTURE_FILES)),
    Case("NaN in joints.mat", ONLSP, save_joints(_nan_joint)),
    Case("joints.mat of another form", ONLSP, save_joints(lambda joints: joints[:5])),
    Case("joints.mat that is no MATLAB file", ONLSP, write("lsp/joints.mat", "hello")),
    Case("every picture broken", ONCOCO, truncate(*PICTURE_FILES), leaves=BEGUN),
    Case("skeleton file that does not exist", ONCOCO + "data.skeleton=none.yaml"),
    Case("unknown skeleton", ONCOCO + "data.skeleton=coco18"),
    Case("skeleton that is not YAML", ONCOCO + "data.skeleton=s.yaml", write("s.yaml", "keypoints: [a")),
    Case("skeleton with an unknown key", ONCOCO + "data.skeleton=s.yaml", write("s.yaml", SKELETON + "edge: []\n")),
    Case(
        "pair of an unknown keypoint", ONCOCO + "data.skeleton=s.yaml", write("s.yaml", SKELETON + "pairs: [[left_a, right_c]]\n")
    ),
    Case(
        "keypoint in two pairs",
        ONCOCO + "data.skeleton=s.yaml",
        write("s.yaml", SKELETON + "pairs: [[left_a, right_a], [left_a, b]]\n"),
    ),
    Case("keypoint paired with itself", ONCOCO + "data.skeleton=s.yaml", write("s.yaml", SKELETON + "pairs: [[b, b]]\n")),
    Case("wrong number of sigmas", ONCOCO + "data.skeleton=s.yaml", write("s.yaml", SKELETON + "sigmas: [0.1]\n")),
    Case("skeleton of another size", ONCOCO + "data.skeleton=s.yaml", write("s.yaml", SKELETON)),
    Case(
        "detections of other pictures",
        "lowpose eval run --data coco:coco --boxes found.json",
        write("found.json", json.dumps([{"image_id": 77, "category_id": 1, "bbox": [0, 0, 9, 9], "score": 1}])),
    ),
    Case(
        "detection without a score",
        "lowpose eval run --data coco:coco --boxes found.json",
        write("found.json", json.dumps([{"image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9]}])),
    ),
    Case("missing detections", "lowpose eval run --data coco:coco --boxes none.json"),
    Case("check of a missing folder", "lowpose data check coco:nowhere"),
    Case("check of an unknown kind", "lowpose data check koko:coco"),
    Case("unknown data set to get", "lowpose data get lspett"),
    Case("data that cannot be fetched", "lowpose data get crowdpose"),
]
TRAINING = [
    Case("run folder that holds a run", "lowpose train recipe.yaml --out run"),
    Case("resumed with another recipe", "lowpose train recipe.yaml train.lr=0.5 --out run --resume"),
    Case("resumed from a damaged state", "lowpose train recipe.yaml --out run --resume", truncate("run/state.pt")),
    Case("steps to stop after: 0", TRAIN + "--stop-after 0"),
    Case("command that does not exist", "lowpose trian recipe.yaml"),
    Case("option that does not exist", TRAIN + "--resme"),
    Case("batch that processes cannot share", ">>> TrainingOrder(8, 5, 0, 0, 1, ranks=2)"),
    Case("init of another skeleton", TRAIN + "init=hand.safetensors", hand),
    Case("init of another network", TRAIN + "init=run head.name=heatmap model.backbone=test_convnext model.deconv=[16,16,16]"),
    Case("init file that does not exist", TRAIN + "init=none.safetensors"),
    Case("loss that becomes NaN", TRAIN, patch=explode(2), leaves=(*BEGUN, "new/state.pt")),
    Case("loss that is NaN at once", TRAIN, patch=explode(1), leaves=BEGUN),
    Case("full disk while training", TRAIN, patch=full_disk(".recipe")),
    Case("full disk when the state is saved", TRAIN, patch=full_disk(".state"), leaves=BEGUN),
    Case("full disk when the log is saved", TRAIN, patch=full_disk("metrics.jsonl"), leaves=BEGUN),
    Case("full disk when the weights are saved", TRAIN, patch=full_disk(".weights"), leaves=(*BEGUN, "new/state.pt")),
    Case("full disk while the cache is built", TRAIN + "cache.dir=cache", patch=full_cache, leaves=("cache/",)),
    Case("no permission", TRAIN, patch=no_permission),
    Case("run folder under a file", "lowpose train recipe.yaml --out boxes.json/run"),
    Case("cache under a file", TRAIN + "cache.dir=boxes.json/cache"),
    Case("comparison of one recipe", "lowpose compare recipe.yaml"),
    Case("comparison of a recipe with itself", "lowpose compare recipe.yaml recipe.yaml"),
    Case("comparison of different budgets", "lowpose compare recipe.yaml bad.yaml", recipe("train: {epochs: 2}\n")),
    Case("comparison on different data", "lowpose compare recipe.yaml bad.yaml", recipe("data: {val: test}\n")),
    Case("seed below zero", "lowpose compare recipe.yaml bad.yaml --seeds 0,-1", recipe("name: b\n")),
    Case(
        "comparison in a folder of other runs",
        "lowpose compare recipe.yaml bad.yaml train.lr=0.1 --out others",
        together(recipe("name: b\n"), copy("run/weights.safetensors", "others/recipe/seed-0/weights.safetensors")),
    ),
    Case("seeds that are no numbers", "lowpose compare recipe.yaml bad.yaml --seeds one", recipe("name: b\n")),
]
TEACHING = [
    Case("teacher that does not exist", TRAIN + "teacher=none distill.cca.weight=1"),
    Case("teacher of another skeleton", TRAIN + "teacher=hand.safetensors distill.cca.weight=1", hand),
    Case("teacher whose crop has another shape", TAUGHT + "distill.cca.weight=1 input.size=[32,64]"),
    Case(
        "teacher that is no model of lowpose",
        TRAIN + "teacher=other.safetensors distill.cca.weight=1",
        tensors("other.safetensors"),
    ),
    Case("teacher without weights", TRAIN + "teacher.flip=true distill.cca.weight=1"),
    Case("teacher without a method", TRAIN + "teacher=run"),
    Case("method without a teacher", TRAIN + "distill.cca.weight=1"),
    Case("unknown method", TAUGHT + "distill.sap.weight=1"),
    Case("curriculum without a method", TAUGHT + "distill.etht.lr=0.1"),
    Case("unknown setting of a method", TAUGHT + "distill.cca.temprature=2"),
    Case("temperature of zero", TAUGHT + "distill.cca.temperature=0"),
    Case("even kernel of a projector's unit", TAUGHT + "distill.sape.kernels=[3,4]"),
    Case("methods that differ in bins", TAUGHT + "distill.kd.weight=1 head.split=1"),
    Case("bins of a head that has none", TAUGHT + "distill.cca.weight=1 'head={name: heatmap}'"),
    Case(
        "learned temperature of a method that is not there", TAUGHT + "distill.sape.weight=1 distill.etht.learn=[cca.temperature]"
    ),
    Case("learned setting that is no number", TAUGHT + "distill.cca.weight=1 distill.etht.learn=[cca.order]"),
    Case("temperature beyond its bounds", TAUGHT + "distill.cca.temperature=30 distill.etht.lr=0.1"),
    Case("bounds the wrong way round", TAUGHT + "distill.cca.weight=1 distill.etht.temperature=[4,1]"),
    Case("half precision of a teacher on a CPU", TAUGHT + "distill.cca.weight=1 teacher.precision=fp16"),
    Case("merged answers for a method that reads all", TAUGHT + "teacher.cache=merged distill.cca.order=temper-first"),
    Case("kept answers without declared views", TAUGHT + "teacher.cache=full distill.cca.weight=1 cache.dir=cache"),
    Case("kept answers without a folder", TAUGHT + "teacher.cache=full distill.cca.weight=1 augment.views=2"),
    Case("no views at all", TRAIN + "augment.views=0"),
    Case("resumed with another teacher", "lowpose train recipe.yaml teacher=run distill.cca.weight=1 --out new --resume", begun),
]
WEIGHTS = [
    Case("missing weights", "lowpose eval none.safetensors"),
    Case("run folder without weights", "lowpose eval pictures"),
    Case("weights that are cut short", "lowpose eval run", truncate("run/weights.safetensors")),
    Case("weights of somebody else", "lowpose eval other.safetensors", tensors("other.safetensors")),
    Case("weights with a damaged description", "lowpose eval other.safetensors", tensors("other.safetensors", {"lowpose": "{}"})),
    Case("weights for another skeleton", "lowpose eval run --data lsp:lsp --split all"),
    Case("evaluation on a missing folder", "lowpose eval run --data coco:nowhere"),
    Case("evaluation with an unknown key", "lowpose eval run eval.flop=true"),
    Case(
        "results under a file",
        "lowpose eval run --bootstrap 0 --out report --json boxes.json/r.json",
        leaves=("report/card.json", "report/card.md", "report/predictions.npz"),
    ),
    Case("full disk while the card is written", "lowpose eval run --bootstrap 0", patch=full_disk(".card")),
    Case("heights that are no numbers", "lowpose eval run --breakdown --heights 16,tall"),
    Case("height of nothing", "lowpose eval run --breakdown --heights 0,16"),
    Case("heights that do not rise", "lowpose eval run --breakdown --heights 32,16"),
    Case("heights without a breakdown", "lowpose eval run --heights 16,32"),
    Case("breakdown by an unknown size", "lowpose eval run --breakdown --sizes boxs"),
    Case(
        "breakdown of a detector's boxes",
        "lowpose eval run --data coco:coco --boxes found.json --breakdown",
        write("found.json", json.dumps([{"image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "score": 1}])),
    ),
    Case("breakdown of a classifier", "lowpose eval sorter --breakdown"),
    Case(
        "full disk while a breakdown is written",
        "lowpose eval run --bootstrap 0 --breakdown --out report",
        patch=full_disk(".breakdown"),
        leaves=("report/card.json", "report/card.md", "report/predictions.npz"),
    ),
    Case("sheet of a run without weights", "lowpose sheet pictures"),
    Case("training state given as weights", "lowpose eval run/state.pt"),
    Case("export of a picture", ">>> export_onnx('pictures/a.jpg')"),
    Case("export to another suffix", ">>> export_onnx('run', 'model.pt')"),
    Case("export in two precisions", "lowpose export run --int8 --fp16"),
    Case("export of a float32 file with a limit", "lowpose export run --limit 2"),
    Case("FP16 with crops for ranges", "lowpose export run --fp16 --calibration 9"),
    Case("export of an exported file", "lowpose export m.onnx", write("m.onnx", "x")),
    Case("export to another format", "lowpose export run --to tflite"),
    Case("INT8 from a folder that is not there", "lowpose export run --int8 --out new/m.onnx --data coco:nowhere"),
    Case("weights that do not come with the package", "lowpose predict pictures --weights lowpose-46"),
]
PICTURES = [
    Case("missing picture", "lowpose predict none.jpg --weights run"),
    Case("folder without pictures", "lowpose predict coco/annotations --weights run"),
    Case("text called a picture", "lowpose predict c.jpg --weights run", write("c.jpg", "hello")),
    Case("empty picture", "lowpose predict c.png --weights run", write("c.png", "")),
    Case("truncated picture", "lowpose predict pictures/a.jpg --weights run", truncate("pictures/a.jpg")),
    Case("every picture truncated", PREDICT, truncate("pictures/a.jpg", "pictures/b.jpg")),
    Case("empty video", "lowpose predict v.mp4 --weights run", write("v.mp4", "")),
    Case("predict with missing weights", "lowpose predict pictures --weights none"),
    Case("predict with a text called .onnx", "lowpose predict pictures --weights m.onnx", write("m.onnx", "hello")),
    Case("threshold out of range", PREDICT + "--threshold 1.5"),
    Case("no permission for the results", PREDICT, patch=no_permission),
    Case("full disk while results are written", PREDICT + "--no-draw", patch=full_disk(".results")),
    Case("overlays under a file", PREDICT + "--out boxes.json"),
    Case("boxes of an unknown suffix", PREDICT + "--boxes boxes.xml", write("boxes.xml", "<a/>")),
    Case("missing boxes", PREDICT + "--boxes none.json"),
    Case("boxes that are not JSON", PREDICT + "--boxes b.json", write("b.json", "[1,")),
    Case("boxes for other pictures", PREDICT + "--boxes b.json", write("b.json", '{"z.jpg": [[0, 0, 9, 9]]}')),
    Case("box outside the picture", PREDICT + "--boxes b.json", write("b.json", '{"a.jpg": [[0, 90, 9, 9]]}')),
    Case("least score that is no number", PREDICT + "--min-score nan"),
    Case("results where a folder is", PREDICT + "--out coco", lambda folder: (folder / "coco" / "results.json").mkdir()),
    Case("box of no area", PREDICT + "--boxes b.json", write("b.json", '{"a.jpg": [[0, 0, 0, 9]]}')),
    Case("NaN in a box file", PREDICT + "--boxes b.json", write("b.json", '{"a.jpg": [[0, NaN, 9, 9]]}')),
    Case("bad line of a CSV", PREDICT + "--boxes b.csv", write("b.csv", "a.jpg,0,0,9,9\nb.jpg,0,0,x,9\n")),
    Case("CSV of changing width", PREDICT + "--boxes b.csv", write("b.csv", "a.jpg,0,0,9,9\nb.jpg,0,0\n")),
    Case("MOT without its score", PREDICT + "--boxes b.txt", write("b.txt", "1,7,10,10,40,80\n")),
    Case("track without a number", PREDICT + "--boxes b.txt", write("b.txt", "1,one,0,0,9,9,1\n")),
    Case("track twice in a frame", PREDICT + "--boxes b.txt", write("b.txt", "1,4,0,0,9,9,1\n1,4,5,5,9,9,1\n")),
    Case("unknown detector", PREDICT + "--boxes detector:ssdlite320"),
    Case("detector without a network", PREDICT + "--boxes detector", patch=no_detector),
    Case("missing weights of a detector", PREDICT + "--boxes detector --detector-weights none.pth"),
    Case(
        "weights of another detector",
        PREDICT + "--boxes detector --detector-weights other.safetensors",
        tensors("other.safetensors"),
    ),
    Case("weights for no detector", PREDICT + "--detector-weights none.pth"),
    Case("provider for weights", PREDICT + "--provider CPUExecutionProvider"),
    Case("threads below one", ">>> lowpose.load('run', threads=0)"),
    Case("box far outside", PREDICT + "--boxes b.json", write("b.json", '{"a.jpg": [[0, 0, 90000, 9]]}')),
    Case("array that is no picture", ">>> lowpose.load('run').predict(np.zeros((8, 8)))"),
    Case("box without area", ">>> lowpose.load('run').predict(np.zeros((8, 8, 3), np.uint8), [[1, 1, 0, 4]])"),
]
CLASSES = [
    Case("pictures of classes in a missing folder", SORT + "data.root=nowhere"),
    Case("split of classes that is not there", SORT + "data.train=trian"),
    Case("class that training does not know", SORT, rename("classes/val/disc", "classes/val/discs")),
    Case("split of classes without a picture", SORT, remove(*VALIDATION_PICTURES)),
    Case("split without folders of classes", SORT + "data.train=pictures data.root=."),
    Case("every picture of the classes broken", SORT, truncate(*TRAINING_PICTURES), leaves=BEGUN),
    Case("CIFAR-10 that is not there", SORT + "data.kind=cifar-10 data.val=test"),
    Case("split that CIFAR-10 lacks", SORT + "data.kind=cifar-10 data.train=val"),
    Case(
        "batch of CIFAR-10 cut short", "lowpose data check cifar-10:bins --split test", write("bins/test_batch.bin", bytes(3072))
    ),
    Case("tenth class of CIFAR-10", "lowpose data check cifar-10:bins --split test", write("bins/test_batch.bin", b"\n" * 3073)),
    Case("TinyImageNet without its list of classes", "lowpose data check tiny-imagenet:classes"),
    Case("TinyImageNet without pictures of a class", "lowpose data check tiny-imagenet:tiny", tiny_imagenet),
    Case("class that TinyImageNet lacks", "lowpose data check tiny-imagenet:tiny --split val", tiny_imagenet),
    Case("split of TinyImageNet without labels", "lowpose data check tiny-imagenet:tiny --split test", tiny_imagenet),
    Case("list of classes that is no text", "lowpose data check tiny-imagenet:tiny", write("tiny/wnids.txt", b"\xff\xfe\n")),
    Case("kind of poses for a classifier", SORT + "data.kind=coco"),
    Case("kind of classes for poses", TRAIN + "data.kind=folder data.options={}"),
    Case("unknown kind for a classifier", SORT + "data.kind=foldr"),
    Case("options of classes", SORT + "data.options.count=4"),
    Case("boxes of classes", "lowpose data check folder:classes --boxes found.json"),
    Case("key of poses for a classifier", SORT + "cache.dir=cache"),
    Case("teacher of a classifier", SORT + "teacher=run distill.cca.weight=1"),
    Case("head of poses for a classifier", SORT + "head.name=simcc"),
    Case("classifier's head without a name", SORT + "head.name=null"),
    Case("unknown key of a classifier's head", SORT + "head.smoothng=0.1"),
    Case("unknown task", SORT + "task=classify"),
    Case("small stem of another network", SORT + "model.stem=small"),
    Case("small stem of no backbone", TOKENS + "model.tokens.patch=[8,8] model.stem=small"),
    Case("whole pixels for a teacher", TAUGHT + "distill.cca.weight=1 augment.whole_pixels=true"),
    Case("init of other classes", SORT + "init=owls.safetensors", owls),
    Case("classifier that poses should learn from", TRAIN + "teacher=sorter distill.cca.weight=1"),
    Case("prediction of poses by a classifier", "lowpose predict pictures --weights sorter"),
    Case("sheet of a classifier", "lowpose sheet sorter"),
    Case("attention of a classifier", "lowpose explain sorter"),
    Case("export of a classifier", "lowpose export sorter"),
    Case("COCO results of a classifier", "lowpose eval sorter --json results.json"),
    Case("boxes for a classifier", "lowpose eval sorter --boxes found.json"),
    Case("other head of a trained classifier", "lowpose eval sorter head.smoothing=0.1"),
    Case("poses for a classifier", "lowpose eval sorter --data coco:coco"),
    Case("pictures of classes for poses", "lowpose eval run --data folder:classes"),
    Case("evaluation on other classes", "lowpose eval owls.safetensors", owls),
]
INTEGRAL = TRAIN + "'head={name: integral, rectify: false"
STUDY = "lowpose study bias --out study "
STUDIES = [
    Case("compensation without an empty background", INTEGRAL + "}'"),
    Case("compensated reading without an empty background", INTEGRAL + ", train: plain, decode: closed}'"),
    Case("beta of zero", TRAIN + "'head={name: integral, beta: 0}'"),
    Case("study of weights without a map", STUDY + "--weights run"),
    Case("study of weights that do not exist", STUDY + "--weights none"),
    Case("study of a classifier", STUDY + "--weights sorter"),
    Case("study of pictures without weights", STUDY + "--data coco:coco"),
    Case("study on a missing folder", STUDY + "--weights mapped.safetensors --data coco:nowhere", mapped),
    Case("betas that are no numbers", STUDY + "--betas 1,ten"),
    Case("betas out of range", STUDY + "--betas 0,1"),
    Case("Gaussian wider than its map", STUDY + "--sigma 99"),
    Case("unknown study", "lowpose study bais"),
    Case("study into a file", "lowpose study bias --out boxes.json"),
    Case("full disk while a study is written", STUDY, patch=full_disk(".bias")),
]
MEASURING = [
    Case("robustness of weights that do not exist", "lowpose robustness none.safetensors"),
    Case("robustness of a classifier", "lowpose robustness sorter --out new"),
    Case("robustness on data of another skeleton", "lowpose robustness hand.safetensors --data coco:coco --out new", hand),
    Case("robustness with an override of training", "lowpose robustness run train.epochs=3 --out new"),
    Case(
        "robustness on a full disk", "lowpose robustness run --persons 1 --bootstrap 0 --out new", patch=full_disk(".robustness")
    ),
    Case("sweep over the same weights twice", "lowpose sweep run run/weights.safetensors --out new"),
    Case("sweep at a size that no model has", "lowpose sweep run --sizes 16,64 --out new"),
    Case("sweep at no size", "lowpose sweep run --sizes 0 --out new"),
    Case("sweep at sizes that are no numbers", "lowpose sweep run --sizes 16,large --out new"),
    Case("sweep at heights that fall", "lowpose sweep run --heights 32,16 --out new"),
    Case("sweep over no models", ">>> lowpose.sweep([])"),
    Case("sweep with no timing", ">>> lowpose.sweep(['run'], rounds=0)"),
]
CALIBRATE = "lowpose calibrate "
CALIBRATION = [
    Case("calibration of weights that do not exist", CALIBRATE + "none"),
    Case("calibration of a classifier", CALIBRATE + "sorter"),
    Case("calibration within a radius of zero", CALIBRATE + "run --radius 0"),
    Case("calibrated weights that are no weights file", CALIBRATE + "run --to run.bin"),
    Case("calibration on other keypoints", CALIBRATE + "run --data lsp:lsp --split train"),
]
BENCH = "lowpose bench "
BENCHES = [
    Case("bench of nothing there", BENCH + "none.onnx"),
    Case("bench of an unknown runtime", BENCH + "run --runtimes torch,onx"),
    Case("bench of no crops", BENCH + "run --batch 0"),
    Case("bench in no time", BENCH + "run --seconds 0"),
    Case("bench of trained weights at another size", BENCH + "run --size 64"),
    Case("bench of a classifier", BENCH + "sorter"),
    Case("bench of weights as INT8", BENCH + "run --runtimes int8"),
]
CASES = {
    "Recipes": RECIPES,
    "Data": DATA,
    "Training and comparing": TRAINING,
    "Learning from a teacher": TEACHING,
    "Weights": WEIGHTS,
    "Pictures and boxes": PICTURES,
    "Pictures in classes": CLASSES,
    "Integral regression and the study of its bias": STUDIES,
    "Robustness and sweeps": MEASURING,
    "Calibration": CALIBRATION,
    "Measuring what models cost": BENCHES,
}
ROWS = [case for group in CASES.values() for case in group]
ANSWERS: dict[str, str] = json.loads(Path(__file__).with_name("bad_input_answers.json").read_text())
PAGE = Path(__file__).resolve().parents[1] / "docs" / "errors.md"


def page() -> str:
    """docs/errors.md."""
    lines = [
        "# Wrong input and its answers",
        "",
        "`tests/test_bad_input.py` runs all of these cases and checks that the answer is this one line, the exit code is 2,",
        "and that nothing is left behind. `...` stands for words of another library or of the machine.",
        "This page is written by `python tests/bad_input_cases.py`.",
    ]
    for group, cases in CASES.items():
        lines += ["", f"## {group}", "", "| wrong | command | answer |", "|---|---|---|"]
        lines += [f"| {c.wrong} | `{_cell(c.command)}` | `{_cell(ANSWERS[c.wrong])}` |" for c in cases]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("`", "'").replace("|", "\\|").strip()


if __name__ == "__main__":
    PAGE.write_text(page())
