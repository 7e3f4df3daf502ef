"""Settings of earlier versions that others replace.

The flags of replaced settings are accepted with a warning until the version that removes them.
A config.json of an earlier version is translated without a limit.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from trainer.config import replaced_schedules
from trainer.config.update_rule import from_replaced_settings
from trainer.errors import UsageError

Without = Callable[[str], Any]  # the value of a setting that is not given


@dataclasses.dataclass(frozen=True, eq=False)
class Replacement:
    """Settings that other settings replace.

    Attributes:
      old: the types of the replaced settings by name.
      new: the settings that replace them.
      convert: returns values of new settings from the replaced ones that are given, and from
        the present values of the new ones.
      removed_in: version that no longer accepts the flags.
      existed: whether the new settings existed before, so that they may be given beside the
        replaced ones.
    """

    old: Mapping[str, type]
    new: tuple[str, ...]
    convert: Callable[[Mapping[str, Any], Without], Mapping[str, Any]]
    removed_in: str
    existed: bool = False


REPLACEMENTS = (
    Replacement(
        old={"d_update": str, "simultaneous": bool, "reuse_fakes": bool},
        new=("update_rule",),
        convert=lambda old, without: {
            "update_rule": from_replaced_settings(old, without("update_rule"))
        },
        removed_in="0.3.0",
    ),
    Replacement(
        old={
            "g_lr_schedule": str,
            "d_lr_schedule": str,
            "lr_decay_kimg": float,
            "lr_end": float,
            "g_lr_decay_per_kimg": float,
            "d_lr_decay_per_kimg": float,
        },
        new=("g_lr", "d_lr"),
        convert=replaced_schedules.rates,
        removed_in="0.3.0",
        existed=True,
    ),
    Replacement(
        old={"noise_decay_kimg": float},
        new=("d_input_noise", "d_layer_noise"),
        convert=replaced_schedules.noise,
        removed_in="0.3.0",
        existed=True,
    ),
)
NAMES = frozenset(name for replacement in REPLACEMENTS for name in replacement.old)


def translate(old: Mapping[str, Any], given: Mapping[str, Any], without: Without) -> dict[str, Any]:
    """Returns settings with the replaced ones converted.

    Args:
      old: replaced settings by name.
      given: other settings by name.
      without: returns the value of a setting that is not given.

    Raises:
      UsageError: for a replaced setting of a wrong type, or one that does not fit.
    """
    translated = dict(given)
    for replacement in REPLACEMENTS:
        mine = {name: old[name] for name in replacement.old if name in old}
        for name, value in mine.items():
            _check_type(name, value, replacement.old[name])
        if mine and (replacement.existed or not given.keys() & set(replacement.new)):
            translated |= replacement.convert(
                mine, lambda name: given[name] if name in given else without(name)
            )
    return translated


def _check_type(name: str, value: Any, kind: type) -> None:
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise UsageError(f"--{name}={value!r} must be of type {kind.__name__}.")
