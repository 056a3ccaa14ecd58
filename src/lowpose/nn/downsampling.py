"""Put a lossless block in the place of every strided convolution and pooling layer of a network (MGIL, Fig. 3).

A replaced layer keeps its signature: channels, groups, stride and the size of its output by its own formula. What followed it
(normalisation, activation) stays where it is; a pooling layer, which nothing follows, is given a normalisation where the block
ends without one, and a ReLU. All other layers and their weights stay.

The block sees all that the layer sees. Where the output is larger than H / stride, rows and columns at the bottom and the right
are repeated; where it is smaller (a large kernel without padding), the block works on all of the map and the cells that lie
nearest to the layer's windows are kept: the block's own 3 x 3 convolutions have read the others.

A strided 1 x 1 convolution or a pooling layer on a residual block's other way is a shortcut: kept, or (`shortcut: lossless`)
made space-to-depth and a 1 x 1 convolution. It is known by its path (SHORTCUTS). MGIL's paper says nothing of shortcuts; SPD's
code keeps them. What is no layer (a pooling function, a slice with a step) is not found and stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Literal

import torch
from pydantic import AfterValidator, Field, model_validator
from timm.layers import AvgPool2dSame, Conv2dSame
from timm.layers.pool2d_same import MaxPool2dSame
from torch import Tensor, nn

from lowpose.errors import LowposeError, did_you_mean
from lowpose.nn.cost import macs_of
from lowpose.nn.layers.lossless import FLIE, MGIL, SPD, Fusion, Light, SpaceToDepth, fitted
from lowpose.nn.meta import meta_forward
from lowpose.strict import Strict, validate

SAME = (Conv2dSame, MaxPool2dSame, AvgPool2dSame)  # timm's: TensorFlow's padding
CONVOLUTIONS = (nn.Conv2d, Conv2dSame)
POOLS = (nn.MaxPool2d, nn.AvgPool2d, MaxPool2dSame, AvgPool2dSame)
SHORTCUTS = ("downsample", "shortcut", "skip", "proj", "identity", "residual")  # a part of the path of each


def _rates(value: tuple[int, ...]) -> tuple[int, ...]:
    if not value or min(value) < 1:
        raise ValueError("rates are dilations of 1 or more, as [2, 3]")
    return value


class DownsamplingConfig(Strict):
    """`fine` to `light` are MGIL's (`lowpose.nn.layers.lossless`)."""

    name: Literal["mgil", "spd"] = "mgil"
    # patterns of module paths in the backbone, as `lowpose info` lists them: conv1, transition*, net.layer2.*; with a ! before
    # it: all but these
    where: tuple[str, ...] = ("*",)
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
    """One layer: its path, what it was, its parameters and its multiply-accumulates for one picture, before and after."""

    path: str
    was: str
    params_before: int
    params_after: int
    macs_before: int
    macs_after: int


class Fitted(nn.Module):
    """A lossless block whose output has the size that the replaced layer's would have."""

    def __init__(self, block: nn.Module, stride: int, rows: Window, columns: Window):
        super().__init__()
        self.block, self.stride, self.rows, self.columns = block, stride, rows, columns

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        out = self.block(fitted(x, (self.rows.cells(height) * self.stride, self.columns.cells(width) * self.stride)))
        rows, columns = self.rows(height), self.columns(width)
        if out.shape[-2:] == (rows, columns):
            return out
        top, left = self.rows.first(height), self.columns.first(width)
        return out[..., top : top + rows, left : left + columns]


