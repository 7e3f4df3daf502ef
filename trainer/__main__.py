"""`python -m trainer COMMAND [--flags]`."""

import importlib
import logging
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from trainer.errors import ExitCode, HelpRequested, TrainerError, one_of
from trainer.machine.signals import StopRequest
from trainer.reporting.console import report

COMMANDS = {
    "train": "train a recipe on a data set, or resume a run",
    "generate": "draw images from a run",
    "evaluate": "measure the image quality of a run",
    "export": "export the generator of a run for use without this package",
    "status": "show the progress and the health of a run",
    "recipes": "list the recipes and how they differ from their sources",
    "doctor": "check this machine, and why TensorFlow does not use its GPUs",
}


def main(arguments: Sequence[str]) -> int:
    """Runs a command and returns its exit code."""
    stop_requested = StopRequest()
    try:
        if not arguments or arguments[0] in ("--help", "-h", "help"):
            raise HelpRequested(_usage())
        name = one_of("command", arguments[0], COMMANDS)
        command = importlib.import_module(f"trainer.commands.{name}")
        command.run(list(arguments[1:]), stop_requested)
    except HelpRequested as request:
        print(request)
    except TrainerError as error:
        line = " ".join(str(error).splitlines())  # names from the user may contain line breaks
        report(f"{_label(error)}{line}", error.exit_code)
        return error.exit_code
    return ExitCode.OK


def _label(error: TrainerError) -> str:
    return "" if error.exit_code == ExitCode.STOPPED else "error: "


def _usage() -> str:
    lines = ["usage: python -m trainer COMMAND [--flags]", ""]
    lines += [f"  {name:10}{what}" for name, what in COMMANDS.items()]
    lines += ["", "python -m trainer COMMAND --help lists the flags of a command."]
    return "\n".join(lines)


def run_and_end(arguments: Sequence[str]) -> NoReturn:
    """Runs a command and ends the process with its exit code.

    It ends the process immediately, because TensorFlow's shutdown would wait for other
    machines, which may be gone.
    """
    try:
        code = main(arguments)
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:  # `... --help | head` closes our output early
        code = ExitCode.OK
    os._exit(code)


def console_script() -> NoReturn:
    """Runs the command line of the process; `gan-trainer` calls it."""
    run_and_end(sys.argv[1:])


if __name__ == "__main__":
    run_and_end(sys.argv[1:])
