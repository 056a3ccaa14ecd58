"""Errors that a user can act on: one line that names the thing and what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class LowposeError(Exception):
    """Wrong input. The message is one line; the command line prints it and exits with code 2."""


def yaml_problem(error: Exception) -> str:
    """`line 3: expected ',' or ']'` for an error of PyYAML or of decoding the text."""
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8 text"
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    return f"line {mark.line + 1}: {problem}" if mark and problem else str(error).splitlines()[0]


def first_of(names: Sequence[str], most: int = 3) -> str:
    """`a, b, c, ...`, or all of them."""
    return ", ".join([*names[:most], *(["..."] if len(names) > most else [])])


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest of `known`, or the short list itself, or ''."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; known: {', '.join(known)}" if 0 < len(known) <= 20 else ""
