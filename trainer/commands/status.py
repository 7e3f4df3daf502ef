"""`status`: shows the progress and the health of a run."""

import time

from trainer.commands.flags import runs
from trainer.commands.flags.command_line import CommandLine
from trainer.errors import UsageError
from trainer.machine.signals import StopRequest
from trainer.reporting import status

SUMMARY = """Shows the progress and the health of a run.  Prints the step, the rate, the time left,
the latest checkpoint, the number of starts and signs of trouble."""


def main(arguments: list[str], _: StopRequest) -> None:
    """Runs the command; `arguments` are those after its name."""
    parser = CommandLine("status", SUMMARY)
    runs.define_run_dir(parser, "to show")
    parser.boolean("json", "print one JSON object", default=False)
    parser.boolean("watch", "repeat every --every_secs until Ctrl-C", default=False)
    parser.real("every_secs", "interval of --watch in seconds", default=5.0)
    values = parser.parse(arguments)
    if values["every_secs"] <= 0:
        raise UsageError(f"--every_secs={values['every_secs']:g} must be more than 0.")
    while True:
        found = status.read_status(runs.open_run(values, which=None), runs.run_dir_flag(values))
        print(found.to_json() if values["json"] else found.screen(), flush=True)
        if not values["watch"]:
            return
        time.sleep(values["every_secs"])
        if not values["json"]:
            print()
