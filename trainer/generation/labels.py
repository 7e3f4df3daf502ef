"""The classes that a user selects, by number or name."""

from collections.abc import Sequence

from trainer.errors import UsageError

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
    named = "" if names == numbers else f" ({', '.join(names)})"
    raise UsageError(
        f"{flag}={text!r} is not a class of this run. Its classes are 0 to {len(names) - 1}{named}."
    )
