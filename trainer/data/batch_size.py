"""The batch size of a run whose data set has few images."""

import logging

from trainer.config import Config
from trainer.data.file_stores import printable
from trainer.data.images import ImageSet
from trainer.errors import DataError

log = logging.getLogger(__name__)


def check(config: Config, count: int) -> None:
    """Raises a DataError that names a suitable --batch_size if the data do not fill a batch."""
    if count < config.batch_size:
        raise DataError(
            f"{_too_few(config, count)} --batch_size={config.batch_size}. Use "
            f"--batch_size={_fitting(count)}, or add images."
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
    count = len(data)
    if count >= config.batch_size:
        return config
    if is_resumed:
        raise DataError(
            f"{_too_few(config, count)} the batch size {config.batch_size} of the run in "
            f"{config.run_dir}, which cannot change. Restore the images, or start a new run with "
            f"--fresh --batch_size={_fitting(count)}."
        )
    if was_requested:
        check(config, count)
    log.info(
        "%s the recipe's batch size %d, so the batch size is %d (--batch_size sets another one)",
        _too_few(config, count),
        config.batch_size,
        _fitting(count),
    )
    return config.replace(batch_size=_fitting(count))


def _too_few(config: Config, count: int) -> str:
    images = "1 image" if count == 1 else f"{count} images"
    return f"--dataset={printable(config.dataset)} --split={config.split} has {images}, fewer than"


def _fitting(count: int) -> int:
    """Returns the largest power of two up to the number of images."""
    return 1 << (count.bit_length() - 1)
