"""Checks that the replicas can share the global batch, without TensorFlow."""

from trainer.config import Config
from trainer.errors import UsageError


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
