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
from trainer.machine import program
from trainer.machine.devices import on_host
from trainer.machine.replicas import replica_index
from trainer.models.objective import OBJECTIVES
from trainer.models.randomness import Draws
from trainer.models.schedules import current
from trainer.training import adaptation, penalties
from trainer.training.forward import Forward
from trainer.training.gradients import Gradients, MicroBatch
from trainer.training.position import Position, d_updates_per_step
from trainer.training.state import TrainState
from trainer.training.updates import TracedNetwork

Batch = tuple[tf.Tensor, ...]  # images, labels and, where they are given, fakes


class Sums(NamedTuple):
    """The sums of an update over this replica's rows; see `RawMetrics`.

    Attributes:
      loss: this replica's share of the loss, a scalar.
      judgement: the verdicts, which count how many more images are judged real than fake.  For the
        generator, those on the fakes, a scalar; for the discriminator, those on the reals, those on
        the fakes and the penalties, [2 + penalties].
      half_square: half of the squared norm of the gradient, a scalar.
    """

    loss: tf.Tensor
    judgement: tf.Tensor
    half_square: tf.Tensor


@dataclasses.dataclass(frozen=True)
class RawMetrics:
    """How the sums that a step returns become metrics.

    A step returns the sums of each update over its rows, because each operation on scalars takes a
    kernel launch on a GPU.  They are summed over the replicas, and become metrics for all steps of
    a call at once.

    Attributes:
      config: the configuration of the run.
      names: names of the metrics, in the order in which they are reported.
      num_replicas: replicas that share the global batch.
    """

    config: Config
    names: tuple[str, ...]
    num_replicas: int

    @functools.cached_property
    def columns(self) -> dict[str, list[int]]:
        """The columns of each metric in the sums of a step: one for each update."""
        of_penalties = _penalty_names(self.config)
        names = ["d_loss", "d_real_acc", "d_fake_acc", *of_penalties, "d_grad_norm"]
        names *= d_updates_per_step(self.config)
        names += ["g_loss", "g_acc", "g_grad_norm"]
        names += [name for name in self.names if name not in names]
        columns: dict[str, list[int]] = {}
        for number, name in enumerate(names):
            columns.setdefault(name, []).append(number)
        return columns

    @property
    def size(self) -> int:
        """Number of columns."""
        return sum(map(len, self.columns.values()))

    def metrics(self, rows: np.ndarray) -> np.ndarray:
        """Returns the metrics of steps, [steps, M] float32, from their sums, [steps, size]."""
        rows = rows.astype(np.float64)
        return np.stack([self._metric(name, rows) for name in self.names], 1).astype(np.float32)

    def _metric(self, name: str, rows: np.ndarray) -> np.ndarray:
        config, values = self.config, rows[:, self.columns[name]]
        if name.endswith("grad_norm"):
            return np.sqrt(2.0 * values / self.num_replicas).mean(1)
        total, d_images = values.sum(1), config.batch_size * config.d_steps
        # An accuracy is half of 1 plus the mean of the verdicts, which are 1 for real, -1 for fake.
        images, right = dict(
            d_real_acc=(d_images, 1), d_fake_acc=(d_images, -1), g_acc=(config.batch_size, 1)
        ).get(name, (0, 0))
        if images:
            return 0.5 + 0.5 * right * total / images
        if name == "d_loss" or name in _penalty_names(config):
            return total / config.d_steps
        # The others are equal on all replicas.
        return total if name == "g_loss" else total / self.num_replicas


def metric_names(config: Config, precision: str) -> tuple[str, ...]:
    """Returns the names of the metrics of a step, in order."""
    names = ("d_loss", "g_loss", "d_real_acc", "d_fake_acc", "g_acc", "d_grad_norm", "g_grad_norm")
    scales = ("d_loss_scale", "g_loss_scale") if precision == "float16" else ()
    strength = () if config.augment == "none" else ("augment_strength",)
    return (*names, *_penalty_names(config), *scales, *strength)


def _penalty_names(config: Config) -> tuple[str, ...]:
    return tuple(penalty.setting for penalty in penalties.active(config))


def real_batches_per_step(config: Config) -> int:
    """Returns how many batches of reals a step consumes."""
    of_d = 1 if config.repeat_reals else config.d_steps
    return of_d + g_draws_reals(config)


