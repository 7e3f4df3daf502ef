"""`train`: a recipe on a data set, from where the run directory says it is."""

from trainer import flags, startup
from trainer.console import Console, log_to
from trainer.data import sources
from trainer.errors import StoppedError
from trainer.signals import StopRequest
from trainer.storage.place import Place

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
    flags.define_settings(line)
    values = line.parse(arguments)
    config = flags.config_from_flags(values)
    if values["dry_run"]:
        print(config.to_json(), end="")
        return
    place = Place(config)

    stop_requested.answer()
    terminal = Console()
    log_to(terminal)

    def reading(share: float, what: str) -> None:
        if stop_requested():
            raise StoppedError("Stopped on request while the data were read. Start it again.")
        terminal.bar(share, what)

    try:
        data = sources.load(config, reading)
    finally:
        terminal.end_bar()
    config = sources.settle(config, data, asked=values["conditional"] is not None)
    with startup.quiet():
        from trainer.train import train  # late: TensorFlow takes seconds to import

    train(
        config,
        data,
        place=place,
        terminal=terminal,
        stop_requested=stop_requested,
        secs_left=stop_requested.secs_left,
        fresh=values["fresh"],
        accept_changed_data=values["accept_changed_data"],
    )
