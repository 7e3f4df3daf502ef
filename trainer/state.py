"""All that changes while a run trains: networks, average, optimizers, images seen."""

import dataclasses

import keras
import tensorflow as tf

from trainer import models, optimizers
from trainer.config import Config
from trainer.data.images import ImageShape


@dataclasses.dataclass(frozen=True, eq=False)
class TrainState:
    """The variables of a run.

    Attributes:
      generator, discriminator: the networks that train.
      average: the generator with averaged weights and batch-norm statistics, or None.
      g_optimizer, d_optimizer: with their slots made.
      images: images seen, int64; a step adds the batch size.
    """

    generator: keras.Model
    discriminator: keras.Model
    average: keras.Model | None
    g_optimizer: keras.optimizers.Optimizer
    d_optimizer: keras.optimizers.Optimizer
    images: tf.Variable

    @property
    def drawing(self) -> keras.Model:
        """The generator that samples are drawn from."""
        return self.average or self.generator

    def networks(self) -> dict[str, keras.Model]:
        """The networks by the names that checkpoints give them."""
        named = dict(generator=self.generator, discriminator=self.discriminator)
        return named if self.average is None else {**named, "average": self.average}

    def trackables(self) -> dict[str, object]:
        """Everything that a checkpoint holds, by name."""
        return dict(
            **self.networks(),
            g_optimizer=self.g_optimizer,
            d_optimizer=self.d_optimizer,
            images=self.images,
        )


def create(config: Config, shape: ImageShape) -> TrainState:
    """Makes the variables of a run; call it inside the runtime's scope."""
    generator, discriminator = models.build(config, shape)
    images = tf.Variable(
        0,
        dtype=tf.int64,
        trainable=False,
        aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        name="images",
    )
    rates = [
        optimizers.inverse_time(config.g_lr, config.g_lr_decay_per_kimg, images),
        optimizers.inverse_time(config.d_lr, config.d_lr_decay_per_kimg, images),
    ]
    g_optimizer, d_optimizer = (optimizers.make(config, rate) for rate in rates)
    g_optimizer.build(generator.trainable_variables)
    d_optimizer.build(discriminator.trainable_variables)
    average = None
    if config.ema_half_life_kimg:
        average = keras.models.clone_model(generator)
        average.trainable = False
        copy_weights(generator, average)
    return TrainState(generator, discriminator, average, g_optimizer, d_optimizer, images)


def copy_weights(source: keras.Model, target: keras.Model) -> None:
    """Copies all variables of a network to another of the same form."""
    for old, new in zip(source.variables, target.variables, strict=True):
        new.assign(old)
