"""What receives the lines of a run: the interface, metrics.jsonl and the console."""

import contextlib
import itertools
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from trainer.files import json_lines
from trainer.files.atomic import free_name
from trainer.files.json_lines import JsonLinesFile
from trainer.reporting import console
from trainer.reporting.console import Console
from trainer.reporting.lines import Line, Progress

log = logging.getLogger(__name__)


class Writer:
    """Receives what a run reports.  A writer overrides the methods for what it shows."""

    def line(self, line: Line) -> None:
        """Receives each line, which covers the steps since the one before."""

    def show(self, line: Line, progress: Progress) -> None:
        """Receives the newest line every --log_every_secs."""

    def progress(self, line: Line, progress: Progress) -> None:
        """Receives the newest line and the progress after each call of the compiled steps."""

    def epoch(self, means: Mapping[str, float], line: Line, secs: float) -> None:
        """Receives the means over an epoch, its last line and its duration in seconds."""

    def evaluation(self, values: Mapping[str, float], step: int) -> None:
        """Receives the values of an evaluation after so many steps."""

    def picture(self, tag: str, picture: Image.Image, step: int) -> None:
        """Receives a picture drawn after so many steps."""

    def flush(self) -> None:
        """Writes everything that is buffered.

        Raises:
          OSError: if the disk is full; the buffer is kept.
        """

    def close(self) -> None:
        """Writes what it can and closes files."""


class JsonLinesWriter(Writer):
    """Writes metrics.jsonl, which has every step in exactly one line.

    Attributes:
      earlier: the lines of the steps that are done already.
    """

    def __init__(self, path: Path, first_step: int) -> None:
        """Opens the file and removes lines beyond `first_step`, whose steps are repeated.

        A damaged file is copied first.

        Raises:
          OSError: if the file cannot be written.
        """
        self.earlier = _cut(path, first_step)
        self._file = JsonLinesFile(path)

    def line(self, line: Line) -> None:
        """Buffers a line."""
        self._file.add(line)

    def show(self, line: Line, progress: Progress) -> None:
        """Writes the buffered lines.  A full disk is reported by the saves that fail."""
        with contextlib.suppress(OSError):
            self._file.flush()

    def flush(self) -> None:
        """Writes the buffered lines."""
        self._file.flush()

    def close(self) -> None:
        """Writes what it can and closes the file."""
        with contextlib.suppress(OSError):
            self._file.flush()
        self._file.close()


class ConsoleWriter(Writer):
    """Shows progress as a bar on a terminal, and otherwise in the log."""

    def __init__(self, terminal: Console) -> None:
        self._console = terminal

    def show(self, line: Line, progress: Progress) -> None:
        """Logs the newest line unless there is a bar."""
        if not self._console.has_bar:
            text = console.progress(line, progress.total_kimg, progress.secs_left)
            log.info("%s", text, extra={"step": line["step"]})

    def progress(self, line: Line, progress: Progress) -> None:
        """Draws the bar."""
        if self._console.has_bar:
            now = {**line, "kimg": progress.kimg}
            text = console.progress(now, progress.total_kimg, progress.secs_left)
            self._console.bar(progress.share, text)

    def epoch(self, means: Mapping[str, float], line: Line, secs: float) -> None:
        """Logs the means over an epoch."""
        log.info("epoch %d: %s  %.1f s", line["epoch"] + 1, console.metrics(means), secs)

    def close(self) -> None:
        """Leaves the bar."""
        self._console.end_bar()


def _cut(path: Path, first_step: int) -> list[Line]:
    """Removes lines beyond `first_step`, and an incomplete last line; returns the others."""
    if not path.exists():
        return []
    content = json_lines.read(path, {"step": int})
    lines = list(itertools.takewhile(lambda line: line["step"] <= first_step, content.records))
    if content.damaged and len(lines) == len(content.records):
        copy = free_name(path, ".damaged-")
        shutil.copyfile(path, copy)
        log.warning("%s is damaged after line %d: kept as %s.", path, len(lines), copy.name)
    json_lines.write(path, lines)
    return lines
