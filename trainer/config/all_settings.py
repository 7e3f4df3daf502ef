"""All settings of a run in one class, each checked by itself."""

import dataclasses
import functools
import inspect
import types
import typing

from trainer.config.common_settings import Common
from trainer.config.model_settings import (
    Augmentation,
    Data,
    FineTuning,
    Networks,
    Objective,
    Optimizers,
)
from trainer.config.operation_settings import Computation, Evaluation, Limits, Output, Workers
from trainer.config.schedules import Schedule
from trainer.config.settings import FilePath, check_value


@dataclasses.dataclass(frozen=True, kw_only=True)
class AllSettings(
    # Dataclasses take the fields of the last base first, as --help lists them.
    Workers,
    Limits,
    Output,
    Computation,
    Evaluation,
    Optimizers,
    Augmentation,
    Objective,
    FineTuning,
    Networks,
    Data,
    Common,
):
    """The settings of `Config`.  Each value is of its type and in its range."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check_value(field, getattr(self, field.name), value_types()[field.name])


@functools.cache
def value_types() -> dict[str, tuple[type, ...]]:
    """Returns the types that each setting accepts, by its name."""
    hints = typing.get_type_hints(AllSettings)
    return {
        f.name: typing.get_args(hints[f.name])
        if isinstance(hints[f.name], types.UnionType)
        else (hints[f.name],)
        for f in dataclasses.fields(AllSettings)
    }


@functools.cache
def paths() -> frozenset[str]:
    """Returns the names of the settings that accept a path."""
    hints = typing.get_type_hints(AllSettings, include_extras=True)
    return frozenset(name for name, hint in hints.items() if hint == FilePath)


@functools.cache
def scheduled() -> frozenset[str]:
    """Returns the names of the settings that accept a schedule."""
    return frozenset(name for name, kinds in value_types().items() if Schedule in kinds)


def groups() -> "dict[str, list[dataclasses.Field[typing.Any]]]":
    """Returns the settings by heading, the first line of the class that declares them."""
    fields = {field.name: field for field in dataclasses.fields(AllSettings)}
    found = {}
    for base in reversed(AllSettings.__mro__):
        own = [fields[name] for name in inspect.get_annotations(base) if name in fields]
        if own:
            found[(base.__doc__ or "").partition("\n")[0].removesuffix(".")] = own
    return found
