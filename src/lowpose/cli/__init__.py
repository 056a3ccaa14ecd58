"""The `lowpose` command: each verb is a few lines over the public API. A LowposeError is one line and exit code 2.

Verbs import what they call when they are called, so that help and wrong options are answered at once.
"""

from lowpose.cli.entry import app, main

__all__ = ["app", "main"]