@dataclass(frozen=True)
class Window:
    """Where the windows of a convolution or pooling layer lie along one axis of `side` inputs; called: how many there are."""

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

    def cells(self, side: int) -> int:
        """How many cells of `stride` inputs hold everything that the windows read, at least one for each window."""
        read = (self(side) - 1) * self.stride + self.dilation * (self.kernel - 1) + 1 - self.padding
        return self(side) if self.same else max(self(side), -(-min(side, read) // self.stride))

    def first(self, side: int) -> int:
        """The cell that lies nearest to the middle of the first window, so that one is left for each."""
        middle = self.dilation * (self.kernel - 1) / 2 - self.padding
        return min(max(0, round((middle - (self.stride - 1) / 2) / self.stride)), self.cells(side) - self(side))


def replace_downsampling(
    network: nn.Module, with_: str = "mgil", where: Sequence[str] = ("*",), size: tuple[int, int] = (64, 64), **settings
) -> list[Replaced]:
    """Replace the layers that make the feature maps of `network` smaller, in place.

    Args:
        with_: 'mgil' or 'spd'. where: patterns of module paths, as ["conv1", "layer*"]; others stay. ["!layer4.*"]: all others.
        size: (width, height) of a picture that the network takes; it is run once, without numbers, to see the maps.
        settings: the other fields of `DownsamplingConfig`.

    Returns: what was replaced, in the order of the modules.
    Raises: LowposeError, naming the layers, if one cannot be kept equal in signature, or if there is none.
    """
    return replace(network, validate(DownsamplingConfig, {"name": with_, "where": list(where), **settings}, "downsampling"), size)


def replace(network: nn.Module, config: DownsamplingConfig, size: tuple[int, int]) -> list[Replaced]:
    if _stride(network) is not None:
        raise LowposeError("model.downsampling: the network is itself such a layer; put it into a torch.nn.Sequential")
    found = {path: module for path, module in network.named_modules() if _stride(module) is not None}
    if not found:
        raise LowposeError("model.downsampling: the network has no strided convolution or pooling layer")
    chosen = _chosen(found, config)
    refused = [f"{path}, {why}" for path, module in chosen.items() if (why := _misfit(module))]
    if refused:
        more = f" and {len(refused) - 3} more" if len(refused) > 3 else ""
        one = refused[0].partition(",")[0]
        raise LowposeError(
            f"model.downsampling cannot replace {'; '.join(refused[:3])}{more}: name others with where, or leave out: ['!{one}']"
        )
    maps = _maps(network, list(chosen), size)
    return [_put(network, path, chosen[path], config, shape) for path, shape in maps.items()]


def _chosen(found: dict[str, nn.Module], config: DownsamplingConfig) -> dict[str, nn.Module]:
    """The layers that are to be replaced. Raises: LowposeError for a pattern that fits none, or shortcuts alone."""
    for pattern in config.where:
        if not any(fnmatchcase(path, pattern.removeprefix("!")) for path in found):
            near = did_you_mean(pattern, found)
            raise LowposeError(f"model.downsampling.where: no layer that makes maps smaller is called '{pattern}'{near}")
    out = [p.removeprefix("!") for p in config.where if p.startswith("!")]
    wanted = [p for p in config.where if not p.startswith("!")] or ["*"]
    named = [path for path in found if any(fnmatchcase(path, p) for p in wanted) and not any(fnmatchcase(path, p) for p in out)]
    if not named:
        raise LowposeError(f"model.downsampling.where: {list(config.where)} leaves no layer to replace")
    chosen = {p: found[p] for p in named if config.shortcut == "lossless" or not is_shortcut(p, found[p])}
    if not chosen:
        raise LowposeError(f"model.downsampling: {named[0]} is a shortcut, which is kept; give shortcut=lossless")
    return chosen


def is_shortcut(path: str, module: nn.Module) -> bool:
    """Whether a layer is the other way around a residual block: a pooling layer or a 1 x 1 convolution that is named so."""
    fine = not isinstance(module, nn.Conv2d) or module.kernel_size == (1, 1)
    return fine and any(part in SHORTCUTS or part.startswith("shortcut_") for part in path.split("."))


def _stride(module: nn.Module) -> tuple[int, int] | None:
    """(rows, columns) of a layer that has a stride above one; None of all others, and of blocks of our own."""
    # a convolution may hold its parametrisation
    holds = not isinstance(module, nn.Conv2d) and any(True for _ in module.children())
    if holds or isinstance(module, (nn.modules.conv._ConvTransposeNd, SpaceToDepth)):
        return None
    stride = getattr(module, "stride", 1)
    stride = getattr(module, "kernel_size", 1) if stride is None else stride
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


def _maps(network: nn.Module, paths: list[str], size: tuple[int, int]) -> dict[str, torch.Size]:
    """Path -> shape of the map that this layer sees in one run on meta tensors, of those that are used.

    Raises: LowposeError for a size that the network does not run on, a pooling layer used twice, or if none is used.
    """
    seen: dict[str, list[torch.Size]] = {path: [] for path in paths}
    hooks = [
        network.get_submodule(path).register_forward_pre_hook(lambda _, inputs, shapes=shapes: shapes.append(inputs[0].shape))
        for path, shapes in seen.items()
    ]
    try:
        meta_forward(network, size)
    except (RuntimeError, AssertionError, ValueError) as e:
        reason = (str(e).splitlines() or [type(e).__name__])[0]
        raise LowposeError(
            f"model.downsampling: the network does not run on {size[0]} x {size[1]} RGB pixels; give size ({reason})"
        ) from None
    finally:
        for hook in hooks:
            hook.remove()
    for path, shapes in seen.items():
        if len(shapes) > 1 and isinstance(network.get_submodule(path), POOLS):
            raise LowposeError(
                f"model.downsampling cannot replace {path}, which the network uses {len(shapes)} times, by one block that learns"
            )
    if not any(seen.values()):
        raise LowposeError(f"model.downsampling: the network never uses {', '.join(paths[:3])}")
    return {path: shapes[0] for path, shapes in seen.items() if shapes}


def _window(module: nn.Module, axis: int) -> Window:
    def along(value):
        return 0 if value == "valid" else value if isinstance(value, int) else value[axis]

    given = [along(getattr(module, name, 1)) for name in ("kernel_size", "stride", "padding", "dilation")]
    return Window(*given, getattr(module, "ceil_mode", False), isinstance(module, SAME))


def _put(network: nn.Module, path: str, module: nn.Module, config: DownsamplingConfig, shape: torch.Size) -> Replaced:
    stride = _stride(module)[0]
    if isinstance(module, nn.Conv2d):
        given, wanted, groups = module.in_channels, module.out_channels, module.groups
    else:
        given, wanted, groups = shape[1], shape[1], 1
    if is_shortcut(path, module):
        block = nn.Sequential(SpaceToDepth(stride), nn.Conv2d(given * stride**2, wanted, 1, groups=groups, bias=False))
    else:
        block = make_block(config, given, wanted, stride, groups)
        if isinstance(module, POOLS):
            norm = [nn.BatchNorm2d(wanted)] if isinstance(block, FLIE) else []
            block = nn.Sequential(block, *norm, nn.ReLU(inplace=True))
    some = next((p for p in (*module.parameters(), *network.parameters()) if p.is_floating_point()), torch.zeros(0))
    new = Fitted(block, stride, _window(module, 0), _window(module, 1)).to(some.device, some.dtype).train(module.training)
    for alias in [name for name, other in network.named_modules(remove_duplicate=False) if other is module]:
        parent, _, name = alias.rpartition(".")
        setattr(network.get_submodule(parent), name, new)
    before, after = (sum(p.numel() for p in m.parameters()) for m in (module, new))
    return Replaced(path, type(module).__name__, before, after, macs_of(module, shape), macs_of(new, shape))


def make_block(config: DownsamplingConfig, given: int, wanted: int, stride: int, groups: int) -> nn.Module:
    if config.name == "spd":
        return SPD(given, wanted, stride, groups)
    if not config.cii:
        return FLIE(given, wanted, config.fine, stride, groups)
    return MGIL(given, wanted, config.fine, config.coarse, config.rates, config.fusion, config.light, stride, groups)
