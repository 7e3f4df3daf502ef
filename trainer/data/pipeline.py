"""From an image set in memory to batches of bytes, a share for each replica."""

from collections.abc import Callable

import tensorflow as tf

from trainer.data import order
from trainer.data.images import ImageSet


def batches(
    data: ImageSet,
    *,
    seed: int,
    first_step: int,
    batch_size: int,
    batches_per_step: int,
    replicas: range,
    num_replicas: int,
) -> tf.data.Dataset:
    """An endless dataset of the shares of the replicas, step after step.

    Args:
      data: the images and labels.
      seed: the run's seed.
      first_step: the step to begin with.
      batch_size: images of one batch over all replicas.
      batches_per_step: real batches that one step takes.
      replicas: the replicas to serve, in their order; each has one element per step.
      num_replicas: the number of all replicas.

    Returns:
      Elements (images [batches_per_step, b, H, W, C] uint8, labels
      [batches_per_step, b] int32) with b = batch_size / num_replicas.
    """
    share = batch_size // num_replicas
    images, labels = tf.constant(data.images), tf.constant(data.labels)

    def split(index: tf.Tensor) -> tf.Tensor:
        by_replica = tf.reshape(index, [batches_per_step, num_replicas, share])
        by_replica = tf.transpose(by_replica, [1, 0, 2])
        return by_replica[replicas.start : replicas.stop]

    @order.plainly
    def gather(index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.gather(images, index), tf.gather(labels, index)

    def of_steps(element: Callable) -> tf.data.Dataset:
        return order.steps(seed, len(data), batch_size * batches_per_step, first_step, element)

    if len(replicas) == 1:  # each stage costs some 50 microseconds an element
        dataset = of_steps(lambda index: gather(split(index)[0]))
    else:
        dataset = of_steps(split).unbatch().map(gather)
    options = tf.data.Options()
    options.experimental_optimization.apply_default_optimizations = False
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    options.autotune.enabled = False  # one cheap map: nothing to tune, and a thread less
    return dataset.with_options(options).prefetch(2 * len(replicas))
