"""What the verbs share: two consoles, error lines, options that several have."""

from __future__ import annotations

import json
import logging
import shlex
import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from lowpose.errors import LowposeError

console = Console()
errors = Console(stderr=True)

Overrides = Annotated[list[str] | None, typer.Argument(help="key=value overrides of the recipe, as train.epochs=10")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


class Lines(logging.Handler):
    """Each log record is one line, however long: a file name that is broken in two cannot be copied."""

    def emit(self, record: logging.LogRecord) -> None:
        say("yellow", record.levelname.lower(), self.format(record))


def say(colour: str, what: str, message: str) -> None:
    errors.print(f"[{colour}]{what}:[/{colour}] {escape(' '.join(message.split()))}", soft_wrap=True, highlight=False)


def whole_numbers(option: str, text: str, example: str) -> list[int]:
    """'16,24' -> [16, 24]. Raises: LowposeError naming the option."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise LowposeError(f"{option} {text or repr(text)}: give whole numbers, as {example}") from None


def fail(message: str, code: int) -> None:
    say("red", "error", str(message))
    sys.exit(code)


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def command_line() -> str:
    """The command line, as a card states it; absolute paths are shortened to their last two parts."""
    from lowpose.recipe_files import shorten_paths

    return shlex.join(["lowpose", *map(shorten_paths, sys.argv[1:])])
