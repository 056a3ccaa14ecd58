"""The app with its verbs, in the order of `lowpose --help`, and the entry point."""

from __future__ import annotations

import logging
import sys

import typer

from lowpose.cli import data, in_use, listing, measuring, study, training, using
from lowpose.cli.printing import Lines, fail
from lowpose.errors import LowposeError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, help=(
    "Human pose estimation for people a few dozen pixels tall."
))  # fmt: skip
for name, verb in {
    "version": listing.version,
    "recipes": listing.recipes,
    "methods": listing.methods,
    "weights": listing.weights,
    "info": listing.info,
    "train": training.train,
    "eval": training.evaluate,
    "robustness": measuring.robustness,
    "sweep": measuring.sweep,
    "predict": using.predict,
    "sheet": using.sheet,
    "explain": using.explain,
    "compare": training.compare,
    "export": using.export,
    "pack": using.pack,
    "calibrate": in_use.calibrate,
    "bench": in_use.bench,
    "demo": training.demo,
}.items():
    app.command(name)(verb)
app.add_typer(data.app, name="data")
app.add_typer(study.app, name="study")

# typer brings its own copy of click in some versions and the package in others
UsageProblem = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
STOPPED = 130  # by Ctrl-C; some versions of typer give it as a result, others raise


def main() -> None:
    """Entry point: runs a verb and turns errors that a user can act on into one line and exit code 2."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[Lines()])
    try:
        result = app(standalone_mode=False)
        if result == STOPPED:
            fail("stopped", STOPPED)
        sys.exit(result if isinstance(result, int) else 0)
    except typer.Abort:
        fail("stopped", STOPPED)
    except UsageProblem as e:
        if type(e).__name__ == "NoArgsIsHelpError":
            print(e.format_message())
            sys.exit(2)
        fail(e.format_message(), 2)
    except LowposeError as e:
        fail(str(e), 2)
    except ModuleNotFoundError as e:
        if e.name is None or e.name.split(".")[0] == "lowpose":
            raise
        fail(f"this needs '{e.name}', which is not installed: pip install 'lowpose[train]'", 2)
    except OSError as e:
        if e.errno is None:
            raise
        fail(f"{e.filename + ': ' if e.filename else ''}{e.strerror}", 2)
    except KeyboardInterrupt:
        fail("stopped", STOPPED)
