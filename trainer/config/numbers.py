"""Numbers as text."""


def shortest(value: float) -> str:
    """Returns the shortest text that reads as the same number."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)
