"""Detectors of other libraries as functions picture -> person boxes: torchvision's and transformers'."""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torchvision.models import detection, get_model_weights

from lowpose.detectors import Detector
from lowpose.errors import LowposeError, first_of

PERSON = 1  # in COCO's numbering, which torchvision's detectors keep


def torchvision_detector(name: str, weights: str | Path | None = None, device: str | None = None) -> Detector:
    """One of torchvision's detectors for COCO's 91 numbers of classes; arguments as `lowpose.load_detector`."""
    model = getattr(detection, name)(weights=None, weights_backbone=None, num_classes=91)
    _fill(model, _downloaded(name) if weights is None else _read(Path(weights)), weights or name)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).eval()

    @torch.inference_mode()
    def detect(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        picture = torch.from_numpy(np.ascontiguousarray(image)).to(device).permute(2, 0, 1).float() / 255
        (found,) = model([picture])
        return _persons(found["boxes"], found["scores"], found["labels"] == PERSON)

    return detect


def hugging_face(folder: Path, device: str | None = None) -> Detector:
    """The model for object detection in a local folder (config.json, preprocessor_config.json, model.safetensors)."""
    from transformers import AutoImageProcessor, AutoModelForObjectDetection
    from transformers.utils import logging

    logging.disable_progress_bar()  # it counts tensors on standard error
    try:
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        model = AutoModelForObjectDetection.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except ImportError:
        raise
    except Exception as e:  # transformers raises many kinds
        raise LowposeError(f"{folder}: no model for object detection that transformers can load ({_line(e)})") from None
    persons = [number for number, label in model.config.id2label.items() if str(label).lower() == "person"]
    if not persons:
        labels = list(map(str, model.config.id2label.values()))
        raise LowposeError(f"{folder}: has no class 'person' (its classes: {first_of(labels)})")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).eval()

    @torch.inference_mode()
    def detect(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        inputs = processor(images=image, return_tensors="pt", input_data_format="channels_last").to(device)
        (found,) = processor.post_process_object_detection(model(**inputs), threshold=0.0, target_sizes=[image.shape[:2]])
        boxes = found["boxes"].clamp(min=0).minimum(found["boxes"].new_tensor([*image.shape[1::-1]] * 2))
        return _persons(boxes, found["scores"], torch.isin(found["labels"], torch.tensor(persons, device=device)))

    return detect


def _persons(corners: torch.Tensor, scores: torch.Tensor, chosen: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(P, 4) float64 (x, y, width, height) and (P,) float64 of the chosen boxes (x0, y0, x1, y1) that have an area."""
    corners = corners.double()
    boxes = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)
    chosen = chosen & (boxes[:, 2:] > 0).all(1)
    return boxes[chosen].cpu().numpy(), scores[chosen].double().cpu().numpy()


def _read(path: Path) -> Mapping[str, torch.Tensor]:
    """The tensors of a .pth or .safetensors file; nothing else is unpickled. Raises: LowposeError naming the file."""
    if not path.is_file():
        raise LowposeError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        values = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError:
        raise
    except pickle.UnpicklingError:
        raise LowposeError(f"{path}: holds more than tensors, or is damaged; give a state dict (.pth or .safetensors)") from None
    except Exception as e:  # torch and safetensors raise many kinds for a damaged file
        raise LowposeError(f"{path}: not readable as weights ({_line(e)})") from None
    if not isinstance(values, Mapping) or not all(isinstance(v, torch.Tensor) for v in values.values()):
        raise LowposeError(f"{path}: not a state dict (names and tensors)")
    return values


def _downloaded(name: str) -> Mapping[str, torch.Tensor]:
    """torchvision's own weights, from its cache or the network. Raises: LowposeError that says what to do without either."""
    weights = get_model_weights(name).DEFAULT
    try:
        with redirect_stdout(io.StringIO()):  # where torch says that it downloads; the bar is on standard error
            return weights.get_state_dict(progress=sys.stderr.isatty(), check_hash=True)
    except (OSError, RuntimeError) as e:  # URLError is an OSError; a wrong hash is a RuntimeError
        raise LowposeError(
            f"detector '{name}': its weights are not in torchvision's cache and cannot be downloaded ({_line(e)}): "
            f"fetch {weights.url} elsewhere and give it as --detector-weights FILE, or give --boxes FILE"
        ) from None


def _fill(model: nn.Module, state: Mapping[str, torch.Tensor], source: str | Path) -> None:
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as e:  # tensors of other shapes
        raise LowposeError(f"{source}: weights of another detector ({_line(e, 1)})") from None
    if missing or unexpected:
        what = f"without {first_of(missing, 1)}" if missing else f"with {first_of(unexpected, 1)}"
        raise LowposeError(f"{source}: weights of another detector ({what})")


def _line(error: Exception, number: int = 0) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[min(number, len(lines) - 1)][:160]
