"""Translates the settings by which versions before 0.2.0 described schedules."""

from collections.abc import Callable, Mapping
from typing import Any

from trainer.config.schedules import Schedule, Value
from trainer.errors import UsageError, one_of

KINDS = ("constant", "linear", "cosine", "inverse_time")


def rates(old: Mapping[str, Any], present: Callable[[str], Any]) -> dict[str, Value]:
    """Returns the learning rates that replaced settings describe.

    Args:
      old: those of the replaced settings that are given.
      present: returns the present value of g_lr or d_lr, which supplies what is not given.

    Raises:
      UsageError: if the settings are incomplete or out of range.
    """
    for name, value in old.items():
        if not isinstance(value, str) and not 0 <= value < float("inf"):
            raise UsageError(f"--{name}={value} is not valid. Use a number of 0 or more.")
    if not old.get("lr_end", 0.0) <= 1.0:
        raise UsageError(f"--lr_end={old['lr_end']} is too large. Use 0 to 1.")
    return {f"{network}_lr": _rate(network, old, present(f"{network}_lr")) for network in "gd"}


def _rate(network: str, old: Mapping[str, Any], now: Value) -> Value:
    flag, decay_name = f"{network}_lr_schedule", f"{network}_lr_decay_per_kimg"
    schedule = now if isinstance(now, Schedule) else None
    start = now.start if isinstance(now, Schedule) else now
    kind = one_of(f"--{flag}", old.get(flag, schedule.kind if schedule else "constant"), KINDS)
    if kind == "constant":
        return start
    if kind == "inverse_time":
        decay = old.get(decay_name, schedule.decay_per_kimg if schedule else 0.0)
        if not decay:
            raise UsageError(f"--{flag}=inverse_time needs --{decay_name}.")
        return Schedule(kind, start, decay_per_kimg=decay)
    kept = schedule if schedule and schedule.kind != "inverse_time" else None
    end = kept.end if kept else 0.0
    if "lr_end" in old:
        end = float(f"{old['lr_end'] * start:.12g}")  # 3e-05, not 2.9999999999999997e-05
    if span := old.get("lr_decay_kimg"):
        return Schedule(kind, start, end, span)
    if kept is None or span == 0:
        raise UsageError(f"--{flag}={kind} needs --lr_decay_kimg.")
    return Schedule(kind, start, end, kept.span_kimg, kept.percent)


def noise(old: Mapping[str, Any], present: Callable[[str], Any]) -> dict[str, Value]:
    """Returns the noise levels that noise_decay_kimg describes.

    Args:
      old: noise_decay_kimg.
      present: returns the present value of d_input_noise or d_layer_noise.

    Raises:
      UsageError: if it is out of range.
    """
    span = old["noise_decay_kimg"]
    if not 0 <= span < float("inf"):
        raise UsageError(f"--noise_decay_kimg={span} is not valid. Use a number of 0 or more.")
    levels = {}
    for name in ("d_input_noise", "d_layer_noise"):
        now = present(name)
        start = now.start if isinstance(now, Schedule) else now
        levels[name] = Schedule("linear", start, 0.0, span) if span and start else start
    return levels
