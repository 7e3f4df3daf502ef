"""The batch size of a run whose data set has few images."""

import logging

from trainer.config import Config
from trainer.data.file_stores import printable
from trainer.data.images import ImageSet
from trainer.errors import DataError

log = logging.getLogger(__name__)


def check(config: Config, data: ImageSet) -> None:
    """Raises a DataError that names a suitable --batch_size if the data do not fill a batch."""
    if len(data) < config.batch_size:
        raise DataError(
            f"{_too_few(config, data)} --batch_size={config.batch_size}. Use "
            f"--batch_size={_fitting(data)}, or add images."
        )


def fit(config: Config, data: ImageSet, *, was_requested: bool, is_resumed: bool) -> Config:
    """Returns the configuration with a smaller batch if the data do not fill the recipe's batch.

    The smaller batch size is a power of two, so that 2, 4 or 8 devices can share it.

    Args:
      config: configuration of the run.
      data: images of the run.
      was_requested: whether the user, rather than the recipe, set --batch_size.
      is_resumed: whether the run exists, so that its batch size cannot change.

    Raises:
      DataError: if the data do not fill a batch and its size was requested or cannot change.
    """
    if len(data) >= config.batch_size:
        return config
    if is_resumed:
        raise DataError(
            f"{_too_few(config, data)} the batch size {config.batch_size} of the run in "
            f"{config.run_dir}, which cannot change. Restore the images, or start a new run with "
            f"--fresh --batch_size={_fitting(data)}."
        )
    if was_requested:
        check(config, data)
    log.info(
        "%s the recipe's batch size %d, so the batch size is %d (--batch_size sets another one)",
        _too_few(config, data),
        config.batch_size,
        _fitting(data),
    )
    return config.replace(batch_size=_fitting(data))


def _too_few(config: Config, data: ImageSet) -> str:
    count = "1 image" if len(data) == 1 else f"{len(data)} images"
    return f"--dataset={printable(config.dataset)} --split={config.split} has {count}, fewer than"


def _fitting(data: ImageSet) -> int:
    """Returns the largest power of two up to the number of images."""
    return 1 << (len(data).bit_length() - 1)
