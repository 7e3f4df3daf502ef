"""The flags that commands on existing runs share: the run, and where to write."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.commands.flags import CommandLine
from trainer.errors import UsageError
from trainer.run_dir.directory import RunDir
from trainer.storage.address import is_bucket, local_path
from trainer.storage.location import download_run


def define(line: CommandLine, purpose: str) -> None:
    """Defines --run_dir, for a purpose such as "to export"."""
    line.text("run_dir", f"run directory {purpose}, or gs://BUCKET/PATH")


def given(values: Mapping[str, Any]) -> str:
    """Returns the value of --run_dir.

    Raises:
      UsageError: if it is missing.
    """
    if not values["run_dir"]:
        raise UsageError("--run_dir is missing. Name the run directory.")
    return values["run_dir"]


def opened(values: Mapping[str, Any], which: str | None = "") -> RunDir:
    """Returns the run to read.  A run in a bucket is copied to this machine.

    Args:
      values: the values of the flags.
      which: the selected checkpoint; None if no checkpoint is read.

    Raises:
      TrainerError: if it is missing or cannot be read.
    """
    return RunDir(download_run(given(values), which=which))


def output(values: Mapping[str, Any], default: str) -> Path:
    """Returns the path of --out, or its default in the run directory.

    Raises:
      UsageError: if the run directory is in a bucket and --out is missing.
    """
    if values["out"]:
        return local_path(values["out"], "out")
    if is_bucket(given(values)):
        raise UsageError(f"--out is missing: --run_dir={values['run_dir']} is in a bucket.")
    return Path(values["run_dir"]) / default