def g_draws_reals(config: Config) -> bool:
    """Returns whether the generator's update has reals of its own, the last batch of a step."""
    return OBJECTIVES[config.loss].on_pairs and config.updates.fakes == "new"


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
      compiled: whether XLA compiles the whole step into one program.
    """

    config: Config
    state: TrainState
    classes: int
    num_replicas: int
    compiled: bool = False

    def __call__(self, images: tf.Tensor, labels: tf.Tensor, position: Position) -> tf.Tensor:
        """Trains on this replica's share of the batches of reals.

        Args:
          images: [batches, rows, H, W, C] uint8, one batch per update of the discriminator,
            or a single one that they share, and one for the generator if it needs reals.
          labels: [batches, rows] int32.
          position: where the step is in the run.

        Returns:
          This replica's share of the sums that `RawMetrics` describes, [M] float32.
        """
        # No other operation of the step may run before its data arrive: the time that the
        # step waits for them is measured.
        with tf.control_dependencies([images]):
            if self.compiled:
                return program.call_compiled(
                    lambda *batch: ReplicaStep(self, position).run(*batch), images, labels
                )
            return ReplicaStep(self, position).run(images, labels)


class ReplicaStep:
    """A step on one replica, while it is traced."""

    def __init__(self, step: Step, position: Position) -> None:
        self._config, self._state, self._position = step.config, step.state, position
        self._rows = step.config.batch_size // step.num_replicas
        self._g = TracedNetwork(step.state.g, position.g_updates)
        self._d = TracedNetwork(step.state.d, position.d_updates)
        self._forward = Forward(step.config, self._g, self._d, step.state.augment)
        self._micro_batch = MicroBatch(step.config, self._g, self._d, self._forward, step.classes)

    def run(self, images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """Performs the updates; see `Step`."""
        draws, rule = self._draws(), self._config.updates
        updates: list[Sums] = []
        for k in range(self._config.d_steps):
            batch = 0 if self._config.repeat_reals else k
            reals = (images[batch], labels[batch])
            update_draws = draws.within(f"d{k}")
            is_last = k == self._config.d_steps - 1
            if rule.fakes == "simultaneous":
                updates += self._update_both(reals, update_draws)
            elif rule.fakes == "reuse" and is_last:
                updates += self._update_d_then_g(reals, update_draws)
            else:
                updates += self._update_d(reals, update_draws)
        if rule.fakes == "new":
            own = (images[-1], labels[-1]) if g_draws_reals(self._config) else ()
            updates += self._update_g(own, draws.within("g"))
        self._g.write_statistics()
        self._d.write_statistics()
        self.update_ema()
        values = [value for sums in updates for value in sums]
        values += [network.scale.value for network in (self._d, self._g) if network.scale]
        if self._config.augment != "none":
            values.append(adaptation.strength(self._config, self._state.augment, draws.images))
        return tf.concat([tf.reshape(value, [-1]) for value in values], 0)

    def _update_d(self, batch: Batch, draws: Draws) -> list[Sums]:
        """Updates the discriminator once, or on reals and then on fakes."""
        if self._config.updates.batches != "sequential":
            return self._update_d_by(self._micro_batch.discriminator, batch, draws)
        return [
            *self._update_d_by(self._micro_batch.discriminator_on_reals, batch, draws),
            *self._update_d_by(self._micro_batch.discriminator_on_fakes, batch, draws),
        ]

    def _update_d_by(
        self, gradients_of: Callable[..., Any], batch: Batch, draws: Draws
    ) -> list[Sums]:
        self._d.iterate()
        gradients, sums = self._accumulate(gradients_of, batch, draws)
        return [self._apply(self._d, gradients, sums)]

    def _update_g(self, batch: Batch, draws: Draws) -> list[Sums]:
        """Updates the generator on new latents.

        Args:
          batch: reals and their labels, if the loss is on pairs.
          draws: random numbers of the update.
        """
        self._g.iterate()
        gradients, sums = self._accumulate(self._micro_batch.generator, batch, draws)
        return [self._apply(self._g, gradients, sums)]

    def _update_d_then_g(self, batch: Batch, draws: Draws) -> list[Sums]:
        """Updates the discriminator, then the generator on the same fakes."""
        self._g.iterate()
        images, labels = batch
        micro_batch = self._micro_batch
        if self._rows_at_once < labels.shape[0]:
            # The fakes of all micro-batches would not fit into memory until G's update.
            d_sums = self._update_d(batch, draws)
            gradients, sums = self._accumulate(micro_batch.generator_on_same_fakes, batch, draws)
            return [*d_sums, self._apply(self._g, gradients, sums)]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            self._g.watch(tape)
            fakes = self._forward.generate(labels, draws)
            with tape.stop_recording():
                d_sums = self._update_d((*batch, fakes), draws)
            d_draws = draws.within("g")
            g_sums = micro_batch.g_sums(
                micro_batch.judge_for_g(images, fakes, labels, draws, d_draws)
            )
        gradients = self._g.gradients(tape, g_sums[0])
        return [*d_sums, self._apply(self._g, gradients, g_sums)]

    def _update_both(self, batch: Batch, draws: Draws) -> list[Sums]:
        """Updates both networks by gradients from the same weights and the same fakes."""
        self._d.iterate()
        self._g.iterate()
        d_gradients, g_gradients, d_sums, g_sums = self._accumulate(
            self._micro_batch.both, batch, draws
        )
        return [
            self._apply(self._d, d_gradients, d_sums),
            self._apply(self._g, g_gradients, g_sums),
        ]

    def _apply(
        self, network: TracedNetwork, gradients: Gradients, sums: tuple[tf.Tensor, tf.Tensor]
    ) -> Sums:
        """Updates a network; returns the sums of the loss and of the images, and the gradient's."""
        return Sums(*sums, network.apply(gradients, self._position.images))

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
            average.move_towards(buffer.values(), weight)
