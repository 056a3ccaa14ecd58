"""Any timm model that gives feature maps, by name, and where its weights come from."""

from __future__ import annotations

import socket
from inspect import signature
from urllib.parse import urlparse
from urllib.request import getproxies

import timm
import torch
from huggingface_hub import constants, try_to_load_from_cache
from torch import nn

from lowpose.config import ModelConfig
from lowpose.errors import LowposeError, did_you_mean
from lowpose.nn.backbones.hrnet import HRNetPose

# what `model.options` may not say: how timm makes a model, the size and form of its pictures and maps, its classification part
NO_OPTIONS = {
    *signature(timm.create_model).parameters,
    *("features_only", "feature_cfg", "out_indices", "output_fmt", "img_size", "in_chans"),
    *("num_classes", "global_pool", "drop_rate"),
}


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


def create_body(config: ModelConfig, size: tuple[int, int]) -> HRNetPose | TimmFeatures | Picture:
    """The trunk of a timm model for pictures of `size` (width, height), without classification parts; 'none': no trunk.

    `reduction` of the result is how many input pixels one step of its feature map stands for. With `pretrained: imagenet`,
    timm's weights, which timm downloads or finds in its cache. `stem: small`: see `with_small_stem`.
    Raises: LowposeError for an unknown name, a model without feature maps or weights, options that it does not have, a failed
    download, another stem.
    """
    name, pretrained = config.backbone, config.pretrained == "imagenet"
    if config.stages is not None and not name.startswith("hrnet_"):
        raise LowposeError(f"model.stages={config.stages}: only HRNet backbones are cut after a stage, not '{name}'")
    if name == "none":
        return Picture()
    if not timm.is_model(name):
        raise LowposeError(f"unknown backbone '{name}'{did_you_mean(name, timm.list_models())}")
    for key in config.options:
        if key in NO_OPTIONS:
            raise LowposeError(f"model.options.{key}: lowpose sets that itself, or drops the part that it is for; leave it out")
    if pretrained and not timm.models.is_model_pretrained(name):
        raise LowposeError(f"timm has no pretrained weights of '{name}': give model.pretrained=none or a weights file")
    if pretrained and not _is_cached(name) and not _hub_has_address():
        raise _no_download(name, "no network")  # at once; the hub's client would try again for most of a minute
    try:
        body = _create(config, size)
    except Exception as e:  # timm, the hub's client and the network raise many kinds
        raise _no_body(config, size, e) from e
    return with_small_stem(body, name) if config.stem == "small" else body


def _no_body(config: ModelConfig, size: tuple[int, int], error: Exception) -> LowposeError:
    """What of a recipe is to blame: the weights, the options or the model, tried in this order.

    Raises: LowposeError if the model fails without its weights too.
    """
    name = config.backbone
    if config.pretrained == "imagenet":
        create_body(config.model_copy(update={"pretrained": "none"}), size)
        if not config.options:
            return _no_download(name, first_line(error))
        create_body(config.model_copy(update={"options": {}}), size)
        return LowposeError(f"the ImageNet weights of '{name}' do not fit model.options: give model.pretrained=none")
    if config.options:
        create_body(config.model_copy(update={"options": {}}), size)
        return LowposeError(f"model.options do not fit backbone '{name}' ({first_line(error)})")
    return LowposeError(f"backbone '{name}' gives no feature maps at {size[0]}x{size[1]} ({first_line(error)})")


def with_small_stem(body: nn.Module, name: str) -> TimmFeatures:
    """A ResNet whose stem is one 3x3 convolution of stride 1 without pooling, for pictures of a few dozen pixels (K. He et al.,
    Deep residual learning for image recognition, 2016, section 4.2). The new convolution begins anew.

    Raises: LowposeError for a network whose stem is not a 7x7 convolution of stride 2 and a max-pooling.
    """
    net = body.net if isinstance(body, TimmFeatures) else body
    conv = getattr(net, "conv1", None)
    if (
        not isinstance(conv, nn.Conv2d)
        or conv.kernel_size != (7, 7)
        or not isinstance(getattr(net, "maxpool", None), nn.MaxPool2d)
    ):
        raise LowposeError(f"model.stem=small changes the stem of ResNets, as resnet18; '{name}' has another")
    net.conv1 = nn.Conv2d(conv.in_channels, conv.out_channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")  # as timm begins its own
    net.maxpool = nn.Identity()
    body.reduction //= 4
    return body


def _create(config: ModelConfig, size: tuple[int, int]) -> HRNetPose | TimmFeatures:
    name, options = config.backbone, {"pretrained": config.pretrained == "imagenet"} | config.options
    if name.startswith("hrnet_"):
        return HRNetPose(timm.create_model(name, **options), config.stages or 4)
    cfg = timm.get_pretrained_cfg(name)
    if cfg is not None and cfg.fixed_input_size:
        options["img_size"] = (size[1], size[0])
    return TimmFeatures(timm.create_model(name, features_only=True, out_indices=(-1,), **options))


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
