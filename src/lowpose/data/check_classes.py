"""What is in a data set of pictures in classes, and what is wrong with it: `lowpose data check folder:ROOT`."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from lowpose.data._problems import Problem, number_of, print_problems
from lowpose.data.classes import load_classes
from lowpose.errors import LowposeError
from lowpose.samples import ClassData

KINDS = {
    "broken-picture": "pictures that cannot be read",
    "blank-picture": "pictures of one colour",
    "two-classes": "pictures that stand in another class too",
    "empty-class": "classes without a picture in this split",
    "twice": "pictures that stand in their class before",
}
NOTES = {"twice"}  # told, but nothing is wrong
SHOWN = 20  # classes in the printed table


@dataclass
class ClassReport:
    """What `check_classes` found.

    Attributes:
        classes: name -> pictures. sizes: (width, height) -> pictures that were read, the most frequent first.
        decoded: whether they were read, or only counted. problems: and the notes, in the order of KINDS.
    """

    kind: str
    root: str
    split: str
    classes: dict[str, int]
    decoded: bool
    sizes: dict[tuple[int, int], int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    @property
    def pictures(self) -> int:
        return sum(self.classes.values())

    @property
    def counts(self) -> dict[str, int]:
        """Kind of problem -> how many, only those that occur."""
        return number_of(self.problems, KINDS)

    @property
    def ok(self) -> bool:
        return not set(self.counts) - NOTES

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON; every problem is in it."""
        return {
            "kind": self.kind,
            "root": self.root,
            "split": self.split,
            "pictures": self.pictures,
            "decoded": self.decoded,
            "classes": self.classes,
            "sizes": {f"{w}x{h}": n for (w, h), n in self.sizes.items()},
            "ok": self.ok,
            "counts": self.counts,
            "problems": [problem.to_dict() for problem in self.problems],
        }


def check_classes(
    kind: str, root: str | Path | None = None, split: str = "train", *, decode: bool = True, console: Console | None = None
) -> ClassReport:
    """Read a split, its pictures too, and write down what is in it and what is wrong with it.

    Pictures are the same where all their pixels are, whatever their files.

    Args: kind, root, split: as `load_classes` takes them. decode, console: as of `check_data`.
    Raises: LowposeError where nothing can be read at all: unknown kind, no folder, no pictures, files of another form.
    """
    data = load_classes(kind, root, split)
    found = Counter(sample.label for sample in data.samples)
    report = ClassReport(kind, data.root, split, {name: found[i] for i, name in enumerate(data.classes)}, decode)
    empty = [name for name, n in report.classes.items() if n == 0]
    report.problems = [Problem("empty-class", f"class '{name}' has no picture in split '{split}'") for name in empty]
    if decode:
        _look_at_pictures(data, report, console)
    order = list(KINDS)
    report.problems.sort(key=lambda p: order.index(p.kind))
    return report


def _look_at_pictures(data: ClassData, report: ClassReport, console: Console | None) -> None:
    def look(key: str) -> tuple[tuple[int, int], bool, bytes] | LowposeError:
        """Size, whether it is of one colour, and a hash of its pixels."""
        try:
            picture = data.read(key)
        except LowposeError as e:
            return e
        height, width = picture.shape[:2]
        return (width, height), bool((picture == picture[0, 0]).all()), hashlib.sha256(picture.tobytes()).digest()

    sizes: Counter[tuple[int, int]] = Counter()
    first: dict[tuple[tuple[int, int], bytes], dict[int, str]] = {}  # the same pixels -> class -> its first picture
    pool = ThreadPoolExecutor(os.cpu_count() or 1)
    try:
        results: Iterable = pool.map(look, [sample.image for sample in data.samples])
        if console is not None:
            results = track(results, "reading pictures", len(data), console=console, transient=True)
        for sample, result in zip(data.samples, results, strict=True):
            if isinstance(result, LowposeError):
                report.problems.append(Problem("broken-picture", str(result), image=sample.image))
                continue
            size, blank, digest = result
            sizes[size] += 1
            if blank:
                report.problems.append(Problem("blank-picture", f"{sample.image}: all pixels are the same", image=sample.image))
                continue
            report.problems += _seen_before(first.setdefault((size, digest), {}), sample.image, sample.label)
    finally:
        pool.shutdown(cancel_futures=True)
    report.sizes = dict(sizes.most_common())


def _seen_before(seen: dict[int, str], image: str, label: int) -> list[Problem]:
    """The problem of a picture whose pixels were `seen`, if there is one; writes it down as seen."""
    others = [name for other, name in seen.items() if other != label]
    kind = "two-classes" if others else "twice"
    same_as = others[0] if others else seen.get(label)
    seen.setdefault(label, image)
    return [] if same_as is None else [Problem(kind, f"{image}: the same picture as {same_as}", image=image)]


def print_report(report: ClassReport, console: Console, examples: int = 5) -> None:
    """The report as text: classes with the least and the most pictures, sizes, and the first problems of each kind."""
    console.print(
        f"[bold]{escape(f'{report.kind}:{report.root}')}[/], split {escape(report.split)}: {report.pictures} pictures of "
        f"{len(report.classes)} classes",
        soft_wrap=True,
    )
    ranked = sorted(report.classes.items(), key=lambda item: item[1])
    half = SHOWN // 2
    shown = ranked if len(ranked) <= SHOWN else [*ranked[:half], ("...", None), *ranked[-half:]]
    table = Table("class", box=None, pad_edge=False)
    table.add_column("pictures", justify="right")
    for name, number in shown:
        table.add_row(escape(name), "" if number is None else str(number))
    console.print(table)
    if report.sizes:
        rest = f" and {len(report.sizes) - 5} more" if len(report.sizes) > 5 else ""
        most = ", ".join(f"{w}x{h} ({n})" for (w, h), n in list(report.sizes.items())[:5])
        console.print(f"sizes, width x height (pictures): {most}{rest}", soft_wrap=True)
    if not report.decoded:
        console.print("pictures were counted, not read")
    print_problems(report.problems, KINDS, NOTES, console, examples)
