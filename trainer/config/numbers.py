"""Numbers: as text, and their bounds."""

import math
import re

from trainer.errors import UsageError


def shortest(value: float) -> str:
    """Returns the shortest text that reads as the same number."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def rounded(value: float, digits: int) -> str:
    """Returns a number with so many significant digits, without an exponent, such as 1,140."""
    value = float(f"{value:.{digits}g}")
    places = max(0, digits - 1 - math.floor(math.log10(abs(value)))) if value else 0
    text = f"{value:,.{places}f}"
    return text.rstrip("0").rstrip(".") if places else text


def check_seed(seed: int) -> None:
    """Raises a UsageError unless `seed` is a valid seed."""
    if not 0 <= seed < 2**31:
        raise UsageError(f"--seed={seed} must be from 0 to {2**31 - 1}.")


def check_sha256(name: str, value: str) -> None:
    """Raises a UsageError unless the value of a flag is empty or a SHA-256."""
    if value and not re.fullmatch("[0-9a-fA-F]{64}", value):
        raise UsageError(
            f"--{name}={value} is not a SHA-256. Use 64 hexadecimal digits, as `sha256sum` prints "
            "them."
        )
