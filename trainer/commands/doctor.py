"""`doctor`: what this machine has, and why a GPU is not used."""

from trainer import flags, nvidia, startup
from trainer.console import Console, log_to
from trainer.errors import TrainerError
from trainer.signals import StopRequest

SUMMARY = """Shows versions, GPUs, memory and disk.  Fails if TensorFlow does not list an NVIDIA GPU
that this machine has, and says which library is missing and how to bring it."""


def run(arguments: list[str], _: StopRequest) -> None:
    """Runs the command; `arguments` are those behind its name."""
    flags.CommandLine("doctor", SUMMARY).parse(arguments)
    log_to(Console())
    try:
        with startup.quiet():
            from trainer.doctor import examine  # late: TensorFlow takes seconds to import
    except ImportError as error:
        raise TrainerError(
            f"TensorFlow or Keras cannot be imported ({error}): pip install tensorflow, or "
            "'tensorflow[and-cuda]' where there is a GPU."
        ) from error
    examine(nvidia.device_files())
