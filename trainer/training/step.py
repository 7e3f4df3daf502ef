"""One step of training on one replica: the order of the updates of both networks."""

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from trainer.config import Config
from trainer.config.schedules import Schedule
from trainer.machine.replicas import replica_index
from trainer.models.randomness import Draws
from trainer.models.schedules import current
from trainer.training import adaptation
from trainer.training.gradients import MicroBatch
from trainer.training.state import TrainState
from trainer.training.updates import Updater

STEPS_PER_ROLLBACK = 2**40  # offset of the random numbers' step after each rollback

Batch = tuple[tf.Tensor, ...]  # images, labels and, where they are given, fakes


def metric_names(precision: str, augment: str = "none") -> tuple[str, ...]:
    """Returns the names of the metrics of a step, in order."""
    names = ("d_loss", "g_loss", "d_real_acc", "d_fake_acc", "g_acc", "d_grad_norm", "g_grad_norm")
    scales = ("d_loss_scale", "g_loss_scale") if precision == "float16" else ()
    return (*names, *scales, *(() if augment == "none" else ("augment_strength",)))


def real_batches_per_step(config: Config) -> int:
    """Returns how many batches of reals a step consumes."""
    return 1 if config.repeat_reals else config.d_steps


def ema_decay(config: Config, images: tf.Tensor) -> tf.Tensor:
    """Returns the share that the EMA keeps of itself in a step, a float32 scalar.

    Args:
      config: the configuration of the run.
      images: number of images seen before the step.
    """
    half_life = 1000.0 * current(config.ema_half_life_kimg, images)
    if config.ema_ramp:
        seen = tf.cast(images + config.batch_size, tf.float32)
        half_life = tf.minimum(half_life, config.ema_ramp * seen)
    if isinstance(config.ema_half_life_kimg, Schedule):
        half_life = tf.maximum(half_life, 1e-3)  # a schedule may begin at 0
    return tf.pow(0.5, config.batch_size / half_life)


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """The updates of one step.

    A step is `d_steps` updates of the discriminator, each on reals of its own unless the
    configuration repeats them, and one update of the generator.

    Attributes:
      config: the configuration of the run.
      state: the variables that the step updates.
      classes: number of classes of the data set.
      num_replicas: replicas that share the global batch.
    """

    config: Config
    state: TrainState
    classes: int
    num_replicas: int

    def __call__(self, images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """Trains on this replica's share of the batches of reals.

        Args:
          images: [batches, rows, H, W, C] uint8, one batch per update of the discriminator,
            or a single one that they share.
          labels: [batches, rows] int32.

        Returns:
          This replica's share of the metrics, [M] float32.  The metrics of the
          discriminator are means over its updates.
        """
        # No other operation of the step may run before its data arrive: the time that the
        # step waits for them is measured.
        with tf.control_dependencies([images]):
            draws = self._draws()
        rule = self.config.updates
        d_updates = []
        g_metrics = None
        for k in range(self.config.d_steps):
            batch = 0 if self.config.repeat_reals else k
            reals = (images[batch], labels[batch])
            update_draws = draws.within(f"d{k}")
            is_last = k == self.config.d_steps - 1
            if rule.fakes == "simultaneous":
                d_metrics, g_metrics = self._update_both(reals, update_draws)
            elif rule.fakes == "reuse" and is_last:
                d_metrics, g_metrics = self._update_d_then_g(reals, update_draws)
            else:
                d_metrics = self._update_d(reals, update_draws)
            d_updates.append(d_metrics)
        if g_metrics is None:
            g_metrics = self._update_g(draws.within("g"))
        self._update_ema()
        d_loss, d_real, d_fake, d_norm = tf.unstack(tf.reduce_mean(tf.stack(d_updates), 0))
        g_loss, g_acc, g_norm = tf.unstack(g_metrics)
        metrics = [d_loss, g_loss, d_real, d_fake, g_acc, d_norm, g_norm]
        for updater in (self.state.d, self.state.g):
            if updater.scale is not None:
                metrics.append(updater.scale.value / self.num_replicas)
        if self.config.augment != "none":
            strength = adaptation.strength(self.config, self.state.augment, draws.images)
            metrics.append(strength / self.num_replicas)
        return tf.stack(metrics)

    @functools.cached_property
    def _micro_batch(self) -> MicroBatch:
        return MicroBatch(self.config, self.state, self.classes)

    def _update_d(self, batch: Batch, draws: Draws) -> tf.Tensor:
        """Updates the discriminator once, or on reals and then on fakes.

        Returns:
          Loss, accuracy on reals, accuracy on fakes and norm of the gradient, [4] float32.
        """
        if self.config.updates.batches != "sequential":
            return self._update_d_by(self._micro_batch.discriminator, batch, draws)
        on_reals = self._update_d_by(self._micro_batch.discriminator_on_reals, batch, draws)
        on_fakes = self._update_d_by(self._micro_batch.discriminator_on_fakes, batch, draws)
        # Each contributes half of the loss and its own accuracy; the norms are averaged.
        return tf.concat([on_reals[:3] + on_fakes[:3], 0.5 * (on_reals[3:] + on_fakes[3:])], 0)

    def _update_d_by(
        self, gradients_of: Callable[..., Any], batch: Batch, draws: Draws
    ) -> tf.Tensor:
        self.state.d.prepare()
        gradients, metrics = self._accumulate(gradients_of, batch, draws)
        return self._apply(self.state.d, gradients, metrics)

    def _update_g(self, draws: Draws) -> tf.Tensor:
        """Updates the generator on new latents and labels; returns its metrics, [3]."""
        self.state.g.prepare()
        gradients, metrics = self._accumulate(self._micro_batch.generator, (), draws)
        return self._apply(self.state.g, gradients, metrics)

    def _update_d_then_g(self, batch: Batch, draws: Draws) -> tuple[tf.Tensor, tf.Tensor]:
        """Updates the discriminator, then the generator on the same fakes."""
        self.state.g.prepare()
        labels = batch[1]
        micro_batch = self._micro_batch
        if self._rows_at_once < labels.shape[0]:
            # The fakes of all micro-batches would not fit into memory until G's update.
            d_metrics = self._update_d(batch, draws)
            gradients, metrics = self._accumulate(
                micro_batch.generator_on_same_fakes, (labels,), draws
            )
            return d_metrics, self._apply(self.state.g, gradients, metrics)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(self.state.g.weights)
            fakes = micro_batch.generate(labels, draws)
            with tape.stop_recording():
                d_metrics = self._update_d((*batch, fakes), draws)
            logits = micro_batch.discriminate(fakes, labels, draws.within("g"))
            loss = micro_batch.g_loss(logits)
        gradients = self.state.g.gradients(tape, loss)
        return d_metrics, self._apply(self.state.g, gradients, micro_batch.g_metrics(loss, logits))

    def _update_both(self, batch: Batch, draws: Draws) -> tuple[tf.Tensor, tf.Tensor]:
        """Updates both networks by gradients from the same weights and the same fakes."""
        self.state.d.prepare()
        self.state.g.prepare()
        d_gradients, g_gradients, d_metrics, g_metrics = self._accumulate(
            self._micro_batch.both, batch, draws
        )
        return (
            self._apply(self.state.d, d_gradients, d_metrics),
            self._apply(self.state.g, g_gradients, g_metrics),
        )

    def _apply(self, updater: Updater, gradients: list[tf.Tensor], metrics: tf.Tensor) -> tf.Tensor:
        """Updates a network; appends this replica's share of the gradient's norm to metrics."""
        norm = updater.apply(gradients)  # equal on every replica
        return tf.concat([metrics, [norm / self.num_replicas]], 0)

    def _accumulate(self, gradients_of: Callable[..., Any], batch: Batch, draws: Draws) -> Any:
        """Returns the sum of `gradients_of` over the micro-batches of this replica's rows."""
        rows, at_once = self.config.batch_size // self.num_replicas, self._rows_at_once
        total = None
        for first in range(0, rows, at_once):
            part = [tensor[first : first + at_once] for tensor in batch]
            # Micro-batches run one after another: together they would need the memory of all.
            with tf.control_dependencies([] if total is None else tf.nest.flatten(total)):
                part = [tf.identity(tensor) for tensor in part]
                result = gradients_of(*part, draws=draws.part(first, at_once))
                total = (
                    result if total is None else tf.nest.map_structure(operator.add, total, result)
                )
        return total

    @property
    def _rows_at_once(self) -> int:
        """Rows of a micro-batch."""
        rows = self.config.batch_size // self.num_replicas
        return min(rows, self.config.batch_per_replica or rows)

    def _draws(self) -> Draws:
        """Returns the random numbers of this step on this replica."""
        rows = self.config.batch_size // self.num_replicas
        return Draws(
            seed=self.config.seed,
            step=self.state.images // self.config.batch_size
            + STEPS_PER_ROLLBACK * self.state.rollbacks,
            batch_size=self.config.batch_size,
            first_row=replica_index() * rows,
            rows=rows,
            images=self.state.images.read_value(),
        )

    def _update_ema(self) -> None:
        """Updates the moving average of the generator, whose half-life counts images."""
        if self.state.ema_generator is None:
            return
        weight = 1.0 - ema_decay(self.config, self.state.images)
        for new, old in zip(
            self.state.generator.variables, self.state.ema_generator.variables, strict=True
        ):
            old.assign_add(weight * (new - old))
