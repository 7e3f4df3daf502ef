"""What the commands that read a run have in common: which run, and where to write."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.commands.flags import CommandLine
from trainer.errors import UsageError
from trainer.run_dir.directory import RunDir
from trainer.storage.address import is_bucket, local_path
from trainer.storage.location import reading


def define(line: CommandLine, purpose: str) -> None:
    """Defines --run_dir, for a purpose such as "to export"."""
    line.text("run_dir", f"the run {purpose}, also at gs://")


def given(values: Mapping[str, Any]) -> str:
    """The value of --run_dir.

    Raises:
      UsageError: if it is missing.
    """
    if not values["run_dir"]:
        raise UsageError("--run_dir is missing: name a run.")
    return values["run_dir"]


def opened(values: Mapping[str, Any], which: str | None = "") -> RunDir:
    """The run to read; of one in a bucket a copy as it is now.

    Args:
      values: of the flags.
      which: the checkpoint that is wanted, as of `resume.copy`.

    Raises:
      TrainerError: if it is missing or cannot be read.
    """
    return RunDir(reading(given(values), which=which))


def output(values: Mapping[str, Any], default: str) -> Path:
    """Where --out says to write, else a name in the run's directory.

    Raises:
      UsageError: if that is in a bucket.
    """
    if values["out"]:
        return local_path(values["out"], "out")
    if is_bucket(given(values)):
        raise UsageError(f"--out is missing: --run_dir={values['run_dir']} is in a bucket.")
    return Path(values["run_dir"]) / default
