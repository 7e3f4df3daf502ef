"""The kinds of settings, and the length of training as a value."""

import dataclasses
import math
import types
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from trainer.config.image_size import ImageSize
from trainer.config.numbers import shortest
from trainer.config.schedules import Schedule
from trainer.errors import UsageError, one_of

UNITS = ("steps", "epochs", "kimg")

# The type of settings that accept a path, in which flags expand `~`.
FilePath = Annotated[str, "path"]


@dataclasses.dataclass(frozen=True)
class Duration:
    """A length of training.  A step is one generator update on one global batch."""

    value: float
    unit: str

    @classmethod
    def parse(cls, text: str) -> "Duration":
        """Reads `str(duration)` back, such as "30 epochs".

        Raises:
          ValueError: if `text` is not a number and a unit.
        """
        number, _, unit = text.partition(" ")
        if unit not in UNITS or not math.isfinite(float(number)):
            raise ValueError(f"{text!r} is not a number and one of {', '.join(UNITS)}")
        return cls(float(number), unit)

    def __str__(self) -> str:
        return f"{shortest(self.value)} {self.unit}"

    def images(self, batch_size: int, epoch_size: int) -> int:
        """The same length in images; `epoch_size` is that of the data set."""
        scale = {"steps": batch_size, "epochs": epoch_size, "kimg": 1000}[self.unit]
        return round(self.value * scale)

    def steps(self, batch_size: int, epoch_size: int) -> int:
        """The same length in whole steps, rounded up."""
        return -(-self.images(batch_size, epoch_size) // batch_size)


def durations_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings whose lengths, such as kimg=5 and sample_every=5, are durations.

    Raises:
      UsageError: if two of them set the length of training.
    """
    given = dict(settings)
    lengths = [unit for unit in UNITS if unit in given]
    if len(lengths) > 1:
        raise UsageError(f"{' and '.join(lengths)} both set the length of training. Use one.")
    for unit in lengths:
        given["length"] = Duration(given.pop(unit), unit)
    for name in ("sample_every", "checkpoint_every", "evaluate_every"):
        if isinstance(given.get(name), (int, float)):
            given[name] = Duration(given[name], "kimg")
    return given


def setting(
    default: Any,
    help: str,
    *,
    choices: Iterable[str] = (),
    bounds: tuple[float | None, float | None] = (None, None),
    scope: Literal["run", "resume", "start"] = "run",
    legacy: Any = dataclasses.MISSING,
) -> Any:
    """Declares a setting.

    Args:
      default: value if neither the recipe nor the user sets another.
      help: its text in --help.
      choices: allowed texts.
      bounds: lowest and highest allowed value of a number, None for no bound.
      scope: "run" if the setting defines the run, so that it cannot change; "resume" if a run
        may be resumed with another value, but keeps its value without the flag; "start" if it
        belongs to one start of a run, as its devices do, and is not kept.
      legacy: the value of runs whose config.json lacks the setting, because an older version
        started them.  Give it to every new setting: it states how the run behaved before.
    """
    low, high = bounds
    metadata = dict(
        help=help,
        choices=tuple(choices),
        low=low,
        high=high,
        may_change=scope != "run",
        per_start=scope == "start",
        legacy=legacy,
    )
    return dataclasses.field(default=default, metadata=metadata)


def as_flag(name: str, value: Any) -> str:
    """Returns a setting with its value as the user writes it, such as --kimg=5."""
    if isinstance(value, Duration):
        if name == "length":
            return f"--{value.unit}={shortest(value.value)}"
        if value.unit == "kimg":
            return f"--{name}_kimg={shortest(value.value)}"
    return f"--{name}={str(value)!r}" if isinstance(value, Schedule) else f"--{name}={value}"


def check_value(field: "dataclasses.Field[Any]", value: Any, allowed: tuple[type, ...]) -> None:
    """Raises a UsageError that names the setting unless `value` is allowed.

    Args:
      field: the setting.
      value: its value.
      allowed: the types that it accepts.
    """
    name, rules = field.name, field.metadata
    whole_for_real = float in allowed and type(value) is int
    if type(value) not in allowed and not whole_for_real:
        names = " or ".join(
            "schedule" if t is Schedule else t.__name__ for t in allowed if t is not types.NoneType
        )
        raise UsageError(f"--{name}={value!r} must be of type {names}.")
    if rules["choices"] and isinstance(value, str):
        one_of(f"--{name}", value, rules["choices"])
    for number in _numbers(value):
        _check_number(as_flag(name, value), number, rules["low"], rules["high"])


def _numbers(value: Any) -> tuple[float, ...]:
    """Returns the numbers that a value consists of."""
    if isinstance(value, Duration):
        return (value.value,)
    if isinstance(value, ImageSize):
        return (value.height, value.width)
    if isinstance(value, Schedule):
        return value.values()
    return (value,) if isinstance(value, (int, float)) else ()


def _check_number(shown: str, number: float, low: float | None, high: float | None) -> None:
    if low is not None and high is not None:
        remedy = f"Use values from {low:g} to {high:g}."
    else:
        remedy = "Use a number." if low is None else f"Use {low:g} or more."
    if not math.isfinite(number):
        raise UsageError(f"{shown} is not finite. {remedy}")
    if low is not None and number < low:
        raise UsageError(f"{shown} is too small. {remedy}")
    if high is not None and number > high:
        raise UsageError(f"{shown} is too large. {remedy}")
