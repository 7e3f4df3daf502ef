"""Whether the replicas can share the global batch.  Does not import TensorFlow."""

from trainer.config import Config
from trainer.errors import UsageError


def check_batch_size(config: Config, replicas: int) -> None:
    """Raises a UsageError unless the replicas can share the global batch.

    Args:
      config: the configuration of the run.
      replicas: number of replicas.
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
            f"(--batch_size={config.batch_size} over {replicas})."
        )
