"""Gradients to weights: summed over replicas, unscaled, and skipped by all or none."""

import dataclasses

import keras
import tensorflow as tf

from trainer.machine import replicas
from trainer.models.kernels import NormalizedKernel

FIRST_SCALE = 2.0**15
GROWTH_STEPS = 2000  # finite updates after which the scale doubles


@dataclasses.dataclass(frozen=True, eq=False)
class LossScale:
    """A loss scale that halves when gradients overflow and doubles when they have not.

    Micikevicius et al., arXiv:1710.03740, section 3.2.
    """

    value: tf.Variable
    finite_steps: tf.Variable

    @classmethod
    def create(cls) -> "LossScale":
        """Makes its variables; call it inside the runtime's scope."""
        return cls(
            tf.Variable(FIRST_SCALE, trainable=False, name="loss_scale"),
            tf.Variable(0, dtype=tf.int64, trainable=False, name="finite_steps"),
        )

    def after(self, finite: tf.Tensor) -> None:
        """Takes in whether an update was finite, on every replica alike."""
        steps = tf.where(finite, self.finite_steps + 1, 0)
        grows = steps >= GROWTH_STEPS
        grown = tf.where(grows, 2.0 * self.value, self.value)
        self.value.assign(tf.where(finite, grown, tf.maximum(1.0, 0.5 * self.value)))
        self.finite_steps.assign(tf.where(grows, tf.zeros_like(steps), steps))


@dataclasses.dataclass(frozen=True, eq=False)
class Updater:
    """A network, its optimizer and, in float16, its loss scale.

    Attributes:
      network: whose trainable variables are updated.
      optimizer: with its slots made.
      scale: the loss scale, or None for none.
      clip: weights are kept in [-clip, clip]; 0: as they are.
    """

    network: keras.Model
    optimizer: keras.optimizers.Optimizer
    scale: LossScale | None = None
    clip: float = 0.0

    @property
    def weights(self) -> list[tf.Variable]:
        """The variables that are updated."""
        return [variable.value for variable in self.network.trainable_variables]

    def prepare(self) -> None:
        """Brings spectral norms up to date; call it once before each update."""
        for layer in self.network.layers:
            if isinstance(layer, NormalizedKernel):
                layer.iterate()

    def gradients(self, tape: tf.GradientTape, loss: tf.Tensor) -> list[tf.Tensor]:
        """The gradients of a loss, times the loss scale; call it outside of the tape."""
        if self.scale is None:
            return tape.gradient(loss, self.weights)
        # A scale of the loss is one of the gradient that starts the backward pass.
        return tape.gradient(loss, self.weights, output_gradients=self.scale.value)

    def apply(self, gradients: list[tf.Tensor]) -> tf.Tensor:
        """Updates the network by gradients that `gradients` made, summed over replicas.

        Where one is not finite on any replica, every replica skips the update: they all
        look at the same sum.

        Returns:
          The Euclidean norm of the sum, without the loss scale; not finite if skipped.
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
