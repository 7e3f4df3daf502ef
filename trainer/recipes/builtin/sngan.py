"""Residual networks with spectral norm and hinge loss."""

from __future__ import annotations

from trainer.config import Config
from trainer.config.dataset import ImageShape
from trainer.models.lazy import keras, layers, residual
from trainer.recipes.recipe import Recipe

RECIPE = Recipe(
    source="Miyato et al., arXiv:1802.05957; with labels: Miyato and Koyama, arXiv:1802.05637",
    architecture="Residual blocks up to the image size and down from it; batch norm in the "
    "generator, for each class where there are labels, and spectral norm and a sum over pixels "
    "in the discriminator. --g_width=0.25 --d_width=0.25 makes small ones for a GPU; "
    "docs/objectives.md has a command for a CPU.",
    updates="Five discriminator updates per step, each on its own reals, then one generator "
    "update; hinge loss, learning rates that decrease linearly to 0.",
    differences=(
        "Shortcuts of the discriminator take the features before their activation, as in the "
        "paper; the PyTorch version with the published figures activates them.",
        "The singular values of spectral norm are updated once per update of the discriminator, "
        "not in each of its forward passes.",
        "Moving variances are biased, and Adam's epsilon is 1e-7.",
        "Images of at most 32 pixels have the networks of the paper for CIFAR-10, with fewer "
        "generator blocks if they are smaller. Sides that are not published follow the rule of "
        "those that are: 48, 64 and 128 pixels.",
    ),
    networks=dict(
        latent_dim=128,
        g_conditioning="batchnorm_alone",
        d_conditioning="projection",
        d_weights="spectral",
        d_activation="relu",
        bn_momentum=0.9,  # PyTorch's default, which it writes as 0.1
    ),
    loop=dict(
        batch_size=64,
        length="100000 steps",
        loss="hinge",
        update_rule="separate",
        d_steps=5,
        beta1=0.0,
        beta2=0.9,
        g_lr="linear 2e-4 0 over 100%",
        d_lr="linear 2e-4 0 over 100%",
    ),
    side_multiple=0,
)

SMALL = 32  # largest side with the networks for CIFAR-10
MOST = 1024  # largest number of filters beyond it


def generator(config: Config, shape: ImageShape) -> keras.Model:
    """Builds residual blocks that double the side up to the image size."""
    ups = layers.halvings(shape)
    height, width = shape.height >> ups, shape.width >> ups
    # 64 filters at the image size, doubled at each smaller size.
    filters = [256] * (ups + 1)
    if min(shape.sides) > SMALL:
        filters = [min(MOST, 64 << k) for k in range(ups, -1, -1)]
    filters = [layers.scaled(count, config.g_width) for count in filters]
    inputs, x, onehot = layers.generator_inputs(config, shape)
    x = layers.g_dense(x, config, height * width * filters[0], name="from_latents")
    x = keras.layers.Reshape([height, width, filters[0]])(x)
    for k, count in enumerate(filters[1:]):
        x = residual.up_block(x, config, onehot, count, f"block{k}")
    x = residual.norm_relu(x, config, None, "norm")
    x = layers.g_conv(x, config, shape.channels, 3, name="to_image")
    return keras.Model(inputs, layers.image_output(x, config), name="generator")


def discriminator(config: Config, shape: ImageShape) -> keras.Model:
    """Builds residual blocks of which the first ones halve the side, and a sum over pixels."""
    inputs, x, onehot = layers.discriminator_inputs(config, shape)
    for k, (count, halve) in enumerate(down_blocks(min(shape.sides))):
        count = layers.scaled(count, config.d_width)
        x = residual.down_block(x, config, count, f"block{k}", halve=halve, first=k == 0)
    x = layers.d_norm_activation(x, config)
    x = keras.ops.sum(keras.ops.cast(x, "float32"), axis=(1, 2))
    return keras.Model(inputs, layers.logit(x, config, onehot), name="discriminator")


def down_blocks(size: int) -> list[tuple[int, bool]]:
    """Returns the filters of the discriminator's blocks, and whether each halves the side.

    Args:
      size: shorter side of the images in pixels.
    """
    if size <= SMALL:
        return [(128, True), (128, True), (128, False), (128, False)]
    side = size
    blocks: list[tuple[int, bool]] = []
    while side % 2 == 0 and side > 4:
        blocks.append((min(MOST, 64 << len(blocks)), True))
        side //= 2
    # As published, the last block keeps the side, but not at 64 pixels.
    return [*blocks, (min(MOST, 64 << len(blocks)), size == 64)]
