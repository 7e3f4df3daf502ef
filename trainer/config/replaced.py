"""Settings of earlier versions that others replace.

The flags of replaced settings are accepted with a warning until the version that removes them.
A config.json of an earlier version is translated without a limit.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from trainer.config.update_rule import from_replaced_settings


@dataclasses.dataclass(frozen=True, eq=False)
class Replacement:
    """Settings that one setting replaces.

    Attributes:
      old: the types of the replaced settings by name.
      new: the setting that replaces them.
      convert: returns the value of the new setting from the replaced ones that are given and
        from its value without them.
      removed_in: version that no longer accepts the flags.
    """

    old: Mapping[str, type]
    new: str
    convert: Callable[[Mapping[str, Any], Any], Any]
    removed_in: str


REPLACEMENTS = (
    Replacement(
        old={"d_update": str, "simultaneous": bool, "reuse_fakes": bool},
        new="update_rule",
        convert=from_replaced_settings,
        removed_in="0.3.0",
    ),
)


def translate(values: Mapping[str, Any], without: Callable[[str], Any]) -> dict[str, Any]:
    """Returns settings with the replaced ones converted.

    Args:
      values: settings by name.
      without: returns the value of a new setting if no setting that it replaces is given.
    """
    translated = dict(values)
    for replacement in REPLACEMENTS:
        old = {name: translated.pop(name) for name in replacement.old if name in translated}
        if old and replacement.new not in translated:
            translated[replacement.new] = replacement.convert(old, without(replacement.new))
    return translated
