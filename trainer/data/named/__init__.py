"""Named data sets. Every module of this package with a constant SOURCE defines one."""

import importlib
import pkgutil

from trainer.data.named.source import Source


def find_sources() -> dict[str, Source]:
    """Returns the named data sets by the names of their modules, in alphabetical order.

    Modules without SOURCE are skipped: they contain code that several data sets share.
    """
    found = {}
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda info: info.name):
        source = getattr(importlib.import_module(f"{__name__}.{module.name}"), "SOURCE", None)
        if source is not None:
            found[module.name] = source
    return found
