"""Annotations -> persons. `load_data("lsp", root, "val")` gives one split of a data set.

Each reader is one file that registers a function
`(root: Path, split: str, *, boxes: str, skeleton: Skeleton | None, options: dict) -> PoseData`.
Readers convert to continuous pixels at the door (COCO, CrowdPose joints +0.5, MPII joints -0.5).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lowpose import registry
from lowpose.errors import LowposeError, did_you_mean
from lowpose.samples import PoseData, check_sample
from lowpose.skeletons import get_skeleton

# kind of the registered readers: what they read
READS = {"data": "poses", "classes": "pictures in classes (task: classification)"}


def load_data(
    kind: str,
    root: str | Path | None = None,
    split: str = "train",
    *,
    boxes: str = "gt",
    skeleton: str | None = None,
    options: dict[str, Any] | None = None,
) -> PoseData:
    """One split of a data set, every sample checked against the skeleton.

    Args:
        kind: registered reader; `root`: its folder (default data/KIND; synthetic needs none).
        split: name, or for COCO-format data a path to the JSON file.
        boxes: 'gt', or a detector's result file. `skeleton`: built-in name or YAML file.

    Raises: LowposeError for an unknown kind, a missing root, an empty split, or annotations that do not fit.
    """
    data = read_split(kind, root, split, boxes=boxes, skeleton=skeleton, options=options)
    if not data.samples:
        raise LowposeError(f"{kind}:{data.root}: split '{split}' has no persons with labelled joints")
    where = str(data.annotations or f"{kind}:{data.root}")
    for sample in data.samples:
        check_sample(sample, data.skeleton, where)
    return data


def read_split(
    kind: str,
    root: str | Path | None,
    split: str,
    *,
    boxes: str = "gt",
    skeleton: str | None = None,
    options: dict[str, Any] | None = None,
) -> PoseData:
    """As `load_data`, but the samples are not checked and may be none (for `data check`)."""
    entry = find_reader("data", kind)
    folder = Path(root) if root is not None else Path("data") / kind
    if kind != "synthetic" and not folder.is_dir():
        raise LowposeError(f"{folder}: no such folder (root of the {kind} data; see: lowpose data get)")
    own = get_skeleton(skeleton) if skeleton else None
    return entry.make(folder, split, boxes=boxes, skeleton=own, options=options or {})


def parse_source(source: str, readers: str = "data") -> tuple[str, str | None]:
    """'KIND:ROOT' or 'KIND' -> (kind, root). Raises: LowposeError for a kind that is none of these readers."""
    kind, _, root = source.partition(":")
    find_reader(readers, kind)
    return kind, root or None


def find_reader(readers: str, kind: str) -> registry.Entry:
    """The reader of this kind among `readers`, a key of READS. Raises: LowposeError for an unknown one or one of the others."""
    found = readers_of(kind)
    if found != readers:
        raise LowposeError(
            f"'{kind}' data hold {READS[found]}; {READS[readers]} are read by {', '.join(registry.names(readers))}"
        )
    return registry.find(readers, kind)


def readers_of(kind: str) -> str:
    """The key of READS whose readers have this one. Raises: LowposeError for an unknown kind."""
    known = {readers: registry.names(readers) for readers in READS}
    for readers, names in known.items():
        if kind in names:
            return readers
    raise LowposeError(f"unknown data '{kind}'{did_you_mean(kind, sum(known.values(), []))}")
