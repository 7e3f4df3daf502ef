"""Console output: a progress bar on a terminal, otherwise periodic log lines."""

import json
import logging
import shutil
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

from trainer.config.compatibility import PENALTIES
from trainer.errors import ExitCode

MIN_SHOWN_WAIT = 0.05  # share of the time spent waiting for data from which it is shown


class Console:
    """Writes lines and, on a terminal, a progress bar below them."""

    def __init__(self, stream: TextIO | None = None, *, plain: bool = False) -> None:
        """Writes to `stream`, by default to what is stdout then; `plain` disables the bar."""
        self._given_stream = stream
        self.has_bar = self._stream.isatty() and not plain
        self._bar = ""

    @property
    def _stream(self) -> TextIO:
        return self._given_stream or sys.stdout

    def line(self, text: str) -> None:
        """Writes a line above the bar."""
        self._stream.write(f"\r\x1b[K{text}\n{self._bar}" if self._bar else f"{text}\n")
        self._stream.flush()

    def bar(self, share: float, text: str) -> None:
        """Redraws the bar on a terminal.  `share` is the completed share, 0 to 1."""
        if not self.has_bar:
            return
        done = round(20 * share)
        width = shutil.get_terminal_size().columns - 1
        self._bar = f"[{'#' * done}{'.' * (20 - done)}] {text}"[:width]
        self._stream.write(f"\r\x1b[K{self._bar}")
        self._stream.flush()

    def end_bar(self) -> None:
        """Leaves the bar where it is; lines go below it."""
        if self._bar:
            self._stream.write("\n")
        self._bar = ""


class ConsoleHandler(logging.Handler):
    """Sends the log of this package to a console, as text or as JSON objects."""

    def __init__(self, console: Console, labels: Mapping[str, str] | None) -> None:
        super().__init__()
        self._console, self.labels = console, labels

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a record, warnings and worse with their level."""
        if self.labels is not None:
            self._console.line(self._as_json(record))
            return
        level = f"{record.levelname}: " if record.levelno > logging.INFO else ""
        self._console.line(level + record.getMessage())

    def _as_json(self, record: logging.LogRecord) -> str:
        """Returns a log record as JSON with the fields that Cloud Logging reads."""
        labels = dict(self.labels or {})
        if (step := getattr(record, "step", None)) is not None:
            labels["step"] = str(step)
        return json.dumps(
            {
                "severity": record.levelname,
                "message": record.getMessage(),
                "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
                "logging.googleapis.com/labels": labels,
            }
        )


def log_to(console: Console, labels: Mapping[str, str] | None = None) -> None:
    """Sends the log of this package to a console.

    Args:
      console: the console to write to.
      labels: labels of each line, which is then a JSON object; None for plain text.
    """
    logger = logging.getLogger("trainer")
    logger.handlers[:] = [ConsoleHandler(console, labels)]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def report(line: str, exit_code: ExitCode) -> None:
    """Reports why a command ends: on stderr, or in the log if that is JSON."""
    logger = logging.getLogger("trainer")
    if any(getattr(handler, "labels", None) is not None for handler in logger.handlers):
        level = logging.WARNING if exit_code.is_stop else logging.ERROR
        logger.log(level, "%s", line)
    else:
        print(line, file=sys.stderr)


def progress(record: Mapping[str, Any], total_kimg: float, secs_left: float) -> str:
    """Returns a line of progress for a line of metrics.jsonl."""
    wait = record.get("data_wait", 0.0)  # an older version's lines have none
    waiting = [f"{wait:.0%} waiting for data"] if wait > MIN_SHOWN_WAIT else []
    return "  ".join(
        [
            f"{record['kimg']:.1f}/{total_kimg:.6g} kimg",
            f"{record['images_per_sec']:,.0f} images/s",
            f"{1000 / record['images_per_sec']:.3g} s/kimg",
            f"{record.get('utilisation', 0.0):.0%} of matmul",
            *waiting,
            metrics(record),
            f"{duration(secs_left)} left",
            "  ".join(f"{name} {gib:.2f} GiB" for name, gib in record["memory_gib"].items()),
        ]
    )


def metrics(record: Mapping[str, Any]) -> str:
    """Returns the losses and accuracies of a line, and the values that vary only in some runs."""
    more = "".join(f"  {name} {record[name]:.3g}" for name in PENALTIES if name in record)
    if "augment_strength" in record:
        more += f"  augment {record['augment_strength']:.3f}"
    if "d_loss_scale" in record:
        more += f"  scales D {record['d_loss_scale']:.0f} G {record['g_loss_scale']:.0f}"
    return (
        f"D loss {record['d_loss']:.3f}  G loss {record['g_loss']:.3f}  "
        f"D acc {record['d_acc']:.0%} (real {record['d_real_acc']:.0%}, "
        f"fake {record['d_fake_acc']:.0%})  G acc {record['g_acc']:.0%}{more}"
    )


def duration(secs: float) -> str:
    """Formats seconds as 0:07, 12:34 or 1:02:03."""
    minutes, seconds = divmod(round(secs), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
