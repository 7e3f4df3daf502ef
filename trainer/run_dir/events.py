"""events.jsonl: every start and end of a run, its rollbacks and its failed saves.

A process that is killed cannot record its end.  The next start records it as `lost`.

The chief writes events.jsonl.  Each other worker that sees the run directory, on a shared disk,
writes a file of its own, such as events-1.jsonl.
"""

import contextlib
import datetime
import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer import __version__
from trainer.errors import EXPLAINED, ExitCode, TrainerError, first_line
from trainer.files import json_lines
from trainer.files.json_lines import JsonLinesFile

NAME = "events.jsonl"
OF_OTHERS = "events-"  # prefix of the files of the other workers
ENDS = ("complete", "stop", "failure", "lost")
# Identifies the events of this process. In Pods process ids and host names repeat.
PROCESS = secrets.token_hex(4)


class EventLog:
    """Appends events to a file.  A write that fails is ignored: the run matters more."""

    def __init__(self, folder: Path, worker: int = 0) -> None:
        """Appends to the file of a worker in a run directory."""
        self._path = folder.absolute() / (f"{OF_OTHERS}{worker}.jsonl" if worker else NAME)
        self._config = folder.absolute() / "config.json"
        self._worker = {"worker": worker} if worker else {}

    def add(self, event: str, **fields: Any) -> None:
        """Appends an event with its time, the host and the Pod, and more fields."""
        if not self._is_a_run:
            return
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        with contextlib.suppress(OSError):
            file = JsonLinesFile(self._path)
            try:
                file.complete_last_line()
                file.add({"time": now, **self._event(event, fields)})
                file.flush()
            finally:
                file.close()

    def add_start(self, unreached: int = 0, **fields: Any) -> None:
        """Appends a start, and before it the ends that could not be recorded.

        Args:
          unreached: number of starts since the last recorded one that ended before they could be
            recorded.
          **fields: what else to record of the start.
        """
        lost, ended = self._since_the_newest_start()
        if lost is not None:
            where = lost.get("pod") or lost.get("host", "")
            self.add(
                "lost",
                process=lost["process"],  # whose end it is
                reason=f"No end was recorded for the start of {lost['time']} on {where}. The "
                "process was probably killed, ran out of memory or lost power.",
            )
        if (unknown := unreached - ended) > 0:
            self.add(
                "lost",
                starts=unknown,
                reason=f"Number of earlier starts that ended before they could be recorded: "
                f"{unknown}. The logs show why, unless the processes were killed.",
            )
        self.add("start", **fields)

    def add_end(self, code: ExitCode, reason: str) -> None:
        """Appends the end of this process before the run is complete."""
        self.add(_kind(code), code=int(code), reason=reason)

    def late_end(self, code: ExitCode, reason: str) -> dict[str, Any]:
        """Returns what another process can append when this one no longer can.

        The disk may not respond, so it is not accessed here.

        Returns:
          The path of the file, the event without its time, and the path of a file that exists if
          there is a run: otherwise nothing may be appended.
        """
        event = self._event(_kind(code), {"code": int(code), "reason": reason})
        return {"path": str(self._path), "event": event, "only_if": str(self._config)}

    @property
    def _is_a_run(self) -> bool:
        """Whether there is a run: one that could not begin leaves nothing behind."""
        with contextlib.suppress(OSError):  # such as a stale handle of a network disk
            return self._config.exists()
        return False

    def _event(self, event: str, fields: dict[str, Any]) -> dict[str, Any]:
        here = {"host": socket.gethostname()}
        if "KUBERNETES_SERVICE_HOST" in os.environ:  # the host name of a Pod is its name
            here = {"pod": here["host"], "node": os.environ.get("NODE_NAME", "")}
        who = {**self._worker, **here, "process": PROCESS}
        return {"event": event, **who, **fields, "trainer": __version__}

    def _since_the_newest_start(self) -> tuple[dict[str, Any] | None, int]:
        """Looks at the newest start and at what came after it.

        Returns:
          The newest start if its process recorded no end, else None; and the number of recorded
          ends of later processes, which did not get as far as a start, and whose starts count.
        """
        found: dict[str, Any] | None = None
        process, ended = None, 0
        for event in read(self._path):
            if event["event"] == "start":
                found, process, ended = event, event.get("process"), 0
            elif event["event"] in ENDS and event.get("process") == process:
                found = None
            elif event["event"] in ("stop", "failure") and event.get("code") not in EXPLAINED:
                ended += 1
        # Earlier versions did not record which process an event is of.
        return (found if process else None), ended

    @contextlib.contextmanager
    def recorded_end(self) -> Iterator[None]:
        """Records how the block ends: with which exit code, and why."""
        with self.recorded_failure():
            yield
        self.add("complete", code=int(ExitCode.OK))

    @contextlib.contextmanager
    def recorded_failure(self) -> Iterator[None]:
        """Records an error that ends the block, unless an inner block has recorded it."""
        try:
            yield
        except BaseException as error:
            if not getattr(error, "is_recorded", False):
                error.is_recorded = True  # type: ignore[attr-defined]
                self._add_error(error)
            raise

    def _add_error(self, error: BaseException) -> None:
        if isinstance(error, TrainerError):
            self.add_end(error.exit_code, str(error))
        else:
            self.add_end(ExitCode.CRASH, f"{type(error).__name__}: {first_line(error)}")


def read_newest(folder: Path, count: int) -> list[dict[str, Any]]:
    """Returns the newest events of all workers, oldest first."""
    found: list[dict[str, Any]] = []
    for path in [folder / NAME, *sorted(folder.glob(f"{OF_OTHERS}*.jsonl"))]:
        found += read(path)
    return _in_order(found)[-count:]


def add_missing(path: Path, events: list[dict[str, Any]]) -> None:
    """Inserts those of some events into a file that it lacks, in the order of time.

    Raises:
      OSError: if the file cannot be written.
    """
    present = read(path)
    if missing := [event for event in events if event not in present]:
        json_lines.write(path, _in_order(present + missing))


def read(path: Path) -> list[dict[str, Any]]:
    """Returns the events in a file, without the damaged ones; none if it cannot be read."""
    with contextlib.suppress(OSError):
        return json_lines.read_valid(path, {"time": str, "event": str})
    return []


def _in_order(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(events, key=lambda event: event["time"])  # in one time zone and format; stable


def _kind(code: ExitCode) -> str:
    return "stop" if code.is_stop else "failure"
