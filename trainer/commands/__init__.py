"""One module per command.

A command is a module of this folder with a SUMMARY, whose first sentence stands in the list of the
commands, and a function `main(arguments, stop_requested)`, which parses the flags and calls the
code that does the work.
"""

import ast
import importlib
import pkgutil
from pathlib import Path
from types import ModuleType


def names() -> list[str]:
    """Returns the names of all commands."""
    return [info.name for info in pkgutil.iter_modules(__path__) if not info.ispkg]


def load(name: str) -> ModuleType:
    """Returns the module of a command."""
    return importlib.import_module(f"{__name__}.{name}")


def first_sentence(name: str) -> str:
    """Returns the first sentence of a command's summary, without the period.

    The module is parsed but not loaded, because loading all commands takes much longer.
    """
    tree = ast.parse((Path(__path__[0]) / f"{name}.py").read_text(encoding="utf-8"))
    (summary,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SUMMARY"
    )
    return " ".join(summary.split()).partition(". ")[0].removesuffix(".")
