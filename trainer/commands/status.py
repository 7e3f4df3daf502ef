"""`status`: shows the progress and the health of a run."""

import time

from trainer.commands import flags, run_flags
from trainer.errors import UsageError
from trainer.machine.signals import StopRequest
from trainer.reporting import status

SUMMARY = "Shows the step, rate, time left, latest checkpoint, starts and health of a run."


def run(arguments: list[str], _: StopRequest) -> None:
    """Runs the command; `arguments` are those after its name."""
    line = flags.CommandLine("status", SUMMARY)
    run_flags.define(line, "to look at")
    line.boolean("json", "print one JSON object", default=False)
    line.boolean("watch", "repeat every --every_secs until Ctrl-C", default=False)
    line.real("every_secs", "interval of --watch in seconds", default=5.0)
    values = line.parse(arguments)
    if values["every_secs"] <= 0:
        raise UsageError(f"--every_secs={values['every_secs']:g} must be more than 0.")
    while True:
        found = status.look(run_flags.opened(values, which=None), run_flags.given(values))
        print(found.to_json() if values["json"] else found.screen(), flush=True)
        if not values["watch"]:
            return
        time.sleep(values["every_secs"])
        if not values["json"]:
            print()
