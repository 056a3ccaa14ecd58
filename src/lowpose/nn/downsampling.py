"""Put a lossless block in the place of every strided convolution and pooling layer of a network (MGIL, Fig. 3).

A replaced layer keeps its signature: channels, groups, stride, bias and the size of its output by its own formula. What
followed it (normalisation, activation) stays where it is; a pooling layer, which nothing follows, is given a ReLU. Where the
output is not H / stride, rows and columns at the bottom and the right are repeated, or left out as the layer itself left them
out. All other layers and their weights stay.

A strided 1 x 1 convolution, or a pooling layer that halves a residual block's other way, is a shortcut: kept, or (`shortcut:
lossless`) made space-to-depth and a 1 x 1 convolution. MGIL's paper says nothing of shortcuts; SPD's code keeps them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator
from timm.layers import AvgPool2dSame, Conv2dSame
from timm.layers.pool2d_same import MaxPool2dSame
from torch import Tensor, nn

from lowpose.config import Strict, validate
from lowpose.errors import LowposeError, did_you_mean
from lowpose.nn.layers.lossless import FLIE, MGIL, SPD, Fusion, Light, SpaceToDepth, fitted
from lowpose.nn.meta import meta_forward

SAME = (Conv2dSame, MaxPool2dSame, AvgPool2dSame)  # timm's: TensorFlow's padding
CONVOLUTIONS = (nn.Conv2d, Conv2dSame)
POOLS = (nn.MaxPool2d, nn.AvgPool2d, MaxPool2dSame, AvgPool2dSame)


def _rates(value: tuple[int, ...]) -> tuple[int, ...]:
    if not value or min(value) < 1:
        raise ValueError("rates are dilations of 1 or more, as [2, 3]")
    return value


class DownsamplingConfig(Strict):
    """`fine` to `light` are MGIL's (`lowpose.nn.layers.lossless`)."""

    name: Literal["mgil", "spd"] = "mgil"
    where: tuple[str, ...] = ("*",)  # patterns of module paths in the backbone, as conv1, transition*, layer2.*
    shortcut: Literal["keep", "lossless"] = "keep"
    fine: int = Field(2, ge=1)
    coarse: int = Field(2, ge=1)
    rates: Annotated[tuple[int, ...], AfterValidator(_rates)] = (2, 3)
    fusion: Fusion = "mgaf"
    cii: bool = True  # false: the fine path alone, which is FLIE
    light: Light = "none"

    @model_validator(mode="after")
    def _read(self) -> DownsamplingConfig:
        unread = ["fine", "coarse", "rates", "fusion", "cii", "light"] if self.name == "spd" else []
        unread = unread or ([] if self.cii else ["coarse", "rates", "fusion", "light"])
        for name in unread:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"'{name}' belongs to {'mgil' if self.name == 'spd' else 'the coarse path, which cii=false leaves out'}"
                )
        return self


@dataclass(frozen=True)
class Replaced:
    """One layer: its path, what it was, and its parameters before and after."""

    path: str
    was: str
    params_before: int
    params_after: int


class Fitted(nn.Module):
    """A lossless block whose output has the size that the replaced layer's would have."""

    def __init__(self, block: nn.Module, stride: int, rows: Window, columns: Window):
        super().__init__()
        self.block, self.stride, self.rows, self.columns = block, stride, rows, columns

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        return self.block(fitted(x, (self.rows(height) * self.stride, self.columns(width) * self.stride)))


