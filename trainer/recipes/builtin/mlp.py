"""Multi-layer perceptrons, both networks updated together."""

from __future__ import annotations

from trainer.config import Config
from trainer.config.dataset import ImageShape
from trainer.models.lazy import keras, layers
from trainer.recipes.recipe import Recipe

RECIPE = Recipe(
    source="Lornatang, Generative-Adversarial-Networks (TensorFlow 2.0)",
    architecture="Fully connected layers of 256, 512 and 1024 units in the generator, 1024, 512 "
    "and 256 in the discriminator.",
    updates="Both networks are updated together, from the same weights and the same fakes.",
    differences=("Each step draws new latent vectors; the source trained on 16 fixed ones.",),
    fully_connected=True,
    networks=dict(latent_dim=100),
    loop=dict(
        batch_size=128,
        length="50 epochs",
        update_rule="separate-simultaneous",
        g_lr=1e-4,
        d_lr=1e-4,
        sample_every="1 epochs",
        sample_grid=4,
    ),
    by_dataset=dict(cifar10=dict(batch_size=64)),
    side_multiple=1,
)


def generator(config: Config, shape: ImageShape) -> keras.Model:
    """Builds dense layers of 256, 512 and 1024 units; the norm precedes the activation.

    The first layer has no norm.
    """
    inputs, x, onehot = layers.generator_inputs(config, shape)
    for count in (256, 512, 1024):
        x = layers.g_dense(x, config, layers.scaled(count, config.g_width))
        x = x if count == 256 else layers.g_norm(x, config, onehot)
        x = keras.layers.LeakyReLU(0.2)(x)
    return keras.Model(inputs, to_image(x, config, shape), name="generator")


def discriminator(config: Config, shape: ImageShape) -> keras.Model:
    """Builds dense layers of 1024, 512 and 256 units."""
    return dense_discriminator(config, shape, (1024, 512, 256))


def to_image(x: keras.KerasTensor, config: Config, shape: ImageShape) -> keras.KerasTensor:
    """Maps features [N, F] to images [N, H, W, C] in the image range."""
    x = layers.g_dense(x, config, shape.height * shape.width * shape.channels)
    x = keras.layers.Reshape([*shape.sides, shape.channels])(x)
    return layers.image_output(x, config)


def dense_discriminator(config: Config, shape: ImageShape, units: tuple[int, ...]) -> keras.Model:
    """Builds fully connected layers on the flattened image."""
    inputs, x, onehot = layers.discriminator_inputs(config, shape)
    x = keras.layers.Flatten()(x)
    for count in units:
        first = count == units[0]
        x = layers.dense(x, config, layers.scaled(count, config.d_width), first=first)
        x = layers.d_norm_activation(x, config, first=first)
    return keras.Model(inputs, layers.logit(x, config, onehot), name="discriminator")
