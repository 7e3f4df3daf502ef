"""Distributed training of generative adversarial networks on TensorFlow.

`configure`, `train`, `load` and `Run` are the interface for Python programs (trainer/api.py).
"""

import importlib
from typing import Any

__version__ = "0.2.0"
__all__ = ["Run", "configure", "load", "train"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # imported at first use, so that modules below api.py do not load it
        return getattr(importlib.import_module("trainer.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