@dataclass(frozen=True)
class Window:
    """How many outputs a convolution or pooling layer has along one axis of `side` inputs."""

    kernel: int
    stride: int
    padding: int
    dilation: int
    ceil: bool = False
    same: bool = False

    def __call__(self, side: int) -> int:
        if self.same:
            return -(-side // self.stride)
        free = side + 2 * self.padding - self.dilation * (self.kernel - 1) - 1
        if not self.ceil:
            return free // self.stride + 1
        count = -(-free // self.stride) + 1
        # the last window must begin inside the picture or its padding at the left
        return count - 1 if (count - 1) * self.stride >= side + self.padding else count


def replace_downsampling(
    network: nn.Module, with_: str = "mgil", where: Sequence[str] = ("*",), size: tuple[int, int] = (64, 64), **settings
) -> list[Replaced]:
    """Replace the layers that make the feature maps of `network` smaller, in place.

    Args:
        with_: 'mgil' or 'spd'. where: patterns of module paths, as ["conv1", "layer*"]; others stay.
        size: (width, height) of a picture that the network takes; it is run once, without numbers, to see how many
            channels pooling layers have.
        settings: the other fields of `DownsamplingConfig`.

    Returns: what was replaced, in the order of the modules.
    Raises: LowposeError, naming the layers, if one cannot be kept equal in signature, or if there is none.
    """
    return replace(network, validate(DownsamplingConfig, {"name": with_, "where": list(where), **settings}, "downsampling"), size)


def replace(network: nn.Module, config: DownsamplingConfig, size: tuple[int, int]) -> list[Replaced]:
    found = {path: module for path, module in network.named_modules() if _stride(module) is not None}
    if not found:
        raise LowposeError("model.downsampling: the network has no strided convolution or pooling layer")
    for pattern in config.where:
        if not any(fnmatchcase(path, pattern) for path in found):
            near = did_you_mean(pattern, found)
            raise LowposeError(f"model.downsampling.where: no layer that makes maps smaller is called '{pattern}'{near}")
    chosen = {path: m for path, m in found.items() if any(fnmatchcase(path, p) for p in config.where)}
    chosen = {path: m for path, m in chosen.items() if config.shortcut == "lossless" or not is_shortcut(path, m)}
    refused = [f"{path}, {why}" for path, module in chosen.items() if (why := _misfit(module))]
    if refused:
        raise LowposeError(f"model.downsampling cannot replace {'; '.join(refused[:3])}: name others with where")
    channels = _channels(network, [path for path, m in chosen.items() if not isinstance(m, nn.Conv2d)], size)
    return [_put(network, path, module, config, channels.get(path)) for path, module in chosen.items()]


def is_shortcut(path: str, module: nn.Module) -> bool:
    """Whether a layer is the other way around a residual block: a 1 x 1 convolution, or a pooling layer that is named so."""
    if isinstance(module, nn.Conv2d):
        return module.kernel_size == (1, 1)
    return any(part.startswith(("downsample", "shortcut")) for part in path.split("."))


def _stride(module: nn.Module) -> tuple[int, int] | None:
    """(rows, columns) of a layer without children that has a stride above one; None of all others."""
    if isinstance(module, nn.modules.conv._ConvTransposeNd) or any(True for _ in module.children()):
        return None
    stride = getattr(module, "stride", 1)
    pair = stride if isinstance(stride, tuple) else (stride, stride)
    return pair if len(pair) == 2 and all(isinstance(n, int) for n in pair) and max(pair) > 1 else None


def _misfit(module: nn.Module) -> str:
    """Why a layer cannot be replaced; '' if it can."""
    stride = _stride(module)
    if type(module) not in (*CONVOLUTIONS, *POOLS):
        return f"which is a {type(module).__name__}"
    if stride[0] != stride[1]:
        return f"whose stride is {stride[0]} x {stride[1]}"
    if getattr(module, "padding_mode", "zeros") != "zeros":
        return f"whose padding is '{module.padding_mode}'"
    return ""


def _channels(network: nn.Module, paths: list[str], size: tuple[int, int]) -> dict[str, int]:
    """Path -> channels of the maps that these layers see in one run on meta tensors."""
    seen: dict[str, int] = {}

    def note(path: str):
        return lambda _, inputs: seen.__setitem__(path, inputs[0].shape[1])

    hooks = [network.get_submodule(path).register_forward_pre_hook(note(path)) for path in paths]
    try:
        if paths:
            meta_forward(network, size)
    finally:
        for hook in hooks:
            hook.remove()
    unused = [path for path in paths if path not in seen]
    if unused:
        raise LowposeError(f"model.downsampling: the network never uses {unused[0]}")
    return seen


def _window(module: nn.Module, axis: int) -> Window:
    def along(value):
        return value if isinstance(value, int) else value[axis]

    given = [along(getattr(module, name, 1)) for name in ("kernel_size", "stride", "padding", "dilation")]
    return Window(*given, getattr(module, "ceil_mode", False), isinstance(module, SAME))


def _put(network: nn.Module, path: str, module: nn.Module, config: DownsamplingConfig, channels: int | None) -> Replaced:
    stride = _stride(module)[0]
    if isinstance(module, nn.Conv2d):
        given, wanted, groups = module.in_channels, module.out_channels, module.groups
    else:
        given, wanted, groups = channels, channels, 1
    if is_shortcut(path, module):
        block = nn.Sequential(SpaceToDepth(stride), nn.Conv2d(given * stride**2, wanted, 1, groups=groups, bias=False))
    else:
        block = make_block(config, given, wanted, stride, groups)
        if isinstance(module, POOLS):
            block = nn.Sequential(block, nn.ReLU(inplace=True))
    some = next(module.parameters(), None)
    some = next(network.parameters()) if some is None else some
    new = Fitted(block, stride, _window(module, 0), _window(module, 1)).to(some.device, some.dtype).train(module.training)
    parent, _, name = path.rpartition(".")
    setattr(network.get_submodule(parent), name, new)
    before, after = (sum(p.numel() for p in m.parameters()) for m in (module, new))
    return Replaced(path, type(module).__name__, before, after)


def make_block(config: DownsamplingConfig, given: int, wanted: int, stride: int, groups: int) -> nn.Module:
    if config.name == "spd":
        return SPD(given, wanted, stride, groups)
    if not config.cii:
        return FLIE(given, wanted, config.fine, stride, groups)
    return MGIL(given, wanted, config.fine, config.coarse, config.rates, config.fusion, config.light, stride, groups)
