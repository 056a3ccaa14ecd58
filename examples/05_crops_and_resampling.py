"""What the network sees: the same people at 32 x 32 pixels, brought down in three ways.

    python examples/05_crops_and_resampling.py          # a few seconds; no torch

At this size the way of bringing a picture down decides the result, so it is a named setting (`input.resample`) that cards state:
`area` averages (anti-aliased), `paper` is the single bilinear warp of published code, which aliases, and `camera` is a far camera
with blur, noise and JPEG. A model trained on one is worse on another: measure with `lowpose eval RUN input.resample=camera`.
"""

import argparse
from pathlib import Path

import numpy as np

import lowpose
from lowpose.config import InputConfig
from lowpose.data.crops import CropReader
from lowpose.draw import contact_sheet, draw_crop
from lowpose.images import write_image

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--data", default="synthetic", help="KIND:ROOT, as coco:data/coco")
parser.add_argument("--size", type=int, default=32, help="pixels")
parser.add_argument("--people", type=int, default=6)
parser.add_argument("--out", type=Path, default=Path("runs/examples/resampling.png"))
args = parser.parse_args()

kind, _, root = args.data.partition(":")
data = lowpose.load_data(kind, root or None, "val").subset(range(args.people))
rows = {"picture": InputConfig(size=(192, 192))}
for policy in ("area", "paper", "camera"):
    rows[policy] = InputConfig(size=(args.size, args.size), resample=policy, camera={"height": (args.size, args.size)})

tiles, crops = [], {}
for name, settings in rows.items():
    reader = CropReader(data, settings)  # the one pre-processing path of training, evaluation and prediction
    crops[name] = [reader.crop(i) for i in range(len(data))]
    for crop in crops[name]:
        truth = np.where(crop.weight[:, None] > 0, crop.keypoints, np.nan) if name == "picture" else None
        tiles.append(draw_crop(crop.image, None, None, data.skeleton, gt=truth))
caption = f"The same people at {args.size} x {args.size} pixels by resampling policy; dashed: the labels"
write_image(args.out, contact_sheet(tiles, len(data), caption=caption, rows=list(rows)))

for name in ("paper", "camera"):
    apart = np.mean([np.abs(a.image.astype(float) - b.image).mean() for a, b in zip(crops[name], crops["area"], strict=True)])
    print(f"{name} differs from area by {apart:.1f} grey levels on average")
print(args.out)
