"""One step of training on one replica."""

import dataclasses
import operator
from collections.abc import Callable

import tensorflow as tf

from trainer import randomness
from trainer.config import Config
from trainer.machine.replicas import replica_index
from trainer.randomness import Draws
from trainer.training.objective import OBJECTIVES, Loss, gradient_penalty, share_real, towards
from trainer.training.state import TrainState
from trainer.training.updates import Updater

EMA_RAMP = 0.05  # early on the half-life is this share of the images seen
AFTER_ROLLBACK = 2**40  # steps by which a rollback moves the random numbers on
PENALTY_SCALE = 1024.0  # of the inner gradient of a penalty in half precision

Gradients = list[tf.Tensor]


def metric_names(precision: str) -> tuple[str, ...]:
    """What a step returns, in order."""
    names = ("d_loss", "g_loss", "d_real_acc", "d_fake_acc", "g_acc", "d_grad_norm", "g_grad_norm")
    return (*names, "d_loss_scale", "g_loss_scale") if precision == "float16" else names


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """The updates of one step.

    A step is `d_steps` updates of the discriminator, each on a real batch of its own
    unless the recipe repeats them, and one of the generator.  Losses are sums over the
    replica's rows divided by the global batch, so that summed over replicas, as
    gradients are, they are means.
    """

    config: Config
    state: TrainState
    classes: int
    num_replicas: int

    def __call__(self, images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """Trains on a replica's share of the real batches.

        Args:
          images: [batches, rows, H, W, C] uint8, one batch per update of D, or one.
          labels: [batches, rows] int32.

        Returns:
          The replica's share of the metrics, float32; d_* are means over the d_steps.
        """
        with tf.control_dependencies([images]):  # a step that waits for its data does nothing else
            draws = self._draws()
        updates = []
        for k in range(self.config.d_steps):
            batch = 0 if self.config.repeat_reals else k
            real = (images[batch], labels[batch])
            within = draws.within(f"d{k}")
            last = k == self.config.d_steps - 1
            if self.config.simultaneous:
                d_metrics, g_metrics = self._update_both(real, within)
            elif self.config.reuse_fakes and last:
                d_metrics, g_metrics = self._update_d_then_g(real, within)
            else:
                d_metrics = self._update_d(real, within)
            updates.append(d_metrics)
        if not (self.config.simultaneous or self.config.reuse_fakes):
            g_metrics = self._update_g(draws.within("g"))
        self._update_average()
        d_loss, d_real, d_fake, d_norm = tf.unstack(tf.reduce_mean(tf.stack(updates), 0))
        g_loss, g_acc, g_norm = tf.unstack(g_metrics)
        metrics = [d_loss, g_loss, d_real, d_fake, g_acc, d_norm, g_norm]
        for updater in (self.state.d, self.state.g):
            if updater.scale is not None:
                metrics.append(updater.scale.value / self.num_replicas)
        return tf.stack(metrics)

    # The updates: prepare, gradients of all micro-batches, apply.

    def _update_d(self, real, draws):
        """One update of D on reals and fakes, or one on each; returns D's metrics.

        `real` is a batch of images and labels and perhaps, third, the fakes beside them.
        """
        if self.config.d_update != "sequential":
            return self._update_d_by(self._d_gradients, real, draws)
        on_reals = self._update_d_by(self._d_gradients_on_reals, real, draws)
        on_fakes = self._update_d_by(self._d_gradients_on_fakes, real, draws)
        # Each has its half of the loss, its accuracy, and a norm of its own.
        return tf.concat([on_reals[:3] + on_fakes[:3], 0.5 * (on_reals[3:] + on_fakes[3:])], 0)

    def _update_d_by(self, gradients_of, real, draws):
        self.state.d.prepare()
        gradients, metrics = self._accumulate(gradients_of, real, draws)
        return self._applied(self.state.d, gradients, metrics)

    def _update_g(self, draws):
        """One update of G on fresh latents and labels; returns G's metrics."""
        self.state.g.prepare()
        gradients, metrics = self._accumulate(self._g_gradients, (), draws)
        return self._applied(self.state.g, gradients, metrics)

    def _update_d_then_g(self, real, draws):
        """One update of D, and by the same fakes one of G; returns the metrics of both."""
        self.state.g.prepare()
        labels = real[1]
        if self._rows_at_once < labels.shape[0]:
            # The fakes of all micro-batches, to keep until G's turn, are what does not fit.
            d_metrics = self._update_d(real, draws)
            gradients, metrics = self._accumulate(self._g_gradients_again, (labels,), draws)
            return d_metrics, self._applied(self.state.g, gradients, metrics)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(self.state.g.weights)
            fakes = self._generate(labels, draws)
            with tape.stop_recording():
                d_metrics = self._update_d((*real, fakes), draws)
            logits = self._judge(fakes, labels, draws.within("g"))
            loss = self._mean(OBJECTIVES[self.config.loss].g_fake(logits))
        gradients = self.state.g.gradients(tape, loss)
        g_metrics = self._applied(self.state.g, gradients, self._g_metrics(loss, logits))
        return d_metrics, g_metrics

    def _update_both(self, real, draws):
        """Both gradients from the same weights and the same fakes, then both updates."""
        self.state.d.prepare()
        self.state.g.prepare()
        result = self._accumulate(self._both_gradients, real, draws)
        d_gradients, g_gradients, d_metrics, g_metrics = result
        return (
            self._applied(self.state.d, d_gradients, d_metrics),
            self._applied(self.state.g, g_gradients, g_metrics),
        )

    def _applied(self, updater: Updater, gradients, metrics):
        """Updates a network; returns the metrics with the share of the gradients' norm."""
        norm = updater.apply(gradients)  # the same on every replica
        return tf.concat([metrics, [norm / self.num_replicas]], 0)

    def _accumulate(self, gradients_of: Callable, batch: tuple, draws: Draws):
        """Sums what `gradients_of` returns for the micro-batches of the replica's rows."""
        rows, at_once = self.config.batch_size // self.num_replicas, self._rows_at_once
        total = None
        for first in range(0, rows, at_once):
            part = [tensor[first : first + at_once] for tensor in batch]
            # One after the other: run side by side they would need the memory of all.
            with tf.control_dependencies([] if total is None else tf.nest.flatten(total)):
                part = [tf.identity(tensor) for tensor in part]
                result = gradients_of(*part, draws=draws.part(first, at_once))
                total = (
                    result if total is None else tf.nest.map_structure(operator.add, total, result)
                )
        return total

    @property
    def _rows_at_once(self) -> int:
        """Of a micro-batch."""
        rows = self.config.batch_size // self.num_replicas
        return min(rows, self.config.batch_per_replica or rows)

    # The gradients of one micro-batch, with its share of the metrics.

    def _d_gradients(self, images, labels, fakes=None, *, draws):
        reals = self._to_reals(images, draws)
        fakes = self._generate(labels, draws) if fakes is None else fakes
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(self.state.d.weights)
            logits = self._judge_both(reals, fakes, labels, draws)
            loss = self._d_loss(logits, draws)
            loss += self._penalty(reals, fakes, labels, draws)
        return self.state.d.gradients(tape, loss), self._d_metrics(loss, *logits)

    def _d_gradients_on_reals(self, images, labels, fakes=None, *, draws):
        loss_of = self._d_losses(draws)[0]
        return self._d_gradients_on(self._to_reals(images, draws), labels, loss_of, draws, "reals")

    def _d_gradients_on_fakes(self, images, labels, fakes=None, *, draws):
        loss_of = self._d_losses(draws)[1]
        fakes = self._generate(labels, draws) if fakes is None else fakes
        return self._d_gradients_on(fakes, labels, loss_of, draws, "fakes")

    def _d_gradients_on(self, images, labels, loss_of: Loss, draws, name: str):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(self.state.d.weights)
            logits = self._judge(images, labels, draws.within(name))
            loss = self._mean(loss_of(logits))
        real = self._mean(share_real(logits)) if name == "reals" else 0.0
        fake = self._mean(1.0 - share_real(logits)) if name == "fakes" else 0.0
        return self.state.d.gradients(tape, loss), tf.stack([0.5 * loss, real, fake])

    def _g_gradients(self, *, draws):
        labels = draws.integers("labels", self.classes) if self.config.conditional else None
        return self._g_gradients_on(labels, draws, draws)

    def _g_gradients_again(self, labels, *, draws):
        return self._g_gradients_on(labels, draws, draws.within("g"))

    def _g_gradients_on(self, labels, draws, judged):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(self.state.g.weights)
            logits = self._judge(self._generate(labels, draws), labels, judged)
            loss = self._mean(OBJECTIVES[self.config.loss].g_fake(logits))
        return self.state.g.gradients(tape, loss), self._g_metrics(loss, logits)

    def _both_gradients(self, images, labels, *, draws):
        reals = self._to_reals(images, draws)
        with tf.GradientTape(watch_accessed_variables=False, persistent=True) as tape:
            tape.watch(self.state.g.weights + self.state.d.weights)
            fakes = self._generate(labels, draws)
            logits = self._judge_both(reals, fakes, labels, draws)
            g_loss = self._mean(OBJECTIVES[self.config.loss].g_fake(logits[1]))
            d_loss = self._d_loss(logits, draws)
            d_loss += self._penalty(reals, tf.stop_gradient(fakes), labels, draws)
        return (
            self.state.d.gradients(tape, d_loss),
            self.state.g.gradients(tape, g_loss),
            self._d_metrics(d_loss, *logits),
            self._g_metrics(g_loss, logits[1]),
        )

    # What the networks see and say.

    def _generate(self, labels, draws):
        latents = randomness.latents(self.config, draws)
        inputs = [latents, labels] if self.config.conditional else latents
        return self.state.generator(inputs, training=True)

    def _judge(self, images, labels, draws):
        if self.config.d_input_noise:
            parts = images.shape[0] // draws.rows
            noise = draws.normal("input_noise", tuple(images.shape[1:]), parts)
            images += self.config.d_input_noise * draws.noise_level * noise
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

    def _d_losses(self, draws: Draws) -> tuple[Loss, Loss]:
        """D's losses on reals and on fakes, with smoothed and flipped labels."""
        objective = OBJECTIVES[self.config.loss]
        targets = [1.0 - self.config.smooth_real, self.config.smooth_fake]
        if targets == [1.0, 0.0] and not self.config.flip_labels:
            return objective.d_real, objective.d_fake
        losses = []
        for name, target in zip(("reals", "fakes"), targets, strict=True):
            if self.config.flip_labels:
                flipped = draws.uniform(f"flip_{name}", ()) < self.config.flip_labels
                target = tf.where(flipped, 1.0 - target, target)
            losses.append(towards(target, objective.d_real, objective.d_fake))
        return losses[0], losses[1]

    def _d_loss(self, logits, draws):
        """The mean over one joint batch, or the sum of the means over two batches."""
        on_reals, on_fakes = self._d_losses(draws)
        total = self._mean(on_reals(logits[0]) + on_fakes(logits[1]))
        return 0.5 * total if self.config.d_update == "joint" else total

    def _penalty(self, reals, fakes, labels, draws):
        """The gradient penalty at points between reals and fakes, if there is one."""
        if not self.config.gradient_penalty:
            return 0.0
        between = draws.uniform("between", (1, 1, 1))
        images = between * reals + (1.0 - between) * fakes
        half = self.state.discriminator.compute_dtype != "float32"
        scale = PENALTY_SCALE if half else 1.0
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(images)
            verdict = scale * tf.reduce_sum(self._judge(images, labels, draws.within("between")))
        gradients = tape.gradient(verdict, images) / scale
        return self.config.gradient_penalty * self._mean(gradient_penalty(gradients))

    def _d_metrics(self, loss, real_logits, fake_logits):
        real = self._mean(share_real(real_logits))
        return tf.stack([loss, real, self._mean(1.0 - share_real(fake_logits))])

    def _g_metrics(self, loss, logits):
        return tf.stack([loss, self._mean(share_real(logits))])

    def _mean(self, values: tf.Tensor) -> tf.Tensor:
        """These rows' share of the mean over the global batch."""
        return tf.reduce_sum(values) / self.config.batch_size

    def _to_reals(self, images: tf.Tensor, draws: Draws) -> tf.Tensor:
        """Bytes to the image range, mirrored by chance where the config says so."""
        reals = tf.cast(images, tf.float32)
        reals = reals / 127.5 - 1.0 if self.config.image_range == "tanh" else reals / 255.0
        if self.config.horizontal_flip:
            mirrored = draws.uniform("mirror", (1, 1, 1)) < 0.5
            reals = tf.where(mirrored, tf.reverse(reals, [2]), reals)
        return reals

    def _draws(self) -> Draws:
        """The random numbers of this step on this replica."""
        rows = self.config.batch_size // self.num_replicas
        level: tf.Tensor | float = 1.0
        if self.config.noise_decay_kimg:
            seen = tf.cast(self.state.images, tf.float32)
            level = tf.maximum(0.0, 1.0 - seen / (1000.0 * self.config.noise_decay_kimg))
        return Draws(
            seed=self.config.seed,
            step=self.state.images // self.config.batch_size
            + AFTER_ROLLBACK * self.state.rollbacks,
            batch_size=self.config.batch_size,
            first_row=replica_index() * rows,
            rows=rows,
            noise_level=level,
        )

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
            old.assign_add(weight * (new - old))


def real_batches_per_step(config: Config) -> int:
    """How many real batches a step takes from the data."""
    return 1 if config.repeat_reals else config.d_steps
