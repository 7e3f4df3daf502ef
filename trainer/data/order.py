"""The order of the data: which image is used at which position of the run.

Epoch e is a permutation of the data set that is a function of (seed, e) alone.
Step s uses positions [s * P, (s + 1) * P), where P is the number of images per step over all
replicas. Steps cross epoch boundaries, so no image is dropped and every batch is full.

The permutation is of single images (`permutation`), or of blocks of neighbouring images, which are
mixed within a window of some blocks (`block_permutation`): a disk then reads whole blocks.

`BalancedOrder` shows all classes equally often instead.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

without_autograph = tf.autograph.experimental.do_not_convert  # AutoGraph would take a second
# They distinguish the seeds of shuffles from those of other draws.
SHUFFLE, WITHIN_WINDOW = 0x5A1, 0x5A2
CLASSES = 0x5A3
IMAGES_OF_CLASS = 1 << 31  # plus the class
BLOCK_BYTES = 1 << 20  # size of a block: reading it costs little more than finding it
SHUFFLE_ROUNDS = 8  # of the cipher that permutes the images of a class
WINDOW_BLOCKS = 256  # blocks whose images are mixed


def permutation(seed: int, epoch: tf.Tensor, size: int) -> tf.Tensor:
    """Returns the order [size] int32 of the images in an epoch (int64 scalar)."""
    key = tf.stack([tf.constant((seed << 32) + SHUFFLE, tf.int64), epoch])
    return tf.random.experimental.stateless_shuffle(tf.range(size), key, alg="philox")


def block_permutation(seed: int, epoch: tf.Tensor, size: int, block: int) -> tf.Tensor:
    """Returns an order [size] int32 of the images in an epoch that keeps neighbours together.

    Args:
      seed: seed of the run.
      epoch: the epoch, an int64 scalar.
      size: number of images.
      block: number of neighbouring images in a block.
    """
    blocks = permutation(seed, epoch, -(-size // block))
    images = tf.reshape(blocks[:, None] * block + tf.range(block), [-1])
    images = tf.boolean_mask(images, images < size)  # the last block may be shorter
    key = tf.stack([tf.constant((seed << 32) + WITHIN_WINDOW, tf.int64), epoch])
    draws = tf.random.stateless_uniform([size], key, 0, 2**30, tf.int64, alg="philox")
    window = tf.range(size, dtype=tf.int64) // (WINDOW_BLOCKS * block)
    order = tf.argsort(window * 2**30 + draws, stable=True)
    return tf.ensure_shape(tf.gather(images, order), [size])


def steps(
    seed: int,
    size: int,
    per_step: int,
    first_step: int,
    element: Callable[[tf.Tensor], Any] = tf.identity,
    *,
    block: int = 0,
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
      block: number of images per block of `block_permutation`; 0 for `permutation`.
    """
    epochs = -(-per_step // size) + 1  # largest number of epochs that one step can span

    def window(epoch: tf.Tensor) -> tf.Tensor:
        return tf.concat([order_of(epoch + k) for k in range(epochs)], 0)

    def order_of(epoch: tf.Tensor) -> tf.Tensor:
        if block:
            return block_permutation(seed, epoch, size, block)
        return permutation(seed, epoch, size)

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


class BalancedOrder:
    """An order in which each of the K classes that have images is shown equally often.

    Each block of K positions holds every class once, in a permuted order. Block b shows image
    b mod n of permutation number b div n of a class with n images. Any position is computed
    directly, as a function of the seed and the position.
    """

    def __init__(self, seed: int, labels: np.ndarray) -> None:
        """Creates the order.

        Args:
          seed: seed of the run.
          labels: [N] int32, the class of each image.
        """
        counts = np.bincount(labels)
        counts = counts[counts > 0]
        self._seed = seed
        self._by_class = tf.constant(np.argsort(labels, kind="stable"), tf.int32)
        self._counts = tf.constant(counts, tf.int64)
        self._starts = tf.constant(np.cumsum(counts) - counts, tf.int64)

    def images(self, positions: tf.Tensor) -> tf.Tensor:
        """Returns the images [P] int32 at positions [P] int64."""
        classes = len(self._counts)
        block, place = positions // classes, positions % classes
        number = self._shuffled(place, classes, tf.constant(CLASSES, tf.int64), block)
        count = tf.gather(self._counts, number)
        place = self._shuffled(block % count, count, number + IMAGES_OF_CLASS, block // count)
        return tf.gather(self._by_class, tf.gather(self._starts, number) + place)

    def _shuffled(
        self, place: tf.Tensor, size: tf.Tensor | int, purpose: tf.Tensor, number: tf.Tensor
    ) -> tf.Tensor:
        """Returns what permutations have at some places.

        Args:
          place: [P] int64, the places.
          size: [P] int64 or a number, the sizes of the permutations.
          purpose: [P] int64 or a scalar, what the permutations are for.
          number: [P] int64, the numbers of the permutations.
        """
        parts = (tf.constant(self._seed, tf.int64), purpose, number)
        key = tf.stack([tf.broadcast_to(part, tf.shape(place)) for part in parts], 1)
        # The public function takes no seed per element.
        return tf.raw_ops.RandomIndexShuffle(
            index=place,
            seed=tf.cast(key & 0xFFFFFFFF, tf.uint32),
            max_index=tf.broadcast_to(tf.cast(size, tf.int64), tf.shape(place)) - 1,
            rounds=SHUFFLE_ROUNDS,
        )

    def steps(
        self, per_step: int, first_step: int, element: Callable[[tf.Tensor], Any] = tf.identity
    ) -> tf.data.Dataset:
        """Returns an infinite dataset with one element per step, as the function `steps` does."""

        @without_autograph
        def of_step(step: tf.Tensor) -> Any:
            positions = step * per_step + tf.range(per_step, dtype=tf.int64)
            return element(tf.ensure_shape(self.images(positions), [per_step]))

        return tf.data.Dataset.range(first_step, 2**62 // per_step).map(of_step)
