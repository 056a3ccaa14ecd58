"""One picture with boxes -> skeletons: the whole use of a trained model.

    python examples/01_predict.py                                            # trains a tiny model first, about 40 s
    python examples/01_predict.py --weights model.onnx --picture street.jpg --box 410 220 31 64 --box 96 201 40 85

Weights may be a run folder, a .safetensors file or an exported .onnx file (which needs no torch). The tiny model has seen 200
synthetic people at 32 x 32 pixels: enough to see where people stand, not how they hold their hands.
"""

import argparse
from pathlib import Path

import numpy as np

import lowpose
from lowpose.images import write_image


def tiny_model(out: Path, people: int, epochs: int) -> Path:
    settings = [f"data.options.count={people}", f"train.epochs={epochs}", "train.batch_size=16", f"cache.dir={out / 'cache'}"]
    return lowpose.train(lowpose.load_config("synthetic/simcc_hrnet-w18-small_32", settings), out / "run", resume=True)


def synthetic_street(people: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """A picture (H, W, 3) with people side by side, and their boxes (P, 4): x, y, width, height in pixels."""
    data = lowpose.load_data("synthetic", split="val", options={"count": people})
    pictures = [data.read(s.image) for s in data.samples]
    shift = np.cumsum([0, *(p.shape[1] for p in pictures)])[:-1]
    return np.hstack(pictures), np.stack([s.box + [x, 0, 0, 0] for s, x in zip(data.samples, shift, strict=True)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--box", type=float, nargs=4, action="append", metavar=("X", "Y", "WIDTH", "HEIGHT"))
    parser.add_argument("--threshold", type=float, default=0.0, help="least score of a joint that is drawn")
    parser.add_argument("--out", type=Path, default=Path("runs/examples/predict"))
    parser.add_argument("--people", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=25)
    args = parser.parse_args()

    model = lowpose.load(args.weights or tiny_model(args.out, args.people, args.epochs))
    image, boxes = (lowpose.read_image(args.picture), args.box) if args.picture else synthetic_street()
    poses = model.predict(image, boxes)  # without boxes: one person who fills the picture

    names = poses.skeleton.keypoints
    for person, (points, scores) in enumerate(zip(poses.keypoints, poses.scores, strict=True)):
        best = int(scores.argmax())
        print(f"person {person}: surest joint {names[best]} at {points[best].round(1)}, score {scores[best]:.2f}")
    write_image(args.out / "poses.png", lowpose.draw_poses(image, poses, threshold=args.threshold, boxes=True, scale=2))
    print(args.out / "poses.png")


if __name__ == "__main__":
    main()
