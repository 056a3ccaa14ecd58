"""lowpose: human pose estimation for people a few dozen pixels tall. Importing it imports no torch.

    import lowpose
    poses = lowpose.load("weights.safetensors").predict(image, boxes)   # keypoints in picture pixels, scores in 0..1

The public API is what `__all__` names; each name is imported at its first use. No module of the package has one of
these names, since importing it would put the module in the function's place.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "Detector": "lowpose.detectors",
    "LowposeError": "lowpose.errors",
    "PersonSample": "lowpose.samples",
    "PoseData": "lowpose.samples",
    "PoseResult": "lowpose.samples",
    "RunConfig": "lowpose.config",
    "Skeleton": "lowpose.skeletons",
    "bench": "lowpose.benchmark",
    "breakdown": "lowpose.metrics.breakdown",
    "calibrate": "lowpose.calibration",
    "compare": "lowpose.comparison",
    "draw_poses": "lowpose.draw",
    "evaluate": "lowpose.evaluation",
    "export_onnx": "lowpose.export",
    "export_reduced": "lowpose.smaller",
    "get_skeleton": "lowpose.skeletons",
    "info": "lowpose.recipe_info",
    "list_recipes": "lowpose.listing",
    "list_weights": "lowpose.shipped",
    "load": "lowpose.runtime",
    "load_config": "lowpose.recipe_files",
    "load_data": "lowpose.data",
    "load_detector": "lowpose.detectors",
    "predict_sources": "lowpose.predict",
    "measure_robustness": "lowpose.robustness",
    "read_image": "lowpose.images",
    "sweep": "lowpose.sweeping",
    "train": "lowpose.training",
    "write_image": "lowpose.images",
}
__all__ = sorted([*_WHERE, "__version__"])

if TYPE_CHECKING:
    from lowpose.benchmark import bench
    from lowpose.calibration import calibrate
    from lowpose.comparison import compare
    from lowpose.config import RunConfig
    from lowpose.data import load_data
    from lowpose.detectors import Detector, load_detector
    from lowpose.draw import draw_poses
    from lowpose.errors import LowposeError
    from lowpose.evaluation import evaluate
    from lowpose.export import export_onnx
    from lowpose.images import read_image, write_image
    from lowpose.listing import list_recipes
    from lowpose.metrics.breakdown import breakdown
    from lowpose.predict import predict_sources
    from lowpose.recipe_files import load_config
    from lowpose.recipe_info import info
    from lowpose.robustness import measure_robustness
    from lowpose.runtime import load
    from lowpose.samples import PersonSample, PoseData, PoseResult
    from lowpose.shipped import list_weights
    from lowpose.skeletons import Skeleton, get_skeleton
    from lowpose.smaller import export_reduced
    from lowpose.sweeping import sweep
    from lowpose.training import train


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'lowpose' has no attribute '{name}'")
    value = getattr(importlib.import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
