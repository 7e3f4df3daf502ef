"""One step of training on one replica, and many of them per call of the device."""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from trainer import randomness
from trainer.config import Config
from trainer.objective import OBJECTIVES, share_real
from trainer.randomness import Draws
from trainer.runtime import Runtime, replica_index
from trainer.state import TrainState

METRICS = ("d_loss", "g_loss", "d_real_acc", "d_fake_acc", "g_acc")
EMA_RAMP = 0.05  # early on the half-life is this share of the images seen

Advance = Callable[[int], np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """The updates of one step.

    A step is `d_steps` updates of the discriminator, each on a real batch of its own
    unless the recipe repeats them, and one of the generator.  Losses are sums over the
    replica's rows divided by the global batch, so that summed over replicas (as the
    optimizers sum gradients) they are means.
    """

    config: Config
    state: TrainState
    classes: int
    num_replicas: int

    @property
    def rows(self) -> int:
        """Images of a batch on one replica."""
        return self.config.batch_size // self.num_replicas

    def __call__(self, images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """Trains on a replica's share of the real batches.

        Args:
          images: [batches, rows, H, W, C] uint8, one batch per update of D, or one.
          labels: [batches, rows] int32.

        Returns:
          The replica's share of METRICS, float32; d_* are means over the d_steps.
        """
        draws = Draws(
            seed=self.config.seed,
            step=self.state.images // self.config.batch_size,
            batch_size=self.config.batch_size,
            first_row=replica_index() * self.rows,
            rows=self.rows,
        )
        updates = []
        for k in range(self.config.d_steps):
            part = draws.within(f"d{k}")
            batch = 0 if self.config.repeat_reals else k
            reals = self._to_reals(images[batch], part)
            if self.config.simultaneous:
                metrics, g_metrics = self._update_both(reals, labels[batch], part)
            else:
                metrics = self._update_discriminator(reals, labels[batch], part)
            updates.append(metrics)
        if not self.config.simultaneous:
            g_metrics = self._update_generator(draws.within("g"))
        self._update_average()
        d_loss, d_real, d_fake = tf.unstack(tf.reduce_mean(tf.stack(updates), 0))
        g_loss, g_real = g_metrics
        return tf.stack([d_loss, g_loss, d_real, d_fake, g_real])

    def _update_discriminator(self, reals, labels, draws):
        """One update of D, or two one after the other."""
        fakes = self._generate(labels, draws)
        if self.config.d_update == "sequential":
            return self._update_sequentially(reals, fakes, labels, draws)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(self._weights(self.state.discriminator))
            logits = self._judge_both(reals, fakes, labels, draws)
            loss = self._d_loss(*logits)
        self._apply(self.state.discriminator, self.state.d_optimizer, tape, loss)
        return self._d_metrics(loss, *logits)

    def _update_sequentially(self, reals, fakes, labels, draws):
        """An update of D on reals, then one on fakes; the loss is their mean."""
        objective = OBJECTIVES[self.config.loss]
        losses, logits = [], []
        for name, images, loss_of in (
            ("reals", reals, objective.d_real),
            ("fakes", fakes, objective.d_fake),
        ):
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(self._weights(self.state.discriminator))
                logits.append(self._judge(images, labels, draws.within(name)))
                losses.append(self._mean(loss_of(logits[-1])))
            self._apply(self.state.discriminator, self.state.d_optimizer, tape, losses[-1])
        return self._d_metrics(0.5 * (losses[0] + losses[1]), *logits)

    def _update_generator(self, draws):
        """One update of G on fresh latents and labels."""
        labels = draws.integers("labels", self.classes) if self.config.conditional else None
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(self._weights(self.state.generator))
            logits = self._judge(self._generate(labels, draws), labels, draws)
            loss = self._mean(OBJECTIVES[self.config.loss].g_fake(logits))
        self._apply(self.state.generator, self.state.g_optimizer, tape, loss)
        return loss, self._mean(share_real(logits))

    def _update_both(self, reals, labels, draws):
        """Both gradients from the same weights and the same fakes, then both updates."""
        generator, discriminator = self.state.generator, self.state.discriminator
        with tf.GradientTape(watch_accessed_variables=False, persistent=True) as tape:
            tape.watch(self._weights(generator) + self._weights(discriminator))
            fakes = self._generate(labels, draws)
            logits = self._judge_both(reals, fakes, labels, draws)
            d_loss = self._d_loss(*logits)
            g_loss = self._mean(OBJECTIVES[self.config.loss].g_fake(logits[1]))
        d_gradients = tape.gradient(d_loss, self._weights(discriminator))
        g_gradients = tape.gradient(g_loss, self._weights(generator))
        self.state.d_optimizer.apply(d_gradients, discriminator.trainable_variables)
        self.state.g_optimizer.apply(g_gradients, generator.trainable_variables)
        g_metrics = (g_loss, self._mean(share_real(logits[1])))
        return self._d_metrics(d_loss, *logits), g_metrics

    def _update_average(self) -> None:
        """Moves the average towards the generator, by a half-life in images."""
        if self.state.average is None:
            return
        seen = tf.cast(self.state.images + self.config.batch_size, tf.float32)
        half_life = tf.minimum(1000.0 * self.config.ema_half_life_kimg, EMA_RAMP * seen)
        weight = 1.0 - tf.pow(0.5, self.config.batch_size / half_life)
        for new, old in zip(
            self.state.generator.variables, self.state.average.variables, strict=True
        ):
            if new.dtype == "float32":  # not the seeds of random layers
                old.assign_add(weight * (new - old))

    def _generate(self, labels, draws):
        latents = randomness.latents(self.config, draws)
        inputs = [latents, labels] if self.config.conditional else latents
        return self.state.generator(inputs, training=True)

    def _judge(self, images, labels, draws):
        inputs = [images, labels] if self.config.conditional else images
        with randomness.use(draws):
            return self.state.discriminator(inputs, training=True)

    def _judge_both(self, reals, fakes, labels, draws):
        """Logits of reals and of fakes: as one batch, or as two."""
        if self.config.d_update == "joint":
            both = tf.concat([reals, fakes], 0), tf.concat([labels, labels], 0)
            return tf.split(self._judge(*both, draws), 2)
        return (
            self._judge(reals, labels, draws.within("reals")),
            self._judge(fakes, labels, draws.within("fakes")),
        )

    def _d_loss(self, real_logits, fake_logits):
        """The mean over one joint batch, or the sum of the means over two batches."""
        objective = OBJECTIVES[self.config.loss]
        total = self._mean(objective.d_real(real_logits) + objective.d_fake(fake_logits))
        return 0.5 * total if self.config.d_update == "joint" else total

    def _d_metrics(self, loss, real_logits, fake_logits):
        return tf.stack(
            [
                loss,
                self._mean(share_real(real_logits)),
                self._mean(1.0 - share_real(fake_logits)),
            ]
        )

    def _mean(self, values: tf.Tensor) -> tf.Tensor:
        """The replica's share of the mean over the global batch."""
        return tf.reduce_sum(values) / self.config.batch_size

    def _to_reals(self, images: tf.Tensor, draws: Draws) -> tf.Tensor:
        """Bytes to the image range, mirrored by chance where the config says so."""
        reals = tf.cast(images, tf.float32)
        reals = reals / 127.5 - 1.0 if self.config.image_range == "tanh" else reals / 255.0
        if self.config.horizontal_flip:
            mirrored = draws.uniform("flip", (1, 1, 1)) < 0.5
            reals = tf.where(mirrored, tf.reverse(reals, [2]), reals)
        return reals

    @staticmethod
    def _weights(network: keras.Model) -> list[tf.Variable]:
        return [variable.value for variable in network.trainable_variables]

    def _apply(self, network, optimizer, tape, loss) -> None:
        gradients = tape.gradient(loss, self._weights(network))
        optimizer.apply(gradients, network.trainable_variables)


def real_batches_per_step(config: Config) -> int:
    """How many real batches a step takes from the data."""
    return 1 if config.repeat_reals else config.d_steps


def make_advance(
    config: Config, runtime: Runtime, state: TrainState, classes: int, batches
) -> Advance:
    """Compiles the step.

    Args:
      config, runtime, state: the run's.
      classes: classes of the data.
      batches: an iterator over the replicas' real batches, a step each.

    Returns:
      A function of a number of steps that trains so many and returns their METRICS,
      [steps, len(METRICS)] float32.
    """
    step = Step(config, state, classes, runtime.num_replicas)

    @tf.function(input_signature=[tf.TensorSpec([], tf.int32)])
    def advance(steps: tf.Tensor) -> tf.Tensor:
        rows = tf.TensorArray(tf.float32, size=steps, element_shape=[len(METRICS)])
        for k in tf.range(steps):
            rows = rows.write(k, runtime.run(step, *next(batches)))
            state.images.assign_add(config.batch_size)
        return rows.stack()

    return lambda steps: advance(tf.constant(steps, tf.int32)).numpy()
