"""The record of a run: turns the metrics of steps into lines, and passes them to writers.

Lines cover every step once, also where a run was interrupted.  No line crosses the edge of an
epoch, so the means of an epoch are means of its lines.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from trainer.reporting.lines import EVALUATIONS, EVENTS, SCALARS, Line, Progress
from trainer.reporting.writers import Writer


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordPlan:
    """What a record covers, and how often lines are due.

    Attributes:
      names: names of the metrics of a step.
      steps: the steps that this process trains.
      batch_size: images per step.
      epoch_size: images in the data set.
      every_secs: interval of lines in seconds; 0 for a line at each call.
      every_steps: interval of lines in steps, in addition; 0 disables it.
    """

    names: tuple[str, ...]
    steps: range
    batch_size: int
    epoch_size: int
    every_secs: float
    every_steps: int

    def epoch_of(self, step: int) -> int:
        """Returns the epoch, from 0, that the last image of a step belongs to."""
        return (step * self.batch_size - 1) // self.epoch_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurements:
    """What is measured beside the metrics.

    Attributes:
      memory: returns the peak memory in GiB by device.
      utilisation: returns the share of the devices' throughput that a number of steps per second
        uses.
      wait_secs: returns how long a step of the latest call waited for its data, in seconds; None
        if this is not measured.
    """

    memory: Callable[[], dict[str, float]]
    utilisation: Callable[[float], float]
    wait_secs: Callable[[], float] | None


class Recorder:
    """Collects the metrics of steps and passes lines to writers when they are due."""

    def __init__(
        self,
        plan: RecordPlan,
        measurements: Measurements,
        writers: Sequence[Writer],
        earlier: Sequence[Line] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Starts a record.

        Args:
          plan: which steps it covers, and how often lines are due.
          measurements: what is measured beside the metrics.
          writers: receive the lines, in this order.
          earlier: the lines of the steps that are done already.
          clock: returns the seconds since 1970.
        """
        self._plan, self._measurements = plan, measurements
        self._writers, self._clock = writers, clock
        last = earlier[-1] if earlier else {}
        # Values that are in each line from now on.
        self._notes = {name: last[name] for name in (*EVENTS, *EVALUATIONS) if name in last}
        epoch = plan.epoch_of(plan.steps.start + 1)
        self._epoch_lines = [line for line in earlier if line["epoch"] == epoch]
        self._last: Line = dict(last)
        self._has_news = False  # whether an evaluation is newer than the last line
        self._step = self._shown_step = plan.steps.start
        self._rows: list[np.ndarray] = []
        self._secs = self._wait_secs = 0.0
        self._pace = 0.0  # recent seconds per step
        self._shown = self._epoch_shown = clock()

    def observe(self, rows: np.ndarray, secs: float) -> None:
        """Records the steps of a call, and passes on the lines that are due.

        Args:
          rows: metrics of the steps, [steps, M].
          secs: duration of the call in seconds.
        """
        plan = self._plan
        per_step = secs / len(rows)
        wait_secs = self._measurements.wait_secs
        wait_per_step = wait_secs() if wait_secs else 0.0
        self._pace = per_step if not self._pace else 0.8 * self._pace + 0.2 * per_step
        for row in rows:
            self._rows.append(row)
            self._secs += per_step
            self._wait_secs += wait_per_step
            self._step += 1
            ends_epoch = plan.epoch_of(self._step + 1) > plan.epoch_of(self._step)
            if ends_epoch or (plan.every_steps and self._step % plan.every_steps == 0):
                self._write_line()
            if ends_epoch:
                self._end_epoch()
        # Shows the line now if the end of the next call would be too late.
        if self._clock() - self._shown + secs > plan.every_secs:
            self._show()
        if self._last:
            for writer in self._writers:
                writer.progress(self._last, self._progress())

    def annotate(self, name: str, value: float) -> None:
        """Adds a value to each line from now on."""
        self._notes[name] = value

    def count(self, name: str, more: int) -> None:
        """Adds to a number that counts over all starts of the run, if `more` is not 0."""
        if more:
            self.annotate(name, self._notes.get(name, 0) + more)

    def collapsed(self, present: bool) -> None:
        """Records whether there are signs of collapse; lines before the first one say nothing."""
        if present or self._notes.get("collapse"):
            self.annotate("collapse", float(present))

    def evaluated(self, values: Mapping[str, float], step: int) -> None:
        """Records the values of an evaluation, which are in each line from now on."""
        self._notes.update(values)
        self._has_news = True
        for writer in self._writers:
            writer.evaluation(values, step)

    def picture(self, tag: str, picture: Image.Image, step: int) -> None:
        """Passes on a picture drawn after so many steps."""
        for writer in self._writers:
            writer.picture(tag, picture, step)

    def flush(self) -> None:
        """Completes the current line and writes everything, so that it covers a checkpoint.

        Raises:
          OSError: if the disk is full; the lines are kept.
        """
        self._write_line()
        for writer in self._writers:
            writer.flush()

    def close(self) -> None:
        """Passes on what is left and closes the writers."""
        if self._step > self._shown_step:
            self._show()
        if self._has_news and self._last:
            # A line without steps, so that the last line has the newest evaluation.
            line = {**self._last, "steps": 0, "secs": 0.0, **self._notes, "time": self._clock()}
            for writer in self._writers:
                writer.line(line)
        for writer in self._writers:
            writer.close()

    def _write_line(self) -> None:
        if not self._rows:
            return
        plan = self._plan
        means = dict(zip(plan.names, _means(np.stack(self._rows)), strict=True))
        means["d_acc"] = 0.5 * (means["d_real_acc"] + means["d_fake_acc"])
        steps_per_sec = len(self._rows) / max(self._secs, 1e-9)
        waiting = {}
        if self._measurements.wait_secs is not None:
            waiting["data_wait"] = self._wait_secs / max(self._secs, 1e-9)
        line = {
            "step": self._step,
            "kimg": self._step * plan.batch_size / 1000,
            "epoch": plan.epoch_of(self._step),
            "steps": len(self._rows),
            "secs": self._secs,
            "images_per_sec": steps_per_sec * plan.batch_size,
            "utilisation": self._measurements.utilisation(steps_per_sec),
            **waiting,
            **means,
            **self._notes,
            "memory_gib": self._measurements.memory(),
            "time": self._clock(),
        }
        self._epoch_lines.append(line)
        self._last, self._rows = line, []
        self._has_news = False
        self._secs = self._wait_secs = 0.0
        for writer in self._writers:
            writer.line(line)

    def _show(self) -> None:
        """Completes the current line and shows it."""
        self._write_line()
        self._shown, self._shown_step = self._clock(), self._step
        for writer in self._writers:
            writer.show(self._last, self._progress())

    def _end_epoch(self) -> None:
        """Passes on the means of an epoch, unless epochs are shorter than the interval."""
        lines, self._epoch_lines = self._epoch_lines, []
        if self._clock() - self._epoch_shown < self._plan.every_secs:
            return
        self._epoch_shown = self._clock()
        weights = [line["steps"] for line in lines]
        means = {
            name: float(np.average([line.get(name) or 0.0 for line in lines], weights=weights))
            for name in SCALARS
            if name in lines[-1]
        }
        secs = sum(line["secs"] for line in lines)
        for writer in self._writers:
            writer.epoch(means, lines[-1], secs)

    def _progress(self) -> Progress:
        plan = self._plan
        return Progress(
            share=self._step / plan.steps.stop,
            kimg=self._step * plan.batch_size / 1000,
            total_kimg=plan.steps.stop * plan.batch_size / 1000,
            secs_left=(plan.steps.stop - self._step) * self._pace,
        )


def _means(rows: np.ndarray) -> list[Any]:
    """Returns the mean of each column of [steps, M] over its finite values, None without any.

    In float16 an update whose gradients overflow is skipped and has no gradient norm.
    """
    finite = np.isfinite(rows)
    if finite.all():  # as nearly always
        return rows.mean(0, dtype=np.float64).tolist()
    columns = (column[known] for column, known in zip(rows.T, finite.T, strict=True))
    return [float(column.mean(dtype=np.float64)) if len(column) else None for column in columns]
