"""`train`: trains a recipe on a data set, or resumes the run in the run directory."""

import logging
import os
from collections.abc import Mapping
from typing import Any

from trainer import api
from trainer.commands.flags import config_flags, settings_help
from trainer.commands.flags.command_line import CommandLine
from trainer.config import Config
from trainer.machine import cluster
from trainer.machine.signals import StopRequest
from trainer.recipes import files
from trainer.reporting.console import Console, log_to
from trainer.reporting.control import Control
from trainer.storage.address import is_bucket
from trainer.storage.start_checks import Start
from trainer.storage.stored_config import read_stored_config

log = logging.getLogger(__name__)

SUMMARY = "Trains a recipe on a data set.  Running the same command again resumes the run."


def main(arguments: list[str], stop_requested: StopRequest) -> None:
    """Runs the command; `arguments` are those after its name."""
    values = _command_line().parse(arguments, settings_help.help_details)
    start = _start(values)
    if values["dry_run"]:
        api.check(start)
        print(start.config.to_json(), end="")
        return
    stop_requested.allow_graceful_stop()
    config = start.config
    as_json = config.log_format == "json"
    terminal = Console(plain=as_json)
    worker = str(start.cluster.index if start.cluster else 0)
    log_to(terminal, {"run": config.run_dir, "worker": worker} if as_json else None)
    for warning in config_flags.warnings_of_replaced_flags(values, config):
        log.warning("%s", warning)
    if (
        start.stored is None
        and "run_dir" in start.requested
        and not {"recipe", "dataset"} & start.requested
    ):
        log.warning(
            "Starting a new run in %s. --recipe and --dataset are not given, so it trains %s on "
            "%s.",
            *(config.run_dir, files.shown_name(config.recipe), config.dataset),
        )
    control = Control(
        terminal=terminal,
        stop_requested=stop_requested,
        secs_left=stop_requested.secs_left,
        worker_index=values["worker_index"],
    )
    api.train_start(start, control)


def _command_line() -> CommandLine:
    parser = CommandLine("train", SUMMARY)
    config_flags.define_settings(parser)
    parser.integer(
        "worker_index",
        "index of this machine in --workers, from 0 (default: $JOB_COMPLETION_INDEX)",
    )
    parser.group("Starting and resuming")
    parser.boolean(
        "dry_run",
        "check the settings, the data set and an existing run directory, print the resolved "
        "configuration as JSON and stop; no image is read, and nothing from buckets",
        default=False,
    )
    parser.boolean(
        "fresh",
        "rename an existing run directory to RUN_DIR.old-N and start a new run",
        default=False,
    )
    parser.boolean(
        "accept_changed_data",
        "resume although images of the data set were added, removed or changed",
        default=False,
    )
    return parser


def _start(values: Mapping[str, Any]) -> Start:
    """Returns the start that the flags, and the run that they resume, define."""
    stored: list[Config | None] = [None]

    def stored_config(run_dir: str) -> Config | None:
        if not values["fresh"] and not (values["dry_run"] and is_bucket(run_dir)):
            stored[0] = read_stored_config(run_dir)
        return stored[0]

    config = config_flags.config_from_flags(values, stored_config=stored_config)
    index = values["worker_index"]
    if values["dry_run"] and index is None and "JOB_COMPLETION_INDEX" not in os.environ:
        index = 0  # the settings of a worker can be checked on another machine
    return Start(
        config=config,
        requested=frozenset(name for name, value in values.items() if value is not None),
        stored=stored[0],
        cluster=cluster.find_cluster(config.workers, index, os.environ),
        fresh=values["fresh"],
        accept_changed_data=values["accept_changed_data"],
    )
