"""DCGAN with a sigmoid output, RMSprop and joint batches."""

from __future__ import annotations

from trainer.config import Config
from trainer.config.dataset import ImageShape
from trainer.models.lazy import keras, layers
from trainer.recipes.recipe import Recipe

RECIPE = Recipe(
    source="R. Atienza, Advanced Deep Learning with TensorFlow 2 and Keras, 2nd ed. (2020), "
    "after Radford et al., arXiv:1511.06434",
    architecture="5x5 convolutions; the generator ends in a sigmoid, and the discriminator "
    "activates its input before each convolution.",
    updates="One discriminator update per step on a joint batch of reals and fakes, then one "
    "generator update on new fakes; RMSprop.",
    differences=(
        "The discriminator's fakes are drawn with batch norm in training mode, the "
        "usual practice; the source drew them in inference mode.",
        "The sigmoid of the discriminator and its cross-entropy are computed together "
        "from logits, which is numerically stable.",
        "Keras 3 adds RMSprop's epsilon inside the square root; "
        "--rmsprop_epsilon=1e-14 gives the update the same floor as 1e-7 outside of "
        "it in the source.",
    ),
    networks=dict(latent_dim=100, latent_distribution="uniform", image_range="sigmoid"),
    loop=dict(
        batch_size=64,
        length="40000 steps",
        update_rule="joint",
        optimizer="rmsprop",
        beta2=0.9,
        # The source adds 1e-7 to the root; Keras 3 adds inside it, where 1e-14 is the same floor.
        rmsprop_epsilon=1e-14,
        # The decays are 6e-8 and 3e-8 per step of 64 images.
        d_lr="inverse_time 2e-4 9.375e-7 per kimg",
        g_lr="inverse_time 1e-4 4.6875e-7 per kimg",
        sample_every="500 steps",
        sample_grid=4,
        log_every_steps=1,
    ),
)


def generator(config: Config, shape: ImageShape) -> keras.Model:
    """Builds 5x5 transposed convolutions, each after a norm, from a quarter of the size."""
    height, width = shape.height // 4, shape.width // 4
    inputs, x, onehot = layers.generator_inputs(config, shape)
    filters = [
        layers.scaled(128, config.g_width),
        layers.scaled(64, config.g_width),
        layers.scaled(32, config.g_width),
        shape.channels,
    ]
    x = layers.g_dense(x, config, height * width * filters[0])
    x = keras.layers.Reshape([height, width, filters[0]])(x)
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
        x = layers.conv(x, config, layers.scaled(count, config.d_width), 5, stride, first=first)
    x = keras.layers.Flatten()(x)
    return keras.Model(inputs, layers.logit(x, config, onehot), name="discriminator")
