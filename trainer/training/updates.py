"""Applies gradients: sums them over replicas, unscales them, and skips non-finite ones."""

import dataclasses

import keras
import tensorflow as tf

from trainer.machine import replicas
from trainer.models.kernels import NormalizedKernel

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
    """Updates a network with its optimizer and, in float16, its loss scale.

    Attributes:
      network: the network whose trainable variables are updated.
      optimizer: its optimizer, which is built.
      scale: the loss scale; None in other formats than float16.
      clip: weights are clipped to [-clip, clip]; 0 disables clipping.
    """

    network: keras.Model
    optimizer: keras.optimizers.Optimizer
    scale: LossScale | None = None
    clip: float = 0.0

    @property
    def weights(self) -> list[tf.Variable]:
        """The trainable variables."""
        return [variable.value for variable in self.network.trainable_variables]

    def prepare(self) -> None:
        """Runs the power iterations of spectral norms.  Call it once before each update."""
        for layer in self.network.layers:
            if isinstance(layer, NormalizedKernel):
                layer.iterate()

    def gradients(self, tape: tf.GradientTape, loss: tf.Tensor) -> list[tf.Tensor]:
        """Returns the gradients of a loss, times the loss scale.  Call it outside the tape."""
        if self.scale is None:
            return tape.gradient(loss, self.weights)
        # Scaling the loss is the same as scaling the gradient that starts the backward pass.
        return tape.gradient(loss, self.weights, output_gradients=self.scale.value)

    def apply(self, gradients: list[tf.Tensor]) -> tf.Tensor:
        """Updates the network with the sum over replicas of what `gradients` returned.

        If a gradient of any replica is not finite, every replica skips the update, because all
        of them check the same sum.

        Returns:
          The Euclidean norm of the sum without the loss scale, a scalar.  It is not finite if
          the update was skipped.
        """
        gradients = replicas.sum_over_replicas(gradients)
        if self.scale is not None:
            gradients = [gradient / self.scale.value for gradient in gradients]
        norm = tf.linalg.global_norm(gradients)
        finite = tf.math.is_finite(norm)
        tf.cond(finite, lambda: self._update(gradients), lambda: False)
        self.optimizer.iterations.assign_add(tf.cast(finite, self.optimizer.iterations.dtype))
        if self.scale is not None:
            self.scale.after(finite)
        return norm

    def _update(self, gradients: list[tf.Tensor]) -> bool:
        rate = self.optimizer.learning_rate
        for gradient, weight in zip(gradients, self.weights, strict=True):
            self.optimizer.update_step(gradient, weight, rate)
            if self.clip:
                weight.assign(tf.clip_by_value(weight, -self.clip, self.clip))
        return True
