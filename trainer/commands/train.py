"""`train`: trains a recipe on a data set, or resumes the run in the run directory."""

import dataclasses
import logging
import os
import sys
from collections.abc import Mapping
from typing import Any

from trainer import api
from trainer.commands.flags import config_flags, settings_help
from trainer.commands.flags.command_line import CommandLine
from trainer.config import Config
from trainer.machine.cluster import find_cluster
from trainer.machine.signals import StopRequest
from trainer.reporting.console import Console, log_to
from trainer.reporting.control import Control
from trainer.reporting.heartbeat import Heartbeat
from trainer.reporting.phases import COMPILING, Phases
from trainer.storage.address import is_bucket
from trainer.storage.start import Start
from trainer.storage.stored_config import read_stored_config

log = logging.getLogger(__name__)

SUMMARY = "Trains a recipe on a data set.  Running the same command again resumes the run."


def main(arguments: list[str], stop_requested: StopRequest) -> None:
    """Runs the command; `arguments` are those after its name."""
    values = _command_line().parse(arguments, settings_help.help_details)
    if values["dry_run"]:
        config = api.check(_resolve(values))
        print(config.to_json(), end="", flush=True)
        if cost := api.cost(config):
            print(f"{cost}.", file=sys.stderr)
        return
    with Phases(Heartbeat(values["heartbeat"] or "")).shown() as phases:
        _train(values, phases, stop_requested)


def _train(values: Mapping[str, Any], phases: Phases, stop_requested: StopRequest) -> None:
    """Trains with the values of the flags."""
    start = _resolve(values)
    config = start.config
    cluster = find_cluster(config.workers, values["worker_index"], os.environ)

    def nothing_is_lost() -> bool:
        # The run has been restored or saved before its steps are compiled.
        return phases.name == COMPILING and not phases.is_overdue

    start = dataclasses.replace(start, cluster=cluster)
    record_end = start.events().add_end
    stop_requested.allow_graceful_stop(config.grace_secs, nothing_is_lost, record_end)
    as_json = config.log_format == "json"
    terminal = Console(plain=as_json)
    worker = str(cluster.index if cluster else 0)
    log_to(terminal, {"run": config.run_dir, "worker": worker} if as_json else None)
    for warning in config_flags.warnings_of_replaced_flags(values, config):
        log.warning("%s", warning)
    control = Control(
        terminal=terminal,
        stop_requested=stop_requested,
        secs_left=stop_requested.secs_left,
        phases=phases,
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
        "check the flags, the run directory and that the data set exists, print the resolved "
        "configuration as JSON and what a step costs, and stop; no image is read, and nothing from "
        "buckets",
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


def _resolve(values: Mapping[str, Any]) -> Start:
    """Returns the configuration that the flags select, and that of the run that they resume."""

    def stored_config(run_dir: str) -> Config | None:
        if values["fresh"] or (values["dry_run"] and is_bucket(run_dir)):
            return None
        return read_stored_config(run_dir)

    config, stored = config_flags.resolve(values, stored_config=stored_config)
    return Start(
        config=config,
        stored=stored,
        requested={name for name, value in values.items() if value is not None},
        fresh=values["fresh"],
        accept_changed_data=values["accept_changed_data"],
    )
