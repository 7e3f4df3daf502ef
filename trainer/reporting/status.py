"""Reads the status of a run from the files of its directory, without TensorFlow."""

import contextlib
import dataclasses
import json
import re
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.files import json_lines
from trainer.metrics.registry import METRICS
from trainer.recipes import files
from trainer.reporting.console import duration
from trainer.run_dir.directory import RunDir
from trainer.run_dir.lock import BEAT_SECS, WATCH_SECS, holder_ended

MANIFEST = re.compile(r"ckpt-(\d+)\.json")


@dataclasses.dataclass(frozen=True)
class Status:
    """Status of a run.

    Attributes:
      run_dir: the run directory, as the user named it.
      recipe: the recipe.
      dataset: the data set.
      state: "running", "complete" or "stopped".
      step: number of finished steps.
      last_step: number of steps at the end of the run.
      kimg: thousand images seen.
      images_per_sec: rate of the latest line of metrics.jsonl.
      secs_left: estimated seconds to the end at that rate; None if the run is not running.
      checkpoint_step: step of the newest verified checkpoint; None without one.
      checkpoint_age_secs: seconds since it was saved; None without one.
      starts: number of starts of the run, including the first one.
      unsaved_steps: number of steps after that checkpoint, which are repeated when a run resumes.
      was_killed: whether the run stopped without releasing its directory, as after kill -9.
      resume: the command that resumes the run if it is stopped; empty otherwise.
      health: signs of trouble; empty without any.
      evaluation: the metrics of the newest evaluation and its kimg; empty without one.
    """

    run_dir: str
    recipe: str
    dataset: str
    state: str
    step: int
    last_step: int
    kimg: float
    images_per_sec: float
    secs_left: float | None
    checkpoint_step: int | None
    checkpoint_age_secs: float | None
    starts: int
    unsaved_steps: int
    was_killed: bool
    resume: str
    health: list[str]
    evaluation: dict[str, float]

    def to_json(self) -> str:
        """Returns the status as one JSON object on one line."""
        return json.dumps(dataclasses.asdict(self))

    def screen(self) -> str:
        """Returns the status as a table for people."""
        saved = "none yet"
        if self.checkpoint_step is not None and self.checkpoint_age_secs is not None:
            saved = f"step {self.checkpoint_step}, {duration(self.checkpoint_age_secs)} ago"
        rows = [
            ("Run", f"{self.run_dir}: {self.recipe} on {self.dataset}"),
            ("State", self._explained_state()),
            ("Step", f"{self.step:,} of {self.last_step:,}, {self.kimg:,.6g} kimg"),
            ("Rate", f"{self.images_per_sec:,.0f} images/s"),
            ("Checkpoint", saved),
            ("Starts", str(self.starts)),
            ("Health", "; ".join(self.health) or "no problems"),
        ]
        if self.evaluation:
            values = (f"{name} {value:.4g}" for name, value in self.evaluation.items())
            rows.append(("Evaluation", ", ".join(values)))
        if self.resume:
            rows.append(("Resume", self.resume))
        return "\n".join(f"{name:12}{what}" for name, what in rows)

    def _explained_state(self) -> str:
        if self.state == "running" and self.secs_left is not None:
            return f"running, {duration(self.secs_left)} left"
        if self.state != "stopped":
            return self.state
        how = "killed" if self.was_killed else "ended by a stop request or an error"
        unsaved = {0: "all steps are saved", 1: "the last step is not saved"}
        steps = unsaved.get(self.unsaved_steps, f"the last {self.unsaved_steps:,} are not saved")
        return f"stopped ({how}; {steps})"


