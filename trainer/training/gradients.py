"""The gradients of one micro-batch on one replica, with its share of the metrics.

Losses are sums over the rows of the micro-batch divided by the global batch size.  Summed
over micro-batches and replicas, as gradients are, they are means over the global batch.
"""

import dataclasses

import tensorflow as tf

from trainer.config import Config
from trainer.models import randomness
from trainer.models.augmentation import augment
from trainer.models.objective import OBJECTIVES, Loss, gradient_penalty, share_real, towards
from trainer.models.randomness import Draws
from trainer.models.schedules import current
from trainer.training import adaptation
from trainer.training.adaptation import AdaptiveStrength
from trainer.training.updates import TracedNetwork

PENALTY_SCALE = 1024.0  # scales the inner gradient of a penalty in half precision

Gradients = list[tf.Tensor]
Sums = tuple[tf.Tensor, tf.Tensor]  # of the loss and of the logits that mean real


@dataclasses.dataclass(frozen=True, eq=False)
class MicroBatch:
    """Computes losses, gradients and metrics of the rows that a replica processes at once.

    Attributes:
      config: the configuration of the run.
      g, d: the generator and the discriminator.
      adaptive: the adaptive strength of the augmentation, or None.
      classes: number of classes of the data set.
    """

    config: Config
    g: TracedNetwork
    d: TracedNetwork
    adaptive: AdaptiveStrength | None
    classes: int

    def discriminator(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        fakes: tf.Tensor | None = None,
        *,
        draws: Draws,
    ) -> tuple[Gradients, Sums]:
        """Returns the gradients and metrics of the discriminator on reals and fakes.

        Args:
          images: [N, H, W, C] uint8.
          labels: [N] int32.
          fakes: [N, H, W, C] float32; None to generate them.
          draws: random numbers of these rows.
        """
        reals = self.to_reals(images, draws)
        fakes = self.generate(labels, draws) if fakes is None else fakes
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            self.d.watch(tape)
            logits = self._discriminate_both(reals, fakes, labels, draws)
            loss = self._d_loss(logits, draws)
            loss += self._penalty(reals, fakes, labels, draws)
        return self.d.gradients(tape, loss), (loss, _judged_real(logits))

    def discriminator_on_reals(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        fakes: tf.Tensor | None = None,
        *,
        draws: Draws,
    ) -> tuple[Gradients, Sums]:
        """Returns the gradients and metrics of the discriminator on reals alone."""
        on_reals, _ = self._d_losses(draws)
        gradients, loss, logits = self._d_gradients_on(
            self.to_reals(images, draws), labels, on_reals, draws.within("reals")
        )
        return gradients, (0.5 * loss, tf.stack([_judged_real(logits), 0.0]))

    def discriminator_on_fakes(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        fakes: tf.Tensor | None = None,
        *,
        draws: Draws,
    ) -> tuple[Gradients, Sums]:
        """Returns the gradients and metrics of the discriminator on fakes alone."""
        _, on_fakes = self._d_losses(draws)
        fakes = self.generate(labels, draws) if fakes is None else fakes
        gradients, loss, logits = self._d_gradients_on(
            fakes, labels, on_fakes, draws.within("fakes")
        )
        return gradients, (0.5 * loss, tf.stack([0.0, _judged_real(logits)]))

    def generator(self, *, draws: Draws) -> tuple[Gradients, Sums]:
        """Returns the gradients and metrics of the generator on new latents and labels."""
        labels = draws.integers("labels", self.classes) if self.config.conditional else None
        return self._g_gradients_on(labels, draws, draws)

    def generator_on_same_fakes(self, labels: tf.Tensor, *, draws: Draws) -> tuple[Gradients, Sums]:
        """Returns those of the generator on the fakes that `discriminator` generated."""
        return self._g_gradients_on(labels, draws, draws.within("g"))

    def both(
        self, images: tf.Tensor, labels: tf.Tensor, *, draws: Draws
    ) -> tuple[Gradients, Gradients, Sums, Sums]:
        """Returns the gradients and metrics of both networks from the same fakes."""
        reals = self.to_reals(images, draws)
        with tf.GradientTape(watch_accessed_variables=False, persistent=True) as tape:
            self.g.watch(tape)
            self.d.watch(tape)
            fakes = self.generate(labels, draws)
            logits = self._discriminate_both(reals, fakes, labels, draws)
            g_loss = self.g_loss(logits[1])
            d_loss = self._d_loss(logits, draws)
            d_loss += self._penalty(reals, tf.stop_gradient(fakes), labels, draws)
        return (
            self.d.gradients(tape, d_loss),
            self.g.gradients(tape, g_loss),
            (d_loss, _judged_real(logits)),
            self.g_sums(g_loss, logits[1]),
        )

    def generate(self, labels: tf.Tensor | None, draws: Draws) -> tf.Tensor:
        """Returns fakes, [N, H, W, C] float32 in the image range."""
        latents = randomness.latents(self.config, draws)
        inputs = [latents, labels] if self.config.conditional else latents
        return self.g(inputs)

    def discriminate(self, images: tf.Tensor, labels: tf.Tensor | None, draws: Draws) -> tf.Tensor:
        """Returns the discriminator's logits of augmented images, [N] float32."""
        strength = adaptation.strength(self.config, self.adaptive, draws.images)
        images = augment(self.config, images, draws, strength)
        if self.config.d_input_noise:
            parts = images.shape[0] // draws.rows
            noise = draws.normal("input_noise", tuple(images.shape[1:]), parts)
            images += current(self.config.d_input_noise, draws.images) * noise
        inputs = [images, labels] if self.config.conditional else images
        with randomness.use(draws):
            return self.d(inputs)

    def g_loss(self, fake_logits: tf.Tensor) -> tf.Tensor:
        """Returns the generator's loss, a scalar."""
        return self._mean(OBJECTIVES[self.config.loss].g_fake(fake_logits))

    def g_sums(self, loss: tf.Tensor, fake_logits: tf.Tensor) -> Sums:
        """Returns the generator's loss and the number of fakes judged real, two scalars."""
        return loss, _judged_real(fake_logits)

    def to_reals(self, images: tf.Tensor, draws: Draws) -> tf.Tensor:
        """Converts uint8 to float32 in the image range; flips images where configured."""
        reals = tf.cast(images, tf.float32)
        reals = reals / 127.5 - 1.0 if self.config.image_range == "tanh" else reals / 255.0
        if self.config.horizontal_flip:
            mirrored = draws.uniform("mirror", (1, 1, 1)) < 0.5
            reals = tf.where(mirrored, tf.reverse(reals, [2]), reals)
        return reals

    def _g_gradients_on(
        self, labels: tf.Tensor | None, draws: Draws, d_draws: Draws
    ) -> tuple[Gradients, Sums]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            self.g.watch(tape)
            logits = self.discriminate(self.generate(labels, draws), labels, d_draws)
            loss = self.g_loss(logits)
        return self.g.gradients(tape, loss), self.g_sums(loss, logits)

    def _d_gradients_on(
        self, images: tf.Tensor, labels: tf.Tensor, loss_of: Loss, draws: Draws
    ) -> tuple[Gradients, tf.Tensor, tf.Tensor]:
        """Returns the gradients, the loss and the logits of the discriminator on images."""
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            self.d.watch(tape)
            logits = self.discriminate(images, labels, draws)
            loss = self._mean(loss_of(logits))
        return self.d.gradients(tape, loss), loss, logits

    def _discriminate_both(
        self, reals: tf.Tensor, fakes: tf.Tensor, labels: tf.Tensor, draws: Draws
    ) -> tf.Tensor:
        """Returns the logits of reals and fakes [2, N], discriminated as one batch or as two."""
        if self.config.updates.batches == "joint":
            both = tf.concat([reals, fakes], 0), tf.concat([labels, labels], 0)
            return tf.reshape(self.discriminate(*both, draws), [2, -1])
        return tf.stack(
            [
                self.discriminate(reals, labels, draws.within("reals")),
                self.discriminate(fakes, labels, draws.within("fakes")),
            ]
        )

    def _d_losses(self, draws: Draws) -> tuple[Loss, Loss]:
        """Returns the losses on reals and on fakes, with smoothed and flipped labels."""
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

    def _d_loss(self, logits: tf.Tensor, draws: Draws) -> tf.Tensor:
        """Returns the mean over one joint batch, or the sum of the means over two batches."""
        on_reals, on_fakes = self._d_losses(draws)
        real_logits, fake_logits = tf.unstack(logits)
        share = 0.5 if self.config.updates.batches == "joint" else 1.0
        return self._mean(on_reals(real_logits) + on_fakes(fake_logits), share)

    def _penalty(
        self, reals: tf.Tensor, fakes: tf.Tensor, labels: tf.Tensor, draws: Draws
    ) -> tf.Tensor | float:
        """Returns the gradient penalty at points between reals and fakes, 0 if disabled."""
        if not self.config.gradient_penalty:
            return 0.0
        between = draws.uniform("between", (1, 1, 1))
        images = between * reals + (1.0 - between) * fakes
        half = self.d.compute_dtype != "float32"
        scale = PENALTY_SCALE if half else 1.0
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(images)
            total = scale * tf.reduce_sum(
                self.discriminate(images, labels, draws.within("between"))
            )
        gradients = tape.gradient(total, images) / scale
        weight = current(self.config.gradient_penalty, draws.images)
        return weight * self._mean(gradient_penalty(gradients))

    def _mean(self, values: tf.Tensor, weight: float = 1.0) -> tf.Tensor:
        """Returns these rows' share of the weighted mean over the global batch, a scalar."""
        return tf.reduce_sum(values) * (weight / self.config.batch_size)


def _judged_real(logits: tf.Tensor) -> tf.Tensor:
    """Returns the number of logits [..., N] that mean real, [...] float32."""
    return tf.reduce_sum(share_real(logits), -1)
