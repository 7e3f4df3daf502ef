"""One module per command.

A command is a module of this folder with a SUMMARY, whose first sentence stands in the list of the
commands, and a function `main(arguments, stop_requested)`, which parses the flags and calls the
code that does the work.
"""

import importlib
import pkgutil
from types import ModuleType


def names() -> list[str]:
    """Returns the names of all commands."""
    return [info.name for info in pkgutil.iter_modules(__path__) if not info.ispkg]


def load(name: str) -> ModuleType:
    """Returns the module of a command."""
    return importlib.import_module(f"{__name__}.{name}")


def first_sentence(name: str) -> str:
    """Returns the first sentence of a command's summary, without the period."""
    return " ".join(load(name).SUMMARY.split()).partition(". ")[0].removesuffix(".")
