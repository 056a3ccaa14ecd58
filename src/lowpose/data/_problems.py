"""Strict when data are loaded, tolerant when they are checked: one place that decides.

A reader wraps the reading of each annotation in `with tolerate():` and raises `BadAnnotation` for one
that it cannot use; what it leaves out on purpose, as published code does, it tells `note`. Outside of
`collecting()` the first bad annotation ends the reading with its one line; inside, all are written down.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from typing import Any

from lowpose.errors import LowposeError, did_you_mean


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong. `annotation` and `image` name the place where they are known."""

    kind: str
    message: str
    annotation: int | None = None
    image: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self).items() if v is not None}


class BadAnnotation(LowposeError):
    """An annotation that cannot be used."""

    def __init__(self, kind: str, message: str, annotation: int | None = None, image: str | None = None):
        super().__init__(message)
        self.problem = Problem(kind, message, annotation, image)


_collected: ContextVar[list[Problem] | None] = ContextVar("collected", default=None)


@contextmanager
def collecting() -> Iterator[list[Problem]]:
    """While it is open, bad annotations are added to the list that it gives instead of ending the reading."""
    found: list[Problem] = []
    token = _collected.set(found)
    try:
        yield found
    finally:
        _collected.reset(token)


@contextmanager
def tolerate() -> Iterator[None]:
    """Raises BadAnnotation on, or writes it down while `collecting`."""
    try:
        yield
    except BadAnnotation as e:
        found = _collected.get()
        if found is None:
            raise
        found.append(e.problem)


def note(kind: str, message: str, annotation: int | None = None, image: str | None = None) -> None:
    """Write down something that is left out without an error. Does nothing outside of `collecting`."""
    found = _collected.get()
    if found is not None:
        found.append(Problem(kind, message, annotation, image))


def refuse_options(kind: str, options: dict[str, Any], known: tuple[str, ...] = ()) -> None:
    """Raises: LowposeError naming an option that the reader does not have."""
    for name in options:
        if name not in known:
            raise LowposeError(f"{kind}: unknown option '{name}' (data.options){did_you_mean(str(name), known)}")
