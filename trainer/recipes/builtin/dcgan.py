"""DCGAN with spectral norm, hinge loss and an EMA of the weights: the default."""

from __future__ import annotations

from trainer.config import Config
from trainer.config.dataset import ImageShape
from trainer.models.lazy import keras, layers
from trainer.recipes.recipe import Recipe

RECIPE = Recipe(
    source="Radford et al., arXiv:1511.06434; spectral norm and hinge: Miyato et al., "
    "arXiv:1802.05957; projection: Miyato and Koyama, arXiv:1802.05637",
    architecture="Resizing and convolutions up to the image size and strided convolutions down "
    "from it, sized to 28 to 128 pixels; batch norm in the generator, spectral norm in the "
    "discriminator.",
    updates="One discriminator update per step on a joint batch, hinge loss; the generator is "
    "updated with the same fakes.",
    differences=(
        "This project's default: the DCGAN guidelines with spectral norm, hinge loss, "
        "projection and EMA, sized for a workstation.",
        "The generator resizes and convolves, because the transposed convolutions of the source "
        "leave a checkerboard. --g_upsampling=transposed restores them.",
    ),
    networks=dict(
        latent_dim=100,
        g_conditioning="batchnorm",
        g_upsampling="resize",
        d_conditioning="projection",
        d_weights="spectral",
        initializer="normal",
    ),
    loop=dict(
        conditional=True,
        batch_size=64,
        length="150 kimg",
        loss="hinge",
        update_rule="joint-reuse",
        beta1=0.5,
        ema_half_life_kimg=10.0,
    ),
    side_multiple=0,
)


def generator(config: Config, shape: ImageShape) -> keras.Model:
    """Builds 4x4 transposed convolutions of stride 2, or their form without a checkerboard."""
    ups = layers.halvings(shape)
    height, width = shape.height >> ups, shape.width >> ups
    # 64 filters at half the image size, doubled at each smaller size up to 512.
    filters = [layers.scaled(min(512, 32 << k), config.g_width) for k in range(ups, 0, -1)]
    inputs, x, onehot = layers.generator_inputs(config, shape)
    x = layers.g_dense(x, config, height * width * filters[0], use_bias=False)
    x = keras.layers.Reshape([height, width, filters[0]])(x)
    x = keras.layers.ReLU()(layers.g_norm(x, config, onehot))
    for count in filters[1:]:
        x = layers.conv_transpose(x, config, count, 4, 2, use_bias=False)
        x = keras.layers.ReLU()(layers.g_norm(x, config, onehot))
    x = layers.conv_transpose(x, config, shape.channels, 4, 2)
    return keras.Model(inputs, layers.image_output(x, config), name="generator")


def discriminator(config: Config, shape: ImageShape) -> keras.Model:
    """Builds 4x4 convolutions of stride 2 until the shorter side is at most 4 pixels."""
    inputs, x, onehot = layers.discriminator_inputs(config, shape)
    count, side = 32, min(shape.sides)
    while side > 4:
        first = count == 32
        x = layers.conv(x, config, layers.scaled(count, config.d_width), 4, 2, first=first)
        x = layers.d_norm_activation(x, config, first=first)
        count, side = 2 * count, -(-side // 2)
    x = keras.layers.Flatten()(x)
    return keras.Model(inputs, layers.logit(x, config, onehot), name="discriminator")
