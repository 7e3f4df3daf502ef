"""Values that change with the number of images seen, as settings."""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

from trainer.config.numbers import shortest

SYNTAX = (
    "linear START END over SPAN",
    "cosine START END over SPAN",
    "inverse_time START DECAY per kimg",
)
# What --help says of them.
EXPLANATION = (
    "Schedules: settings that accept a schedule take a number, which stays constant, or a text: "
    f"{', '.join(repr(form) for form in SYNTAX[:-1])} or {SYNTAX[-1]!r}. linear and cosine go from "
    "START to END and stay there. SPAN is such as 20000 kimg, or a share of the run such as 100%, "
    "which the first start converts to kimg. inverse_time is START / (1 + DECAY * kimg). "
    "An example is --g_lr='linear 2e-4 0 over 100%'."
)

_NUMBER = r"([-+.\w]+)"


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A value as a function of the images seen.

    Attributes:
      kind: "linear" or "cosine", from `start` to `end` over a span and constant afterwards; or
        "inverse_time", start / (1 + decay_per_kimg * kimg).
      start: the value before the first image.
      end: the value after the span.
      span_kimg: the span in kimg; None as long as it is only known as a share of the run.
      percent: the span as a share of the length of the run at its first start, in percent; None
        if it was given in kimg.
      decay_per_kimg: the decay of inverse_time.
    """

    kind: str
    start: float
    end: float = 0.0
    span_kimg: float | None = None
    percent: float | None = None
    decay_per_kimg: float = 0.0

    @classmethod
    def parse(cls, text: str) -> "Schedule":
        """Reads what `str` returns.

        Raises:
          ValueError: if the text has none of the forms of SYNTAX, or its span is not positive.
        """
        words = " ".join(text.split())
        if found := re.fullmatch(rf"inverse_time {_NUMBER} {_NUMBER} per kimg", words):
            return cls("inverse_time", float(found[1]), decay_per_kimg=_positive(found[2]))
        if found := re.fullmatch(rf"(linear|cosine) {_NUMBER} {_NUMBER} over (.+)", words):
            kimg, percent = _parse_span(found[4])
            return cls(found[1], float(found[2]), float(found[3]), kimg, percent)
        raise ValueError("it has none of the known forms")

    def __str__(self) -> str:
        if self.kind == "inverse_time":
            return f"inverse_time {shortest(self.start)} {shortest(self.decay_per_kimg)} per kimg"
        share = "" if self.percent is None else f"{shortest(self.percent)}% of the run"
        if self.span_kimg is None:
            span = share
        else:
            span = f"{shortest(self.span_kimg)} kimg" + (f" ({share})" if share else "")
        return f"{self.kind} {shortest(self.start)} {shortest(self.end)} over {span}"

    @property
    def zero_from_kimg(self) -> float | None:
        """The kimg from which the value stays 0; None if it does not, or if they are not known."""
        if not any(self.values()):
            return 0.0
        return self.span_kimg if self.kind != "inverse_time" and self.end == 0 else None

    def values(self) -> tuple[float, ...]:
        """Returns the numbers between which the values lie."""
        return (self.start,) if self.kind == "inverse_time" else (self.start, self.end)

    def in_kimg(self, images: int) -> "Schedule":
        """Returns the schedule with its span in kimg.

        Args:
          images: the length of the run.
        """
        if self.percent is None or self.span_kimg is not None:
            return self
        span = max(1.0, self.percent / 100 * images) / 1000.0
        return dataclasses.replace(self, span_kimg=span)

    def at(
        self,
        kimg: Any,
        *,
        sin: Callable[[Any], Any] = math.sin,
        minimum: Callable[[float, Any], Any] = min,
    ) -> Any:
        """Returns the value after so many kimg.

        Args:
          kimg: the thousands of images seen: a number, or a tensor.
          sin, minimum: functions of the type of `kimg`.
        """
        if self.kind == "inverse_time":
            return self.start / (1.0 + self.decay_per_kimg * kimg)
        if self.span_kimg is None:
            raise ValueError(f"the span of {self} is not known in kimg yet")
        done = minimum(1.0, kimg / self.span_kimg)
        if self.kind == "cosine":
            # (1 - cos(pi x)) / 2 without cancellation at small x.
            done = sin(0.5 * math.pi * done) ** 2
        return self.start + (self.end - self.start) * done


Value = float | Schedule


def parse(text: str) -> Value:
    """Reads a number or a schedule.

    Raises:
      ValueError: if the text is neither.
    """
    try:
        return float(text)
    except ValueError:
        return Schedule.parse(text)


def value_at(value: Value, kimg: float) -> float:
    """Returns the value of a setting after so many kimg."""
    return value.at(kimg) if isinstance(value, Schedule) else value


def kept(given: Value, stored: Value) -> Value:
    """Returns the value of a resumed run: the stored one if it differs only in being resolved.

    The share of the run that a span was given as was converted at the first start, when the run
    may have been shorter.
    """
    if (
        isinstance(given, Schedule)
        and isinstance(stored, Schedule)
        and given.span_kimg is None
        and given == dataclasses.replace(stored, span_kimg=None)
    ):
        return stored
    return given


def _parse_span(text: str) -> tuple[float | None, float | None]:
    """Returns the span in kimg and in percent of the run."""
    share = rf"{_NUMBER} ?%(?: of the run)?"
    if found := re.fullmatch(rf"{_NUMBER} kimg(?: \({share}\))?", text):
        return _positive(found[1]), None if found[2] is None else _percent(found[2])
    if found := re.fullmatch(share, text):
        return None, _percent(found[1])
    raise ValueError(f"{text!r} is neither kimg nor a share of the run")


def _positive(text: str) -> float:
    if not 0 < float(text) < math.inf:
        raise ValueError(f"{text!r} must be positive and finite")
    return float(text)


def _percent(text: str) -> float:
    if not 0 < float(text) <= 100:
        raise ValueError(f"{text}% is not above 0% and up to 100%")
    return float(text)
