"""The grace period of a Pod, which follows the trainer's --grace_secs."""

import math
import re
from collections.abc import Sequence

from cluster import SubmissionError

TRAINER_SECS = 12  # the default of --grace_secs
MAX_SECS = 3600
# What a Pod is given beyond --grace_secs, in the manifests as well. On a spot node of GKE it is
# less, because a Pod has only 15 seconds there by default.
MARGIN_SECS, SPOT_MARGIN_SECS = 18, 3


def grace_secs(flags: Sequence[str]) -> float | None:
    """Returns the value of --grace_secs among flags of the trainer; None if it is not given.

    Raises:
      SubmissionError: If the value is invalid.
    """
    text = None
    for flag, following in zip(flags, [*flags[1:], ""]):
        if found := re.fullmatch(r"--?grace_secs(=(.*))?", flag):
            text = following if found[1] is None else found[2]
    if text is None:
        return None
    try:
        secs = float(text)
    except ValueError:
        secs = 0.0
    if not 1 <= secs <= MAX_SECS:
        raise SubmissionError(
            f"ARGS=--grace_secs={text} is invalid. Use a number of seconds from 1 to {MAX_SECS}."
        )
    return secs


def period_secs(flags: Sequence[str], *, on_spot: bool) -> int | None:
    """Returns the grace period of the Pod; None for that of the manifests."""
    secs = grace_secs(flags)
    if secs is None:
        return None
    return math.ceil(secs) + (SPOT_MARGIN_SECS if on_spot else MARGIN_SECS)


def warning(flags: Sequence[str], *, on_spot: bool) -> str:
    """Returns a warning if a Pod may be killed before --grace_secs have passed, or ""."""
    secs = grace_secs(flags)
    if secs is None or not on_spot or secs <= TRAINER_SECS:
        return ""
    limit = TRAINER_SECS + SPOT_MARGIN_SECS
    return (
        f"ARGS=--grace_secs={secs:g} is longer than GKE waits on a spot node: by default a Pod is "
        f"killed {limit} seconds after SIGTERM. With the component spot use at most "
        f"--grace_secs={TRAINER_SECS}, or extend the graceful termination of the node pool."
    )
