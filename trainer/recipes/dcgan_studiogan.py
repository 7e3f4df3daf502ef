"""The DCGAN of the StudioGAN benchmark on CIFAR-10."""

from trainer.recipes.recipe import Recipe

RECIPE = Recipe(
    source="Kang et al., StudioGAN, arXiv:2206.09479; after Radford et al., arXiv:1511.06434",
    architecture="4x4 transposed convolutions from 4x4x512 to 32 pixels; pairs of 3x3 and strided "
    "4x4 convolutions with batch norm in the discriminator.",
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
    loop=dict(
        horizontal_flip=True,
        batch_size=64,
        length="200000 steps",
        d_update="separate",
        d_steps=2,
        beta1=0.5,
    ),
)
