"""`doctor`: checks this machine and its GPUs, or the heartbeat of a run."""

from pathlib import Path

from trainer.commands.flags.command_line import CommandLine
from trainer.errors import TrainerError, UsageError
from trainer.machine import imports, nvidia
from trainer.machine.signals import StopRequest
from trainer.reporting import heartbeat
from trainer.reporting.console import Console, log_to

SUMMARY = """Checks this machine and its GPUs.  Shows versions, GPUs, memory and disk space, and
runs a convolution, a batch norm and a matrix product on each GPU, or on the CPU if there is none.
Fails if TensorFlow does not find an NVIDIA GPU of this machine, if the driver or cuDNN does not
suit it, or if an operation fails, and names the GPU, the library and the remedy.  With --liveness
it fails if the training loop has not updated its heartbeat file recently."""


def main(arguments: list[str], _: StopRequest) -> None:
    """Runs the command; `arguments` are those after its name."""
    parser = CommandLine("doctor", SUMMARY)
    parser.boolean("liveness", "check only the age of the --heartbeat file", default=False)
    parser.path("heartbeat", "heartbeat file that `train --heartbeat` writes")
    parser.real("max_age_secs", "maximum age of the heartbeat file in seconds", default=600.0)
    values = parser.parse(arguments)
    if values["liveness"]:
        if not values["heartbeat"]:
            raise UsageError("--liveness needs --heartbeat, the file that the run writes.")
        print(heartbeat.check_age(Path(values["heartbeat"]), values["max_age_secs"]))
        return
    log_to(Console())
    try:
        with imports.quiet():
            from trainer.machine.doctor import (
                log_report,
            )  # late: it imports TensorFlow
    except ImportError as error:
        raise TrainerError(
            f"TensorFlow or Keras cannot be imported ({error}): pip install tensorflow, or "
            "'tensorflow[and-cuda]' where there is a GPU."
        ) from error
    log_report(nvidia.device_files())
