"""The classes that a user selects, by number or name."""

import difflib
from collections.abc import Sequence

from trainer.errors import UsageError

MAX_NAMED = 20  # classes that a message names
Labels = int | str | Sequence[int | str]


def class_numbers(labels: Labels, names: tuple[str, ...], flag: str) -> list[int]:
    """Returns the numbers of classes.

    Args:
      labels: classes by number or name.
      names: names of all classes.
      flag: how messages name the labels.

    Raises:
      UsageError: if a label is not a class.
    """
    wanted = [labels] if isinstance(labels, (int, str)) else labels
    return [_class_number(label, names, flag) for label in wanted]


def _class_number(label: int | str, names: tuple[str, ...], flag: str) -> int:
    text = str(label).strip()
    if text in names:
        return names.index(text)
    if text.isdecimal() and int(text) < len(names):
        return int(text)
    numbers = tuple(str(number) for number in range(len(names)))
    known, hint = f"0 to {len(names) - 1}", ""
    if names != numbers:
        near = difflib.get_close_matches(text, names, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        shown = [f"{name} ({number})" for number, name in enumerate(names[:MAX_NAMED])]
        more = [f"{len(names) - MAX_NAMED} more"] if len(names) > MAX_NAMED else []
        known = ", ".join([*shown, *more])
    raise UsageError(f"{flag}={text!r} is not a class of this run.{hint} Its classes are {known}.")