def read_status(run_dir: RunDir, name: str, now: float | None = None) -> Status:
    """Reads the status of a run.

    Args:
      run_dir: the run directory, or a copy of it.
      name: the run directory as the user named it.
      now: seconds since 1970; None for the current time.

    Raises:
      UsageError: if `run_dir` is not a run directory.
    """
    now = time.time() if now is None else now
    config, data = run_dir.read_config(), run_dir.read_dataset()
    last_step = config.length.steps(config.batch_size, data.images)
    line = json_lines.read_last(run_dir.metrics)
    step = line.get("step", 0)
    manifests = {
        int(match[1]): path
        for path in run_dir.checkpoints.glob("*.json")
        if (match := MANIFEST.fullmatch(path.name))
    }
    newest = max(manifests, default=None)
    saved = _age(manifests[newest], now) if newest is not None else None
    drawn = _age(run_dir.generator, now)
    beating = _age(run_dir.path / "lock.json", now)
    ended = beating is not None and (
        beating >= BEAT_SECS + WATCH_SECS or holder_ended(run_dir.path)
    )
    state = "stopped"
    if beating is not None and not ended:
        state = "running"
    elif beating is None and saved is not None and drawn is not None and drawn <= saved:
        state = "complete"
    rate = line.get("images_per_sec", 0.0)
    left = (last_step - step) * config.batch_size / rate if rate and state == "running" else None
    return Status(
        run_dir=name,
        recipe=files.shown_name(config.recipe),
        dataset=config.dataset,
        state=state,
        step=step,
        last_step=last_step,
        kimg=line.get("kimg", 0.0),
        images_per_sec=rate,
        secs_left=left,
        checkpoint_step=newest,
        checkpoint_age_secs=saved,
        starts=run_dir.read_starts()["starts"],
        unsaved_steps=max(0, step - (newest or 0)),
        was_killed=ended,
        resume=(
            f"python -m trainer train --run_dir={shlex.quote(name)}" if state == "stopped" else ""
        ),
        health=_health(line, beating if ended else None),
        evaluation=_evaluation(run_dir, line),
    )


def list_runs(folder: Path) -> list[Path]:
    """Returns the run directories in a folder, in alphabetical order."""
    return sorted(path.parent for path in folder.glob("*/config.json"))


def table(found: Sequence[Status]) -> str:
    """Returns a line for each of several runs, below a heading."""
    rows = [("RUN", "STATE", "KIMG", "STEP", "CHECKPOINT")]
    for run in found:
        saved, age = run.checkpoint_step, run.checkpoint_age_secs
        rows.append(
            (
                run.run_dir,
                "killed" if run.was_killed else run.state,
                f"{run.kimg:,.6g}",
                f"{run.step:,} of {run.last_step:,}",
                "none yet" if saved is None or age is None else f"{saved}, {duration(age)} ago",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    cells = [[f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)] for row in rows]
    return "\n".join("  ".join(row).rstrip() for row in cells)


def _health(line: dict[str, Any], silent_secs: float | None) -> list[str]:
    """Returns signs of trouble.

    Args:
      line: the last line of metrics.jsonl.
      silent_secs: seconds since the last heartbeat of a job that ended without releasing the
        run; None without one.
    """
    signs = []
    if silent_secs is not None:
        signs.append(f"the job was killed; its last heartbeat was {duration(silent_secs)} ago")
    for name, what in (
        ("failed_saves", "failed saves"),
        ("failed_uploads", "failed uploads"),
        ("rollbacks", "rollbacks after divergence"),
    ):
        if line.get(name):
            signs.append(f"{line[name]} {what}")
    if line.get("collapse"):
        signs.append("signs of collapse")
    return signs


def _evaluation(run_dir: RunDir, line: dict[str, Any]) -> dict[str, float]:
    """Returns the newest evaluation: one during training, or that of the evaluate command."""
    newest = {**line, "kimg": line.get("evaluated_kimg", -1.0)}
    during_training = json_lines.read_last(run_dir.evaluation_log)
    if during_training.get("kimg", -1.0) > newest["kimg"]:
        newest = during_training
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):  # of another format
        finished = json.loads(run_dir.evaluation.read_text(encoding="utf-8"))
        if finished["kimg"] >= newest["kimg"]:
            newest = finished
    if newest["kimg"] < 0:
        return {}
    return {name: newest[name] for name in ("kimg", *METRICS) if name in newest}


def _age(path: Path, now: float) -> float | None:
    try:
        return max(0.0, now - path.stat().st_mtime)
    except OSError:
        return None
