"""`train`: a recipe on a data set, from where the run directory says it is."""

import os

from trainer.commands import flags
from trainer.data import sources
from trainer.errors import StoppedError
from trainer.machine import cluster, imports
from trainer.machine.signals import StopRequest
from trainer.reporting.console import Console, log_to
from trainer.storage.location import Place

SUMMARY = "Trains a recipe on a data set.  The same command again goes on where it stopped."


def run(arguments: list[str], stop_requested: StopRequest) -> None:
    """Runs the command; `arguments` are those behind its name."""
    line = flags.CommandLine("train", SUMMARY)
    line.boolean("dry_run", "print the resolved configuration as JSON and stop", default=False)
    line.boolean("fresh", "set an old run in the run directory aside and start anew", default=False)
    line.boolean(
        "accept_changed_data",
        "go on although the data set gained or lost images since the run began",
        default=False,
    )
    line.integer(
        "worker_index",
        "which of --workers this machine is, from 0 on (default: $JOB_COMPLETION_INDEX)",
    )
    flags.define_settings(line)
    values = line.parse(arguments)
    config = flags.config_from_flags(values)
    if values["dry_run"]:
        print(config.to_json(), end="")
        return
    place = Place(config)

    machines = cluster.find(config.workers, values["worker_index"], os.environ)
    stop_requested.answer()
    as_json = config.log_format == "json"
    terminal = Console(plain=as_json)
    worker = str(machines.index if machines else 0)
    log_to(terminal, {"run": config.run_dir, "worker": worker} if as_json else None)

    def reading(share: float, what: str) -> None:
        if stop_requested():
            raise StoppedError("Stopped on request while the data were read. Start it again.")
        terminal.bar(share, what)

    try:
        data = sources.load(config, reading)
    finally:
        terminal.end_bar()
    config = sources.settle(config, data, asked=values["conditional"] is not None)
    with imports.quiet():
        from trainer.train import train  # late: TensorFlow takes seconds to import

    train(
        config,
        data,
        place=place,
        terminal=terminal,
        stop_requested=stop_requested,
        cluster=machines,
        secs_left=stop_requested.secs_left,
        fresh=values["fresh"],
        accept_changed_data=values["accept_changed_data"],
    )
