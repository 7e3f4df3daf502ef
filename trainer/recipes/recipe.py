"""What a recipe is."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of a published system that differ from the default configuration.

    Attributes:
      source: where the system was published.
      networks: settings that belong to its networks (trainer/models/NAME.py).
      loop: settings of data, objective, updates and cadence.
      by_dataset: further settings for the data sets named.
    """

    source: str
    networks: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    loop: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    by_dataset: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
