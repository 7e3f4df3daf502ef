"""Which checkpoint of a run to draw from: the best, the latest, or that of a step."""

import logging
from collections.abc import Mapping
from pathlib import Path

import keras

from trainer.errors import CheckpointError, UsageError
from trainer.run_dir import best
from trainer.run_dir.checkpoint_files import checkpoint_step, list_checkpoints
from trainer.run_dir.checkpoints import load_networks, load_networks_of
from trainer.run_dir.directory import RunDir

log = logging.getLogger(__name__)


def load(run_dir: RunDir, which: str, networks: Mapping[str, keras.Model]) -> Path:
    """Reads networks from the checkpoint that is asked for, and says which that is.

    Args:
      run_dir: the run.
      which: "best", "latest", a step, or "": the best where the run kept one.
      networks: what to read, by their names in checkpoints.

    Returns:
      The path of the checkpoint.

    Raises:
      UsageError: if the run has no such checkpoint.
      CheckpointError: if it does not load.
    """
    if which.isdecimal():
        return _load_step(run_dir, int(which), networks)
    if which == "best" and not list_checkpoints(run_dir.best_checkpoints):
        raise UsageError(
            f"--checkpoint=best: {run_dir.path} has none: train with --evaluate_every_kimg, or "
            "give --checkpoint=latest."
        )
    if which != "latest" and list_checkpoints(run_dir.best_checkpoints):
        try:
            path = load_networks(run_dir.best_checkpoints, networks)
        except CheckpointError:
            if which == "best":
                raise
            log.warning("The best checkpoint does not load: taking the latest.")
        else:
            log.info("Taking the best checkpoint, %s%s", path, _why(run_dir, path))
            return path
    return load_networks(run_dir.checkpoints, networks)


def all_of(run_dir: RunDir) -> list[Path]:
    """All checkpoints of a run, one of each step, oldest first."""
    paths = [*list_checkpoints(run_dir.best_checkpoints), *list_checkpoints(run_dir.checkpoints)]
    by_step = {checkpoint_step(path): path for path in paths}
    return [by_step[step] for step in sorted(by_step)]


def _load_step(run_dir: RunDir, step: int, networks: Mapping[str, keras.Model]) -> Path:
    for path in all_of(run_dir):
        if checkpoint_step(path) == step:
            load_networks_of(path, networks)
            return path
    steps = ", ".join(str(checkpoint_step(path)) for path in all_of(run_dir)) or "none"
    raise UsageError(f"--checkpoint={step}: {run_dir.path} has checkpoints of steps {steps}.")


def _why(run_dir: RunDir, path: Path) -> str:
    """What made a checkpoint the best, to be read after its path."""
    for line in best.read(run_dir.evaluation_log):
        if line["step"] == checkpoint_step(path) and "fid" in line:
            found = f"at {line['kimg']:.6g} kimg, FID {line['fid']:.4g}"
            return f" ({found}; --checkpoint=latest for the last)"
    return " (--checkpoint=latest for the last)"
