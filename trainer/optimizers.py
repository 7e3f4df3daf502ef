"""Keras optimizers whose update of a variable is one fused operation, and their rates."""

from collections.abc import Callable

import keras
import tensorflow as tf

from trainer.config import Config

Rate = Callable[[], tf.Tensor]


class Adam(keras.optimizers.Adam):
    """Adam (Kingma and Ba, arXiv:1412.6980)."""

    def update_step(self, gradient, variable, learning_rate):
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

    def update_step(self, gradient, variable, learning_rate):
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

    def build(self, variables):
        """Makes the slots; the fused operation wants the momentum's even at 0."""
        wanted = self.momentum
        self.momentum = wanted or 1.0
        super().build(variables)
        self.momentum = wanted


def make(config: Config, rate: Rate) -> keras.optimizers.Optimizer:
    """The optimizer that `config` names, with a rate that is read at each update."""
    if config.optimizer == "rmsprop":
        return RMSprop(rate, rho=config.beta2)
    return Adam(rate, beta_1=config.beta1, beta_2=config.beta2)


def inverse_time(rate: float, decay_per_kimg: float, images: tf.Variable) -> Rate:
    """The rate divided by 1 + decay * kimg, kimg of the images seen so far."""

    def current() -> tf.Tensor:
        kimg = tf.cast(images, tf.float32) / 1000.0
        return rate / (1.0 + decay_per_kimg * kimg)

    return current
