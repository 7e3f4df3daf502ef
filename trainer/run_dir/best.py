"""What evaluations during training found, and the checkpoint that was best.

evaluations.jsonl has a line for each evaluation, and `best/` the checkpoints that were the
best when the newest checkpoint was saved, and when each of those that are kept to fall
back on was.  So a run that goes on from any of them knows its best as if it had never
stopped.
"""

import json
import logging
from pathlib import Path
from typing import Any

from trainer.errors import first_line
from trainer.files.atomic import LineFile, write_text
from trainer.metrics.registry import METRICS
from trainer.run_dir.checkpoint_files import checkpoint_step, list_checkpoints, remove_checkpoint
from trainer.run_dir.checkpoints import LOAD_ERRORS, Checkpoints
from trainer.run_dir.directory import RunDir

log = logging.getLogger(__name__)

Line = dict[str, Any]


class Best:
    """The evaluations of a run up to the steps that are done, and its best checkpoints."""

    def __init__(
        self, run_dir: RunDir, checkpoints: Checkpoints, metric: str, ruler: Line, *, done: int
    ) -> None:
        """Forgets what was found beyond the steps that are done: they will be done again.

        Args:
          run_dir: the run.
          checkpoints: in its folder of best ones.
          metric: by which one is best.
          ruler: what numbers must have in common to compare.
          done: steps done.
        """
        self._run_dir, self._checkpoints = run_dir, checkpoints
        self._metric, self._ruler = metric, ruler
        self.lines = forget(run_dir, done)
        checkpoints.newest = None  # it may be gone, and come again with other weights

    @property
    def best(self) -> Line | None:
        """The line of the best evaluation whose checkpoint is at hand."""
        return self._best_up_to(None)

    @property
    def last(self) -> Line | None:
        """The line of the newest evaluation that compares with the next."""
        return next((line for line in reversed(self.lines) if self._compares(line)), None)

    def was_evaluated(self, step: int) -> bool:
        """Whether there is a line of that step."""
        return any(line["step"] == step and self._compares(line) for line in self.lines)

    def without_gain(self) -> float:
        """How many kimg before the newest evaluation the best one was."""
        if (best := self.best) is None or (last := self.last) is None:
            return 0.0
        return last["kimg"] - best["kimg"]

    def take_in(self, step: int, kimg: float, values: dict[str, float]) -> bool:
        """Writes a line, and keeps the checkpoint of these weights if they are the best.

        Returns:
          Whether they are.
        """
        line = {"step": step, "kimg": kimg, **values, "ruler": self._ruler}
        before = self.best
        try:
            file = LineFile(self._run_dir.evaluation_log)
            try:
                file.add(json.dumps(line))
                file.flush()
            finally:
                file.close()
        except OSError as error:
            log.warning("%s cannot be written (%s).", self._run_dir.evaluation_log, error.strerror)
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
            log.warning("The best checkpoint cannot be kept (%s).", first_line(error))
            return False
        return is_best

    def _compares(self, line: Line) -> bool:
        return line["ruler"] == self._ruler and self._metric in line

    def _best_up_to(self, step: int | None) -> Line | None:
        """The best line up to a step, of those whose checkpoint is at hand."""
        kept = {checkpoint_step(path) for path in list_checkpoints(self._run_dir.best_checkpoints)}
        best: Line | None = None
        for line in self.lines:
            if (step is not None and line["step"] > step) or line["step"] not in kept:
                continue
            value = line[self._metric] if self._compares(line) else None
            if value is not None and (
                best is None or METRICS[self._metric].is_better(value, best[self._metric])
            ):
                best = line
        return best

    def _prune(self) -> None:
        """Removes what was never the best when a checkpoint that is kept was saved."""
        points = [checkpoint_step(path) for path in list_checkpoints(self._run_dir.checkpoints)]
        wanted = {line["step"] for at in [None, *points] if (line := self._best_up_to(at))}
        for path in list_checkpoints(self._run_dir.best_checkpoints):
            if checkpoint_step(path) not in wanted:
                remove_checkpoint(path)


def forget(run_dir: RunDir, done: int) -> list[Line]:
    """Drops evaluations and best checkpoints beyond the steps done; returns the lines left."""
    for path in list_checkpoints(run_dir.best_checkpoints):
        if checkpoint_step(path) > done:
            remove_checkpoint(path)
    kept = read(run_dir.evaluation_log)
    lines = [line for line in kept if line["step"] <= done]
    if run_dir.evaluation_log.exists():
        with run_dir.converted_write_errors():
            write_text(run_dir.evaluation_log, "".join(json.dumps(line) + "\n" for line in lines))
    return lines


def read(path: Path) -> list[Line]:
    """The lines of a file of evaluations, without one that a kill has torn."""
    lines: list[Line] = []
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return lines
    for line in text.splitlines(keepends=True):
        try:
            record = json.loads(line)
            whole = line.endswith(b"\n") and {"step", "kimg", "ruler"} <= set(record)
        except (ValueError, TypeError):
            whole = False
        if not whole:
            log.warning("%s is damaged after line %d.", path, len(lines))
            break
        lines.append(record)
    return lines
