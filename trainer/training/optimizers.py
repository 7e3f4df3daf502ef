"""Optimizers that update all weights of a network in one buffer.

The Keras optimizers hold the hyper-parameters and, for checkpoints, the slots of each variable.
The updates are those of Keras (tests/training/test_step.py), on buffers: Keras's own would launch
several kernels per variable.  An update that is not finite changes nothing, without a branch that
would make the host wait for the device.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import keras
import tensorflow as tf

from trainer.config import Config
from trainer.machine.devices import on_host
from trainer.models.schedules import current

Rate = Callable[[tf.Tensor | int], tf.Tensor]  # from the number of images seen


@dataclasses.dataclass(frozen=True)
class Update:
    """One update of a network on a replica.

    Attributes:
      weights: all weights of the network, [size] float32.
      slots: a buffer of the same size for each kind of slot.
      gradient: [size] float32, zero if it was not finite.
      finite: whether the gradient was finite; otherwise nothing changes.
      images: number of images seen, an integer scalar in host memory.
    """

    weights: tf.Variable
    slots: Sequence[tf.Variable]
    gradient: tf.Tensor
    finite: tf.Tensor
    images: tf.Tensor | int


class Optimizer(Protocol):
    """What an optimizer of this module offers beside a Keras optimizer."""

    iterations: keras.Variable
    variables: list[keras.Variable]

    def slots(self) -> Sequence[Sequence[keras.Variable]]:
        """Returns the slots: by kind, one for each variable."""

    def update(self, update: Update) -> None:
        """Updates weights and slots, after `iterations` has counted the update if it is finite."""


class Adam(keras.optimizers.Adam):
    """Adam (Kingma and Ba, arXiv:1412.6980), whose beta2 may follow a schedule."""

    def __init__(self, rate: Rate, seen: tf.Variable, *, beta1: float, beta2: Rate) -> None:
        super().__init__(lambda: rate(seen), beta_1=beta1)
        self._rate_at, self._beta2_at = rate, beta2

    def slots(self) -> Sequence[Sequence[keras.Variable]]:
        """Returns the moments."""
        return self._momentums, self._velocities

    def update(self, update: Update) -> None:
        """Updates the weights and both moments; see `Optimizer`."""
        given = _together(self._rate_at(update.images), self.beta_1, self._beta2_at(update.images))
        time = tf.cast(self.iterations.value, tf.float32)
        active = tf.concat([given, tf.pow(given[1:], time)], 0)
        # With these values and no gradient, the update adds zero to everything.
        idle = tf.constant([0.0, 1.0, 1.0, 0.0, 0.0])
        rate, beta1, beta2, power1, power2 = tf.unstack(tf.where(update.finite, active, idle))
        tf.raw_ops.ResourceApplyAdam(
            var=update.weights.handle,
            m=update.slots[0].handle,
            v=update.slots[1].handle,
            beta1_power=power1,
            beta2_power=power2,
            lr=rate,
            beta1=beta1,
            beta2=beta2,
            epsilon=self.epsilon,
            grad=update.gradient,
        )


class RMSprop(keras.optimizers.RMSprop):
    """RMSprop (Tieleman and Hinton, 2012), with a slot for momentum and a beta2 that may change."""

    momentum: float

    def __init__(self, rate: Rate, seen: tf.Variable, *, beta2: Rate, epsilon: float) -> None:
        super().__init__(lambda: rate(seen), epsilon=epsilon)
        self._rate_at, self._beta2_at = rate, beta2

    def slots(self) -> Sequence[Sequence[keras.Variable]]:
        """Returns the mean squares and the momentums."""
        return self._velocities, self._momentums

    def update(self, update: Update) -> None:
        """Updates the weights and the mean squares; see `Optimizer`.

        The operation writes the slot of the momentum and, since the momentum is 0, never reads it.
        """
        given = _together(self._rate_at(update.images), self._beta2_at(update.images))
        rate, beta2 = tf.unstack(tf.where(update.finite, given, tf.constant([0.0, 1.0])))
        tf.raw_ops.ResourceApplyRMSProp(
            var=update.weights.handle,
            ms=update.slots[0].handle,
            mom=update.slots[1].handle,
            lr=rate,
            rho=beta2,
            momentum=0.0,
            epsilon=self.epsilon,
            grad=update.gradient,
        )

    def build(self, variables: list[keras.Variable]) -> None:
        """Creates the slots.  The fused operation needs that of the momentum even if it is 0."""
        _build_with_momentum(self, super().build, variables)


class SGD(keras.optimizers.SGD):
    """Stochastic gradient descent with momentum."""

    momentum: float

    def __init__(self, rate: Rate, seen: tf.Variable, *, momentum: float) -> None:
        super().__init__(lambda: rate(seen), momentum=momentum)
        self._rate_at = rate

    def slots(self) -> Sequence[Sequence[keras.Variable]]:
        """Returns the momentums."""
        return (self.momentums,)

    def update(self, update: Update) -> None:
        """Updates the weights and their momentums; see `Optimizer`."""
        rate = _together(self._rate_at(update.images))[0]
        speed = tf.convert_to_tensor(update.slots[0])
        moved = self.momentum * speed - rate * update.gradient
        new_speed = tf.where(update.finite, moved, speed)
        tf.raw_ops.AssignVariableOp(resource=update.slots[0].handle, value=new_speed)
        step = tf.where(update.finite, new_speed, 0.0)
        tf.raw_ops.AssignAddVariableOp(resource=update.weights.handle, value=step)

    def build(self, variables: list[keras.Variable]) -> None:
        """Creates the slots, also if the momentum is 0."""
        _build_with_momentum(self, super().build, variables)


def _build_with_momentum(
    optimizer: Any, build: Callable[[list[keras.Variable]], None], variables: list[keras.Variable]
) -> None:
    wanted = optimizer.momentum
    optimizer.momentum = wanted or 1.0
    build(variables)
    optimizer.momentum = wanted


def _together(*values: tf.Tensor | float) -> tf.Tensor:
    """Returns scalars as one vector, which reaches the device in one transfer."""
    known = [tf.get_static_value(value) if tf.is_tensor(value) else value for value in values]
    if None not in known:
        return tf.constant(known, tf.float32)
    with on_host():
        return tf.stack(values)


def make(config: Config, network: str, seen: tf.Variable) -> Any:
    """Returns the optimizer of a network.

    Args:
      config: the configuration of the run.
      network: "g" or "d".
      seen: number of images seen, an int64 scalar, which the learning rate of the Keras optimizer
        follows.
    """

    def rate(images: tf.Tensor | int) -> tf.Tensor:
        return current(getattr(config, f"{network}_lr"), images)

    def beta2(images: tf.Tensor | int) -> tf.Tensor:
        return current(config.beta2, images)

    if config.optimizer == "rmsprop":
        return RMSprop(rate, seen, beta2=beta2, epsilon=config.rmsprop_epsilon)
    if config.optimizer == "sgd":
        return SGD(rate, seen, momentum=config.momentum)
    return Adam(rate, seen, beta1=config.beta1, beta2=beta2)
