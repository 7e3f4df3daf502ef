"""The order of the data: which image is used at which position of the run.

Epoch e is a permutation of the data set that is a function of (seed, e) alone.
Step s uses positions [s * P, (s + 1) * P), where P is the number of images per step over all
replicas. Steps cross epoch boundaries, so no image is dropped and every batch is full.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

without_autograph = tf.autograph.experimental.do_not_convert  # AutoGraph would take a second
SHUFFLE = 0x5A1  # distinguishes the seeds of shuffles from those of other draws


def permutation(seed: int, epoch: tf.Tensor, size: int) -> tf.Tensor:
    """Returns the order [size] int32 of the images in an epoch (int64 scalar)."""
    key = tf.stack([tf.constant((seed << 32) + SHUFFLE, tf.int64), epoch])
    return tf.random.experimental.stateless_shuffle(tf.range(size), key, alg="philox")


def steps(
    seed: int,
    size: int,
    per_step: int,
    first_step: int,
    element: Callable[[tf.Tensor], Any] = tf.identity,
) -> tf.data.Dataset:
    """Returns an infinite dataset with one element per step.

    The dataset keeps a window of consecutive permutations and computes the next window when a
    step starts in another epoch.

    Args:
      seed: seed of the run.
      size: number of images in the data set.
      per_step: number of images per step, over all replicas.
      first_step: number of the first step.
      element: function of the image indices of a step, [per_step] int32, that returns the
        element of the dataset.
    """
    epochs = -(-per_step // size) + 1  # largest number of epochs that one step can span

    def window(epoch: tf.Tensor) -> tf.Tensor:
        orders = [permutation(seed, epoch + k, size) for k in range(epochs)]
        return tf.concat(orders, 0)

    @without_autograph
    def next_state(state: tuple[tf.Tensor, tf.Tensor], step: tf.Tensor) -> tuple[Any, Any]:
        """Returns the window of the step and the step's element."""
        kept_epoch, kept = state
        start = step * per_step
        epoch = start // size
        order = tf.cond(tf.equal(epoch, kept_epoch), lambda: kept, lambda: window(epoch))
        offset = start - epoch * size
        return (epoch, order), element(
            tf.ensure_shape(order[offset : offset + per_step], [per_step])
        )

    nothing = (tf.constant(-1, tf.int64), tf.zeros([epochs * size], tf.int32))
    last = tf.constant(2**62 // per_step, tf.int64)
    return tf.data.Dataset.range(first_step, last).scan(nothing, next_state)
