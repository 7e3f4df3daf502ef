"""The DCGAN of the StudioGAN benchmark on CIFAR-10."""

from __future__ import annotations

from trainer.config import Config
from trainer.config.dataset import ImageShape
from trainer.models.lazy import keras, layers
from trainer.recipes.recipe import Recipe

RECIPE = Recipe(
    source="Kang et al., StudioGAN, arXiv:2206.09479; after Radford et al., arXiv:1511.06434",
    architecture="4x4 transposed convolutions from an eighth of the image size, 4x4x512 at 32 "
    "pixels; pairs of 3x3 and strided 4x4 convolutions with batch norm in the discriminator.",
    updates="Two discriminator updates per step, each on its own reals, then one generator "
    "update; cross-entropy.",
    differences=("None is known, apart from rounding.",),
    networks=dict(
        latent_dim=128,
        image_size=32,
        initializer="orthogonal",
        d_norm="batch",
        d_activation="relu",
        bn_momentum=0.9,  # PyTorch's default, which it writes as 0.1
    ),
    side_multiple=8,
    loop=dict(
        horizontal_flip=True,
        batch_size=64,
        length="200000 steps",
        update_rule="separate",
        d_steps=2,
        beta1=0.5,
    ),
)


def generator(config: Config, shape: ImageShape) -> keras.Model:
    """Builds three 4x4 transposed convolutions, from an eighth of the size, and a 3x3 one."""
    filters = [layers.scaled(count, config.g_width) for count in (512, 256, 128, 64)]
    inputs, x, onehot = layers.generator_inputs(config, shape)
    height, width = shape.height // 8, shape.width // 8
    x = layers.g_dense(x, config, height * width * filters[0])
    x = keras.layers.Reshape([height, width, filters[0]])(x)
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
        x = layers.conv(x, config, layers.scaled(count, config.d_width), size, stride, first=first)
        x = layers.d_norm_activation(
            x, config
        )  # the published network also has it on the first layer
    x = keras.ops.sum(x, axis=(1, 2))
    return keras.Model(inputs, layers.logit(x, config, onehot), name="discriminator")
