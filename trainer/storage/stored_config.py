"""Finds the configuration of the run that a start resumes, on a disk or in a bucket."""

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.config import Config
from trainer.errors import CheckpointError, UsageError
from trainer.machine import imports
from trainer.recipes import files
from trainer.run_dir.directory import RunDir
from trainer.run_dir.provenance import selected_precision
from trainer.storage.address import Address, is_bucket

if TYPE_CHECKING:
    from trainer.storage.bucket import Bucket

VERTEX = {  # environment variables by which Vertex AI names the output locations of a job
    "run_dir": "AIP_CHECKPOINT_DIR",
    "tensorboard_dir": "AIP_TENSORBOARD_LOG_DIR",
    "model_dir": "AIP_MODEL_DIR",
}


def read_stored_config(run_dir: str) -> Config | None:
    """Returns the configuration of the run in a run directory; None if there is no run.

    A run that was started with --precision=auto keeps the number format that it selected, and one
    that a former version trained in float32 on GPUs keeps tf32, which that version meant.

    Args:
      run_dir: as the user gave it, a folder or gs://BUCKET/PATH.

    Raises:
      CheckpointError: if the file is damaged.
      UsageError: if there is no such bucket, or no right to read it.
      StorageError: if the bucket does not respond.
    """
    if not is_bucket(run_dir):
        return _read(RunDir(Path(run_dir)))
    with imports.quiet():
        from trainer.storage.bucket import Bucket  # late: only runs in buckets need the library

    bucket = Bucket(Address.parse(run_dir, "run_dir"))
    with tempfile.TemporaryDirectory(prefix="gan-trainer-config-") as folder:
        copy = RunDir(Path(folder))
        for path in (copy.config, copy.provenance):
            _download(bucket, path.name, path)
        return _read(copy, bucket)


def _download(bucket: "Bucket", name: str, path: Path) -> None:
    """Downloads a file of the run if it exists."""
    if stored := bucket.read(name):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(stored[0])


def _read(run_dir: RunDir, bucket: "Bucket | None" = None) -> Config | None:
    """Reads the configuration, and loads the recipe files of the run."""
    try:
        if not run_dir.config.exists():
            return None
        config = run_dir.read_config()
    except OSError:
        return None  # training reports a directory that it cannot use
    except UsageError as error:
        raise CheckpointError(f"{error} Correct the file, or use --fresh.") from None
    if bucket is not None:
        for name in files.names_of(config):
            _download(bucket, f"{run_dir.recipes.name}/{name}", run_dir.recipes / name)
    files.load_copies(run_dir.recipes, config)
    selected = selected_precision(run_dir.read_provenance())
    kept = ("float32", "tf32", "bfloat16", "float16") if config.precision == "auto" else ("tf32",)
    return config.replace(precision=selected) if selected in kept else config


def add_environment(
    given: Mapping[str, Any],
    environment: Mapping[str, str] = os.environ,
    stored_config: Callable[[str], Config | None] = read_stored_config,
) -> tuple[dict[str, Any], Config | None]:
    """Adds what the environment sets, and finds the run that is resumed.

    The run directory is by default runs/RECIPE-DATASET.

    Args:
      given: settings that the user gives.
      environment: environment variables.
      stored_config: returns the configuration of the run in a run directory, if there is one.

    Returns:
      The settings, and the configuration of the run in the run directory, if there is one.
    """
    settings = dict(given)
    if data_dir := environment.get("TRAINER_DATA_DIR"):
        settings.setdefault("data_dir", os.path.expanduser(data_dir))
    for name, variable in VERTEX.items():
        if settings.get(name) is None and environment.get(variable):
            settings[name] = environment[variable].rstrip("/")
    if not settings.get("run_dir"):
        recipe = files.stem(settings.get("recipe", "dcgan"))
        name = f"{recipe}-{_short_name(settings.get('dataset', 'digits'))}"
        settings["run_dir"] = os.path.join("runs", name)
    stored = stored_config(settings["run_dir"])
    if stored is not None and os.path.expanduser(stored.dataset) == settings.get("dataset"):
        settings["dataset"] = stored.dataset  # version 0.1 kept the ~ of a path
    return settings, stored


def _short_name(dataset: str) -> str:
    """Returns the name of a data set, or the last part of its path."""
    last = os.path.basename(os.path.abspath(os.path.expanduser(dataset)))
    stem, suffix = os.path.splitext(last)
    return stem if suffix.lower() in (".zip", ".npz") else last
