"""Networks of `dcgan-kstep`."""

import keras

from trainer.config import Config
from trainer.config.dataset import ImageShape
from trainer.models import layers, scaled


def generator(config: Config, shape: ImageShape) -> keras.Model:
    """Builds 3x3 transposed convolutions that start from a quarter of the image size.

    The published network has no norm.
    """
    side, filters = shape.size // 4, scaled(256, config.g_width)
    inputs, x, onehot = layers.generator_inputs(config, shape)
    x = layers.g_dense(x, config, side * side * filters)
    x = keras.layers.Reshape([side, side, filters])(x)
    for count in (filters, scaled(128, config.g_width)):
        x = layers.g_norm(layers.conv_transpose(x, config, count, 3, 2), config, onehot)
        x = keras.layers.LeakyReLU(0.3)(x)
    x = layers.conv_transpose(x, config, shape.channels, 3, 1)
    return keras.Model(inputs, layers.image_output(x, config), name="generator")


def discriminator(config: Config, shape: ImageShape) -> keras.Model:
    """Builds two 3x3 convolutions of stride 2, a dense layer and dropout."""
    inputs, x, onehot = layers.discriminator_inputs(config, shape)
    for count in (256, 128):
        first = count == 256
        x = layers.conv(x, config, scaled(count, config.d_width), 3, 2, first=first)
        x = layers.d_norm_activation(x, config, first=first)
    x = keras.layers.Flatten()(x)
    x = layers.dense(x, config, scaled(64, config.d_width))
    x = layers.d_norm_activation(x, config)
    x = layers.Dropout(0.2, name="dropout")(x)
    return keras.Model(inputs, layers.logit(x, config, onehot), name="discriminator")
