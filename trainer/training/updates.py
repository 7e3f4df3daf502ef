"""Applies gradients: sums them over replicas, unscales them, and skips non-finite ones."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from trainer.machine import replicas
from trainer.models import kernels
from trainer.models.spectral_norms import SpectralNorms
from trainer.training.buffer import Buffer
from trainer.training.optimizers import Optimizer, Update

FIRST_SCALE = 2.0**15
GROWTH_STEPS = 2000  # consecutive finite updates after which the scale doubles


@dataclasses.dataclass(frozen=True, eq=False)
class LossScale:
    """A loss scale that halves when gradients overflow and doubles after GROWTH_STEPS updates.

    Micikevicius et al., arXiv:1710.03740, section 3.2.
    """

    value: tf.Variable
    finite_steps: tf.Variable

    @classmethod
    def create(cls) -> "LossScale":
        """Creates its variables.  Call it inside the scope of the replicas."""
        return cls(
            tf.Variable(FIRST_SCALE, trainable=False, name="loss_scale"),
            tf.Variable(0, dtype=tf.int64, trainable=False, name="finite_steps"),
        )

    def after(self, finite: tf.Tensor) -> None:
        """Adjusts the scale after an update.

        Args:
          finite: whether the update was finite, a bool scalar that is equal on every replica.
        """
        steps = tf.where(finite, self.finite_steps + 1, 0)
        grows = steps >= GROWTH_STEPS
        grown = tf.where(grows, 2.0 * self.value, self.value)
        self.value.assign(tf.where(finite, grown, tf.maximum(1.0, 0.5 * self.value)))
        self.finite_steps.assign(tf.where(grows, tf.zeros_like(steps), steps))


@dataclasses.dataclass(frozen=True, eq=False)
class Updater:
    """A network with its optimizer and, in float16, its loss scale.

    While steps run, the values of the variables are in the buffers (`load`, `store`).

    Attributes:
      network: the network whose trainable variables are updated.
      optimizer: its optimizer, which is built.
      scale: the loss scale; None in other formats than float16.
      clip: weights are clipped to [-clip, clip]; 0 disables clipping.
      weights: the trainable variables.
      statistics: the other float32 variables, such as the moving averages of batch norms.
      slots: the slots of the optimizer.
    """

    network: keras.Model
    optimizer: Optimizer
    scale: LossScale | None
    clip: float
    weights: Buffer
    statistics: Buffer
    slots: tuple[Buffer, ...]

    @classmethod
    def create(
        cls,
        network: keras.Model,
        optimizer: Any,
        scale: LossScale | None = None,
        clip: float = 0.0,
    ) -> "Updater":
        """Builds the optimizer and creates the buffers.  Call it inside the replicas' scope."""
        optimizer.build(network.trainable_variables)
        statistics = [v for v in network.non_trainable_variables if v.dtype == "float32"]
        return cls(
            network,
            optimizer,
            scale,
            clip,
            Buffer.create(network.trainable_variables, "weights"),
            Buffer.create(statistics, "statistics"),
            tuple(Buffer.create(slot, "slot") for slot in optimizer.slots()),
        )

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        """All buffers."""
        return (self.weights, self.statistics, *self.slots)


class TracedNetwork:
    """A network inside a step: its variables are tensors that the step reads and replaces.

    A step creates one for each replica, because it changes while the step is traced.
    """

    def __init__(self, updater: Updater) -> None:
        self._updater = updater
        self._norms = SpectralNorms(updater.network.layers)
        self._kernels: dict[int, tf.Tensor] | None = None
        self._statistics = updater.statistics.parts()
        self._read_weights()

    @property
    def compute_dtype(self) -> str:
        """Number format in which the network computes, such as "bfloat16"."""
        return self._updater.network.compute_dtype

    @property
    def scale(self) -> LossScale | None:
        """The loss scale."""
        return self._updater.scale

    def iterate(self) -> None:
        """Runs the power iterations of spectral norms.  Call it once before each update."""
        with self._scope():
            self._norms.iterate()
        self._kernels = None

    def __call__(self, inputs: Any) -> tf.Tensor:
        """Calls the network in training mode, and keeps the statistics that it updates."""
        with self._scope():
            if self._kernels is None:
                self._kernels = self._norms.kernels()
            with kernels.use(self._kernels):
                return self._updater.network(inputs, training=True)

    def watch(self, tape: tf.GradientTape) -> None:
        """Makes a tape record what depends on the weights."""
        tape.watch(self.weights)
        self._kernels = None  # those computed before do not depend on what this tape watches

    def gradients(self, tape: tf.GradientTape, loss: tf.Tensor) -> list[tf.Tensor]:
        """Returns the gradients of a loss, times the loss scale.  Call it outside the tape."""
        if self.scale is None:
            return tape.gradient(loss, self.weights)
        # Scaling the loss is the same as scaling the gradient that starts the backward pass.
        return tape.gradient(loss, self.weights, output_gradients=self.scale.value)

    def apply(self, gradients: list[tf.Tensor], images: tf.Tensor | int) -> tf.Tensor:
        """Updates the network with the sum over replicas of what `gradients` returned.

        If a gradient of any replica is not finite, every replica skips the update, because all
        of them check the same sum.

        Args:
          gradients: one for each weight.
          images: number of images seen, an integer scalar in host memory.

        Returns:
          The Euclidean norm of the sum without the loss scale, a scalar.  It is not finite if
          the update was skipped.
        """
        updater = self._updater
        weights = updater.weights
        (gradient,) = replicas.sum_over_replicas([weights.join(gradients)])
        norm = tf.sqrt(2.0 * tf.nn.l2_loss(gradient))
        if self.scale is not None:
            norm /= self.scale.value
        finite = tf.math.is_finite(norm)
        factor = tf.cast(finite, tf.float32)
        if self.scale is not None:
            factor /= self.scale.value
        gradient = tf.math.multiply_no_nan(gradient, factor)
        slots = [slot.flat for slot in updater.slots]
        iterations = updater.optimizer.iterations
        iterations.assign(iterations + tf.cast(finite, iterations.dtype))
        updater.optimizer.update(Update(weights.flat, slots, gradient, finite, images))
        if updater.clip:
            weights.replace(tf.clip_by_value(weights.value(), -updater.clip, updater.clip))
        if self.scale is not None:
            self.scale.after(finite)
        self._read_weights()
        return norm

    def write_statistics(self) -> None:
        """Writes the statistics into the buffer.  Call it at the end of the step."""
        self._updater.statistics.assign(self._statistics)

    def _read_weights(self) -> None:
        self.weights = self._updater.weights.parts()
        self._kernels = None

    @contextlib.contextmanager
    def _scope(self) -> Iterator[None]:
        """Makes the tensors the values of the variables, and keeps what layers assign to them."""
        updater = self._updater
        variables = (*updater.weights.variables, *updater.statistics.variables)
        values = (*self.weights, *self._statistics)
        with keras.StatelessScope(list(zip(variables, values, strict=True))) as scope:
            yield
        self._statistics = [scope.get_current_value(v) for v in updater.statistics.variables]
        for variable in updater.network.non_trainable_variables:
            if variable.dtype != "float32":  # a state of another type, which no buffer holds
                value = scope.get_current_value(variable)
                if value is not None:
                    variable.assign(value)
