"""Building blocks for networks of one's own: lossless downsampling (MGIL, SPD) and token mixers.

from lowpose.layers import replace_downsampling
network = timm.create_model("resnet18")
for layer in replace_downsampling(network, with_="mgil"):
    print(layer.path, layer.params_before, layer.params_after)
"""

from lowpose.nn.downsampling import Replaced, replace_downsampling
from lowpose.nn.layers.lossless import CII, FLIE, LIE, MGAF, MGIL, MRIE, SPD, SpaceToDepth
from lowpose.nn.mixers.attention import Attention
from lowpose.nn.mixers.gfl_dynamic import GFLDynamic
from lowpose.nn.mixers.gfl_static import GFLStatic

__all__ = [
    "CII",
    "FLIE",
    "LIE",
    "MGAF",
    "MGIL",
    "MRIE",
    "SPD",
    "Attention",
    "GFLDynamic",
    "GFLStatic",
    "Replaced",
    "SpaceToDepth",
    "replace_downsampling",
]
