"""The form of a recipe."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings of a published system that differ from the defaults.

    Attributes:
      source: where the system was published.
      architecture: its networks, in a sentence.
      updates: its training loop, in a sentence.
      differences: how the recipe differs from its source and why, a sentence each.
      networks: settings that belong to its networks (trainer/models/NAME.py).
      loop: settings of the data, the objective, the updates and the intervals.
      by_dataset: further settings for the named data sets.
    """

    source: str
    architecture: str
    updates: str
    differences: tuple[str, ...] = ()
    networks: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    loop: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    by_dataset: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
