"""Keras optimizers that update a variable in one fused operation, and learning rates.

They override members of Keras's classes that are not public.  Keras's own updates lengthen a step
of `mlp-small` by half (benchmarks/optimizers.py).
"""

import math
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from trainer.config import Config

Rate = Callable[[], tf.Tensor]


class Adam(keras.optimizers.Adam):
    """Adam (Kingma and Ba, arXiv:1412.6980)."""

    def update_step(
        self, gradient: tf.Tensor, variable: keras.Variable, learning_rate: tf.Tensor
    ) -> None:
        """Updates a variable and its two moments."""
        index = self._get_variable_index(variable)
        time = tf.cast(self.iterations + 1, tf.float32)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=tf.pow(self.beta_1, time),
            beta2_power=tf.pow(self.beta_2, time),
            lr=learning_rate,
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=gradient,
        )


class RMSprop(keras.optimizers.RMSprop):
    """RMSprop (Tieleman and Hinton, 2012), with a slot for momentum."""

    momentum: float

    def update_step(
        self, gradient: tf.Tensor, variable: keras.Variable, learning_rate: tf.Tensor
    ) -> None:
        """Updates a variable and its moving averages."""
        index = self._get_variable_index(variable)
        tf.raw_ops.ResourceApplyRMSProp(
            var=variable.handle,
            ms=self._velocities[index].value.handle,
            mom=self._momentums[index].value.handle,
            lr=learning_rate,
            rho=self.rho,
            momentum=self.momentum,
            epsilon=self.epsilon,
            grad=gradient,
        )

    def build(self, variables: list[keras.Variable]) -> None:
        """Creates the slots.  The fused operation needs that of the momentum even if it is 0."""
        _build_with_momentum(self, super().build, variables)


class SGD(keras.optimizers.SGD):
    """Stochastic gradient descent with momentum."""

    momentum: float

    def update_step(
        self, gradient: tf.Tensor, variable: keras.Variable, learning_rate: tf.Tensor
    ) -> None:
        """Updates a variable and its momentum."""
        tf.raw_ops.ResourceApplyKerasMomentum(
            var=variable.handle,
            accum=self.momentums[self._get_variable_index(variable)].value.handle,
            lr=learning_rate,
            grad=gradient,
            momentum=self.momentum,
        )

    def build(self, variables: list[keras.Variable]) -> None:
        """Creates the slots.  The fused operation needs that of the momentum even if it is 0."""
        _build_with_momentum(self, super().build, variables)


def _build_with_momentum(
    optimizer: Any, build: Callable[[list[keras.Variable]], None], variables: list[keras.Variable]
) -> None:
    wanted = optimizer.momentum
    optimizer.momentum = wanted or 1.0
    build(variables)
    optimizer.momentum = wanted


def make(config: Config, rate: Rate) -> keras.optimizers.Optimizer:
    """Returns the optimizer that `config` selects.

    Args:
      config: the configuration of the run.
      rate: returns the learning rate; called at each update.
    """
    if config.optimizer == "rmsprop":
        return RMSprop(rate, rho=config.beta2, epsilon=config.rmsprop_epsilon)
    if config.optimizer == "sgd":
        return SGD(rate, momentum=config.momentum)
    return Adam(rate, beta_1=config.beta1, beta_2=config.beta2)


def scheduled(config: Config, network: str, images: tf.Variable) -> Rate:
    """Returns the learning rate of a network as a function of the images seen.

    The schedules are constant; inverse_time, rate / (1 + decay * kimg); and linear and cosine,
    which decay from the rate to its fraction `lr_end` over `lr_decay_kimg` and are constant
    afterwards.

    Args:
      config: the configuration of the run.
      network: "g" or "d".
      images: number of images seen, an int64 scalar.
    """
    rate = getattr(config, f"{network}_lr")
    schedule = getattr(config, f"{network}_lr_schedule")
    decay = getattr(config, f"{network}_lr_decay_per_kimg")

    def current() -> tf.Tensor:
        """Returns the current learning rate, a float32 scalar."""
        kimg = tf.cast(images, tf.float32) / 1000.0
        if schedule == "constant":
            return tf.constant(rate)
        if schedule == "inverse_time":
            return rate / (1.0 + decay * kimg)
        done = tf.minimum(1.0, kimg / config.lr_decay_kimg)
        left = 1.0 - done if schedule == "linear" else 0.5 * (1.0 + tf.cos(math.pi * done))
        return rate * (config.lr_end + (1.0 - config.lr_end) * left)

    return current
