"""Checks which settings fit together, and which may change when a run is resumed."""

import dataclasses

from trainer.config.all_settings import AllSettings
from trainer.config.settings import Duration, shortest
from trainer.config.update_rule import UpdateRule
from trainer.errors import UsageError


def check_together(config: AllSettings) -> None:
    """Raises a UsageError that names settings which do not fit together."""
    rule = UpdateRule.parse(config.update_rule)
    if rule.fakes == "simultaneous" and config.d_steps > 1:
        raise UsageError(
            f"--update_rule={rule} needs one discriminator update per step. It excludes "
            f"--d_steps={config.d_steps}."
        )
    if config.gradient_penalty and config.d_norm == "batch":
        raise UsageError(
            "--gradient_penalty needs the gradient of single images, which --d_norm=batch mixes. "
            "Use --d_norm=layer, instance or none."
        )
    if config.gradient_penalty and rule.batches == "sequential":
        raise UsageError(
            "--gradient_penalty needs reals and fakes in one update. Use --update_rule="
            "separate or joint."
        )
    if config.d_freeze_layers and not config.init_from:
        raise UsageError(
            f"--d_freeze_layers={config.d_freeze_layers} keeps weights of another run. Name that "
            "run with --init_from."
        )
    for name in ("g_lr", "d_lr"):
        schedule = getattr(config, f"{name}_schedule")
        if schedule in ("linear", "cosine") and not config.lr_decay_kimg:
            raise UsageError(f"--{name}_schedule={schedule} needs --lr_decay_kimg.")
        if schedule == "inverse_time" and not getattr(config, f"{name}_decay_per_kimg"):
            raise UsageError(f"--{name}_schedule=inverse_time needs --{name}_decay_per_kimg.")


def frozen_differences(old: AllSettings, new: AllSettings) -> list[str]:
    """Returns the settings that differ but may not change, as "name: old -> new"."""
    return [
        f"{f.name}: {getattr(old, f.name)} -> {getattr(new, f.name)}"
        for f in dataclasses.fields(old)
        if not f.metadata["may_change"] and getattr(old, f.name) != getattr(new, f.name)
    ]


def changed_settings(old: AllSettings, new: AllSettings) -> list[str]:
    """Returns the settings that a resumed run keeps from now on, as "name: old -> new"."""
    changes = []
    for field in dataclasses.fields(old):
        before, now = getattr(old, field.name), getattr(new, field.name)
        rules = field.metadata
        if before == now or rules["per_start"] or not rules["may_change"]:
            continue
        if isinstance(before, Duration) and before.unit == now.unit:
            before = shortest(before.value)
        changes.append(f"{field.name}: {before} -> {now}")
    return changes
