"""Networks of `cgan`."""

import keras

from trainer.config import Config
from trainer.config.dataset import ImageShape
from trainer.models import layers, scaled


def generator(config: Config, shape: ImageShape) -> keras.Model:
    """Builds 3x3 transposed convolutions that start from a quarter of the image size."""
    side, width = shape.size // 4, config.g_width
    inputs, x, onehot = layers.generator_inputs(config, shape)
    filters = scaled(256, width)
    x = layers.g_dense(x, config, side * side * filters)
    x = keras.layers.Reshape([side, side, filters])(x)
    for count, stride in ((scaled(128, width), 2), (scaled(64, width), 1)):
        x = layers.conv_transpose(x, config, count, 3, stride)
        x = keras.layers.LeakyReLU(0.01)(layers.g_norm(x, config, onehot))
    x = layers.conv_transpose(x, config, shape.channels, 3, 2)
    return keras.Model(inputs, layers.image_output(x, config), name="generator")


def discriminator(config: Config, shape: ImageShape) -> keras.Model:
    """Builds three 3x3 convolutions of stride 2, with a norm after all but the first."""
    inputs, x, onehot = layers.discriminator_inputs(config, shape)
    for count in (32, 64, 128):
        first = count == 32
        x = layers.conv(x, config, scaled(count, config.d_width), 3, 2, first=first)
        x = layers.d_norm_activation(x, config, first=first)
    x = keras.layers.Flatten()(x)
    return keras.Model(inputs, layers.logit(x, config, onehot), name="discriminator")
