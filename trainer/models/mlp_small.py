"""Networks of `mlp-small`."""

import keras

from trainer.config import Config
from trainer.config.dataset import ImageShape
from trainer.models import layers, scaled
from trainer.models.mlp import dense_discriminator, to_image


def generator(config: Config, shape: ImageShape) -> keras.Model:
    """Builds dense layers of 256, 512 and 1024 units; the norm follows the activation."""
    inputs, x, onehot = layers.generator_inputs(config, shape)
    for count in (256, 512, 1024):
        x = layers.g_dense(x, config, scaled(count, config.g_width))
        x = layers.g_norm(keras.layers.LeakyReLU(0.2)(x), config, onehot)
    return keras.Model(inputs, to_image(x, config, shape), name="generator")


def discriminator(config: Config, shape: ImageShape) -> keras.Model:
    """Builds dense layers of 512 and 256 units."""
    return dense_discriminator(config, shape, (512, 256))
