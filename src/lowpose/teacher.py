"""A trained model as a teacher: frozen, at its own size and precision, live or from a cache of its answers.

The cache stands beside the crop cache and holds, for each declared view (`augment.views`) of each person, the outputs that the
student's methods read, as fp16; bins as log-probabilities, merged to the student's (`teacher.cache: merged`) or all (`full`).

    DIR/teacher-KIND-SPLIT-KEY/manifest.json     what it was made from
                               view-003-x-96.npy (N, K, 96) float16: one file per view and output; merged: with its bins

KEY hashes the teacher's weights and precision, the persons, pictures and annotations, the views' seed and the augmentation, but
not the number of views or bins: more views, another output or a student of another size add files. Each appears whole, so a
killed pass goes on where it was. Of several processes the first fills the cache while the others wait: where that takes longer
than their time-out, fill it with one process before (`lowpose train RECIPE --stop-after 1 --out ELSEWHERE`).
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from lowpose import __version__
from lowpose.cards import sha256
from lowpose.checkpoint import load_model, weights_path
from lowpose.config import RunConfig, TeacherConfig
from lowpose.data.cache import cache_folder, facts_of, open_cache
from lowpose.data.crops import CropReader
from lowpose.errors import LowposeError
from lowpose.files import whole, write_json
from lowpose.loader import evaluation_batches
from lowpose.nn.distill.base import INNER, Side, describe
from lowpose.nn.distill.cca import merge_bins
from lowpose.nn.heads.base import Outputs
from lowpose.nn.layers.precision import chosen, computes
from lowpose.samples import PoseData
from lowpose.skeletons import Skeleton

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
BATCH = 128  # of the pass that fills a cache


class Teacher:
    """Attributes: model (frozen, eval mode), config (its own recipe), side (what it answers), sha256 (of its weights file)."""

    def __init__(self, settings: TeacherConfig, device: torch.device):
        """Raises: LowposeError for weights that are missing, damaged or do not fit, or a precision the device lacks."""
        self.settings, self.device = settings, device
        path = weights_path(settings.weights)
        self.sha256 = sha256(path)
        model, self.config = load_model(path)
        self.side = describe(model)
        self.model = model.to(device, memory_format=torch.channels_last).requires_grad_(False)
        self.precision = self._precision()

    def _precision(self) -> str:
        asked, cpu = self.settings.precision, self.device.type == "cpu"
        if asked == "fp16" and cpu:
            raise LowposeError("teacher.precision=fp16 needs a GPU; a CPU has bf16 or no")
        own = chosen(asked or self.config.train.precision, self.device)
        return own if asked or computes(own, self.device) else "no"

    @torch.no_grad()
    def answer(self, images: Tensor, names: list[str]) -> Outputs:
        """The named outputs, float32, for crops (B, 3, H, W) of its own size."""
        dtype = DTYPES.get(self.precision)
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            outputs = self.model(images, inner=not INNER.isdisjoint(names))
            if self.settings.flip:
                head = self.model.head  # only its outputs have a mirror image: what it reads stays as it is
                mirrored = head.flip(self.model(images.flip(-1)))
                own = {name: value for name, value in outputs.items() if name in mirrored}
                outputs = outputs | head.merge(own, mirrored)
        return {name: outputs[name].float() for name in names}

    def release(self) -> None:
        """Let go of the network, once its answers are kept."""
        self.model = None

    def check(self, config: RunConfig, skeleton: Skeleton) -> None:
        """Raises: LowposeError if it knows other keypoints, or its crop has another shape than the student's."""
        own = self.model.skeleton
        if own.keypoints != skeleton.keypoints:
            raise LowposeError(
                f"{self.settings.weights}: a teacher of skeleton '{own.name}' ({len(own)} keypoints); "
                f"the student learns '{skeleton.name}' ({len(skeleton)} keypoints)"
            )
        (w, h), (tw, th) = config.input.size, self.side.input_size
        if w * th != h * tw:
            raise LowposeError(
                f"{self.settings.weights}: the teacher's crop of {tw} x {th} has another shape than the student's {w} x {h}; "
                "both must show the same region"
            )

    def reader(self, data: PoseData, config: RunConfig) -> CropReader:
        """Crops of the student's views at the teacher's own size and resampling."""
        own = self.config.input.model_copy(update={"padding": config.input.padding})
        cache = open_cache(data, own, config.augment, config.cache) if config.cache.dir else None
        sharp = config.augment.model_copy(update={"camera": 0.0})  # the far camera is the student's alone
        return CropReader(data, own, sharp, config.train.seed, cache)


