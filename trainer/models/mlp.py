"""Networks of `mlp`, and what `mlp-small` shares with them."""

import keras

from trainer.config import Config
from trainer.data.images import ImageShape
from trainer.models import layers, scaled


def generator(config: Config, shape: ImageShape) -> keras.Model:
    """Dense 256, 512, 1024; Dense, BatchNorm, LeakyReLU; no norm behind the first."""
    inputs, x, onehot = layers.generator_inputs(config, shape)
    for count in (256, 512, 1024):
        x = g_dense(x, config, scaled(count, config.g_width))
        x = x if count == 256 else layers.batch_norm(x, config, onehot)
        x = keras.layers.LeakyReLU(0.2)(x)
    return keras.Model(inputs, to_image(x, config, shape), name="generator")


def discriminator(config: Config, shape: ImageShape) -> keras.Model:
    """Dense 1024, 512, 256."""
    return dense_discriminator(config, shape, (1024, 512, 256))


def g_dense(x: keras.KerasTensor, config: Config, units: int) -> keras.KerasTensor:
    """A fully connected layer of the generator."""
    return keras.layers.Dense(units, kernel_initializer=layers.initializer(config))(x)


def to_image(x: keras.KerasTensor, config: Config, shape: ImageShape) -> keras.KerasTensor:
    """A value for each pixel and channel, in the image range."""
    x = g_dense(x, config, shape.size**2 * shape.channels)
    x = keras.layers.Reshape([shape.size, shape.size, shape.channels])(x)
    return layers.image_output(x, config)


def dense_discriminator(config: Config, shape: ImageShape, units: tuple[int, ...]) -> keras.Model:
    """Fully connected layers with LeakyReLU on the flat image."""
    inputs, x, onehot = layers.discriminator_inputs(config, shape)
    x = keras.layers.Flatten()(x)
    for count in units:
        x = keras.layers.LeakyReLU(0.2)(layers.dense(x, config, scaled(count, config.d_width)))
    return keras.Model(inputs, layers.logit(x, config, onehot), name="discriminator")
