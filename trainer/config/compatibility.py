"""Checks which settings fit together, and which may change when a run is resumed."""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

from trainer.config import augment_policy
from trainer.config.all_settings import AllSettings
from trainer.config.numbers import check_sha256
from trainer.config.update_rule import UpdateRule
from trainer.errors import UsageError

PENALTIES = ("gradient_penalty", "r1", "r2")  # on the gradient of the discriminator


def check_together(config: AllSettings) -> None:
    """Raises a UsageError that names settings which do not fit together."""
    rule = UpdateRule.parse(config.update_rule)
    if rule.fakes == "simultaneous" and config.d_steps > 1:
        raise UsageError(
            f"--update_rule={rule} needs one discriminator update per step. It excludes "
            f"--d_steps={config.d_steps}."
        )
    for name in PENALTIES:
        if getattr(config, name) and config.d_norm == "batch":
            raise UsageError(
                f"--{name} needs the gradient of single images, which --d_norm=batch mixes. "
                "Use --d_norm=layer, instance or none."
            )
        if getattr(config, name) and rule.batches == "sequential":
            raise UsageError(
                f"--{name} needs reals and fakes in one update. Use --update_rule="
                "separate or joint."
            )
    if config.d_freeze_layers and not config.init_from:
        raise UsageError(
            f"--d_freeze_layers={config.d_freeze_layers} keeps weights of another run. Name that "
            "run with --init_from."
        )
    if config.class_balance == "equal" and config.shuffle == "blocks":
        raise UsageError(
            "--class_balance=equal reads the images of each class at random. It excludes "
            "--shuffle=blocks."
        )
    check_sha256("inception_sha256", config.inception_sha256)
    augment_policy.parse(config.augment, config.augment_policy)
    if config.augment_strength == "adaptive" and config.augment == "none":
        raise UsageError(
            "--augment_strength=adaptive needs an augmentation. Add --augment=ada or diffaugment."
        )


def frozen_differences(
    old: AllSettings, new: AllSettings, without: Collection[str] = ()
) -> list[str]:
    """Returns the settings that differ but may not change, as "name: old -> new".

    Args:
      old: the settings of the run.
      new: the settings of this start.
      without: names of settings that are not compared.
    """
    fields = [f for f in dataclasses.fields(old) if not f.metadata["may_change"]]
    return _differences(old, new, [f for f in fields if f.name not in without])


def changes(old: AllSettings, new: AllSettings) -> list[str]:
    """Returns the settings of a run that a new start changes, as "name: old -> new"."""
    fields = [f for f in dataclasses.fields(old) if f.metadata["may_change"]]
    return _differences(old, new, [f for f in fields if not f.metadata["per_start"]])


def _differences(
    old: AllSettings, new: AllSettings, fields: Sequence["dataclasses.Field[Any]"]
) -> list[str]:
    values = [(f.name, getattr(old, f.name), getattr(new, f.name)) for f in fields]
    return [f"{name}: {before} -> {now}" for name, before, now in values if before != now]
