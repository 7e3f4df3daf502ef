"""Exit codes and the errors that end a command with one line.

The codes follow sysexits.h where it has a fitting one.  A batch system tells by
them what to do next: retry, give up, or start again without counting a failure.
"""

import difflib
import enum
from collections.abc import Iterable


class ExitCode(enum.IntEnum):
    """What the exit status of a command means."""

    OK = 0  # complete, also when it already was
    CRASH = 1  # a fault of the program or of a disk: retried a limited number of times
    STOPPED = 42  # stopped on request after a save: start me again
    USAGE = 64  # the command line or the configuration is wrong
    DATA = 65  # the data are unusable
    DIVERGED = 70  # training diverged past its retries
    CHECKPOINT = 73  # checkpoints exist that do not load, or do not fit
    BUSY = 75  # another job holds the run directory


class TrainerError(Exception):
    """An error that its reader can mend: one line, no traceback."""

    exit_code = ExitCode.CRASH


class UsageError(TrainerError):
    """A flag or a configuration value is wrong."""

    exit_code = ExitCode.USAGE


class DataError(TrainerError):
    """The data set is missing, damaged or does not fit."""

    exit_code = ExitCode.DATA


class DivergedError(TrainerError):
    """Training went wrong and cannot go on."""

    exit_code = ExitCode.DIVERGED


class NotFiniteError(DivergedError):
    """A loss, a gradient or a weight is no longer finite."""


class CheckpointError(TrainerError):
    """A run directory holds checkpoints that cannot be used."""

    exit_code = ExitCode.CHECKPOINT


class BusyError(TrainerError):
    """Another job holds the run directory."""

    exit_code = ExitCode.BUSY


class StorageError(TrainerError):
    """The disk is full, or the disk, a bucket or the network fails: another try may succeed."""

    exit_code = ExitCode.CRASH


class PeerError(TrainerError):
    """The machines of a run did not come together: another try may succeed."""

    exit_code = ExitCode.CRASH


class StoppedError(TrainerError):
    """The run was asked to stop, has saved, and can be started again."""

    exit_code = ExitCode.STOPPED


class HelpRequested(Exception):
    """--help was given; the message is the text to print."""


class PeerLostError(StoppedError):
    """Another worker has gone; the run goes on from its last checkpoint."""


def one_of(what: str, value: str, known: Iterable[str]) -> str:
    """Returns `value` if it is `known`.

    Raises:
      UsageError: otherwise, naming the nearest spelling and all known values.
    """
    names = list(known)
    if value in names:
        return value
    near = difflib.get_close_matches(value.lower(), names, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise UsageError(f"{what}={value!r} is not known.{hint} Known: {', '.join(names)}.")


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's text, or the name of its type if it has no text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
