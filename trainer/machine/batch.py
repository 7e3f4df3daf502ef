"""Reads --devices, and checks that the replicas can share the global batch, without TensorFlow."""

import dataclasses
import re

from trainer.config import Config
from trainer.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Devices:
    """A value of --devices.

    Attributes:
      kind: "auto", "cpu" or "gpu".
      gpus: the numbers of the GPUs; empty for all of them.
      count: number of devices; None if it depends on the machine.
    """

    kind: str
    gpus: tuple[int, ...] = ()
    count: int | None = None


def parse_devices(wanted: str) -> Devices:
    """Parses a value of --devices.

    Raises:
      UsageError: if it is not valid.
    """
    match = re.fullmatch(r"(auto)|(cpu)(?::([1-9]\d?))?|(gpu)(?::(\d+(?:,\d+)*))?", wanted)
    if not match:
        raise UsageError(
            f"--devices={wanted!r} is not valid. Use auto, gpu, gpu:0,1, cpu or cpu:2."
        )
    if match[2]:
        return Devices("cpu", count=int(match[3] or 1))
    gpus = tuple(int(number) for number in (match[5] or "").split(",") if number)
    return Devices(match[1] or match[4], gpus, len(gpus) or None)


def check_batch_size(config: Config, replicas: int) -> None:
    """Checks that the replicas can share the global batch.

    Args:
      config: configuration of the run.
      replicas: number of replicas.

    Raises:
      UsageError: if the batch, or a replica's share of it, cannot be divided into equal parts.
    """
    if config.batch_size % replicas:
        raise UsageError(
            f"--batch_size={config.batch_size} cannot be divided among {replicas} devices "
            f"(--devices={config.devices}). Use a multiple of {replicas}."
        )
    share, at_once = config.batch_size // replicas, config.batch_per_replica
    if at_once and at_once < share and share % at_once:
        raise UsageError(
            f"--batch_per_replica={at_once} does not divide a device's share of {share} images "
            f"(--batch_size={config.batch_size} on {replicas} devices). Use a divisor of {share}."
        )
