"""Reads the status of a run from the files of its directory, without TensorFlow."""

import contextlib
import dataclasses
import json
import re
import shlex
import time
from pathlib import Path
from typing import Any

from trainer.errors import TrainerError
from trainer.files import json_lines
from trainer.metrics.registry import METRICS
from trainer.recipes import files
from trainer.reporting.console import duration
from trainer.run_dir import events
from trainer.run_dir.directory import RunDir
from trainer.run_dir.lock import BEAT_SECS, WATCH_SECS, holder_ended
from trainer.run_dir.starts import Starts

SHOWN_EVENTS = 5
MANIFEST = re.compile(r"ckpt-(\d+)\.json")


@dataclasses.dataclass(frozen=True)
class Status:
    """Status of a run.

    Attributes:
      run_dir: the run directory, as the user named it.
      recipe: the recipe.
      dataset: the data set.
      state: "running", "complete" or "stopped".
      ending: how a run that stopped has ended; empty for other runs.
      resume: the command that resumes a run that stopped; empty for other runs.
      step: number of finished steps.
      last_step: number of steps at the end of the run.
      kimg: thousand images seen.
      images_per_sec: rate of the latest line of metrics.jsonl.
      secs_left: estimated seconds to the end at that rate; None if the run is not running.
      checkpoint_step: step of the newest verified checkpoint; None without one.
      checkpoint_age_secs: seconds since it was saved; None without one.
      starts: number of starts of the run, including the first one.
      health: signs of trouble; empty without any.
      evaluation: the metrics of the newest evaluation and its kimg; empty without one.
      events: the newest starts, ends, rollbacks and failed saves, oldest first.
    """

    run_dir: str
    recipe: str
    dataset: str
    state: str
    ending: str
    resume: str
    step: int
    last_step: int
    kimg: float
    images_per_sec: float
    secs_left: float | None
    checkpoint_step: int | None
    checkpoint_age_secs: float | None
    starts: int
    health: list[str]
    evaluation: dict[str, float]
    events: list[dict[str, Any]]

    def to_json(self) -> str:
        """Returns the status as one JSON object on one line."""
        return json.dumps(dataclasses.asdict(self))

    def screen(self) -> str:
        """Returns the status as a table for people."""
        more = f", {duration(self.secs_left)} left" if self.secs_left is not None else ""
        if self.ending:
            more = f": {self.ending}"
        saved = "none yet"
        if self.checkpoint_step is not None and self.checkpoint_age_secs is not None:
            saved = f"step {self.checkpoint_step}, {duration(self.checkpoint_age_secs)} ago"
        rows = [
            ("Run", f"{self.run_dir}: {self._what}"),
            ("State", f"{self.state}{more}"),
            ("Step", f"{self.step:,} of {self.last_step:,}, {self.kimg:,.6g} kimg"),
            ("Rate", f"{self.images_per_sec:,.0f} images/s"),
            ("Checkpoint", saved),
            ("Starts", str(self.starts)),
            ("Health", "; ".join(self.health) or "no problems"),
        ]
        if self.resume:
            rows.append(("Resume", self.resume))
        if self.evaluation:
            values = (f"{name} {value:.4g}" for name, value in self.evaluation.items())
            rows.append(("Evaluation", ", ".join(values)))
        rows += [("Events" if not k else "", _shown(event)) for k, event in enumerate(self.events)]
        return "\n".join(f"{name:12}{what}" for name, what in rows)

    @property
    def _what(self) -> str:
        return f"{files.shown_name(self.recipe)} on {self.dataset}"

    def line(self) -> str:
        """Returns the status in one line."""
        share = f"{self.step / max(1, self.last_step):.0%}"
        return f"{self.run_dir:28} {self.state:9} {share:>4}  {self.kimg:,.6g} kimg  {self._what}"


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
    ending = _ending(killed=ended, saved=newest, step=step) if state == "stopped" else ""
    rate = line.get("images_per_sec", 0.0)
    left = (last_step - step) * config.batch_size / rate if rate and state == "running" else None
    return Status(
        run_dir=name,
        recipe=config.recipe,
        dataset=config.dataset,
        state=state,
        ending=ending,
        resume=f"python -m trainer train --run_dir={shlex.quote(name)}" if ending else "",
        step=step,
        last_step=last_step,
        kimg=line.get("kimg", 0.0),
        images_per_sec=rate,
        secs_left=left,
        checkpoint_step=newest,
        checkpoint_age_secs=saved,
        starts=Starts.read(run_dir.path).starts,
        health=_health(line, beating if ended else None),
        evaluation=_evaluation(run_dir, line),
        events=events.read_newest(run_dir.path, SHOWN_EVENTS),
    )


def _shown(event: dict[str, Any]) -> str:
    where = event.get("pod") or event.get("host", "")
    where += f" (worker {event['worker']})" if "worker" in event else ""
    step = f" at step {event['step']}" if "step" in event else ""
    code = f" with exit code {event['code']}" if "code" in event else ""
    reason = f": {event['reason']}" if "reason" in event else ""
    return f"{event['time']} {event['event']}{step}{code} on {where}{reason}"


def list_runs(folder: Path) -> list[Status | TrainerError]:
    """Returns the status of each run in a folder, or the error of one that cannot be read."""
    found: list[Status | TrainerError] = []
    for path in sorted(folder.glob("*/config.json")):
        try:
            found.append(read_status(RunDir(path.parent), str(path.parent)))
        except TrainerError as error:
            found.append(error)
    return found


def _ending(*, killed: bool, saved: int | None, step: int) -> str:
    """Describes how a run ended before it was complete.

    Args:
      killed: whether the job ended without releasing the run.
      saved: step of its newest checkpoint, if it has one.
      step: the latest step that it recorded.
    """
    if killed:
        return "the job was killed, so the steps since the last checkpoint are repeated"
    if saved is None:
        return "nothing was saved"
    if saved < step:
        return "the job ended without a save, so the steps since the last checkpoint are repeated"
    return "the job ended, and all steps are saved"


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
