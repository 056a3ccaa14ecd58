"""Strict when data are loaded, tolerant when they are checked: one place that decides.

A reader wraps the reading of each annotation in `with tolerate():` and raises `BadAnnotation` for one
that it cannot use; what it leaves out on purpose, as published code does, it tells `note`. Outside of
`collecting()` the first bad annotation ends the reading with its one line; inside, all are written down.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape

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


def number_of(problems: list[Problem], kinds: dict[str, str]) -> dict[str, int]:
    """Kind of problem -> how many, only those that occur, in the order of `kinds`."""
    found = Counter(problem.kind for problem in problems)
    return {kind: found[kind] for kind in kinds if found[kind]}


def print_problems(problems: list[Problem], kinds: dict[str, str], notes: set[str], console: Console, examples: int) -> None:
    """How many of each kind, and the first `examples` of them; `notes`: kinds that are told, but nothing is wrong."""
    found = number_of(problems, kinds)
    if not set(found) - notes:
        console.print("[green]no problems found[/]")
    for kind, number in found.items():
        console.print(f"[{'dim' if kind in notes else 'yellow'}]{number} {kinds[kind]}[/]")
        shown = [p for p in problems if p.kind == kind][: 0 if kind in notes else examples]
        for problem in shown:
            console.print(f"  {escape(problem.message)}", soft_wrap=True, highlight=False)
        if shown and number > len(shown):
            console.print(f"  ... and {number - len(shown)} more")
