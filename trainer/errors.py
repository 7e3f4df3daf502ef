"""Exit codes, and the errors that end a command with a one-line message.

The codes follow sysexits.h where it defines a suitable one.  They tell a batch system whether
to retry, to give up, or to start again without counting a failure.
"""

import difflib
import enum
from collections.abc import Iterable


class ExitCode(enum.IntEnum):
    """Exit codes of a command."""

    OK = 0  # complete, also if it was complete before
    CRASH = 1  # a crash, a full disk or a network error: a limited number of retries
    STOPPED = 42  # stopped on request after a save, or a peer was lost: start again
    USAGE = 64  # the command line or the configuration is wrong
    DATA = 65  # the data set is unusable
    DIVERGED = 70  # training diverged or collapsed, or many starts made no progress
    CHECKPOINT = 73  # checkpoints exist that do not load or do not fit the run
    BUSY = 75  # another job holds the run directory: try later
    INTERRUPTED = 130  # ended by SIGINT (Ctrl-C) without a save
    TERMINATED = 143  # ended by SIGTERM without a save

    @property
    def is_stop(self) -> bool:
        """Whether the code reports a requested stop, not an error."""
        return self in (ExitCode.STOPPED, ExitCode.INTERRUPTED, ExitCode.TERMINATED)


# With these codes a start ends for a reason that it states, and a cluster does not repeat it; or
# the reason is another job.
EXPLAINED = (
    ExitCode.USAGE, ExitCode.DATA, ExitCode.DIVERGED, ExitCode.CHECKPOINT, ExitCode.BUSY
)  # fmt: skip


class TrainerError(Exception):
    """An error that the user can resolve, shown as one line without a traceback."""

    exit_code: ExitCode = ExitCode.CRASH


class UsageError(TrainerError):
    """A flag or a setting is wrong."""

    exit_code = ExitCode.USAGE


class DataError(TrainerError):
    """The data set is missing, damaged or does not fit the run."""

    exit_code = ExitCode.DATA


class DivergedError(TrainerError):
    """Training diverged and cannot continue."""

    exit_code = ExitCode.DIVERGED


class NotFiniteError(DivergedError):
    """A loss, a gradient or a weight is no longer finite."""


class NoProgressError(TrainerError):
    """Too many consecutive starts of a run made no progress."""

    exit_code = ExitCode.DIVERGED


class CheckpointError(TrainerError):
    """A run directory holds checkpoints that cannot be used."""

    exit_code = ExitCode.CHECKPOINT


class BusyError(TrainerError):
    """Another job holds the run directory."""

    exit_code = ExitCode.BUSY


class StorageError(TrainerError):
    """The disk, a bucket or the network fails.  Another attempt may succeed."""

    exit_code = ExitCode.CRASH


class PeerError(TrainerError):
    """The workers of a run did not find each other.  Another attempt may succeed."""

    exit_code = ExitCode.CRASH


class StoppedError(TrainerError):
    """The run was stopped on request after a save, and can be started again."""

    exit_code = ExitCode.STOPPED


class SignalledError(TrainerError):
    """A signal ended the command, and nothing was saved."""

    def __init__(self, message: str, exit_code: ExitCode) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class HelpRequested(Exception):
    """The user asked for help.  The message is the text to print."""


class PeerLostError(StoppedError):
    """Another worker was lost or has stopped, and this one can go on once it is back."""


def one_of(what: str, value: str, known: Iterable[str], *, part_of: str = "") -> str:
    """Returns `value` if it is one of the known values.

    Args:
      what: the flag, for the error message.
      value: the value to check.
      known: the known values.
      part_of: the whole value of the flag, if `value` is a part of it.

    Raises:
      UsageError: otherwise; it names the nearest spelling and all known values.
    """
    names = list(known)
    if value in names:
        return value
    near = difflib.get_close_matches(value.lower(), names, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    shown = f"{what}={part_of}: {value!r}" if part_of else f"{what}={value!r}"
    raise UsageError(f"{shown} is not known.{hint} Known: {', '.join(names)}.")


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's text, or the name of its type if it has no text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
