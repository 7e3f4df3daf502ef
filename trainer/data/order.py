"""The order of the data: which image stands at which position of the run.

Epoch e holds a permutation of the data set that is a function of (seed, e) alone.
Step s takes positions [s * P, (s + 1) * P), P images a step for all replicas
together, across the epochs' edges, so no image is dropped and every batch is full.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

plainly = tf.autograph.experimental.do_not_convert  # which would take a second
SHUFFLE = 0x5A1  # sets the shuffles' seeds apart from those of other draws


def permutation(seed: int, epoch: tf.Tensor, size: int) -> tf.Tensor:
    """The order [size] int32 of the images in an epoch (int64 scalar)."""
    key = tf.stack([tf.constant((seed << 32) + SHUFFLE, tf.int64), epoch])
    return tf.random.experimental.stateless_shuffle(tf.range(size), key, alg="philox")


def steps(
    seed: int,
    size: int,
    per_step: int,
    first_step: int,
    element: Callable[[tf.Tensor], Any] = tf.identity,
) -> tf.data.Dataset:
    """An endless dataset of what steps take.

    A window of consecutive permutations is kept, and moved on when a step runs over
    the window's first epoch: one shuffle an epoch, whatever the batch.

    Args:
      seed: the run's seed.
      size: images in the data set.
      per_step: images that a step takes, over all replicas.
      first_step: the step to begin with.
      element: makes the dataset's element of a step's image indices, [per_step] int32.
    """
    epochs = -(-per_step // size) + 1  # a step touches at most so many

    def window(epoch: tf.Tensor) -> tf.Tensor:
        orders = [permutation(seed, epoch + k, size) for k in range(epochs)]
        return tf.concat(orders, 0)

    @plainly
    def advance(state, step):
        """Moves the window on if the step begins in another epoch; gives the step's element."""
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
    return tf.data.Dataset.range(first_step, last).scan(nothing, advance)
