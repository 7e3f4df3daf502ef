"""Convolutional GAN with K discriminator steps on the same reals."""

from __future__ import annotations

from trainer.config import Config
from trainer.config.dataset import ImageShape
from trainer.models.lazy import keras, layers
from trainer.recipes.recipe import Recipe

RECIPE = Recipe(
    source="a GAN on Fashion-MNIST with K discriminator steps per generator step, after "
    "Goodfellow et al., arXiv:1406.2661, algorithm 1",
    architecture="3x3 transposed convolutions without normalisation in the generator; 3x3 "
    "convolutions, a dense layer and dropout in the discriminator.",
    updates="K discriminator updates per step (--d_steps) on the same reals with new fakes, "
    "each on a joint batch, then one generator update.",
    differences=(
        "Dropout is active in training; the source called the discriminator in "
        "inference mode, so that its dropout never acted.",
    ),
    networks=dict(latent_dim=150, image_range="sigmoid", g_norm="none", d_activation="relu"),
    loop=dict(
        split="all",
        batch_size=64,
        length="30 epochs",
        update_rule="joint",
        d_steps=1,
        repeat_reals=True,
        beta1=0.5,
        g_lr=1e-5,
        d_lr=3e-5,
        sample_every="2 epochs",
        sample_grid=9,
    ),
)


def generator(config: Config, shape: ImageShape) -> keras.Model:
    """Builds 3x3 transposed convolutions that start from a quarter of the image size.

    The published network has no norm.
    """
    height, width = shape.height // 4, shape.width // 4
    filters = layers.scaled(256, config.g_width)
    inputs, x, onehot = layers.generator_inputs(config, shape)
    x = layers.g_dense(x, config, height * width * filters)
    x = keras.layers.Reshape([height, width, filters])(x)
    for count in (filters, layers.scaled(128, config.g_width)):
        x = layers.g_norm(layers.conv_transpose(x, config, count, 3, 2), config, onehot)
        x = keras.layers.LeakyReLU(0.3)(x)
    x = layers.conv_transpose(x, config, shape.channels, 3, 1)
    return keras.Model(inputs, layers.image_output(x, config), name="generator")


def discriminator(config: Config, shape: ImageShape) -> keras.Model:
    """Builds two 3x3 convolutions of stride 2, a dense layer and dropout."""
    inputs, x, onehot = layers.discriminator_inputs(config, shape)
    for count in (256, 128):
        first = count == 256
        x = layers.conv(x, config, layers.scaled(count, config.d_width), 3, 2, first=first)
        x = layers.d_norm_activation(x, config, first=first)
    x = keras.layers.Flatten()(x)
    x = layers.dense(x, config, layers.scaled(64, config.d_width))
    x = layers.d_norm_activation(x, config)
    x = layers.Dropout(0.2, name="dropout")(x)
    return keras.Model(inputs, layers.logit(x, config, onehot), name="discriminator")
