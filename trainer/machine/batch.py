"""Checks --devices, and that the replicas can share the global batch, without TensorFlow."""

import re

from trainer.config import Config
from trainer.errors import UsageError


def parse_devices(wanted: str) -> tuple[str, list[int] | None]:
    """Parses a value of --devices.

    Returns:
      "auto", "cpu" or "gpu", and the numbers of the devices; None for all of the machine.

    Raises:
      UsageError: if the value is invalid.
    """
    match = re.fullmatch(r"(auto|cpu|gpu)(?::(.+))?", wanted)
    kind, given = match.groups() if match else ("", None)
    if kind == "cpu" and re.fullmatch(r"[1-9]\d?", given or "1"):
        return kind, list(range(int(given or 1)))
    if kind == "gpu" and given and re.fullmatch(r"\d+(,\d+)*", given):
        return kind, [int(number) for number in given.split(",")]
    if not kind or given:
        raise UsageError(
            f"--devices={wanted!r} is not valid. Use auto, gpu, gpu:0,1, cpu or cpu:2."
        )
    return kind, None


def count_devices(wanted: str) -> int | None:
    """Returns the number of devices that --devices names; None if it depends on the machine.

    Raises:
      UsageError: if the value is invalid.
    """
    numbers = parse_devices(wanted)[1]
    return None if numbers is None else len(numbers)


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
