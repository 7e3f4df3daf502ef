"""Input pipeline from an image set to the uint8 batches of each replica."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from trainer.data import order
from trainer.data.images import ImageSet
from trainer.files.shards import MappedImages

STEPS_AHEAD = 16  # for which images are downloaded at least
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
      class_balance: "none", or "equal" to use all classes equally often.
      indices_only: whether batches have the indices of the images instead of the images.
    """

    seed: int
    batch_size: int
    batches_per_step: int
    first_step: int = 0
    shuffle: str = "full"
    class_balance: str = "none"
    indices_only: bool = False

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
      [batches_per_step, b] int32) with b = batch_size / num_replicas; instead of the images
      their indices [batches_per_step, b] int64 if the plan says so.
    """
    share = plan.batch_size // num_replicas
    labels = tf.constant(data.labels)
    # The devices gather by int64, because int32 values stay in host memory.
    read_images = _to_int64 if plan.indices_only else _reader(data.images)
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
        if plan.class_balance == "equal":
            balanced = order.BalancedOrder(plan.seed, data.labels)
            return balanced.steps(plan.images_per_step, plan.first_step, element)
        sizes = (len(data), plan.images_per_step, plan.first_step)
        return order.steps(plan.seed, *sizes, element, block=block)

    streamed = data.images if isinstance(data.images, MappedImages) else None
    if plan.indices_only:
        streamed = None
    # Each stage costs about 50 microseconds per element, so one replica has a single one.
    if len(replicas) == 1 and streamed is None:
        dataset = of_steps(lambda index: gather(split(index)[0]))
    else:
        dataset = of_steps(split)
        if streamed is not None and streamed.is_remote:
            dataset = dataset.map(_announced(streamed)).prefetch(_steps_ahead(plan, block))
        dataset = dataset.unbatch()
        if streamed is None:
            dataset = dataset.map(gather)
        else:
            dataset = dataset.map(gather, PARALLEL_READS, deterministic=True)
    options = tf.data.Options()
    options.experimental_optimization.apply_default_optimizations = False
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    options.autotune.enabled = False  # one cheap map needs no tuning; this saves a thread
    return dataset.with_options(options).prefetch(2 * len(replicas))


def _announced(images: MappedImages) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns a function that passes an index [...] int32 on, and has its images downloaded."""

    def announce(index: np.ndarray) -> np.ndarray:
        images.expect(index)
        return index

    @order.without_autograph
    def announced(index: tf.Tensor) -> tf.Tensor:
        same = tf.numpy_function(announce, [index], tf.int32, stateful=False)  # see _reader
        return tf.ensure_shape(same, index.shape)

    return announced


def _steps_ahead(plan: BatchPlan, block: int) -> int:
    """Returns for how many steps images are downloaded ahead of their use.

    The first steps in a window of blocks use nearly all of its blocks, so that half a window of
    steps ahead leaves much time for their download.
    """
    return max(STEPS_AHEAD, order.WINDOW_BLOCKS * block // 2 // plan.images_per_step)


def _to_int64(index: tf.Tensor) -> tf.Tensor:
    return tf.cast(index, tf.int64)


def _reader(images: np.ndarray | MappedImages) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns a function that reads the images at an index [...] int32, as [..., H, W, C] uint8."""
    if not isinstance(images, MappedImages):
        in_memory = tf.constant(images)
        return lambda index: tf.gather(in_memory, index)

    def read(index: tf.Tensor) -> tf.Tensor:
        # In deterministic runs, tf.data runs stateful operations only when their result is needed.
        batch = tf.numpy_function(images.__getitem__, [index], tf.uint8, stateful=False)
        return tf.ensure_shape(batch, [*index.shape, *images.shape[1:]])

    return read
