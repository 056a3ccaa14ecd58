"""A new keypoint representation in one file of your own: direct regression by L1 with a learned scale (Laplace distribution).

    python examples/03_new_head_in_one_file.py [OUT] [key=value ...]          # about 30 s
    PYTHONPATH=examples python -m pytest -p 03_new_head_in_one_file tests/contracts -k laplace     # what every head promises
A head owns its layers, targets, loss, decoding and flip; what each must be stands in nn/heads/base.py.
"""

import sys

import torch

import lowpose
from lowpose.nn.heads.base import Decoded, PoseHead
from lowpose.registry import register
from lowpose.strict import Strict


class LaplaceConfig(Strict):
    name: str = "laplace"
    least: float = 0.002  # scale, half crops


@register("head", "laplace", LaplaceConfig)
class Laplace(PoseHead):
    """x, y and their scales from the whole feature map by one linear layer."""

    per_keypoint = {"final.weight": 4, "final.bias": 4}  # first axis (4, K): how weights move between skeletons

    def __init__(self, config, feature_shape, input_size, skeleton):
        super().__init__(feature_shape, input_size, skeleton)
        self.least, (c, h, w) = config.least, feature_shape
        self.final = torch.nn.Linear(c * h * w, 4 * len(skeleton))
        self.register_buffer("mirror", torch.tensor([-1.0, 1.0]), persistent=False)
        self.register_buffer("centre", torch.tensor(input_size) / 2, persistent=False)  # (2,) crop pixels, (x, y)

    def forward(self, feature):  # (B, C, h, w) -> 'xy' (B, K, 2), half crops from the centre; 'log_b' (B, K, 2)
        out = self.final(feature.flatten(1)).unflatten(-1, (4, self.num_keypoints)).transpose(1, 2)
        return {"xy": out[..., :2], "log_b": out[..., 2:]}

    def targets(self, keypoints, weight):  # joints outside the crop cannot be answered: weight 0
        return {"xy": keypoints / self.centre - 1}, weight * ((keypoints - self.centre).abs() <= self.centre).all(-1)

    def loss(self, outputs, targets, weight):  # a SUM over joints: |error| / b + log 2b per axis
        b = outputs["log_b"].float().exp() + self.least
        return {"laplace": (((outputs["xy"].float() - targets["xy"]).abs() / b + (2 * b).log()).sum(-1) * weight).sum()}

    def decode(self, outputs):  # the score is the mass within one pixel of the answer
        b = (outputs["log_b"].float().exp() + self.least) * self.centre
        score = (1 - torch.exp(-1 / b)).prod(-1)
        return Decoded((outputs["xy"].float().clamp(-1, 1) + 1) * self.centre, score, score)

    def flip(self, outputs):
        return {"xy": outputs["xy"][:, self.flip_index] * self.mirror, "log_b": outputs["log_b"][:, self.flip_index]}


if __name__ == "__main__":
    out, *changes = sys.argv[1:] or ["runs/examples/laplace", "data.options.count=200", "train.epochs=15", "train.batch_size=16"]
    changes += ["head={name: laplace}", f"cache.dir={out}/cache"]
    run = lowpose.train(lowpose.load_config("synthetic/simcc_hrnet-w18-small_32", changes), f"{out}/run", resume=True)
    print(f"mean error, crop pixels: {lowpose.evaluate(run)['metrics']['EPE_crop']['value']:.1f}; see {run}/card.md")
