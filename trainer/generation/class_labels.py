"""The classes that a user asks for, by number or name."""

import difflib
from collections.abc import Sequence

from trainer.errors import UsageError

MAX_NAMED = 20  # classes that a message names
Labels = int | str | Sequence[int | str]


def numbers(
    labels: Labels | None, names: Sequence[str] | None, flag: str, run_dir: object
) -> list[int] | None:
    """Returns the numbers of classes to cycle through; None for an unconditional run.

    Args:
      labels: classes by number or name; None for all.
      names: names of the classes of the run; None for an unconditional run.
      flag: how messages name the labels.
      run_dir: the run, for messages.

    Raises:
      UsageError: if a label is not a class of the run.
    """
    if names is None:
        if labels is not None:
            raise UsageError(
                f"{flag}={labels}: the run in {run_dir} is not conditional and cannot draw a "
                "class. Train one with --conditional."
            )
        return None
    if labels is None:
        return list(range(len(names)))
    wanted = [labels] if isinstance(labels, (int, str)) else labels
    return [_number(label, names, flag) for label in wanted]


def are_named(names: Sequence[str]) -> bool:
    """Returns whether classes have names, and are not just numbered from 0."""
    return list(names) != [str(number) for number in range(len(names))]


def _number(label: int | str, names: Sequence[str], flag: str) -> int:
    text = str(label).strip()
    if text in names:
        return list(names).index(text)
    if text.isdecimal() and int(text) < len(names):
        return int(text)
    known = f"0 to {len(names) - 1}"
    hint = ""
    if are_named(names):
        shown = [f"{name} ({number})" for number, name in enumerate(names[:MAX_NAMED])]
        more = [f"{len(names) - MAX_NAMED} more"] if len(names) > MAX_NAMED else []
        known = ", ".join([*shown, *more])
        near = difflib.get_close_matches(text, names, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
    raise UsageError(f"{flag}={text!r} is not a class of this run.{hint} Its classes are {known}.")
