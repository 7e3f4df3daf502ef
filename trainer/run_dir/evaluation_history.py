"""The results of evaluations during training, and the best checkpoints.

evaluations.jsonl has one line per evaluation.  For each checkpoint that the run keeps, `best/`
holds the checkpoint that was the best when it was saved.  A run that resumes from any of them
therefore has the same best checkpoint as an uninterrupted run.
"""

import logging
from pathlib import Path
from typing import Any

from trainer.errors import first_line
from trainer.files import json_lines
from trainer.files.json_lines import JsonLinesFile
from trainer.metrics.registry import METRICS
from trainer.run_dir.checkpoint_files import checkpoint_step, list_checkpoints, remove_checkpoint
from trainer.run_dir.checkpoints import LOAD_ERRORS, Checkpoints
from trainer.run_dir.directory import RunDir

log = logging.getLogger(__name__)

Line = dict[str, Any]
FIELDS = {"step": int, "kimg": object, "ruler": object}  # of each line


class EvaluationHistory:
    """The evaluations of a run up to the current step, and its best checkpoints."""

    def __init__(
        self, run_dir: RunDir, checkpoints: Checkpoints, metric: str, conditions: Line, *, done: int
    ) -> None:
        """Reads the evaluations, and removes those beyond step `done`, which will be repeated.

        Args:
          run_dir: the run directory.
          checkpoints: the checkpoints in its folder of best checkpoints.
          metric: name of the metric that selects the best checkpoint.
          conditions: description of the evaluation; only results with equal descriptions
            are comparable.
          done: number of finished steps.
        """
        self._run_dir, self._checkpoints = run_dir, checkpoints
        self._metric, self._conditions = metric, conditions
        self.lines = discard_after(run_dir, done)
        checkpoints.newest = None  # the same step may be saved again with other weights

    @property
    def best_line(self) -> Line | None:
        """The best evaluation whose checkpoint is kept; None if there is none."""
        return self._best_up_to(None)

    @property
    def last_line(self) -> Line | None:
        """The newest evaluation that is comparable with those of this run, or None."""
        return next((line for line in reversed(self.lines) if self._is_comparable(line)), None)

    def was_evaluated(self, step: int) -> bool:
        """Returns whether there is a comparable evaluation of a step."""
        return any(line["step"] == step and self._is_comparable(line) for line in self.lines)

    def kimg_without_improvement(self) -> float:
        """Returns the kimg of training between the best evaluation and the newest."""
        if (best := self.best_line) is None or (last := self.last_line) is None:
            return 0.0
        return last["kimg"] - best["kimg"]

    def record(self, step: int, kimg: float, values: dict[str, float]) -> bool:
        """Records an evaluation, and saves a checkpoint if it is the best.

        A failed write is logged and does not stop the run.

        Args:
          step: number of finished steps.
          kimg: thousand images trained on.
          values: results of the evaluation by the names of the metrics.

        Returns:
          Whether it is the best and was saved.
        """
        line = {"step": step, "kimg": kimg, **values, "ruler": self._conditions}
        before = self.best_line
        try:
            file = JsonLinesFile(self._run_dir.evaluation_log)
            try:
                file.add(line)
                file.flush()
            finally:
                file.close()
        except OSError as error:
            log.warning("%s cannot be written (%s)", self._run_dir.evaluation_log, error.strerror)
            return False
        self.lines.append(line)
        value = values.get(self._metric)
        is_best = value is not None and (
            before is None or METRICS[self._metric].is_better(value, before[self._metric])
        )
        try:
            if is_best:
                self._checkpoints.save(step)
            self._prune()
        except LOAD_ERRORS as error:
            log.warning("The best checkpoint cannot be saved (%s)", first_line(error))
            return False
        return is_best

    def _is_comparable(self, line: Line) -> bool:
        return line["ruler"] == self._conditions and self._metric in line

    def _best_up_to(self, step: int | None) -> Line | None:
        """Returns the best evaluation up to a step, of those whose checkpoint is kept."""
        kept = {checkpoint_step(path) for path in list_checkpoints(self._run_dir.best_checkpoints)}
        best: Line | None = None
        for line in self.lines:
            if (step is not None and line["step"] > step) or line["step"] not in kept:
                continue
            value = line[self._metric] if self._is_comparable(line) else None
            if value is not None and (
                best is None or METRICS[self._metric].is_better(value, best[self._metric])
            ):
                best = line
        return best

    def _prune(self) -> None:
        """Removes checkpoints that were not the best when any of the kept ones was saved."""
        steps = [checkpoint_step(path) for path in list_checkpoints(self._run_dir.checkpoints)]
        kept_steps = {line["step"] for step in [None, *steps] if (line := self._best_up_to(step))}
        for path in list_checkpoints(self._run_dir.best_checkpoints):
            if checkpoint_step(path) not in kept_steps:
                remove_checkpoint(path)


def discard_after(run_dir: RunDir, done: int) -> list[Line]:
    """Removes evaluations and best checkpoints beyond step `done`; returns the others."""
    for path in list_checkpoints(run_dir.best_checkpoints):
        if checkpoint_step(path) > done:
            remove_checkpoint(path)
    kept = read_evaluations(run_dir.evaluation_log)
    lines = [line for line in kept if line["step"] <= done]
    if run_dir.evaluation_log.exists():
        with run_dir.converted_write_errors():
            json_lines.write(run_dir.evaluation_log, lines)
    return lines


def read_evaluations(path: Path) -> list[Line]:
    """Returns the evaluations in a file, up to a line that is incomplete or damaged."""
    content = json_lines.read(path, FIELDS)
    if content.torn or content.damaged:
        log.warning("%s is damaged after line %d", path, len(content.records))
    return content.records
