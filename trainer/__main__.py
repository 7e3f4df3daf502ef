"""`python -m trainer COMMAND [--flags]`."""

import logging
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from trainer import __version__, commands
from trainer.errors import ExitCode, HelpRequested, PeerLostError, TrainerError, one_of
from trainer.machine.restart import restart_in_a_pod
from trainer.machine.signals import StopRequest
from trainer.reporting.console import report


def main(arguments: Sequence[str]) -> int:
    """Runs a command and returns its exit code."""
    stop_requested = StopRequest()
    try:
        if not arguments or arguments[0] in ("--help", "-h", "help"):
            raise HelpRequested(_usage())
        if arguments[0] == "--version":
            raise HelpRequested(f"gan-trainer {__version__}")
        command = commands.load(one_of("command", arguments[0], commands.names()))
        command.main(list(arguments[1:]), stop_requested)
    except HelpRequested as request:
        print(request)
    except TrainerError as error:
        line = " ".join(str(error).splitlines())  # names from the user may contain line breaks
        report(f"{_label(error)}{line}", error.exit_code)
        if isinstance(error, PeerLostError):
            restart_in_a_pod(arguments, stop_requested)
        return error.exit_code
    return ExitCode.OK


def _label(error: TrainerError) -> str:
    return "" if error.exit_code.is_stop else "error: "


def _usage() -> str:
    lines = ["usage: python -m trainer COMMAND [--flags]", ""]
    lines += [f"  {name:10}{commands.first_sentence(name)}" for name in commands.names()]
    lines += ["", "python -m trainer COMMAND --help lists the flags of a command."]
    lines += ["python -m trainer --version prints the version."]
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
