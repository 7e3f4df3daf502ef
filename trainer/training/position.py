"""Where a step is in the run, as counters in host memory.

What a step computes from its position alone, such as the learning rate, is computed on the host: on
a GPU each operation on a scalar takes a kernel launch.
"""

from typing import NamedTuple

import tensorflow as tf

from trainer.config import Config
from trainer.machine.devices import on_host
from trainer.training.state import TrainState

STEPS_PER_ROLLBACK = 2**40  # offset of the random numbers' step after each rollback


class Position(NamedTuple):
    """Where a step is in the run: int64 scalars in host memory.

    Attributes:
      images: number of images seen before the step.
      draws: number of the step for random numbers, which are others after a rollback.
      g_updates, d_updates: number of updates of the generator and of the discriminator before the
        step.
    """

    images: tf.Tensor
    draws: tf.Tensor
    g_updates: tf.Tensor
    d_updates: tf.Tensor


class Start(NamedTuple):
    """Where a call of many steps begins: int64 scalars in host memory.

    Attributes:
      images: number of images seen.
      rollbacks: number of rollbacks after divergence.
      g_updates, d_updates: number of updates of the generator and of the discriminator.
    """

    images: tf.Tensor
    rollbacks: tf.Tensor
    g_updates: tf.Tensor
    d_updates: tf.Tensor

    @classmethod
    def read(cls, state: TrainState) -> "Start":
        """Reads the counters of a run.  Call it outside of the replicas."""
        g, d = (updater.optimizer.iterations.value for updater in (state.g, state.d))
        with on_host():
            return cls(*(counter.read_value() for counter in (state.images, state.rollbacks, g, d)))

    def after(self, config: Config, steps: tf.Tensor | int) -> Position:
        """Returns the position after so many steps of the call."""
        with on_host():
            steps = tf.cast(steps, tf.int64)
            images = self.images + config.batch_size * steps
            return Position(
                images,
                images // config.batch_size + STEPS_PER_ROLLBACK * self.rollbacks,
                self.g_updates + steps,
                self.d_updates + d_updates_per_step(config) * steps,
            )


def d_updates_per_step(config: Config) -> int:
    """Returns how often a step updates the discriminator."""
    return config.d_steps * (2 if config.updates.batches == "sequential" else 1)


def count_steps(config: Config, state: TrainState, steps: tf.Tensor) -> None:
    """Adds steps to the counters of a run.  Call it outside of the replicas.

    With loss scales, each update counts itself, because it may be skipped.
    """
    steps = tf.cast(steps, tf.int64)
    state.images.assign_add(config.batch_size * steps)
    for updater, per_step in ((state.g, 1), (state.d, d_updates_per_step(config))):
        if updater.scale is None:
            updater.optimizer.iterations.value.assign_add(per_step * steps)
