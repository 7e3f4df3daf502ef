"""The text form of a recipe's own hyper-parameters: NAME=VALUE,NAME=VALUE."""

import re
from collections.abc import Mapping
from typing import Any

from trainer.errors import UsageError, one_of

FLAG = "--hyperparameters"
WORDS = {"true": True, "false": False}


def parse(text: str) -> dict[str, Any]:
    """Returns the values by name: an int, a float, a bool, or otherwise a str.

    Raises:
      UsageError: if the text does not have the form NAME=VALUE,NAME=VALUE.
    """
    values = {}
    for pair in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or not name.isidentifier() or not value:
            raise UsageError(
                f"{FLAG}={text} is not valid at {pair!r}. Write NAME=VALUE,NAME=VALUE."
            )
        values[name] = _value(value)
    return values


def merge(declared: Mapping[str, Any], stored: str, given: str) -> str:
    """Returns the resolved hyper-parameters of a run as text, in the order of declaration.

    Args:
      declared: names and defaults that the recipe declares.
      stored: the resolved text of the run that is resumed; "" for a new run.
      given: the values that the user gives.

    Raises:
      UsageError: for a name that the recipe does not declare, or a value of another type.
    """
    values = {**declared, **{k: v for k, v in parse(stored).items() if k in declared}}
    for name, value in parse(given).items():
        if not declared:
            raise UsageError(f"{FLAG}={given}: the recipe has no hyper-parameters of its own.")
        one_of(FLAG, name, declared, part_of=given)
        kind = type(declared[name])
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise UsageError(
                f"{FLAG}: {name}={value!r} must be of type {kind.__name__}, such as "
                f"{name}={_text(declared[name])}."
            )
        values[name] = value
    return ",".join(f"{name}={_text(value)}" for name, value in values.items())


def check_declared(declared: Mapping[str, Any], shown: str) -> None:
    """Raises a UsageError if the names and defaults that a recipe declares cannot be written."""
    for name, value in declared.items():
        is_text = isinstance(value, str) and not re.search(r"[,=\s]", value)
        if not name.isidentifier() or not (isinstance(value, (int, float)) or is_text):
            raise UsageError(
                f"{shown}: the hyper-parameter {name!r} must have a name and an int, float, bool "
                "or str as its default; a str must not contain spaces, commas or equals signs."
            )
        if type(_value(_text(value))) is not type(value):
            raise UsageError(f"{shown}: the default {value!r} of {name!r} reads as a number.")


def _value(text: str) -> Any:
    if text in WORDS:
        return WORDS[text]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, float) else str(value)
