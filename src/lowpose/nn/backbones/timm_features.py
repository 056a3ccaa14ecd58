"""Any timm model that gives feature maps, by name, and where its weights come from."""

from __future__ import annotations

import socket
from typing import Any
from urllib.parse import urlparse
from urllib.request import getproxies

import timm
import torch
from huggingface_hub import constants, try_to_load_from_cache
from torch import nn

from lowpose.errors import LowposeError, did_you_mean
from lowpose.nn.backbones.hrnet import HRNetPose


class Picture(nn.Module):
    """No backbone: the picture itself, as a feature map of stride 1."""

    reduction = 1

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images


class TimmFeatures(nn.Module):
    """The last feature map of a timm model. (B, 3, H, W) -> (B, C, h, w)."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net
        self.reduction = net.feature_info.reduction()[-1]
        self._channels_last = str(getattr(net, "output_fmt", "NCHW")).endswith("NHWC")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.net(images)[-1]
        return features.permute(0, 3, 1, 2) if self._channels_last else features


def create_body(
    name: str, size: tuple[int, int], pretrained: bool, stages: int | None = None
) -> HRNetPose | TimmFeatures | Picture:
    """The trunk of the timm model `name` for pictures of `size` (width, height), without classification parts; 'none': no trunk.

    `reduction` of the result is how many input pixels one step of its feature map stands for. With `pretrained`,
    timm's weights, which timm downloads or finds in its cache.
    Raises: LowposeError for an unknown name, a model without feature maps or weights, or a failed download.
    """
    if stages is not None and not name.startswith("hrnet_"):
        raise LowposeError(f"model.stages={stages}: only HRNet backbones are cut after a stage, not '{name}'")
    if name == "none":
        return Picture()
    if not timm.is_model(name):
        raise LowposeError(f"unknown backbone '{name}'{did_you_mean(name, timm.list_models())}")
    if pretrained and not timm.models.is_model_pretrained(name):
        raise LowposeError(f"timm has no pretrained weights of '{name}': give model.pretrained=none or a weights file")
    if pretrained and not _is_cached(name) and not _hub_has_address():
        raise _no_download(name, "no network")  # at once; the hub's client would try again for most of a minute
    try:
        return _create(name, size, pretrained, stages)
    except Exception as e:  # timm, the hub's client and the network raise many kinds
        if pretrained:
            create_body(name, size, False, stages)  # raises if it is the model that fails, not its weights
            raise _no_download(name, first_line(e)) from e
        raise LowposeError(f"backbone '{name}' gives no feature maps at {size[0]}x{size[1]} ({first_line(e)})") from e


def _create(name: str, size: tuple[int, int], pretrained: bool, stages: int | None) -> HRNetPose | TimmFeatures:
    if name.startswith("hrnet_"):
        return HRNetPose(timm.create_model(name, pretrained=pretrained), stages or 4)
    options: dict[str, Any] = {}
    cfg = timm.get_pretrained_cfg(name)
    if cfg is not None and cfg.fixed_input_size:
        options["img_size"] = (size[1], size[0])
    return TimmFeatures(timm.create_model(name, pretrained=pretrained, features_only=True, out_indices=(-1,), **options))


def _is_cached(name: str) -> bool:
    """Whether the weights lie in the hub's cache, or come from elsewhere than the hub."""
    cfg = timm.get_pretrained_cfg(name)
    files = (cfg.hf_hub_filename,) if cfg.hf_hub_filename else ("model.safetensors", "pytorch_model.bin")
    return not cfg.hf_hub_id or any(isinstance(try_to_load_from_cache(cfg.hf_hub_id, file), str) for file in files)


def _hub_has_address() -> bool:
    if getproxies():
        return True  # the proxy looks names up
    try:
        return bool(socket.getaddrinfo(urlparse(constants.ENDPOINT).hostname, 443))
    except OSError:
        return False


def _no_download(name: str, why: str) -> LowposeError:
    return LowposeError(
        f"the ImageNet weights of '{name}' could not be downloaded ({why}): give model.pretrained=none or a weights file"
    )


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its kind."""
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
