"""Writing files whole or not at all: a temporary name in the same folder, then a rename."""

from __future__ import annotations

import json
import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lowpose.errors import LowposeError


def os_problem(path: str | Path, error: OSError) -> LowposeError:
    """One line for an operating-system error: the file's name and the reason ('no space left on device')."""
    reason = error.strerror or str(error) or type(error).__name__
    return LowposeError(f"{path}: {reason[0].lower()}{reason[1:]}")


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """`with whole("run/card.json") as temporary:` write to `temporary`; `path` appears when the block ends well.

    The temporary file exists, empty, when the block starts, with the suffix of `path`. Missing folders are
    made. If anything is raised in the block, Ctrl-C included, the temporary file is removed and what
    stood at `path` before stays as it was. A symbolic link is kept: the file that it points to is replaced.

    Raises: LowposeError naming `path`: a folder or a device, no permission, no space left, read-only.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.stem[:100]}.{secrets.token_hex(6)}.part{target.suffix}")
    try:
        if target.exists() and not target.is_file():
            raise LowposeError(f"{path}: is a {'folder' if target.is_dir() else 'device'}; give the name of a file")
        for folder in Path(path).parents:
            if os.path.isfile(folder):
                raise LowposeError(f"{path}: {folder} is a file, not a folder")
        with _made(target.parent):
            try:
                temporary.touch(exist_ok=False)
                yield temporary
                _sync(temporary)
                os.replace(temporary, target)
            finally:
                with suppress(OSError):  # after the rename there is nothing left to remove
                    temporary.unlink()
    except OSError as e:
        ours = e.filename is None or Path(os.fsdecode(e.filename)) in (temporary, target, target.parent)
        raise os_problem(path if ours else os.fsdecode(e.filename), e) from None


@contextmanager
def all_whole(folder: str | Path) -> Iterator[Path]:
    """`with all_whole("poses") as aside:` write files under the folder `aside`; when the block ends well they appear under
    `folder`, and none does if anything is raised.

    Raises: LowposeError naming a path under `folder` that cannot be written.
    """
    target = Path(folder)
    aside = target / f".{secrets.token_hex(6)}.part"
    try:
        with _made(target):
            try:
                aside.mkdir()
                yield aside
                for file in sorted(p for p in aside.rglob("*") if p.is_file()):
                    place = target / file.relative_to(aside)
                    place.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(file, os.path.realpath(place))
            finally:
                shutil.rmtree(aside, ignore_errors=True)
    except OSError as e:
        raise os_problem(str(e.filename2 or e.filename or folder).replace(str(aside), str(folder)), e) from None
    except LowposeError as e:
        raise LowposeError(str(e).replace(str(aside), str(folder))) from None


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Missing folders are made; in the end they stay only with something in them."""
    new = [f for f in (folder, *folder.parents) if not os.path.exists(f)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        with suppress(OSError):
            for made in new:
                made.rmdir()


def check_writable(*paths: str | Path) -> None:
    """Before hours of work: raises LowposeError, as `whole`, for a path that cannot be written."""
    for path in paths:
        with suppress(_Tried), whole(path):
            raise _Tried


class _Tried(Exception):
    pass


def _sync(path: Path) -> None:
    """Bring the content to the disk before the rename, so that a power cut cannot leave an empty file under the name."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Raises: LowposeError naming a path that cannot be written."""
    with whole(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """UTF-8, line ends as they are in `text`. Raises: LowposeError naming a path that cannot be written."""
    write_bytes(path, text.encode())


def write_json(path: str | Path, obj: Any, indent: int | None = 2) -> None:
    """JSON with a line end. NumPy numbers and arrays are written as numbers and lists, paths as text; NaN and
    infinities, which JSON does not have, become null.

    Args:
        indent: None writes one line, for large result files.

    Raises: LowposeError naming a path that cannot be written.
    """
    try:
        text = json.dumps(obj, indent=indent, default=_plain, allow_nan=False)
    except ValueError:
        text = json.dumps(_without_nan(obj), indent=indent, allow_nan=False)
    write_text(path, text + "\n")


def write_report(
    paths: Sequence[Path], report: Any, markdown: Callable[[Any, str], str], draw: Callable[[Any, Path], None]
) -> None:
    """A report as JSON, its page `markdown(report, name of the figure)`, and its figure, which `draw(report, path)` writes: all
    three or none.

    Raises: LowposeError naming a path that cannot be written.
    """
    with whole(paths[0]) as values, whole(paths[1]) as page, whole(paths[2]) as picture:
        write_json(values, report)
        write_text(page, markdown(report, paths[2].name))
        draw(report, picture)


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(v) for v in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, (str, int)):
        return value
    return _without_nan(_plain(value))
