"""A new keypoint representation in one file of your own: direct regression, a Laplace distribution per joint.

    python examples/03_new_head_in_one_file.py          # about 30 s
    PYTHONPATH=examples python -m pytest -p 03_new_head_in_one_file tests/contracts -k laplace   # all that a head promises

A head owns its layers, targets, loss, decoding and flip (nn/heads/base.py). Loss: |error| / b + log 2b per axis, an L1 loss
that learns its own scale b; the score is the mass of that distribution within one pixel of the answer.
"""

import argparse
from typing import Literal

import torch
import torch.nn.functional as F

import lowpose
from lowpose.config import Strict
from lowpose.nn.heads.base import Decoded, PoseHead
from lowpose.registry import register


class LaplaceConfig(Strict):
    name: Literal["laplace"] = "laplace"
    least: float = 0.002  # scale b, half crops


@register("head", "laplace", LaplaceConfig)
class Laplace(PoseHead):
    """x, y and their scales from the whole feature map by one linear layer."""

    per_keypoint = {"final.weight": 4, "final.bias": 4}  # first axis (4, K): how weights move between skeletons

    def __init__(self, config, feature_shape, input_size, skeleton):
        super().__init__(feature_shape, input_size, skeleton)
        self.least, (c, h, w) = config.least, feature_shape
        self.final = torch.nn.Linear(c * h * w, 4 * len(skeleton))
        self.register_buffer("centre", torch.tensor(input_size) / 2, persistent=False)

    def forward(self, feature):  # (B, C, h, w) -> 'xy' (B, K, 2), half crops from the centre, and 'b' (B, K, 2)
        out = self.final(feature.flatten(1)).unflatten(-1, (4, self.num_keypoints)).transpose(1, 2)
        return {"xy": out[..., :2], "b": out[..., 2:]}

    def targets(self, keypoints, weight):
        inside = ((keypoints >= 0) & (keypoints < 2 * self.centre)).all(-1)
        return {"xy": keypoints / self.centre - 1}, weight * inside

    def scale(self, outputs):
        return F.softplus(outputs["b"].float()) + self.least

    def loss(self, outputs, targets, weight):  # a SUM over joints; training divides by the joints of the whole batch
        b = self.scale(outputs)
        return {"laplace": (((outputs["xy"].float() - targets["xy"]).abs() / b + (2 * b).log()).sum(-1) * weight).sum()}

    def decode(self, outputs):
        points = ((outputs["xy"].float() + 1) * self.centre).clamp(min=torch.zeros_like(self.centre), max=2 * self.centre)
        score = (1 - torch.exp(-1 / (self.scale(outputs) * self.centre))).prod(-1)
        return Decoded(points, score, score)

    def flip(self, outputs):
        swapped = {name: value[:, self.flip_index] for name, value in outputs.items()}
        return {**swapped, "xy": swapped["xy"] * swapped["xy"].new_tensor([-1.0, 1.0])}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="runs/examples/laplace")
    parser.add_argument("--changes", nargs="*", default=["train.epochs=20", "train.batch_size=32", "data.options.count=200"])
    args = parser.parse_args()
    changes = [*args.changes, "head={name: laplace}", f"cache.dir={args.out}/cache"]
    run = lowpose.train(lowpose.load_config("synthetic/simcc_hrnet-w18-small_32", changes), f"{args.out}/run", resume=True)
    print(f"mean error, crop pixels: {lowpose.evaluate(run)['metrics']['EPE_crop']['value']:.1f}; see {run}/card.md")
