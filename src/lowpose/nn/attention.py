"""Where a model looks: class activation maps of one joint at one layer, and the names of layers.

Grad-CAM (R. R. Selvaraju, M. Cogswell, A. Das, R. Vedantam, D. Parikh, D. Batra: Grad-CAM: Visual Explanations from Deep
Networks via Gradient-based Localization. ICCV 2017, arXiv:1610.02391): channels weighted by the mean of their gradient.
HiResCAM (R. L. Draelos, L. Carin: Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional neural
networks. arXiv:2011.08891): every position weighted by its own gradient.

The score that is explained is the joint's own answer: the logits of the two predicted bins, the peak of its map, or the score
of a regressed joint, which says where it is sure of itself and not what moves the joint.
"head" is the feature that the prediction head reads; of a token model, whose head reads no map, the visual tokens before
their first layer. Over a map, Grad-CAM of a heatmap is the heatmap; of SimCC it is the joint's channel times the mean of a
row of weights, whose sign is arbitrary: it may show all but the joint, where HiResCAM shows what each position adds to the
logits. SimCC's channels need not lie over the joint either: its linear layers undo any shift.
Of HRNet's stages the map is taken in the branch of the highest resolution.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lowpose.errors import LowposeError, did_you_mean
from lowpose.nn.backbones.hrnet import HRNetPose
from lowpose.nn.backbones.timm_features import Picture
from lowpose.nn.heads.base import Outputs
from lowpose.nn.model import PoseModel

HEAD = "head"
METHODS = {"grad-cam": "GradCAM", "hires-cam": "HiResCAM"}  # name -> class of the package grad-cam


def cam_class(method: str) -> Any:
    """Raises: LowposeError for an unknown method, or where the package grad-cam is not installed."""
    if method not in METHODS:
        raise LowposeError(f"unknown method '{method}'{did_you_mean(method, METHODS)}")
    try:
        import pytorch_grad_cam
    except ModuleNotFoundError as e:
        raise LowposeError(f"this needs '{e.name}', which is not installed: pip install 'lowpose[explain]'") from None
    return getattr(pytorch_grad_cam, METHODS[method])


def joint_scores(outputs: Outputs) -> Tensor:
    """What a head answers for each joint, (B, K): logits of the predicted bins, x plus y, the peak of its map, or its score.

    Raises: LowposeError for a head that gives none of them.
    """
    if "x" in outputs and "y" in outputs:
        return outputs["x"].amax(-1) + outputs["y"].amax(-1)
    if "map" in outputs:
        return outputs["map"].flatten(2).amax(-1)
    if "score" in outputs:
        return outputs["score"]
    raise LowposeError(
        f"a head that gives {', '.join(outputs)} has no attention maps yet: they need 'x' and 'y', 'map', or 'score'"
    )


class _Scores(nn.Module):
    """Crops -> joint_scores: grad-cam takes one tensor with a row per picture."""

    def __init__(self, model: PoseModel):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return joint_scores(self.model(images))


def attention(model: PoseModel, images: Tensor, joint: int, path: str, method: str = "grad-cam") -> np.ndarray:
    """Attention of one joint at one layer, each picture's map scaled to 0..1; all zeros where nothing speaks for the joint.

    Args:
        model: in eval mode. images: (B, 3, H, W) uint8 or float 0..255, RGB.
        joint: index. path: of a module, as `layer_paths` gives it. method: 'grad-cam' or 'hires-cam'.

    Returns: (B, H, W) float32, enlarged to the crop by linear interpolation.
    """
    cam = cam_class(method)(
        _Scores(model),
        [model.get_submodule(path)],
        reshape_transform=torch.clone,  # an in-place activation after the layer would change what is kept
    )
    try:
        with torch.enable_grad():
            # gradients flow from the pictures, so that frozen weights are explained as well
            return cam(images.float().requires_grad_(), [lambda scores: scores[joint]] * len(images))
    finally:
        cam.activations_and_grads.release()


def layer_paths(model: PoseModel, names: Iterable[str] | None, where: str = "model") -> dict[str, str]:
    """Layer names -> dotted paths of the modules whose outputs are explained.

    Args:
        model: in eval mode. names: 'head', a stage of the backbone (its final convolution) or the path of a module; None:
            'head' and the last two stages. where: of the model, for errors.

    Raises: LowposeError for an unknown name (nearest offered), or a module whose output is no feature map or not used.
    """
    known = {HEAD: "backbone" if model.tokens is None else "tokens.embed"} | _stages(model)
    if names is None:
        return {name: known[name] for name in [HEAD, *list(known)[:0:-1][:2]]}
    names = list(dict.fromkeys(names))
    if not names:
        raise LowposeError(f"no layers: name some of {', '.join(known)}, or paths of modules")
    modules = dict(model.named_modules())
    for name in names:
        if name not in known and (name not in modules or not name):
            near = did_you_mean(name, [*known, *modules]) or f"; known: {', '.join(known)} and paths of modules"
            raise LowposeError(f"{where}: no layer '{name}'{near}")
    paths = {name: known.get(name, name) for name in names}
    found, scores = _traced(model, list(paths.values()))
    for name, path in paths.items():
        outputs = found.get(path, [])
        if len(outputs) != 1 or not isinstance(outputs[0], Tensor) or outputs[0].ndim != 4:
            raise LowposeError(f"{where}: layer '{name}' gives no single (B, C, h, w) feature map; known: {', '.join(known)}")
        if torch.autograd.grad(scores.sum(), outputs, retain_graph=True, allow_unused=True)[0] is None:
            raise LowposeError(f"{where}: layer '{name}' has no part in where the joints are; known: {', '.join(known)}")
    return paths


def _stages(model: PoseModel) -> dict[str, str]:
    """Stages of the backbone in their order -> path of the final convolution (of HRNet: of the first branch).

    Stages without a convolution have none, and neither has a picture without a backbone. One that gives a single cell (squeeze
    and excite) is taken only if all do.
    """
    body = model.backbone.body
    if isinstance(body, Picture):
        return {}
    if isinstance(body, HRNetPose):
        kept = {f"stage{n}": getattr(body, f"stage{n}") for n in range(2, body.stages + 1)}
        parts = {name: f"{name}.{len(stage) - 1}.branches.0" for name, stage in kept.items()}
    else:
        inner = dict(body.named_modules())
        tapped = [entry["module"] for entry in body.net.feature_info.info]
        # timm's extractors write the dots of nested names as underscores
        spelled = [next((p for p in (n, n.replace(".", "_")) if f"net.{p}" in inner), None) for n in tapped]
        parts = {p: f"net.{p}" for p in spelled if p}
    modules = dict(model.named_modules())
    convolutions = [path for path, module in modules.items() if isinstance(module, nn.Conv2d)]
    shapes = {path: outputs[-1].shape[2:] for path, outputs in _traced(model, convolutions)[0].items()}
    found = {}
    for name, part in parts.items():
        inside = [path for path in shapes if f"{path}.".startswith(f"backbone.body.{part}.")]
        wide = [path for path in inside if shapes[path].numel() > 1]
        if inside:
            found[name] = (wide or inside)[-1]
    return found


@torch.enable_grad()
def _traced(model: PoseModel, paths: list[str]) -> tuple[dict[str, list[Any]], Tensor]:
    """Module path -> what it gave, call by call, for one black crop, in the order of the run; and its joint scores (1, K)."""
    found: dict[str, list[Any]] = {}
    hooks = [
        model.get_submodule(path).register_forward_hook(lambda _, __, out, path=path: found.setdefault(path, []).append(out))
        for path in dict.fromkeys(paths)
    ]
    width, height = model.input_size
    try:
        scores = joint_scores(model(torch.zeros(1, 3, height, width, device=model.mean.device, requires_grad=True)))
    finally:
        for hook in hooks:
            hook.remove()
    return found, scores
