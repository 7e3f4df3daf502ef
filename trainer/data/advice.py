"""Log messages about the data set of a run: its image size, and whether it is small."""

import logging

import numpy as np

from trainer.config import Config
from trainer.data.file_stores import printable
from trainer.data.images import ImageSet

log = logging.getLogger(__name__)

FEW_IMAGES = 1000
FEW_IMAGES_OF_A_CLASS = 50
MAX_NAMED_CLASSES = 3


def log_advice(config: Config, data: ImageSet) -> None:
    """Logs the reason for the image size, and warns about small data sets and small classes."""
    if data.size_message:
        log.info("%s", data.size_message)
    for note in data.notes:
        log.info("%s", note)
    if len(data) < FEW_IMAGES:
        flip = "" if config.horizontal_flip else "set --horizontal_flip if mirroring suits them, "
        log.warning(
            "--dataset=%s --split=%s has only %d images. With fewer than %s the discriminator "
            "tends to memorise them, and the samples become copies or get worse. Add images, %sor "
            "train for a shorter time",
            printable(config.dataset),
            config.split,
            len(data),
            f"{FEW_IMAGES:,}",
            flip,
        )
    if config.conditional:
        _warn_about_small_classes(config, data)


def _warn_about_small_classes(config: Config, data: ImageSet) -> None:
    counts = np.bincount(data.labels, minlength=data.shape.classes)
    small = [k for k in np.argsort(counts, kind="stable") if counts[k] < FEW_IMAGES_OF_A_CLASS]
    if not small:
        return
    named = [f"{printable(data.class_names[k])} ({counts[k]})" for k in small[:MAX_NAMED_CLASSES]]
    if more := len(small) - len(named):
        named.append(f"{more} more")
    log.warning(
        "--dataset=%s: %d of %d classes have fewer than %d images: %s. Their samples will vary "
        "little. Add images to these classes, merge or remove them, or set --noconditional",
        printable(config.dataset),
        len(small),
        data.shape.classes,
        FEW_IMAGES_OF_A_CLASS,
        ", ".join(named),
    )
