"""events.jsonl: every start and end of a run, its rollbacks and its failed saves."""

import contextlib
import datetime
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer import __version__
from trainer.errors import ExitCode, TrainerError, first_line
from trainer.files import json_lines
from trainer.files.json_lines import JsonLinesFile

NAME = "events.jsonl"


class EventLog:
    """Appends events to a file.  A write that fails is ignored: the run matters more."""

    def __init__(self, folder: Path) -> None:
        """Appends to events.jsonl in `folder`."""
        self._path = folder / NAME

    def add(self, event: str, **fields: Any) -> None:
        """Appends an event with its time, the host and the Pod, and more fields."""
        if not (self._path.parent / "config.json").exists():
            return  # a run that could not begin leaves nothing behind
        here = {"host": socket.gethostname()}
        if "KUBERNETES_SERVICE_HOST" in os.environ:  # the host name of a Pod is its name
            here = {"pod": here["host"], "node": os.environ.get("NODE_NAME", "")}
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        with contextlib.suppress(OSError):
            file = JsonLinesFile(self._path)
            try:
                file.add({"time": now, "event": event, **here, **fields, "trainer": __version__})
                file.flush()
            finally:
                file.close()

    @contextlib.contextmanager
    def recorded_end(self) -> Iterator[None]:
        """Records how the block ends: with which exit code, and why."""
        try:
            yield
        except TrainerError as error:
            stopped = error.exit_code.is_stop
            self.add("stop" if stopped else "failure", code=int(error.exit_code), reason=str(error))
            raise
        except BaseException as error:
            reason = f"{type(error).__name__}: {first_line(error)}"
            self.add("failure", code=int(ExitCode.CRASH), reason=reason)
            raise
        self.add("complete", code=int(ExitCode.OK))


def read_newest(folder: Path, count: int) -> list[dict[str, Any]]:
    """Returns the newest events of a run, oldest first; those after a damaged line are lost."""
    try:
        records = json_lines.read(folder / NAME, {"time": str, "event": str}).records
    except OSError:
        return []
    return records[-count:]
