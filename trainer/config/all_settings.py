"""All settings of a run in one class, each checked by itself."""

import dataclasses
import functools
import types
import typing

from trainer.config.model_settings import Networks, Optimization, Task
from trainer.config.operation_settings import Operation
from trainer.config.settings import check_value


@dataclasses.dataclass(frozen=True, kw_only=True)
class AllSettings(Operation, Optimization, Networks, Task):
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
