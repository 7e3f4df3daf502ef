"""What `train --help` shows beside the flags: the recipes, and the defaults of the selected one."""

import dataclasses
import textwrap
from collections.abc import Mapping
from typing import Any

from trainer import recipes
from trainer.commands.flags.command_line import HELP_WIDTH, HelpDetails
from trainer.config import Config, schedules
from trainer.config.numbers import shortest
from trainer.config.settings import Duration


def help_details(values: Mapping[str, Any]) -> HelpDetails:
    """Returns the list of recipes, and the defaults of the recipe that the flags select.

    Args:
      values: the flags by name.

    Raises:
      UsageError: if --recipe or --networks names no recipe.
    """
    given = {name: values[name] for name in ("recipe", "networks", "dataset") if values.get(name)}
    config = recipes.resolve(given)
    shown = {"recipe": config.recipe, **given}
    note = f"The defaults below are those of {' '.join(f'--{k}={v}' for k, v in shown.items())}."
    if "recipe" not in given:
        note += " Add --recipe=NAME for those of another recipe."
    notes = textwrap.wrap(note, HELP_WIDTH, break_on_hyphens=False)
    forms = textwrap.wrap(schedules.EXPLANATION, HELP_WIDTH, break_on_hyphens=False)
    return HelpDetails([*_list_recipes(), "", *forms, "", *notes], _defaults(config))


def _list_recipes() -> list[str]:
    """Returns the name of each recipe, its default length and its description."""
    rows = [
        (name, str(recipes.resolve({"recipe": name}).length), recipe.summary)
        for name, recipe in recipes.RECIPES.items()
    ]
    first, second = (max(len(row[column]) for row in rows) + 2 for column in (0, 1))
    lines = ["Recipes, with the default length of training:"]
    for name, length, summary in rows:
        lines += textwrap.wrap(
            summary,
            HELP_WIDTH,
            initial_indent=f"  {name:{first}}{length:{second}}",
            subsequent_indent=" " * (2 + first + second),
        )
    return lines


def _defaults(config: Config) -> dict[str, str]:
    """Returns the defaults by flag.

    A default of None, and that of --networks, is described in the text of its flag.
    """
    defaults = {}
    for field in dataclasses.fields(config):
        name, value = field.name, getattr(config, field.name)
        if name in ("recipe", "dataset"):
            value = field.default  # the configuration has the selected ones
        if name == "networks" or value is None:
            continue
        if name == "length":
            name, value = value.unit, value.value
        elif isinstance(value, Duration):
            name, value = f"{name}_kimg", value.value if value.unit == "kimg" else value
        defaults[name] = _text(value)
    return defaults


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return shortest(value) if isinstance(value, float) else str(value)
