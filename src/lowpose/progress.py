"""What a run says while it works: a progress bar, metrics.jsonl and TensorBoard events."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lowpose.files import os_problem

log = logging.getLogger("lowpose")


class TrainingProgress:
    """A bar with loss, images per second and time left; in a log file, a line every half minute."""

    def __init__(self, step: int, total: int, batch_size: int, show: bool):
        self.total, self.batch_size, self.show = total, batch_size, show
        self._times = deque([(time.monotonic(), step)], maxlen=100)
        self._spoke, self._lines = time.monotonic(), 0
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=Console(stderr=True), disable=not (show and sys.stderr.isatty()))
        self._task = self._bar.add_task("train", total=total, completed=step, state="")

    def __enter__(self) -> TrainingProgress:
        self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.stop()

    @property
    def rate(self) -> float:
        """Images per second over the last 100 steps."""
        (t0, s0), (t1, s1) = self._times[0], self._times[-1]
        return (s1 - s0) * self.batch_size / max(t1 - t0, 1e-9)

    def update(self, step: int, terms: dict[str, float]) -> None:
        now = time.monotonic()
        self._times.append((now, step))
        state = f"loss {terms['loss']:.4f}  {self.rate:.0f} images/s"
        self._bar.update(self._task, completed=step, state=state)
        if self.show and self._bar.disable and (now - self._spoke > 30 or (step == self.total and self._lines)):
            self._spoke, self._lines = now, self._lines + 1
            left = (self.total - step) * self.batch_size / max(self.rate, 1e-9)
            when = f"{left / 60:.0f} min left" if left > 90 else f"{left:.0f} s left"
            print(f"step {step}/{self.total}  {state}  {when}", file=sys.stderr, flush=True)


class Log:
    """metrics.jsonl, one JSON object a line, and the same numbers for TensorBoard.

    Resuming cuts the file back to `keep` bytes, where the state that training resumes from was saved.
    """

    def __init__(self, folder: Path, keep: int, step: int):
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import; only training needs it

        path = folder / "metrics.jsonl"
        try:
            self._file = open(path, "r+b" if path.is_file() and keep else "wb")
        except OSError as e:
            raise os_problem(path, e) from None
        self._file.truncate(min(keep, self._file.seek(0, os.SEEK_END)))  # a file that was deleted or cut is not filled up
        self._file.seek(0, os.SEEK_END)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        self._start = time.time()

    def write(self, line: dict[str, Any]) -> None:
        try:
            self._file.write((json.dumps(line | {"time": round(time.time(), 1)}) + "\n").encode())
            self._file.flush()
        except OSError as e:
            raise os_problem(self._file.name, e) from None
        for name, value in flat(line):
            self._board.add_scalar(name, value, line["step"])

    def size(self) -> int:
        try:
            os.fsync(self._file.fileno())
        except OSError as e:
            raise os_problem(self._file.name, e) from None
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
        self._board.close()


def flat(line: dict[str, Any], prefix: str = "train/"):
    """(name, number) pairs; nested mappings give their key as prefix."""
    for name, value in line.items():
        if isinstance(value, dict):
            yield from flat(value, f"{name}/")
        elif isinstance(value, (int, float)) and name != "step":
            yield prefix + name, value


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last line that a kill cut short is left out."""
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines
