"""The record of a run: metrics.jsonl, TensorBoard, and progress on the console.

metrics.jsonl is the one record: its lines cover every step once, also where a run was
interrupted, and no line crosses the edge of an epoch, so that the means of an epoch
are means of its lines.
"""

import contextlib
import itertools
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from trainer.files import json_lines
from trainer.files.atomic import free_name
from trainer.files.json_lines import JsonLinesFile
from trainer.metrics import registry
from trainer.reporting import console
from trainer.reporting.console import Console
from trainer.reporting.tensorboard import EventWriter
from trainer.run_dir.directory import RunDir

log = logging.getLogger(__name__)

SCALARS = (
    "images_per_sec", "utilisation", "data_wait", "d_loss", "g_loss", "d_acc", "d_real_acc",
    "d_fake_acc", "g_acc", "d_grad_norm", "g_grad_norm",
)  # fmt: skip
QUALITY = (*registry.column_names(), "evaluated_kimg", "evaluate_secs")
# These go on when a run does.
EXTRAS = ("collapse", "rollbacks", "failed_saves", "failed_uploads", *QUALITY)


class Recorder:
    """Takes in what each call of the device did and writes lines when they are due."""

    def __init__(
        self,
        run_dir: RunDir,
        *,
        names: tuple[str, ...],
        steps: range,
        batch_size: int,
        epoch_size: int,
        every_secs: float,
        every_steps: int,
        memory: Callable[[], dict[str, float]],
        utilisation: Callable[[float], float],
        wait_secs: Callable[[], float],
        terminal: Console,
        written: Callable[[dict[str, Any]], None] = lambda line: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Opens the record and cuts off what a resumed run will do again.

        Args:
          run_dir: where metrics.jsonl and TensorBoard's files are.
          names: of the columns of the metrics.
          steps: the steps that this process trains.
          batch_size: images per step.
          epoch_size: images in the data set.
          every_secs: pace of lines; 0 for a line at each call.
          every_steps: pace of lines of metrics.jsonl; 0 for by time only.
          memory: peak memory in GiB by device.
          utilisation: the share of what the devices can do, of so many steps per second.
          wait_secs: how long a step of the last call waited for its data.
          terminal: where progress goes.
          written: called with each line of metrics.jsonl.
          clock: seconds since 1970.
        """
        self.steps = steps
        self._written: Callable[[dict[str, Any]], None] = written
        self._names, self._batch_size, self._epoch_size = names, batch_size, epoch_size
        self._every_secs, self._every_steps = every_secs, every_steps
        self._memory, self._utilisation, self._wait_of_step = memory, utilisation, wait_secs
        self._console, self._clock = terminal, clock
        self._path = run_dir.metrics
        kept = self._cut(steps.start)
        last = kept[-1] if kept else {}
        # What further stands in each line.
        self.extras: dict[str, float] = {name: last[name] for name in EXTRAS if name in last}
        self._epoch_lines = [r for r in kept if r["epoch"] == self._epoch_of(steps.start + 1)]
        self._file = JsonLinesFile(self._path)
        self._events = EventWriter(run_dir.tensorboard)
        self._step = steps.start
        self._shown_step = self._step
        self._rows: list[np.ndarray] = []
        self._secs = self._wait_secs = 0.0
        self._pace = 0.0  # seconds per step, lately
        self._last: dict[str, Any] = last
        self._shown = self._epoch_shown = clock()

    def observe(self, rows: np.ndarray, secs: float) -> None:
        """Takes in a call, and writes the lines that are due."""
        per_step = secs / len(rows)
        wait_per_step = self._wait_of_step()
        self._pace = per_step if not self._pace else 0.8 * self._pace + 0.2 * per_step
        for row in rows:
            self._rows.append(row)
            self._secs += per_step
            self._wait_secs += wait_per_step
            self._step += 1
            ends_epoch = self._epoch_of(self._step + 1) > self._epoch_of(self._step)
            if ends_epoch or (self._every_steps and self._step % self._every_steps == 0):
                self._write_line()
            if ends_epoch:
                self._end_epoch()
        # Now, if by the end of the next call it would be too late.
        if self._clock() - self._shown + secs > self._every_secs:
            self._show()
        self._draw_bar()

    def flush(self) -> None:
        """Writes the line that is begun, so that a checkpoint and the record agree.

        Raises:
          OSError: if the disk takes no more; the lines wait.
        """
        self._write_line()
        self._file.flush()
        self._events.flush()

    def evaluated(self, values: Mapping[str, float], step: int) -> None:
        """Shows what an evaluation found, from now on in each line of metrics.jsonl."""
        self.extras.update(values)
        self._events.scalars({f"quality/{name}": value for name, value in values.items()}, step)

    def count(self, name: str, more: int) -> None:
        """Adds to what is counted over all starts of the run, if there is something to add."""
        if more:
            self.extras[name] = self.extras.get(name, 0) + more

    def image(self, tag: str, picture: Image.Image, step: int) -> None:
        """Shows a picture in TensorBoard."""
        self._events.image(tag, picture, step)

    def close(self) -> None:
        """Writes what is left and closes the files."""
        if self._step > self._shown_step:
            self._show()
        self._console.end_bar()
        with contextlib.suppress(OSError):
            self._file.flush()
        self._file.close()
        self._events.close()

    def _cut(self, first_step: int) -> list[dict[str, Any]]:
        """Drops lines beyond `first_step`, and one torn by a kill; returns the others."""
        if not self._path.exists():
            return []
        content = json_lines.read(self._path, {"step": int})
        records = list(
            itertools.takewhile(lambda record: record["step"] <= first_step, content.records)
        )
        if content.damaged and len(records) == len(content.records):
            self._keep_aside(len(records))
        json_lines.write(self._path, records)
        return records

    def _keep_aside(self, lines: int) -> None:
        copy = free_name(self._path, ".damaged-")
        shutil.copyfile(self._path, copy)
        log.warning("%s is damaged after line %d: kept as %s.", self._path, lines, copy.name)

    def _epoch_of(self, step: int) -> int:
        """The epoch, from 0, that the last image of a step belongs to."""
        return (step * self._batch_size - 1) // self._epoch_size

    def _write_line(self) -> None:
        if not self._rows:
            return
        means = dict(zip(self._names, _means(np.stack(self._rows)), strict=True))
        means["d_acc"] = 0.5 * (means["d_real_acc"] + means["d_fake_acc"])
        steps_per_sec = len(self._rows) / max(self._secs, 1e-9)
        record = {
            "step": self._step,
            "kimg": self._step * self._batch_size / 1000,
            "epoch": self._epoch_of(self._step),
            "steps": len(self._rows),
            "secs": self._secs,
            "images_per_sec": steps_per_sec * self._batch_size,
            "utilisation": self._utilisation(steps_per_sec),
            "data_wait": self._wait_secs / max(self._secs, 1e-9),
            **means,
            **self.extras,
            "memory_gib": self._memory(),
            "time": self._clock(),
        }
        self._file.add(record)
        self._epoch_lines.append(record)
        self._last, self._rows = record, []
        self._secs = self._wait_secs = 0.0
        self._written(record)

    def _show(self) -> None:
        """Puts the newest line on the console and into TensorBoard."""
        self._write_line()
        self._shown, self._shown_step = self._clock(), self._step
        with contextlib.suppress(OSError):  # a full disk is shown where saves fail
            self._file.flush()
        if not self._console.has_bar:
            line = console.progress(self._last, self._total_kimg, self._secs_left)
            log.info("%s", line, extra={"step": self._last["step"]})
        self._scalars("train", self._last, self._last["step"])

    def _draw_bar(self) -> None:
        if self._console.has_bar and self._last:
            text = console.progress(
                {**self._last, "kimg": self._step * self._batch_size / 1000},
                self._total_kimg,
                self._secs_left,
            )
            self._console.bar(self._step / self.steps.stop, text)

    def _end_epoch(self) -> None:
        """Logs the means of an epoch; of short epochs only one now and then."""
        lines, last = self._epoch_lines, self._epoch_lines[-1]
        self._epoch_lines = []
        if self._clock() - self._epoch_shown < self._every_secs:
            return
        self._epoch_shown = self._clock()
        weights = [line["steps"] for line in lines]
        means = {
            name: float(np.average([line.get(name) or 0.0 for line in lines], weights=weights))
            for name in SCALARS
        }
        secs = sum(line["secs"] for line in lines)
        log.info("epoch %d: %s  %.1f s", last["epoch"] + 1, console.metrics(means), secs)
        self._scalars("epoch", means, last["step"])

    def _scalars(self, group: str, record: Mapping[str, Any], step: int) -> None:
        extras = [name for name in self.extras if name not in QUALITY]
        names = (*SCALARS, *extras) if group == "train" else SCALARS
        shown = {f"{group}/{n}": record[n] for n in names if record.get(n) is not None}
        self._events.scalars(shown, step)

    @property
    def _total_kimg(self) -> float:
        return self.steps.stop * self._batch_size / 1000

    @property
    def _secs_left(self) -> float:
        return (self.steps.stop - self._step) * self._pace


def _means(rows: np.ndarray) -> list[Any]:
    """The mean of each column, [steps, M], over its finite values; None without any.

    In float16 an update whose gradients overflow is skipped: it has no norm.
    """
    finite = np.isfinite(rows)
    if finite.all():  # as nearly always
        return rows.mean(0, dtype=np.float64).tolist()
    columns = (column[known] for column, known in zip(rows.T, finite.T, strict=True))
    return [float(column.mean(dtype=np.float64)) if len(column) else None for column in columns]
