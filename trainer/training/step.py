"""One step of training on one replica: the order of the updates of both networks."""

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from trainer.config import Config
from trainer.config.schedules import Schedule
from trainer.machine.devices import on_host
from trainer.machine.replicas import replica_index
from trainer.models.randomness import Draws
from trainer.models.schedules import current
from trainer.training import adaptation
from trainer.training.gradients import MicroBatch
from trainer.training.state import TrainState
from trainer.training.updates import TracedNetwork

STEPS_PER_ROLLBACK = 2**40  # offset of the random numbers' step after each rollback

Sums = tuple[tf.Tensor, ...]  # of an update: see RawMetrics
Batch = tuple[tf.Tensor, ...]  # images, labels and, where they are given, fakes


class Position(NamedTuple):
    """Where a step is in the run: integer scalars in host memory.

    Attributes:
      images: number of images seen before the step.
      draws: number of the step for random numbers, which are others after a rollback.
    """

    images: tf.Tensor
    draws: tf.Tensor

    @classmethod
    def of(cls, config: Config, images: tf.Tensor, rollbacks: tf.Tensor) -> "Position":
        """Returns the position after so many images and rollbacks."""
        number = images // config.batch_size + STEPS_PER_ROLLBACK * rollbacks
        return cls(images, number)


@dataclasses.dataclass(frozen=True)
class RawMetrics:
    """How the sums that a step returns become metrics.

    A step returns sums over its rows, because each operation on scalars takes a kernel launch on a
    GPU.  They are summed over the replicas, and divided for all steps of a call at once.

    Attributes:
      config: the configuration of the run.
      names: names of the metrics, in the order in which they are reported.
      num_replicas: replicas that share the global batch.
    """

    config: Config
    names: tuple[str, ...]
    num_replicas: int

    @functools.cached_property
    def order(self) -> tuple[str, ...]:
        """Names of the sums of a step, in order."""
        d = ("d_loss", "d_real_acc", "d_fake_acc", "d_grad_norm")
        first = (*d, "g_loss", "g_acc", "g_grad_norm")
        return (*first, *(name for name in self.names if name not in first))

    def metrics(self, rows: np.ndarray) -> np.ndarray:
        """Returns the metrics of steps, [steps, M] float32, from their sums of the same shape."""
        rows = rows[:, [self.order.index(name) for name in self.names]]
        d_images = float(self.config.batch_size * self.config.d_steps)
        # The sum counts the fakes that are judged real.
        is_fakes = np.array([name == "d_fake_acc" for name in self.names])
        rows = np.where(is_fakes, d_images - rows, rows)
        divisors = dict(
            d_loss=self.config.d_steps,
            d_real_acc=d_images,
            d_fake_acc=d_images,
            d_grad_norm=self.config.d_steps * self.num_replicas,
            g_loss=1,
            g_acc=self.config.batch_size,
        )  # the others are equal on every replica
        by_name = [divisors.get(name, self.num_replicas) for name in self.names]
        return (rows / np.array(by_name)).astype(np.float32)


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
      state: the variables that the step updates, in its buffers.
      classes: number of classes of the data set.
      num_replicas: replicas that share the global batch.
    """

    config: Config
    state: TrainState
    classes: int
    num_replicas: int

    def __call__(self, images: tf.Tensor, labels: tf.Tensor, position: Position) -> tf.Tensor:
        """Trains on this replica's share of the batches of reals.

        Args:
          images: [batches, rows, H, W, C] uint8, one batch per update of the discriminator,
            or a single one that they share.
          labels: [batches, rows] int32.
          position: where the step is in the run.

        Returns:
          This replica's share of the sums that `RawMetrics` describes, [M] float32.
        """
        # No other operation of the step may run before its data arrive: the time that the
        # step waits for them is measured.
        with tf.control_dependencies([images]):
            return ReplicaStep(self, position).run(images, labels)


class ReplicaStep:
    """A step on one replica, while it is traced."""

    def __init__(self, step: Step, position: Position) -> None:
        self._config, self._state, self._position = step.config, step.state, position
        self._rows = step.config.batch_size // step.num_replicas
        self._g, self._d = TracedNetwork(step.state.g), TracedNetwork(step.state.d)
        self._micro_batch = MicroBatch(
            step.config, self._g, self._d, step.state.augment, step.classes
        )

    def run(self, images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """Performs the updates; see `Step`."""
        draws, rule = self._draws(), self._config.updates
        d_updates = []
        g_sums = None
        for k in range(self._config.d_steps):
            batch = 0 if self._config.repeat_reals else k
            reals = (images[batch], labels[batch])
            update_draws = draws.within(f"d{k}")
            is_last = k == self._config.d_steps - 1
            if rule.fakes == "simultaneous":
                d_sums, g_sums = self._update_both(reals, update_draws)
            elif rule.fakes == "reuse" and is_last:
                d_sums, g_sums = self._update_d_then_g(reals, update_draws)
            else:
                d_sums = self._update_d(reals, update_draws)
            d_updates.append(d_sums)
        if g_sums is None:
            g_sums = self._update_g(draws.within("g"))
        self._g.write_statistics()
        self._d.write_statistics()
        self.update_ema()
        sums = [*_total(d_updates), *g_sums]
        sums += [network.scale.value for network in (self._d, self._g) if network.scale]
        if self._config.augment != "none":
            sums.append(adaptation.strength(self._config, self._state.augment, draws.images))
        return tf.concat([tf.reshape(values, [-1]) for values in sums], 0)

    def _update_d(self, batch: Batch, draws: Draws) -> Sums:
        """Updates the discriminator once, or on reals and then on fakes.

        Returns:
          The loss, the numbers of reals and of fakes judged real, [2], and the norm of the
          gradient.
        """
        if self._config.updates.batches != "sequential":
            return self._update_d_by(self._micro_batch.discriminator, batch, draws)
        on_reals = self._update_d_by(self._micro_batch.discriminator_on_reals, batch, draws)
        on_fakes = self._update_d_by(self._micro_batch.discriminator_on_fakes, batch, draws)
        loss, counts, norm = _total([on_reals, on_fakes])
        return loss, counts, 0.5 * norm  # the norms are averaged

    def _update_d_by(self, gradients_of: Callable[..., Any], batch: Batch, draws: Draws) -> Sums:
        self._d.iterate()
        gradients, sums = self._accumulate(gradients_of, batch, draws)
        return (*sums, self._apply(self._d, gradients))

    def _update_g(self, draws: Draws) -> Sums:
        """Updates the generator on new latents and labels.

        Returns:
          The loss, the number of fakes judged real, and the norm of the gradient.
        """
        self._g.iterate()
        gradients, sums = self._accumulate(self._micro_batch.generator, (), draws)
        return (*sums, self._apply(self._g, gradients))

    def _update_d_then_g(self, batch: Batch, draws: Draws) -> tuple[Sums, Sums]:
        """Updates the discriminator, then the generator on the same fakes."""
        self._g.iterate()
        labels = batch[1]
        micro_batch = self._micro_batch
        if self._rows_at_once < labels.shape[0]:
            # The fakes of all micro-batches would not fit into memory until G's update.
            d_sums = self._update_d(batch, draws)
            gradients, sums = self._accumulate(
                micro_batch.generator_on_same_fakes, (labels,), draws
            )
            return d_sums, (*sums, self._apply(self._g, gradients))
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            self._g.watch(tape)
            fakes = micro_batch.generate(labels, draws)
            with tape.stop_recording():
                d_sums = self._update_d((*batch, fakes), draws)
            logits = micro_batch.discriminate(fakes, labels, draws.within("g"))
            loss = micro_batch.g_loss(logits)
        gradients = self._g.gradients(tape, loss)
        return d_sums, (*micro_batch.g_sums(loss, logits), self._apply(self._g, gradients))

    def _update_both(self, batch: Batch, draws: Draws) -> tuple[Sums, Sums]:
        """Updates both networks by gradients from the same weights and the same fakes."""
        self._d.iterate()
        self._g.iterate()
        d_gradients, g_gradients, d_sums, g_sums = self._accumulate(
            self._micro_batch.both, batch, draws
        )
        return (
            (*d_sums, self._apply(self._d, d_gradients)),
            (*g_sums, self._apply(self._g, g_gradients)),
        )

    def _apply(self, network: TracedNetwork, gradients: list[tf.Tensor]) -> tf.Tensor:
        """Updates a network; returns the norm of the gradient, which is equal on every replica."""
        return network.apply(gradients, self._position.images)

    def _accumulate(self, gradients_of: Callable[..., Any], batch: Batch, draws: Draws) -> Any:
        """Returns the sum of `gradients_of` over the micro-batches of this replica's rows."""
        at_once = self._rows_at_once
        total = None
        for first in range(0, self._rows, at_once):
            part = list(batch)
            if at_once < self._rows:
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
        return min(self._rows, self._config.batch_per_replica or self._rows)

    def _draws(self) -> Draws:
        """Returns the random numbers of this step on this replica."""
        return Draws(
            seed=self._config.seed,
            step=self._position.draws,
            batch_size=self._config.batch_size,
            first_row=replica_index() * self._rows,
            rows=self._rows,
            images=self._position.images,
        )

    def update_ema(self) -> None:
        """Updates the moving average of the generator, whose half-life counts images."""
        state = self._state
        if not state.average:
            return
        with on_host():
            weight = 1.0 - ema_decay(self._config, self._position.images)
        for buffer, average in zip(
            (state.g.weights, state.g.statistics), state.average, strict=True
        ):
            average.move_towards(buffer.value(), weight)


def _total(updates: list[Sums]) -> Sums:
    """Returns the sums over updates."""
    return updates[0] if len(updates) == 1 else tuple(map(tf.add_n, zip(*updates, strict=True)))
