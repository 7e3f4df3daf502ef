"""Multi-layer perceptrons, the discriminator updated on reals, then on fakes."""

from __future__ import annotations

from trainer.config import Config
from trainer.config.dataset import ImageShape
from trainer.models.lazy import keras, layers
from trainer.recipes.builtin.mlp import dense_discriminator, to_image
from trainer.recipes.recipe import Recipe

RECIPE = Recipe(
    source="E. Linder-Norén, Keras-GAN, gan.py",
    architecture="Fully connected layers of 256, 512 and 1024 units in the generator, 512 and 256 "
    "in the discriminator.",
    updates="Two discriminator updates per step, one on reals and one on fakes, then one "
    "generator update.",
    differences=(
        "The settings are those of a tutorial that simplifies Keras-GAN, whose own "
        "are Adam 2e-4 with beta1 0.5, batch 32 and 30,000 steps.",
        "The discriminator's fakes are drawn with batch norm in training mode, the "
        "usual practice; the source drew them in inference mode.",
    ),
    fully_connected=True,
    networks=dict(latent_dim=100, bn_momentum=0.8),
    loop=dict(
        batch_size=16,
        length="10000 steps",
        update_rule="sequential",
        d_lr=1e-3,
        g_lr=1e-3,
        sample_every="200 steps",
        sample_grid=5,
        log_every_steps=1,
    ),
    side_multiple=1,
)


def generator(config: Config, shape: ImageShape) -> keras.Model:
    """Builds dense layers of 256, 512 and 1024 units; the norm follows the activation."""
    inputs, x, onehot = layers.generator_inputs(config, shape)
    for count in (256, 512, 1024):
        x = layers.g_dense(x, config, layers.scaled(count, config.g_width))
        x = layers.g_norm(keras.layers.LeakyReLU(0.2)(x), config, onehot)
    return keras.Model(inputs, to_image(x, config, shape), name="generator")


def discriminator(config: Config, shape: ImageShape) -> keras.Model:
    """Builds dense layers of 512 and 256 units."""
    return dense_discriminator(config, shape, (512, 256))
