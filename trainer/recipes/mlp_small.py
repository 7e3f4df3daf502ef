"""Multi-layer perceptrons, the discriminator updated on reals, then on fakes."""

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
    networks=dict(latent_dim=100, bn_momentum=0.8),
    loop=dict(
        batch_size=16,
        length="10000 steps",
        d_update="sequential",
        d_lr=1e-3,
        g_lr=1e-3,
        sample_every="200 steps",
        sample_grid=5,
        log_every_steps=1,
    ),
)
