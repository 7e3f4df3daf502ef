"""`status`: shows the progress and the health of a run."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.commands.flags import runs
from trainer.commands.flags.command_line import CommandLine
from trainer.errors import TrainerError, UsageError
from trainer.machine.signals import StopRequest
from trainer.reporting import status

SUMMARY = """Shows the progress and the health of a run.  Prints the step, the rate, the time left,
the latest checkpoint, the number of starts and signs of trouble.  Without --run_dir it lists the
runs in the folder runs/."""
RUNS = Path("runs")


def main(arguments: list[str], _: StopRequest) -> None:
    """Runs the command; `arguments` are those after its name."""
    parser = CommandLine("status", SUMMARY)
    runs.define_run_dir(parser, "to show (default: all runs in runs/)")
    parser.boolean("json", "print one JSON object", default=False)
    parser.boolean("watch", "repeat every --every_secs until Ctrl-C", default=False)
    parser.real("every_secs", "interval of --watch in seconds", default=5.0)
    values = parser.parse(arguments)
    if values["every_secs"] <= 0:
        raise UsageError(f"--every_secs={values['every_secs']:g} must be more than 0.")
    while True:
        print(_show(values), flush=True)
        if not values["watch"]:
            return
        time.sleep(values["every_secs"])
        if not values["json"]:
            print()


def _show(values: Mapping[str, Any]) -> str:
    """Returns the status of the run that --run_dir names, or a line for each run."""
    as_json = values["json"]
    if values["run_dir"]:
        found = status.read_status(runs.open_run(values, which=None), values["run_dir"])
        return found.to_json() if as_json else found.screen()
    listed = status.list_runs(RUNS)
    if not listed:
        raise UsageError(f"--run_dir is missing, and the folder {RUNS}/ holds no run.")
    lines = []
    for run in listed:
        if isinstance(run, TrainerError):
            lines.append(json.dumps({"error": str(run)}) if as_json else str(run))
        else:
            lines.append(run.to_json() if as_json else run.line())
    return "\n".join(lines)
