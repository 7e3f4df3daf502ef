"""Networks of `dcgan-sigmoid`."""

import keras

from trainer.config import Config
from trainer.config.dataset import ImageShape
from trainer.models import layers, scaled


def generator(config: Config, shape: ImageShape) -> keras.Model:
    """Builds 5x5 transposed convolutions, each after a norm, from a quarter of the size."""
    side, width = shape.size // 4, config.g_width
    inputs, x, onehot = layers.generator_inputs(config, shape)
    filters = [scaled(128, width), scaled(64, width), scaled(32, width), shape.channels]
    x = layers.g_dense(x, config, side * side * filters[0])
    x = keras.layers.Reshape([side, side, filters[0]])(x)
    for count, stride in zip(filters, (2, 2, 1, 1), strict=True):
        x = keras.layers.ReLU()(layers.g_norm(x, config, onehot))
        x = layers.conv_transpose(x, config, count, 5, stride)
    return keras.Model(inputs, layers.image_output(x, config), name="generator")


def discriminator(config: Config, shape: ImageShape) -> keras.Model:
    """Builds 5x5 convolutions, each after a LeakyReLU; the first LeakyReLU acts on the image."""
    inputs, x, onehot = layers.discriminator_inputs(config, shape)
    for count, stride in zip((32, 64, 128, 256), (2, 2, 2, 1), strict=True):
        first = count == 32
        x = layers.d_norm_activation(x, config, first=first)
        x = layers.conv(x, config, scaled(count, config.d_width), 5, stride, first=first)
    x = keras.layers.Flatten()(x)
    return keras.Model(inputs, layers.logit(x, config, onehot), name="discriminator")
