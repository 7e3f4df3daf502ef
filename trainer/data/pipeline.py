"""Input pipeline from an image set to the uint8 batches of each replica."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from trainer.data import order
from trainer.data.images import ImageSet
from trainer.files.shards import MappedImages

PARALLEL_READS = 4  # batches that are read at once from a disk, which answers each after a while


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """Which images each step of a run uses.

    Attributes:
      seed: seed of the run.
      batch_size: number of images of one batch over all replicas.
      batches_per_step: number of batches of real images per step.
      first_step: number of the first step.
      shuffle: "full", or "blocks" to keep neighbouring images together.
    """

    seed: int
    batch_size: int
    batches_per_step: int
    first_step: int = 0
    shuffle: str = "full"

    @property
    def images_per_step(self) -> int:
        """Number of images per step over all replicas."""
        return self.batch_size * self.batches_per_step


def batches(
    data: ImageSet, plan: BatchPlan, *, replicas: range, num_replicas: int
) -> tf.data.Dataset:
    """Returns an infinite dataset of the batches of each replica, in the order of the steps.

    Args:
      data: the images and labels.
      plan: the images that each step uses.
      replicas: indices of the replicas to serve, in order; each has one element per step.
      num_replicas: total number of replicas.

    Returns:
      Elements (images [batches_per_step, b, H, W, C] uint8, labels
      [batches_per_step, b] int32) with b = batch_size / num_replicas.
    """
    share = plan.batch_size // num_replicas
    read_images, labels = _reader(data.images), tf.constant(data.labels)
    block = 0
    if plan.shuffle == "blocks":
        block = max(1, order.BLOCK_BYTES // math.prod(data.images.shape[1:]))

    def split(index: tf.Tensor) -> tf.Tensor:
        by_replica = tf.reshape(index, [plan.batches_per_step, num_replicas, share])
        by_replica = tf.transpose(by_replica, [1, 0, 2])
        return by_replica[replicas.start : replicas.stop]

    @order.without_autograph
    def gather(index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return read_images(index), tf.gather(labels, index)

    def of_steps(element: Callable) -> tf.data.Dataset:
        sizes = (len(data), plan.images_per_step, plan.first_step)
        return order.steps(plan.seed, *sizes, element, block=block)

    is_streamed = isinstance(data.images, MappedImages)
    if len(replicas) == 1 and not is_streamed:  # each stage costs about 50 microseconds per element
        dataset = of_steps(lambda index: gather(split(index)[0]))
    else:
        dataset = of_steps(split).unbatch()
        dataset = dataset.map(gather, PARALLEL_READS if is_streamed else None, deterministic=True)
    options = tf.data.Options()
    options.experimental_optimization.apply_default_optimizations = False
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    options.autotune.enabled = False  # one cheap map needs no tuning; this saves a thread
    return dataset.with_options(options).prefetch(2 * len(replicas))


def _reader(images: np.ndarray | MappedImages) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns a function that reads the images at an index [...] int32, as [..., H, W, C] uint8."""
    if not isinstance(images, MappedImages):
        in_memory = tf.constant(images)
        return lambda index: tf.gather(in_memory, index)

    def read(index: tf.Tensor) -> tf.Tensor:
        batch = tf.numpy_function(images.__getitem__, [index], tf.uint8)
        return tf.ensure_shape(batch, [*index.shape, *images.shape[1:]])

    return read
