"""Conditional GAN: the class label as the condition, multiplied in."""

from __future__ import annotations

from trainer.config import Config
from trainer.config.dataset import ImageShape
from trainer.models.lazy import keras, layers
from trainer.recipes.recipe import Recipe

RECIPE = Recipe(
    source="Mirza and Osindero, arXiv:1411.1784, with label embeddings multiplied into "
    "the latents and the image",
    architecture="3x3 transposed convolutions and convolutions; label embeddings are multiplied "
    "into the latent vector and into the image.",
    updates="Two discriminator updates per step, one on reals and one on fakes with the same "
    "labels, then one generator update with new labels.",
    differences=(
        "The source has networks only: the training loop and its settings are this project's.",
        "Label embeddings are initialised around 1; around 0, Keras's default, the "
        "latent vector falls below the epsilon of the first batch norm.",
        "It obeys labels far less than `dcgan` in equal time; prefer `dcgan` if the "
        "class of an image matters.",
    ),
    networks=dict(
        latent_dim=100,
        g_conditioning="multiply",
        d_conditioning="multiply",
        d_norm="batch",
        d_slope=0.01,
    ),
    loop=dict(
        conditional=True,
        batch_size=128,
        length="50 epochs",
        update_rule="sequential",
        beta1=0.5,
        g_lr=2e-4,
        d_lr=2e-4,
    ),
)


def generator(config: Config, shape: ImageShape) -> keras.Model:
    """Builds 3x3 transposed convolutions that start from a quarter of the image size."""
    height, width = shape.height // 4, shape.width // 4
    inputs, x, onehot = layers.generator_inputs(config, shape)
    filters = layers.scaled(256, config.g_width)
    x = layers.g_dense(x, config, height * width * filters)
    x = keras.layers.Reshape([height, width, filters])(x)
    for count, stride in (
        (layers.scaled(128, config.g_width), 2),
        (layers.scaled(64, config.g_width), 1),
    ):
        x = layers.conv_transpose(x, config, count, 3, stride)
        x = keras.layers.LeakyReLU(0.01)(layers.g_norm(x, config, onehot))
    x = layers.conv_transpose(x, config, shape.channels, 3, 2)
    return keras.Model(inputs, layers.image_output(x, config), name="generator")


def discriminator(config: Config, shape: ImageShape) -> keras.Model:
    """Builds three 3x3 convolutions of stride 2, with a norm after all but the first."""
    inputs, x, onehot = layers.discriminator_inputs(config, shape)
    for count in (32, 64, 128):
        first = count == 32
        x = layers.conv(x, config, layers.scaled(count, config.d_width), 3, 2, first=first)
        x = layers.d_norm_activation(x, config, first=first)
    x = keras.layers.Flatten()(x)
    return keras.Model(inputs, layers.logit(x, config, onehot), name="discriminator")
