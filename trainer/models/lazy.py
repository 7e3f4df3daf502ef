"""TensorFlow, Keras and the layers of this package, imported at their first use.

Importing TensorFlow takes seconds.  Modules that only the command line needs to list, such as
recipes and losses, take these names from here, so that `--help` and flag errors answer quickly.
Such a module starts with `from __future__ import annotations`, because an annotation that is
evaluated is a use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras as keras
    import tensorflow as tf

    from trainer.models import grouped as grouped
    from trainer.models import layers as layers
    from trainer.models import residual as residual
else:

    class _LazyModule:
        """Imports a module when one of its attributes is first read."""

        def __init__(self, name: str) -> None:
            self._name = name

        def __getattr__(self, attribute: str) -> Any:
            return getattr(importlib.import_module(self._name), attribute)

    keras = _LazyModule("keras")
    tf = _LazyModule("tensorflow")
    grouped = _LazyModule("trainer.models.grouped")
    layers = _LazyModule("trainer.models.layers")
    residual = _LazyModule("trainer.models.residual")

__all__ = ["grouped", "keras", "layers", "residual", "tf"]
