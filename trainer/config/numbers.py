"""Numbers: as text, and their bounds."""

from trainer.errors import UsageError


def shortest(value: float) -> str:
    """Returns the shortest text that reads as the same number."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def check_seed(seed: int) -> None:
    """Raises a UsageError unless `seed` is a valid seed."""
    if not 0 <= seed < 2**31:
        raise UsageError(f"--seed={seed} must be from 0 to {2**31 - 1}.")
