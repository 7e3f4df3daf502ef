"""`train`: trains a recipe on a data set, or resumes the run in the run directory."""

import logging
import os
from collections.abc import Mapping
from typing import Any

from trainer.commands.flags import config_flags, settings_help
from trainer.commands.flags.command_line import CommandLine
from trainer.config import Config
from trainer.data import sources
from trainer.errors import SignalledError
from trainer.machine import cluster, imports
from trainer.machine.signals import StopRequest
from trainer.reporting.console import Console, log_to
from trainer.storage.address import is_bucket
from trainer.storage.location import RunLocation
from trainer.storage.stored_config import read_stored_config

log = logging.getLogger(__name__)

SUMMARY = "Trains a recipe on a data set.  Running the same command again resumes the run."


def main(arguments: list[str], stop_requested: StopRequest) -> None:
    """Runs the command; `arguments` are those after its name."""
    values = _command_line().parse(arguments, settings_help.help_details)
    config, is_resumed = _resolve(values)
    requested = {name for name, value in values.items() if value is not None}
    if values["dry_run"]:
        sources.check(config, requested)
        print(config.to_json(), end="")
        return
    location = RunLocation(config)

    machines = cluster.find_cluster(config.workers, values["worker_index"], os.environ)
    stop_requested.allow_graceful_stop()
    as_json = config.log_format == "json"
    terminal = Console(plain=as_json)
    worker = str(machines.index if machines else 0)
    log_to(terminal, {"run": config.run_dir, "worker": worker} if as_json else None)
    for warning in config_flags.warnings_of_replaced_flags(values, config):
        log.warning("%s", warning)

    def reading(share: float, what: str) -> None:
        if stop_requested():
            raise SignalledError(
                "Stopped on request while reading the data. Run the same command again.",
                stop_requested.exit_code,
            )
        terminal.bar(share, what)

    try:
        # `adapt` checks the batch size: whether a smaller one may be used depends on the flags.
        data = sources.load(config.replace(batch_size=1), reading)
    finally:
        terminal.end_bar()
    config = sources.adapt(config, data, requested, is_resumed=is_resumed)
    with imports.quiet():
        from trainer.train import (  # late: TensorFlow takes seconds to import
            Control,
            StartOptions,
            train,
        )

    train(
        config,
        data,
        Control(
            terminal=terminal, stop_requested=stop_requested, secs_left=stop_requested.secs_left
        ),
        options=StartOptions(
            fresh=values["fresh"], accept_changed_data=values["accept_changed_data"]
        ),
        cluster=machines,
        location=location,
    )


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
        "check that the data set exists, print the resolved configuration as JSON and stop; "
        "nothing is read from buckets",
        default=False,
    )
    parser.boolean("fresh", "rename an existing run directory and start a new run", default=False)
    parser.boolean(
        "accept_changed_data",
        "resume although images of the data set were added, removed or changed",
        default=False,
    )
    return parser


def _resolve(values: Mapping[str, Any]) -> tuple[Config, bool]:
    """Returns the configuration that the flags and an existing run select, and if there is one."""
    is_resumed = False

    def stored_config(run_dir: str) -> Config | None:
        nonlocal is_resumed
        if values["fresh"] or (values["dry_run"] and is_bucket(run_dir)):
            return None
        stored = read_stored_config(run_dir)
        is_resumed = stored is not None
        return stored

    return config_flags.config_from_flags(values, stored_config=stored_config), is_resumed
