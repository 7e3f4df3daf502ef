"""Keras optimizers that update a variable in one fused operation, and learning rates.

They override members of Keras's classes that are not public.  Keras's own updates lengthen a step
of `mlp-small` by half (benchmarks/optimizers.py).
"""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from trainer.config import Config
from trainer.models.schedules import current

Rate = Callable[[], tf.Tensor]


class Adam(keras.optimizers.Adam):
    """Adam (Kingma and Ba, arXiv:1412.6980), whose beta2 may change in the course of training."""

    def __init__(self, rate: Rate, beta1: float, beta2: Rate) -> None:
        super().__init__(rate, beta_1=beta1)
        self._beta2 = beta2

    def update_step(
        self, gradient: tf.Tensor, variable: keras.Variable, learning_rate: tf.Tensor
    ) -> None:
        """Updates a variable and its two moments."""
        index = self._get_variable_index(variable)
        time = tf.cast(self.iterations + 1, tf.float32)
        beta2 = self._beta2()
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=tf.pow(self.beta_1, time),
            beta2_power=tf.pow(beta2, time),
            lr=learning_rate,
            beta1=self.beta_1,
            beta2=beta2,
            epsilon=self.epsilon,
            grad=gradient,
        )


class RMSprop(keras.optimizers.RMSprop):
    """RMSprop (Tieleman and Hinton, 2012), with a slot for momentum and a beta2 that may change."""

    momentum: float

    def __init__(self, rate: Rate, beta2: Rate, *, epsilon: float) -> None:
        super().__init__(rate, epsilon=epsilon)
        self._beta2 = beta2

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
            rho=self._beta2(),
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


def make(config: Config, rate: Rate, images: tf.Tensor | int = 0) -> keras.optimizers.Optimizer:
    """Returns the optimizer that `config` selects.

    Args:
      config: the configuration of the run.
      rate: returns the learning rate; called at each update.
      images: number of images seen, an int64 scalar, which beta2 may follow.
    """

    def beta2() -> tf.Tensor:
        return current(config.beta2, images)

    if config.optimizer == "rmsprop":
        return RMSprop(rate, beta2, epsilon=config.rmsprop_epsilon)
    if config.optimizer == "sgd":
        return SGD(rate, momentum=config.momentum)
    return Adam(rate, config.beta1, beta2)


def scheduled(config: Config, network: str, images: tf.Variable) -> Rate:
    """Returns the learning rate of a network as a function of the images seen.

    Args:
      config: the configuration of the run.
      network: "g" or "d".
      images: number of images seen, an int64 scalar.
    """
    return lambda: current(getattr(config, f"{network}_lr"), images)
