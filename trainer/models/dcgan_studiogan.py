"""Networks of `dcgan-studiogan`."""

import keras

from trainer.config import Config
from trainer.config.dataset import ImageShape
from trainer.errors import UsageError
from trainer.models import layers, scaled


def generator(config: Config, shape: ImageShape) -> keras.Model:
    """Builds a 4x4 dense layer, three 4x4 transposed convolutions and a 3x3 convolution."""
    if shape.size != 32:
        raise UsageError(
            f"--image_size={shape.size}: the networks of dcgan-studiogan make 32 pixels only."
        )
    filters = [scaled(count, config.g_width) for count in (512, 256, 128, 64)]
    inputs, x, onehot = layers.generator_inputs(config, shape)
    x = layers.g_dense(x, config, 16 * filters[0])
    x = keras.layers.Reshape([4, 4, filters[0]])(x)
    for count in filters[1:]:
        x = layers.conv_transpose(x, config, count, 4, 2)
        x = keras.layers.ReLU()(layers.g_norm(x, config, onehot))
    x = layers.g_conv(x, config, shape.channels, 3)
    return keras.Model(inputs, layers.image_output(x, config), name="generator")


def discriminator(config: Config, shape: ImageShape) -> keras.Model:
    """Builds three pairs of 3x3 and strided 4x4 convolutions, one more, and a sum over pixels."""
    inputs, x, onehot = layers.discriminator_inputs(config, shape)
    pairs = [(count, *kind) for count in (64, 128, 256) for kind in ((3, 1), (4, 2))]
    for count, size, stride in [*pairs, (512, 3, 1)]:
        first = (count, size) == (64, 3)
        x = layers.conv(x, config, scaled(count, config.d_width), size, stride, first=first)
        x = layers.d_norm_activation(
            x, config
        )  # the published network also has it on the first layer
    x = keras.ops.sum(x, axis=(1, 2))
    return keras.Model(inputs, layers.logit(x, config, onehot), name="discriminator")
