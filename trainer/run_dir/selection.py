"""Selects the checkpoint of a run to load: the best, the latest, or that of a given step."""

import logging
from collections.abc import Mapping
from pathlib import Path

import keras

from trainer.errors import CheckpointError, UsageError
from trainer.run_dir.checkpoint_files import checkpoint_step, list_checkpoints
from trainer.run_dir.checkpoints import load_networks, load_networks_of
from trainer.run_dir.directory import RunDir
from trainer.run_dir.evaluation_history import read_evaluations

log = logging.getLogger(__name__)


def load(run_dir: RunDir, which: str, networks: Mapping[str, keras.Model]) -> Path:
    """Loads networks from the selected checkpoint.

    Args:
      run_dir: the run directory.
      which: "best", "latest", a step, or "" for the best if the run has one, else the latest.
      networks: networks to load, by their names in checkpoints.

    Returns:
      The path of the checkpoint.

    Raises:
      UsageError: if the run has no such checkpoint.
      CheckpointError: if the checkpoint cannot be loaded.
    """
    if which.isdecimal():
        return _load_step(run_dir, int(which), networks)
    if which == "best" and not list_checkpoints(run_dir.best_checkpoints):
        raise UsageError(
            f"--checkpoint=best: {run_dir.path} has no best checkpoint. Train with "
            "--evaluate_every_kimg, or use --checkpoint=latest."
        )
    if which != "latest" and list_checkpoints(run_dir.best_checkpoints):
        try:
            path = load_networks(run_dir.best_checkpoints, networks)
        except CheckpointError:
            if which == "best":
                raise
            log.warning("The best checkpoint cannot be loaded. Loading the latest instead.")
        else:
            log.info("Loaded the best checkpoint, %s%s", path, _result(run_dir, path))
            return path
    return load_networks(run_dir.checkpoints, networks)


def all_of(run_dir: RunDir) -> list[Path]:
    """Returns all checkpoints of a run, one for each step, oldest first."""
    paths = [*list_checkpoints(run_dir.best_checkpoints), *list_checkpoints(run_dir.checkpoints)]
    by_step = {checkpoint_step(path): path for path in paths}
    return [by_step[step] for step in sorted(by_step)]


def _load_step(run_dir: RunDir, step: int, networks: Mapping[str, keras.Model]) -> Path:
    for path in all_of(run_dir):
        if checkpoint_step(path) == step:
            load_networks_of(path, networks)
            return path
    steps = ", ".join(str(checkpoint_step(path)) for path in all_of(run_dir)) or "none"
    raise UsageError(
        f"--checkpoint={step} does not exist: {run_dir.path} has checkpoints of steps {steps}."
    )


def _result(run_dir: RunDir, path: Path) -> str:
    """Returns the result of the best checkpoint, to follow its path in a message."""
    for line in read_evaluations(run_dir.evaluation_log):
        if line["step"] == checkpoint_step(path) and "fid" in line:
            result = f"at {line['kimg']:.6g} kimg, FID {line['fid']:.4g}"
            return f" ({result}; use --checkpoint=latest for the latest)"
    return " (use --checkpoint=latest for the latest)"
