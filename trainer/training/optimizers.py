"""Optimizers that update all weights of a network in one buffer.

The Keras optimizers hold the hyper-parameters and, for checkpoints, the slots of each variable.
The updates are those of Keras (tests/training/test_step.py), on buffers: Keras's own would launch
several kernels per variable.  Their scalars are computed on the host.  Only in float16, where
updates may be skipped, they depend on the device; a skipped update changes nothing, without a
branch that would make the host wait for the device.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import keras
import tensorflow as tf

from trainer.config import Config
from trainer.machine import program
from trainer.machine.devices import on_host
from trainer.models.schedules import current

Rate = Callable[[tf.Tensor | int], tf.Tensor]  # from the number of images seen


@dataclasses.dataclass(frozen=True)
class Update:
    """One update of a network on a replica.

    Attributes:
      weights: all weights of the network, [size] float32.
      slots: a buffer of the same size for each kind of slot.
      gradient: [size] float32, zero if `finite` is false.
      images: number of images seen, an integer scalar in host memory.
      number: number of this update among those that are not skipped, from 1, an integer scalar.  It
        is in host memory if `finite` is None.
      finite: a bool scalar, whether the update is not skipped; None if no update is.
    """

    weights: tf.Variable
    slots: Sequence[tf.Variable]
    gradient: tf.Tensor
    images: tf.Tensor | int
    number: tf.Tensor | int
    finite: tf.Tensor | None = None

    @contextlib.contextmanager
    def scalars(self) -> Iterator[None]:
        """Makes the operations on scalars in the block run on the host if they can."""
        if self.finite is not None:
            yield
            return
        with program.outside(), on_host():
            yield

    def unless_skipped(
        self, given: Sequence[tf.Tensor | float] | tf.Tensor, idle: Sequence[float]
    ) -> Sequence[tf.Tensor | float]:
        """Returns scalars, or those with which the update changes nothing if it is skipped.

        Args:
          given: the scalars, or a vector of them.
          idle: those that change nothing.
        """
        if self.finite is None:
            return given
        given = given if tf.is_tensor(given) else tf.stack(given)
        return tf.unstack(tf.where(self.finite, given, tf.constant(idle)))


class Optimizer(Protocol):
    """What an optimizer of this module offers beside a Keras optimizer."""

    iterations: keras.Variable
    variables: list[keras.Variable]

    def slots(self) -> Sequence[Sequence[keras.Variable]]:
        """Returns the slots: by kind, one for each variable."""

    def update(self, update: Update) -> None:
        """Updates weights and slots."""


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
        with update.scalars():
            rate, beta2 = self._rate_at(update.images), self._beta2_at(update.images)
            betas = tf.stack([self.beta_1, beta2])
            powers = tf.pow(betas, tf.cast(update.number, tf.float32))
            if update.finite is None:
                # The operation would compute this factor on the device, from two scalars more.
                rate = rate * tf.sqrt(1.0 - powers[1]) / (1.0 - powers[0])
                given = (rate, self.beta_1, beta2, 0.0, 0.0)
            else:
                given = tf.concat([tf.stack([rate, self.beta_1, beta2]), powers], 0)
        # With the idle values and no gradient, the update adds zero to everything.
        idle = (0.0, 1.0, 1.0, 0.0, 0.0)
        rate, beta1, beta2, power1, power2 = update.unless_skipped(given, idle)
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
        with update.scalars():
            given = self._rate_at(update.images), self._beta2_at(update.images)
        rate, beta2 = update.unless_skipped(given, (0.0, 1.0))
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
        with update.scalars():
            rate = self._rate_at(update.images)
        speed = tf.convert_to_tensor(update.slots[0])
        moved = self.momentum * speed - rate * update.gradient
        new_speed = moved if update.finite is None else tf.where(update.finite, moved, speed)
        tf.raw_ops.AssignVariableOp(resource=update.slots[0].handle, value=new_speed)
        step = moved if update.finite is None else tf.where(update.finite, moved, 0.0)
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
