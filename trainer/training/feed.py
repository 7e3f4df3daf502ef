"""What the training steps take their images from: the input pipeline, or the devices' memory."""

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.config import Config
from trainer.data import pipeline
from trainer.data.images import ImageSet
from trainer.errors import UsageError
from trainer.files.shards import MappedImages
from trainer.machine import devices, memory
from trainer.machine.replicas import Replicas, replica_index
from trainer.training.data_wait import DataWaitTimer
from trainer.training.step import real_batches_per_step

log = logging.getLogger(__name__)

DEVICE_SHARE = 0.25  # of a device's memory, which a set may take with --data_on_device=auto


@dataclasses.dataclass(frozen=True, eq=False)
class Feed:
    """What the steps take their images from.

    Attributes:
      classes: number of classes of the data set.
      take: returns what the next step receives on each replica, given its index in the call.  This
        is (images or their indices, labels).
      read: returns the images of a replica [..., H, W, C] uint8, given what it received.
      failure: returns why images can no longer be read; None if they can.
    """

    classes: int
    take: Callable[[tf.Tensor], Any]
    read: Callable[[tf.Tensor], tf.Tensor] = tf.identity
    failure: Callable[[], Exception | None] = lambda: None

    def guarded(self, run_steps: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a function that raises the reason if `run_steps` can no longer read images."""

        def run(*arguments: Any) -> Any:
            try:
                return run_steps(*arguments)
            except tf.errors.OpError:
                if failure := self.failure():
                    raise failure from None
                raise

        return run


class ResidentImages:
    """The images of a data set in the memory of each device of this machine."""

    def __init__(self, images: np.ndarray, device_names: tuple[str, ...]) -> None:
        """Copies the images to the devices."""
        # These are variables because GPUs gather uint8 only from variables.
        self._copies = []
        for name in device_names:
            with tf.device(name):
                self._copies.append(tf.Variable(images, trainable=False, name="images"))

    def read(self, index: tf.Tensor) -> tf.Tensor:
        """Returns the images at an index [...] int64 on the device of the calling replica."""
        number = tf.get_static_value(replica_index())
        own = self._copies[number % len(self._copies)]
        return tf.raw_ops.ResourceGather(resource=own.handle, indices=index, dtype=tf.uint8)


def resident_images(config: Config, data: ImageSet, replicas: Replicas) -> ResidentImages | None:
    """Copies a data set to the devices if --data_on_device says so; otherwise returns None.

    Raises:
      UsageError: if it must be copied but does not fit into the memory.
    """
    size = data.images.nbytes
    capacity = devices.smallest_memory(replicas.device_names)
    free = memory.available_bytes()
    fits_host = free is None or memory.COPIES * size <= free
    if config.data_on_device == "on":
        if not fits_host or (capacity is not None and size > capacity):
            raise UsageError(
                f"--data_on_device=on: the images take {size / 2**30:.1f} GiB, which do not fit "
                "into the memory of this machine and of each device. Use --data_on_device=auto."
            )
    else:
        fits = fits_host and capacity is not None and size <= DEVICE_SHARE * capacity
        if config.data_on_device == "off" or not fits:
            return None
    log.info("Copying the images to each device: %.2f GiB", size / 2**30)
    return ResidentImages(np.asarray(data.images), replicas.device_names)


def open_feed(
    config: Config,
    data: ImageSet,
    replicas: Replicas,
    *,
    first_step: int,
    timer: DataWaitTimer | None = None,
    resident: ResidentImages | None = None,
) -> Feed:
    """Opens the input pipeline of a run.

    Args:
      config: the configuration of the run.
      data: the training images.
      replicas: the replicas that train.
      first_step: number of the first step.
      timer: measures how long the steps wait for their data.
      resident: the images in the memory of the devices; the pipeline then yields their indices.
    """
    plan = pipeline.BatchPlan(
        seed=config.seed,
        batch_size=config.batch_size,
        batches_per_step=real_batches_per_step(config),
        first_step=first_step,
        shuffle=config.shuffle,
        class_balance=config.class_balance,
        indices_only=resident is not None,
    )

    def batches(fed: range) -> tf.data.Dataset:
        """Returns the batches of some replicas."""
        return pipeline.batches(data, plan, replicas=fed, num_replicas=replicas.num_replicas)

    iterator = replicas.make_iterator(batches)

    def take(number: tf.Tensor) -> Any:
        return next(iterator) if timer is None else timer.timed(lambda: next(iterator), number)

    def failure() -> Exception | None:
        return data.images.failure if isinstance(data.images, MappedImages) else None

    return Feed(data.shape.classes, take, resident.read if resident else tf.identity, failure)
