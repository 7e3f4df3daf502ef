"""The forward passes of a micro-batch: images and what the discriminator says of them."""

import dataclasses
from typing import NamedTuple

import tensorflow as tf

from trainer.config import Config
from trainer.models import randomness
from trainer.models.augmentation import augment
from trainer.models.randomness import Draws
from trainer.models.schedules import current
from trainer.training import adaptation
from trainer.training.adaptation import AdaptiveStrength
from trainer.training.updates import TracedNetwork


class Logits(NamedTuple):
    """The logits of reals and of fakes.

    Attributes:
      reals, fakes: [N] float32, from which losses are computed: the gradient of `both` would make
        the backward pass of the reals wait for the fakes.
      both: [2, N] float32, from which verdicts and penalties are computed.
    """

    reals: tf.Tensor
    fakes: tf.Tensor
    both: tf.Tensor


@dataclasses.dataclass(frozen=True, eq=False)
class Forward:
    """The forward passes on the rows that a replica processes at once.

    Attributes:
      config: the configuration of the run.
      g, d: the generator and the discriminator.
      adaptive: the adaptive strength of the augmentation, or None.
    """

    config: Config
    g: TracedNetwork
    d: TracedNetwork
    adaptive: AdaptiveStrength | None

    def to_reals(self, images: tf.Tensor, draws: Draws) -> tf.Tensor:
        """Converts uint8 to float32 in the image range; flips images where configured."""
        reals = tf.cast(images, tf.float32)
        reals = reals / 127.5 - 1.0 if self.config.image_range == "tanh" else reals / 255.0
        if self.config.horizontal_flip:
            mirrored = draws.uniform("mirror", (1, 1, 1)) < 0.5
            reals = tf.where(mirrored, tf.reverse(reals, [2]), reals)
        return reals

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

    def discriminate_both(
        self, reals: tf.Tensor, fakes: tf.Tensor, labels: tf.Tensor, draws: Draws
    ) -> Logits:
        """Returns the logits of reals and fakes, discriminated as one batch or as two."""
        if self.config.updates.batches == "joint":
            both = tf.concat([reals, fakes], 0), tf.concat([labels, labels], 0)
            logits = tf.reshape(self.discriminate(*both, draws), [2, -1])
            of_reals, of_fakes = tf.unstack(logits)
            return Logits(of_reals, of_fakes, logits)
        of_reals = self.discriminate(reals, labels, draws.within("reals"))
        of_fakes = self.discriminate(fakes, labels, draws.within("fakes"))
        return Logits(of_reals, of_fakes, tf.stack([of_reals, of_fakes]))
