"""The flags that commands on existing runs share: the run, its checkpoint and the output."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer import api
from trainer.commands.flags.command_line import CommandLine
from trainer.errors import UsageError
from trainer.run_dir.directory import RunDir
from trainer.storage.address import is_bucket, local_path
from trainer.storage.location import download_run


def define_run_dir(parser: CommandLine, purpose: str) -> None:
    """Defines --run_dir, for a purpose such as "to export"."""
    parser.path("run_dir", f"run directory, or gs://BUCKET/PATH, {purpose}")


def run_dir_flag(values: Mapping[str, Any]) -> str:
    """Returns the value of --run_dir.

    Raises:
      UsageError: if it is missing.
    """
    if not values["run_dir"]:
        raise UsageError("--run_dir is missing. Name the run directory.")
    return values["run_dir"]


def open_run(values: Mapping[str, Any], which: str | None = "") -> RunDir:
    """Returns the run to read.  A run in a bucket is copied to this machine.

    Args:
      values: the values of the flags.
      which: the selected checkpoint; None if no checkpoint is read.

    Raises:
      TrainerError: if it is missing or cannot be read.
    """
    return RunDir(download_run(run_dir_flag(values), which=which))


def load(values: Mapping[str, Any], **options: str) -> api.Run:
    """Returns the run that --run_dir names, on the devices of --devices.

    Args:
      values: the values of the flags.
      **options: as for `api.load`.

    Raises:
      TrainerError: if it is missing or cannot be read.
    """
    return api.load(run_dir_flag(values), devices=values["devices"], **options)


def output_path(values: Mapping[str, Any], default: str) -> Path:
    """Returns the path of --out, or its default in the run directory.

    Raises:
      UsageError: if the run directory is in a bucket and --out is missing.
    """
    if values["out"]:
        return local_path(values["out"], "out")
    if is_bucket(run_dir_flag(values)):
        raise UsageError(f"--out is missing: --run_dir={values['run_dir']} is in a bucket.")
    return Path(values["run_dir"]) / default


def define_checkpoint(parser: CommandLine, more: str = "") -> None:
    """Defines --checkpoint; `more` is an additional value."""
    names = ", ".join(["best", "latest", *([more] if more else [])])
    parser.text(
        "checkpoint",
        f"checkpoint to use: {names} or a step (default: the best one if the run kept one, "
        "otherwise the latest)",
    )


def checkpoint_choice(values: Mapping[str, Any], more: str = "") -> str:
    """Returns the value of --checkpoint, or "" if it was not given.

    Raises:
      UsageError: if it is not a valid value.
    """
    which: str = values["checkpoint"] or ""
    known = ["best", "latest", *([more] if more else [])]
    if which and which not in known and not which.isdecimal():
        raise UsageError(f"--checkpoint={which} is not valid. Use {', '.join(known)}, or a step.")
    return which
