"""One registry for everything that is chosen by name: data kinds, heads, distillers, ...

`@register("head", "simcc", config=SimCCConfig)` puts a class or function under a name; the config
class is the pydantic model that validates its settings. A method's file registers itself when
its package is imported (`load_all`), so adding a method adds one file.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lowpose.errors import LowposeError, did_you_mean


@dataclass(frozen=True)
class Entry:
    name: str
    make: Callable[..., Any]
    config: type | None = None

    @property
    def summary(self) -> str:
        doc = (self.make.__doc__ or "").strip()
        return doc.splitlines()[0] if doc else ""


_PACKAGES = {
    "data": "lowpose.data",
    "classes": "lowpose.data",
    "head": "lowpose.nn.heads",
    "classifier": "lowpose.nn.heads",
    "mixer": "lowpose.nn.mixers",
    "distill": "lowpose.nn.distill",
    "curriculum": "lowpose.nn.distill",
}
_entries: dict[str, dict[str, Entry]] = {}


def register(kind: str, name: str, config: type | None = None):
    """Decorator: put `make` under `kind`/`name`. A name can be taken once.

    Raises: LowposeError if the name is taken by another object.
    """

    def put(make):
        table = _entries.setdefault(kind, {})
        known = table[name].make if name in table else make
        if (known.__module__, known.__qualname__) != (make.__module__, make.__qualname__):
            raise LowposeError(f"{kind} '{name}' is registered twice: {table[name].make} and {make}")
        table[name] = Entry(name, make, config)
        return make

    return put


def load_all(kind: str) -> None:
    """Import every module of the package that holds this kind, so that each registers itself."""
    package = importlib.import_module(_PACKAGES[kind])
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")


def names(kind: str) -> list[str]:
    load_all(kind)
    return sorted(_entries.get(kind, {}))


def find(kind: str, name: str) -> Entry:
    """The entry of this name. Raises: LowposeError naming the nearest known one."""
    load_all(kind)
    table = _entries.get(kind, {})
    if name not in table:
        raise LowposeError(f"unknown {kind} '{name}'{did_you_mean(name, table)}")
    return table[name]
