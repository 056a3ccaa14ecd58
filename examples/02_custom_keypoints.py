"""Your own keypoints: a COCO-format file and a skeleton YAML of five points, then train and measure on them.

    python examples/02_custom_keypoints.py          # about 40 s

It writes what you would bring: pictures, annotations/train.json and val.json, star5.yaml and a recipe. Afterwards
    lowpose data check coco:runs/examples/star5 --skeleton runs/examples/star5/star5.yaml
    lowpose sheet runs/examples/star5/run
"""

import argparse
from pathlib import Path

import numpy as np

import lowpose
from lowpose.files import write_json, write_text
from lowpose.images import write_image

SKELETON = """\
name: star5
keypoints: [head_top, left_wrist, right_wrist, left_ankle, right_ankle]
pairs: [[left_wrist, right_wrist], [left_ankle, right_ankle]]  # swapped when a picture is flipped
edges: [[head_top, left_wrist], [head_top, right_wrist], [head_top, left_ankle], [head_top, right_ankle]]
sigmas: [0.08, 0.062, 0.062, 0.089, 0.089]      # of OKS; without them there is no AP
groups: {Head: [head_top], Hands: [left_wrist, right_wrist], Feet: [left_ankle, right_ankle]}
"""
RECIPE = """\
base: synthetic/simcc_hrnet-w18-small_32
data: {{kind: coco, root: {root}, train: train, val: val, skeleton: {root}/star5.yaml}}
cache: {{dir: {root}/cache}}
train: {{epochs: {epochs}, batch_size: 16}}
"""


def write_split(root: Path, split: str, people: int) -> None:
    """Pictures and a COCO-format file; a keypoint is x, y (pixel indices, so -0.5) and 0, 1 or 2 for visibility."""
    data = lowpose.load_data("synthetic", split=split, skeleton=str(root / "star5.yaml"), options={"count": people})
    names = list(data.skeleton.keypoints)
    coco = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "person", "keypoints": names}]}
    for s in data.samples:
        image, name = data.read(s.image), f"{s.id:06d}.jpg"
        write_image(root / "images" / split / name, image)
        coco["images"].append({"id": s.id, "file_name": name, "height": image.shape[0], "width": image.shape[1]})
        points = np.column_stack([s.keypoints - 0.5, s.visibility]).ravel().tolist()
        person = {"id": s.id, "image_id": s.id, "category_id": 1, "bbox": s.box.tolist(), "area": s.area}
        coco["annotations"].append({**person, "keypoints": points})
    write_json(root / "annotations" / f"{split}.json", coco)


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--out", type=Path, default=Path("runs/examples/star5"))
parser.add_argument("--people", type=int, default=200)
parser.add_argument("--epochs", type=int, default=20)
args = parser.parse_args()
write_text(args.out / "star5.yaml", SKELETON)
write_text(args.out / "star5_32.yaml", RECIPE.format(root=args.out, epochs=args.epochs))
for split in ("train", "val"):
    write_split(args.out, split, args.people)
run = lowpose.train(lowpose.load_config(args.out / "star5_32.yaml"), args.out / "run", resume=True)
print(", ".join(f"{name} {m['value']:.1f}" for name, m in lowpose.evaluate(run)["metrics"].items()) + f"; see {run}/card.md")