class TeacherCache:
    """Answers for declared views, read by (index, epoch)."""

    def __init__(self, folder: Path, labels: dict[str, str], views: int):
        """`labels`: output name -> what its files are called."""
        self.folder, self.labels, self.views = folder, labels, views
        self._view, self._maps = -1, {}  # only the view of the moment is open

    def __call__(self, index: int, epoch: int) -> dict[str, np.ndarray]:
        """float16 arrays by output name, for the view that this epoch shows."""
        view = epoch % self.views
        if view != self._view:
            self._maps = {n: np.load(view_file(self.folder, view, label), mmap_mode="r") for n, label in self.labels.items()}
            self._view = view
        return {name: answers[index] for name, answers in self._maps.items()}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_view": -1, "_maps": {}}  # a mapped file would be copied into each worker


def view_file(folder: Path, view: int, label: str) -> Path:
    return folder / f"view-{view:03d}-{label}.npy"


def open_teacher_cache(teacher: Teacher, data: PoseData, config: RunConfig, student: Side, names: list[str]) -> TeacherCache:
    """The cache of this teacher's named outputs for all views of a recipe; what it lacks is computed.

    Raises: LowposeError if the recipe declares no views or names no folder, or the folder cannot be written.
    """
    if config.augment.views is None:
        raise LowposeError("teacher.cache keeps answers for declared views; say how many: augment.views=10")
    if config.cache.dir is None:
        raise LowposeError("teacher.cache stands beside the crop cache; say where: cache.dir=.cache/lowpose")
    merged = config.teacher.cache == "merged"
    bins = {axis: student.shapes[axis][-1] for axis in "xy" if merged and axis in names}
    labels = {name: f"{name}-{bins[name]}" if name in bins else name for name in names}
    reader = teacher.reader(data, config)
    facts = _facts(teacher, data, config, reader)
    folder = cache_folder(Path(config.cache.dir), data, facts, "teacher-")
    write_json(folder / "manifest.json", facts)
    _fill(folder, teacher, reader, config, labels, bins)
    return TeacherCache(folder, labels, config.augment.views)


def _facts(teacher: Teacher, data: PoseData, config: RunConfig, reader: CropReader) -> dict:
    """Everything that the answers depend on, except how many views there are, and to how many bins they are merged."""
    return {
        "version": [2, __version__],
        "teacher": {"sha256": teacher.sha256, "precision": teacher.precision, "flip": teacher.settings.flip},
        "crops": facts_of(data, reader.settings, config.augment, config.cache),
        "input": reader.settings.model_dump(mode="json"),
        "augment": config.augment.model_dump(mode="json", exclude={"views", "seed", "camera"}),
        "skeleton": data.skeleton.to_dict(),  # half-body views depend on it
        "seed": reader.seed,
    }


def _fill(
    folder: Path, teacher: Teacher, reader: CropReader, config: RunConfig, labels: dict[str, str], bins: dict[str, int]
) -> None:
    missing = {}
    for view in range(config.augment.views):
        lacking = [name for name, label in labels.items() if not _is_whole(view_file(folder, view, label), len(reader))]
        if lacking:
            missing[view] = lacking
    console = Console(stderr=True)
    for view in track(
        missing, "teacher's answers", console=console, disable=not missing or not sys.stderr.isatty(), transient=True
    ):
        files = {name: view_file(folder, view, labels[name]) for name in missing[view]}
        _pass(files, teacher, reader, view, bins, config.train.workers)


def _is_whole(path: Path, persons: int) -> bool:
    """Whether a file holds an answer for each person; one that was cut short is computed again."""
    try:
        return len(np.load(path, mmap_mode="r")) == persons
    except (OSError, ValueError, EOFError):
        return False


def _pass(files: dict[str, Path], teacher: Teacher, reader: CropReader, view: int, bins: dict[str, int], workers: int) -> None:
    """One view of all persons through the teacher; all its files appear at the end."""
    with ExitStack() as stack:
        # written, not mapped: a full disk is then an error and not a crash
        out = {name: stack.enter_context(open(stack.enter_context(whole(path)), "wb")) for name, path in files.items()}
        for first, batch in enumerate(evaluation_batches(reader, BATCH, workers, epoch=view)):
            answers = teacher.answer(batch.images.to(teacher.device), list(files))
            for name, value in answers.items():
                if name in ("x", "y"):
                    value = merge_bins(value, bins.get(name, value.shape[-1]))
                if first == 0:
                    about = {"descr": "<f2", "fortran_order": False, "shape": (len(reader), *value.shape[1:])}
                    np.lib.format.write_array_header_1_0(out[name], about)
                out[name].write(value.clamp(-65504, 65504).half().cpu().numpy().tobytes())
