"""`status`: shows the progress and the health of a run, or lists the runs in runs/."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.commands.flags import runs
from trainer.commands.flags.command_line import CommandLine
from trainer.errors import TrainerError, UsageError
from trainer.machine.signals import StopRequest
from trainer.reporting import status
from trainer.run_dir.directory import RunDir

SUMMARY = """Shows the progress and the health of a run.  Prints the step, the rate, the time left,
the latest checkpoint, the number of starts, signs of trouble and, if the run is stopped, the
command that resumes it.  Without --run_dir it lists the runs in the folder runs/."""
RUNS = Path("runs")


def main(arguments: list[str], _: StopRequest) -> None:
    """Runs the command; `arguments` are those after its name."""
    parser = CommandLine("status", SUMMARY)
    runs.define_run_dir(parser, "to show")
    parser.boolean("json", "print one JSON object for each run", default=False)
    parser.boolean("watch", "repeat every --every_secs until Ctrl-C", default=False)
    parser.real("every_secs", "interval of --watch in seconds", default=5.0)
    values = parser.parse(arguments)
    if values["every_secs"] <= 0:
        raise UsageError(f"--every_secs={values['every_secs']:g} must be more than 0.")
    while True:
        print(_report(values), flush=True)
        if not values["watch"]:
            return
        time.sleep(values["every_secs"])
        if not values["json"]:
            print()


def _report(values: Mapping[str, Any]) -> str:
    """Returns the status of the run of --run_dir, or of the runs in runs/."""
    if values["run_dir"]:
        found = status.read_status(runs.open_run(values, which=None), values["run_dir"])
        return found.to_json() if values["json"] else found.screen()
    listed = [(str(path), RunDir(path)) for path in status.list_runs(RUNS)]
    if not listed:
        raise UsageError(
            f"--run_dir is missing, and the folder {RUNS}/ contains no run. Name the run directory."
        )
    every, unreadable = [], []
    for name, run_dir in listed:
        try:
            every.append(status.read_status(run_dir, name))
        except TrainerError as error:
            unreadable.append(str(error))
    if values["json"]:
        return "\n".join(one.to_json() for one in every)
    return "\n".join([status.table(every), *unreadable])
