"""The flags of the settings of `Config`, and the configuration that they select."""

import dataclasses
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from trainer import recipes
from trainer.commands.flags.command_line import CommandLine
from trainer.config import Config, all_settings, value_types
from trainer.config.image_size import ImageSize
from trainer.config.replaced import REPLACEMENTS, Replacement
from trainer.config.schedules import Schedule
from trainer.config.settings import Duration, as_flag
from trainer.data.sources import SOURCES
from trainer.errors import UsageError, one_of
from trainer.metrics.registry import METRICS
from trainer.models.objective import OBJECTIVES
from trainer.storage.stored_config import add_environment

LENGTHS = {
    "steps": "length of training in steps (generator updates)",
    "epochs": "length of training in passes over the data set",
    "kimg": "length of training in thousands of images",
}

# Settings whose values are entries of tables above the configuration, or also PATHS.
PATHS = ("recipe", "networks", "dataset")
TABLES: Mapping[str, Collection[str]] = {
    "recipe": recipes.RECIPES,
    "networks": recipes.RECIPES,
    "dataset": SOURCES,
    "loss": OBJECTIVES,
    "best_metric": METRICS,
}


def define_settings(parser: CommandLine) -> None:
    """Defines a flag for each setting of `Config`, and the flags of the length of training."""
    defines: dict[type, Callable[..., None]] = {
        int: parser.integer,
        float: parser.real,
        bool: parser.boolean,
        str: parser.text,
    }
    for heading, settings in all_settings.groups().items():
        parser.group(heading)
        for field in settings:
            kind = value_types()[field.name][0]
            if field.name == "length":
                for name, meaning in LENGTHS.items():
                    parser.real(name, f"{meaning}; use at most one of --{', --'.join(LENGTHS)}")
            elif kind is Duration:
                parser.real(f"{field.name}_kimg", _explain(field))
            elif field.name in all_settings.paths():
                parser.path(field.name, _explain(field))
            elif field.name in all_settings.scheduled() or ImageSize in value_types()[field.name]:
                parser.text(field.name, _explain(field))
            else:
                defines[kind](field.name, _explain(field))
    for replacement in REPLACEMENTS:
        for name, old_type in replacement.old.items():
            defines[old_type](name, f"replaced by --{' and --'.join(replacement.new)}")
            parser.hide(name)


def _explain(field: "dataclasses.Field[Any]") -> str:
    rules = field.metadata
    parts = [rules["help"]]
    if field.name in all_settings.scheduled():
        parts.append(" or ".join(["a number", "a schedule", *rules["choices"]]))
    elif choices := rules["choices"] or TABLES.get(field.name):
        known = "known names are" if field.name in PATHS else "one of"
        parts.append(f"{known} {', '.join(choices)}")
    if rules["low"] is not None and rules["high"] is not None:
        parts.append(f"{rules['low']} to {rules['high']}")
    if rules["per_start"]:
        parts.append("applies to this start only")
    elif rules["may_change"]:
        parts.append("may change when a run is resumed")
    return "; ".join(parts)


def resolve(
    values: Mapping[str, Any],
    environment: Mapping[str, str] = os.environ,
    stored_config: Callable[[str], Config | None] = lambda run_dir: None,
) -> tuple[Config, Config | None]:
    """Returns the configuration that the flags select, and that of the run that they resume.

    A new run takes the settings of its recipe.  A resumed run keeps its own settings, also
    where the recipe or a default has changed since.  Flags take precedence over both.

    Args:
      values: the flags by name; None for those that were not given.
      environment: environment variables.
      stored_config: returns the configuration of the run in a run directory, if there is one.

    Raises:
      UsageError: for settings that are wrong, or wrong together.
    """
    given: dict[str, Any] = {}
    for field in dataclasses.fields(Config):
        flag = field.name
        if value_types()[field.name][0] is Duration:
            flag = f"{field.name}_kimg"
        value = values.get(flag)
        if value is not None:
            given[field.name] = Duration(value, "kimg") if flag != field.name else value
        if field.name == "best_metric" and value is not None:
            one_of(f"--{field.name}", value, METRICS)
    lengths = [unit for unit in LENGTHS if values[unit] is not None]
    if len(lengths) > 1:
        raise UsageError(
            f"--{' and --'.join(lengths)} both set the length of training. Use at most one of them."
        )
    if lengths:
        given["length"] = Duration(values[lengths[0]], lengths[0])
    for replacement, names in _replaced_flags(values).items():
        both = sorted(given.keys() & set(replacement.new))
        if both and not replacement.existed:
            raise UsageError(f"--{both[0]} replaces {_names(names)}. Leave out the replaced flags.")
        for name in both:
            if isinstance(Config.parse_values({name: given[name]})[name], Schedule):
                raise UsageError(
                    f"--{name}={given[name]!r} is a schedule, which replaces {_names(names)}. "
                    "Leave out the replaced flags."
                )
        given |= {name: values[name] for name in names}
    given, stored = add_environment(given, environment, stored_config)
    return recipes.resolve(given, stored), stored


def warnings_of_replaced_flags(values: Mapping[str, Any], config: Config) -> list[str]:
    """Returns a warning for each setting whose replaced flags are given.

    Args:
      values: the flags by name; None for those that were not given.
      config: the configuration that they select.
    """
    return [
        f"{_names(names)} will be removed in version {replacement.removed_in}. Use "
        f"{' '.join(as_flag(name, getattr(config, name)) for name in replacement.new)}."
        for replacement, names in _replaced_flags(values).items()
    ]


def _replaced_flags(values: Mapping[str, Any]) -> dict[Replacement, list[str]]:
    """Returns the replaced flags that are given."""
    given = {
        replacement: [name for name in replacement.old if values.get(name) is not None]
        for replacement in REPLACEMENTS
    }
    return {replacement: names for replacement, names in given.items() if names}


def _names(flags: Iterable[str]) -> str:
    return " and ".join(f"--{name}" for name in flags)
