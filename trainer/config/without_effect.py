"""Settings that other settings keep from having an effect, although the user gives them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trainer.config.all_settings import AllSettings
from trainer.config.compatibility import PENALTIES
from trainer.config.replaced import NAMES
from trainer.config.schedules import Schedule
from trainer.config.settings import as_flag
from trainer.errors import UsageError


@dataclasses.dataclass(frozen=True)
class _Rule:
    """What settings need to have an effect.

    Attributes:
      names: the settings.
      needs: what they need, and how to get it.
      is_met: returns whether a configuration has it.
    """

    names: tuple[str, ...]
    needs: str
    is_met: Callable[[AllSettings], bool]


def _optimizer(name: str, *optimizers: str) -> _Rule:
    return _Rule(
        (name,),
        f"with this optimizer. Add --optimizer={' or '.join(optimizers)}",
        lambda config: config.optimizer in optimizers,
    )


def _has_kind(value: Any, *kinds: str) -> bool:
    return isinstance(value, Schedule) and value.kind in kinds


def _decay(network: str) -> _Rule:
    flag = f"{network}_lr"
    return _Rule(
        (f"{flag}_decay_per_kimg",),
        f"without --{flag}_schedule=inverse_time. Use --{flag}='inverse_time START DECAY per kimg'",
        lambda config: _has_kind(getattr(config, flag), "inverse_time"),
    )


RULES = (
    _Rule(
        ("penalty_every",),
        "without a penalty. Add --r1, --r2 or --gradient_penalty",
        lambda config: any(getattr(config, name) for name in PENALTIES),
    ),
    _Rule(
        ("augment_strength",),
        "without an augmentation. Add --augment=ada or diffaugment",
        lambda config: config.augment != "none",
    ),
    _Rule(
        ("augment_target", "augment_speed_kimg"),
        "unless the augmentation adapts its strength. Add --augment=ada or diffaugment, and "
        "--augment_strength=adaptive",
        lambda config: config.augment_strength == "adaptive",
    ),
    _optimizer("beta1", "adam"),
    _optimizer("beta2", "adam", "rmsprop"),
    _optimizer("rmsprop_epsilon", "rmsprop"),
    _optimizer("momentum", "sgd"),
    _decay("g"),
    _decay("d"),
    _Rule(
        ("lr_decay_kimg", "lr_end"),
        "without --g_lr_schedule or --d_lr_schedule. Use --g_lr='linear START END over SPAN', and "
        "--d_lr alike",
        lambda config: any(_has_kind(x, "linear", "cosine") for x in (config.g_lr, config.d_lr)),
    ),
    _Rule(
        ("metrics_address",),
        "without the metrics endpoint. Add --metrics_port",
        lambda config: config.metrics_port > 0,
    ),
    _Rule(
        ("noise_decay_kimg",),
        "without noise. Use --d_input_noise='linear START 0 over SPAN', or --d_layer_noise alike",
        lambda config: bool(config.d_input_noise or config.d_layer_noise),
    ),
)


def check_given(configs: Sequence[AllSettings], given: Mapping[str, Any]) -> None:
    """Raises a UsageError that names a setting which the user gives and which has no effect.

    A setting may be given with its default value, so that a command can state it.

    Args:
      configs: the configuration of a new run, at each size of images for which it is another.
      given: the settings that the user gives; replaced ones have their former names.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(AllSettings)}
    for rule in RULES:
        if any(rule.is_met(config) for config in configs):
            continue
        for name in [name for name in rule.names if name in given]:
            is_old = name in NAMES
            value = given[name] if is_old else getattr(configs[0], name)
            if value != (0.0 if is_old else defaults[name]):
                raise UsageError(
                    f"{as_flag(name, value)} has no effect {rule.needs}, or omit the flag."
                )
